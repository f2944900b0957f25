"""What a compiled program says to the other chips, read off its text (HLO)."""

import itertools
import math
import re
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
BITS = {"pred": 8, "token": 0}  # all other types carry their bits in their names: bf16, f32, s4, f8e4m3fn, c64

FUNCTION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*-> .*\{$")
OPERATION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\(%?([\w.-]*)")
ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
CALLED = re.compile(r"(?:calls|to_apply|body|branch_computations)=\{?((?:%?[\w.-]+(?:, )?)+)\}?")
LOOP = re.compile(r" while\(.*condition=%?([\w.-]+)")
NUMBER = re.compile(r" = s32\[\]\S* constant\((\d+)\)")
CHANNEL = re.compile(r"channel_id=(\d+)")


class Traffic(NamedTuple):
    """Collectives of one kind in a step: how many are run, and the bytes of the whole arrays on each chip."""

    count: int
    bytes: int


def collectives(text: str) -> dict[str, Traffic]:
    """{kind: Traffic} of a compiled program's text, as one chip runs it; those inside a loop as often as it runs.

    Bytes: the larger of what goes in and what comes out on one chip. What travels over the wires depends on the
    algorithm, and is up to twice that of an all-reduce.
    """
    entry, functions = functions_of(text)
    # The compiler shows one collective several times where it overlaps it with other work; its channel is one.
    by_channel: dict[str, tuple[str, int, int]] = {}
    unnumbered = itertools.count()
    for name, times in runs(entry, functions).items():
        for kind, size, line in found_in(name, functions.get(name, ())):
            channel = CHANNEL.search(line)
            key = f"{kind} {channel[1]}" if channel else f"no channel {next(unnumbered)}"
            before = by_channel.get(key, (kind, 0, 0))
            by_channel[key] = kind, max(before[1], size), max(before[2], times)
    totals: dict[str, Traffic] = {}
    for kind, size, times in by_channel.values():
        before = totals.get(kind, Traffic(0, 0))
        totals[kind] = Traffic(before.count + times, before.bytes + times * size)
    return totals


def found_in(name: str, lines) -> list[tuple[str, int, str]]:
    """(kind, bytes, line) of the collectives of one function. Of an asynchronous pair the end counts."""
    shapes, found = {}, []
    for operation in filter(None, map(OPERATION.match, lines)):
        result, shape, verb, operand = operation.groups()
        shapes[result] = shape
        kind = verb.removesuffix("-done")
        if kind not in KINDS:
            continue
        # A TPU's reduce-scatter is an all-reduce fused with the choice of a part.
        kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else kind
        incoming = 0 if verb.endswith("-done") else array_bytes(shapes.get(operand, ""))
        found.append((kind, max(array_bytes(shape), incoming), operation.string))
    return found


def array_bytes(shape: str) -> int:
    """Bytes of `f32[64,128]{1,0}` or of a tuple of such."""
    bits = 0
    for dtype, sides in ARRAY.findall(shape):
        width = BITS[dtype] if dtype in BITS else int(re.search(r"\d+", dtype)[0])
        bits += math.prod(int(side) for side in sides.split(",") if side) * width
    return bits // 8


def functions_of(text: str) -> tuple[str, dict[str, list[str]]]:
    """(name of the first to run, {name: lines}) of the functions that a program consists of."""
    found, name, entry = {}, "", ""
    for line in text.splitlines():
        if header := FUNCTION.match(line):
            name = header[2]
            found[name] = []
            entry = name if header[1] else entry
        elif line.startswith("}"):
            name = ""
        elif name:
            found[name].append(line)
    return entry, found


def runs(entry: str, functions: dict[str, list[str]]) -> dict[str, int]:
    """{name of a function: how often a step runs it}; a loop of unknown length counts once, as do all branches."""
    counts: dict[str, int] = {}

    def visit(name, times):
        counts[name] = counts.get(name, 0) + times
        for line in functions.get(name, ()):
            loop = LOOP.search(line)
            inside = times * (rounds(functions.get(loop[1], ())) if loop else 1)
            for group in CALLED.findall(line):
                for callee in re.findall(r"[\w.-]+", group):
                    visit(callee, inside)

    visit(entry, 1)
    return counts


def rounds(condition) -> int:
    """How often a loop runs whose condition these lines are: JAX counts from 0 to the one number in it."""
    numbers = [int(number[1]) for number in map(NUMBER.search, condition) if number]
    return numbers[0] if len(numbers) == 1 else 1
