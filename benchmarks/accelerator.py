"""Measures an accelerator in parts, each in a process of its own; a call does what its minutes allow, the next goes on.

    python benchmarks/accelerator.py --json=h200.json                     # nine minutes; again until nothing is left
    python benchmarks/accelerator.py --json=h200.json --only='step/mae'   # the parts whose name matches
    python benchmarks/accelerator.py --json=h200.json --table             # what is measured, as a table for the docs
    python benchmarks/accelerator.py --json=h200.json --again=failed      # parts that failed are measured again
    ... --cifar10=FILE.npz      20 epochs of CIFAR-10, in a file that `python -m maskcl_jax.data.to_array` writes
    ... --toy                   tiny networks: does every part work?

Parts: training steps in bfloat16 of ViT-B/16 and ResNet-50 methods, with both `kernels` and both attentions, the batch
doubled until memory ends; the same models in PyTorch (compiled, bfloat16, channels last, fused attention); training end
to end from decoded images of 224 pixels; `verify`; a run that is stopped and continued; 20 epochs of CIFAR-10. Needs no
data but the last, and no TensorFlow; without PyTorch its parts say so. The first parts matter most.
"""

import argparse
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
import time
from typing import Any

import accelerator_parts as parts

SECONDS_LEFT = 20  # a part that has less is not begun
OUT_OF_MEMORY = re.compile("RESOURCE_EXHAUSTED|[Oo]ut of memory|OutOfMemoryError")


def main() -> None:
    """Measures what is not in the file yet, until the time is over; prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path, default=pathlib.Path("accelerator.json"))
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--only", default="", help="a regular expression of names")
    parser.add_argument("--again", choices=("failed", "all"), help="which parts to measure again")
    parser.add_argument("--cifar10", default="", help="a file of images")
    parser.add_argument("--toy", action="store_true", help="tiny networks and batches")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--part", help="measure one part here, and print it")
    options = parser.parse_args()
    if options.part:
        # In this process only: the one that starts the others must not take the device.
        module = "torch_parts" if options.part.startswith("torch/") else "our_parts"
        measure = importlib.import_module(module).measure
        print(json.dumps(measure(options.part, toy=options.toy, cifar10=options.cifar10)))
        return
    done = read(options.json)
    if not options.table:
        wanted = [name for name in parts.names(toy=options.toy) if re.search(options.only, name)]
        if options.again:
            again = (
                set(wanted) if options.again == "all" else {name for name in wanted if "error" in done.get(name, {})}
            )
            done = {name: row for name, row in done.items() if name not in again}
        flags = ["--toy"] * options.toy + [f"--cifar10={options.cifar10}"] * bool(options.cifar10)
        left = work(options.json, done, wanted, flags, seconds=60 * options.minutes)
        print(f"{len(left)} parts are left" + (f", the next is {left[0]}: the same command goes on" if left else ""))
    print(table(done))


def read(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The parts of a file, by name; {} if there is none."""
    return json.loads(path.read_text())["parts"] if path.is_file() else {}


def write(path: pathlib.Path, done: dict[str, dict[str, Any]]) -> None:
    """Writes the parts, whole or not at all."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"parts": done}, indent=1))
    new.replace(path)


def work(path: pathlib.Path, done: dict[str, dict[str, Any]], wanted: list[str], flags: list[str], *, seconds: float):
    """Measures parts in turn, adding each to `done` and to the file.

    Args:
        path: The file.
        done: What is measured, by name; is added to.
        wanted: Names, in order.
        flags: For the process of a part.
        seconds: For all of them.

    Returns:
        The names that are left.
    """
    end = time.monotonic() + seconds
    for number, name in enumerate(wanted):
        if name in done:
            continue
        if smaller := out_of_memory_before(name, done):
            done[name] = {"error": f"out of memory, as {smaller}"}
        elif end - time.monotonic() < SECONDS_LEFT:
            return [name for name in wanted[number:] if name not in done]
        else:
            begin = time.monotonic()
            row = one(name, flags, end - begin)
            if row is None:  # the time was over before the part was
                return [name for name in wanted[number:] if name not in done]
            done[name] = row | {"seconds": round(time.monotonic() - begin, 1)}
            print(f"{name}: {summary(done[name])}", flush=True)
        write(path, done)
    return []


def one(name: str, flags: list[str], limit: float) -> dict[str, Any] | None:
    """What a part's process prints, {"error": its last line} if it fails, None if it runs into the limit in seconds."""
    command = [sys.executable, os.path.abspath(__file__), f"--part={name}", *flags]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return None
    if process.returncode == 0:
        return json.loads(process.stdout.splitlines()[-1])
    if OUT_OF_MEMORY.search(process.stderr):
        return {"error": "out of memory"}
    return {"error": (process.stderr.strip().splitlines() or ["?"])[-1][:300]}


def out_of_memory_before(name: str, done: dict[str, dict[str, Any]]) -> str | None:
    """The part with a smaller batch, otherwise the same, that ran out of memory."""
    kind, batch = parts.split_batch(name)
    for other, row in done.items():
        other_kind, other_batch = parts.split_batch(other)
        if other_kind == kind and 0 < other_batch < batch and row.get("error", "").startswith("out of memory"):
            return other
    return None


def summary(row: dict[str, Any]) -> str:
    """A part in a few words."""
    if "error" in row:
        return f"FAILED, {row['error']}"
    speed = f"{row['images_per_second']:,.0f} images/s" if row.get("images_per_second") else row.get("text", "done")
    return speed + (f", {row['mfu']:.0%} MFU" if row.get("mfu") else "")


def table(done: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row for each part, and for each of ours at the same batch what PyTorch's speed is over."""
    lines = [
        "| part | images/s | MFU | memory | compile | times PyTorch | date, device |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in done.items():
        if "error" in row:
            lines.append(f"| {name} | {row['error']} | | | | | |")
            continue
        speed, theirs = row.get("images_per_second"), done.get(parts.counterpart(name), {}).get("images_per_second")
        cells = [
            name,
            f"{speed:,.0f}" if speed else row.get("text", ""),
            f"{row['mfu']:.1%}" if row.get("mfu") else "",
            f"{row['peak_bytes'] / 2**30:.1f} GiB" if row.get("peak_bytes") else "",
            f"{row['compile_seconds']:.0f} s" if row.get("compile_seconds") else "",
            f"{speed / theirs:.2f}" if speed and theirs else "",
            f"{row.get('date', '')}, {row.get('platform', '')}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
