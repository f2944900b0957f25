"""What XLA says of a compiled program: its peak memory, its FLOPs and bytes, its collectives."""

import dataclasses
import math
import re
from typing import NamedTuple

import jax

from maskcl_jax.performance.devices import Chip

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
# A collective that runs while others compute is a pair of `-start` and `-done`: the second has the plain result.
INSTRUCTION = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(?:-done)?\(")
ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
CHANNEL = re.compile(r"channel_id=(\d+)")


def peak_bytes(compiled: jax.stages.Compiled) -> int | None:
    """Bytes that the program holds at once on a device: inputs, outputs that reuse no input, temporaries, code."""
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    new_outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + new_outputs + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes


def compiler_flops(compiled: jax.stages.Compiled) -> float | None:
    """FLOPs of one device by XLA's cost analysis, which counts the body of a loop once."""
    return (compiled.cost_analysis() or {}).get("flops")


def bytes_accessed(compiled: jax.stages.Compiled) -> float | None:
    """Bytes that one device reads and writes by XLA's cost analysis, which counts the body of a loop once.

    All operands and results of all operations, also those that a TPU keeps in its on-chip memory: what passes the
    device's main memory is somewhat less.
    """
    return (compiled.cost_analysis() or {}).get("bytes accessed")


class Bound(NamedTuple):
    """The least time that a step can take a chip, by its FLOPs and by its bytes.

    Attributes:
        compute: Seconds of its matrix products at the chip's peak.
        memory: Seconds of its bytes at the bandwidth of the chip's memory.
        mfu: MFU if the step took the longer of both.
    """

    compute: float
    memory: float
    mfu: float

    @property
    def seconds(self) -> float:
        """The longer of both."""
        return max(self.compute, self.memory)


def bound(chip: Chip, *, matrix_flops: float, model_flops: float, bytes_accessed: float) -> Bound:
    """The roofline of a step on one chip.

    Args:
        chip: Its peak and bandwidth.
        matrix_flops: FLOPs of the step on one chip.
        model_flops: The same without what is computed twice.
        bytes_accessed: Of the step on one chip.
    """
    compute, memory = matrix_flops / chip.bf16_flops, bytes_accessed / chip.hbm_bandwidth
    return Bound(compute, memory, model_flops / chip.bf16_flops / max(compute, memory))


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind: their number in the program, and the bytes of their results on one device."""

    count: int
    bytes: int


def count_collectives(text: str) -> dict[str, Traffic]:
    """Counts the collectives in a program's text: XLA has no analysis of them.

    One inside a loop counts once, as loops do in XLA's cost analysis. What travels over the wires depends on the
    algorithm; an all-reduce sends up to twice its bytes.

    Args:
        text: `jax.stages.Compiled.as_text()`.

    Returns:
        Number and bytes by kind, without the kinds that do not occur.
    """
    sizes: dict[tuple[str, str], int] = {}
    scatter = False
    for number, line in enumerate(text.splitlines()):
        if line.endswith("{"):  # a computation begins
            scatter = line.startswith("%all-reduce-scatter")  # a TPU's reduce-scatter: an all-reduce, then a slice
        if match := INSTRUCTION.search(line):
            shape, kind = match.groups()
            kind = "reduce-scatter" if scatter else kind
            # A TPU's program has one collective in several fusions if it overlaps with them; its channel is the same.
            channel = CHANNEL.search(line)
            key = kind, channel[1] if channel else f"line {number}"
            sizes[key] = max(sizes.get(key, 0), array_bytes(shape))
    kinds = {kind for kind, _ in sizes}
    of_kind = {kind: [size for (name, _), size in sizes.items() if name == kind] for kind in sorted(kinds)}
    return {kind: Traffic(len(found), sum(found)) for kind, found in of_kind.items()}


def array_bytes(shape: str) -> int:
    """Bytes of an HLO shape, `f32[64,128]{1,0}` or a tuple of such."""
    bits = 0
    for _, width, sides in ARRAY.findall(shape):
        bits += int(width or 8) * math.prod(int(side) for side in sides.split(",") if side)
    return bits // 8
