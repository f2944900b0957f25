"""What limits each method's ImageNet run on 8 to 256 chips, and what an epoch costs: a model of measured pieces.

    python benchmarks/scale_model.py                                     # a table: v5e, 16, 64 and 256 chips
    python benchmarks/scale_model.py --generation=v5p --chips=16,256 --price=4.2     # and the price of an epoch
    python benchmarks/scale_model.py --measure                           # a checkpoint's bytes/s on this machine

The model. A step takes the longest of its FLOPs at the chip's peak and its bytes at the bandwidth of its memory (where
`compile_check` gave them: benchmarks/programs.json), over --of_bound, the assumed fraction of that bound that a step
reaches; then the all-reduce of the gradients over the chips' links, as if nothing overlapped it. Input gives what the
virtual CPUs of all hosts decode at the rate measured here for one, times --host_efficiency. An epoch takes the slower
of both, and its checkpoints as if training waited for each. Bytes of the state are those of every step, others grow
with the images of a chip. Nothing of it was measured on a TPU.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from maskcl_jax.performance.devices import CHIPS  # noqa: E402

# By method: the ImageNet config's program for v5e:4x4, from `compile_check --quick` (docs/clusters.md).
PROGRAMS = ROOT / "benchmarks" / "programs.json"
# Images/s of one virtual CPU, docs/performance.md, 29 November 2026: one view of MAE; two views, color on the device;
# two views with the saliency of each.
INPUT = {"one view": 731.0, "two views": 620.0, "saliency": 425.0}
STATE_PASSES = 3.0  # a step reads and writes parameters, moments and the EMA target, and reads parameters twice


@dataclasses.dataclass(frozen=True, kw_only=True)
class Host:
    """A TPU VM. Sources: Google's page of each generation (cloud.google.com/tpu/docs/v5e, /v5p, /v6e).

    Attributes:
        chips: Per VM.
        cpus: Virtual CPUs per VM.
        link: Bytes/s that a chip sends to its neighbors, all links together.
    """

    chips: int
    cpus: int
    link: float


HOSTS = {
    "v5e": Host(chips=8, cpus=224, link=200e9),
    "v5p": Host(chips=4, cpus=208, link=600e9),
    "v6e": Host(chips=8, cpus=180, link=400e9),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assumed:
    """What is assumed, not measured.

    Attributes:
        of_bound: Fraction of the bound that a step reaches.
        host_efficiency: Speed of a virtual CPU when all work, over that of one alone.
        checkpoint: Bytes/s that a checkpoint is written with; `--measure` gave 105 MB/s on two cores of a busy server.
    """

    of_bound: float = 0.7
    host_efficiency: float = 0.6
    checkpoint: float = 100e6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Epoch:
    """The epoch of a method on some chips.

    Attributes:
        seconds: Of its steps and checkpoints.
        parts: Seconds of a step by what takes them: FLOPs, bytes, all-reduce, input.
        checkpoints: Seconds of the epoch's checkpoints.
        limit: What takes most.
        chips: Their number.
    """

    seconds: float
    parts: dict[str, float]
    checkpoints: float
    limit: str
    chips: int

    @property
    def chip_hours(self) -> float:
        """Of the epoch."""
        return self.seconds * self.chips / 3600


def epoch(program: dict[str, Any], generation: str, chips: int, assumed: Assumed) -> Epoch | None:
    """An epoch of a program (a row of PROGRAMS) on chips of a generation; None where the batch has no image for each.

    Args:
        program: matrix_flops_per_image, batch, epoch_images, parameters, state_bytes, input, checkpoints_per_epoch,
            and where known bytes_per_step of a chip with images_per_chip.
        generation: A key of HOSTS.
        chips: Their number.
        assumed: See there.
    """
    if program["batch"] % chips:
        return None
    chip, host = next(chip for chip in CHIPS if chip.name == generation), HOSTS[generation]
    images = program["batch"] // chips
    parts = {"FLOPs": images * program["matrix_flops_per_image"] / chip.bf16_flops / assumed.of_bound}
    if "bytes_per_step" in program:
        fixed = min(STATE_PASSES * program["state_bytes"], program["bytes_per_step"])
        moved = fixed + (program["bytes_per_step"] - fixed) * images / program["images_per_chip"]
        parts["bytes"] = moved / chip.hbm_bandwidth / assumed.of_bound
    # A ring sends each gradient (16 bits) nearly twice, and every chip sends on all its links.
    parts["all-reduce"] = 2 * (chips - 1) / chips * 2 * program["parameters"] / host.link
    cpus = host.cpus * chips / host.chips  # of a VM's part where the chips do not fill it
    parts["input"] = program["batch"] / (cpus * INPUT[program["input"]] * assumed.host_efficiency)
    computing = max(parts["FLOPs"], parts.get("bytes", 0.0))
    step = max(computing + parts["all-reduce"], parts["input"])
    checkpoints = program["state_bytes"] / assumed.checkpoint * program["checkpoints_per_epoch"]
    seconds = program["epoch_images"] // program["batch"] * step
    limit = max(parts, key=parts.__getitem__)
    return Epoch(
        seconds=seconds + checkpoints,
        parts=parts,
        checkpoints=checkpoints,
        limit="checkpoints" if checkpoints > seconds else limit,
        chips=chips,
    )


def table(programs: dict[str, Any], generation: str, counts: list[int], assumed: Assumed, price: float | None) -> str:
    """Markdown: a row for each method and number of chips."""
    head = [
        "method",
        "chips",
        "step: FLOPs, bytes, all-reduce; input (ms)",
        "limit",
        "epoch (min)",
        "chip-hours of it",
        "of the run",
    ]
    head += [f"price at {price:g}"] if price is not None else []
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, program in programs.items():
        for chips in counts:
            found = epoch(program, generation, chips, assumed)
            if found is None:
                lines.append(f"| {name} | {chips} | batch {program['batch']} has no image for each | | | | |")
                continue
            ms = {part: f"{1e3 * seconds:.1f}" for part, seconds in found.parts.items()}
            times = f"{ms['FLOPs']}, {ms.get('bytes', '?')}, {ms['all-reduce']}; {ms['input']}"
            unknown = ", bytes unknown" if found.limit == "FLOPs" and "bytes" not in ms else ""
            cells = [name, str(chips), times, found.limit + unknown, f"{found.seconds / 60:.1f}"]
            cells += [f"{found.chip_hours:.2f}", f"{program['epochs'] * found.chip_hours:,.0f}"]
            cells += [f"{found.chip_hours * price:.2f}"] if price is not None else []
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measure(megabytes: int) -> str:
    """Saves and restores a state of so many MB in a temporary folder; bytes/s of each."""
    import jax
    import jax.numpy as jnp

    from maskcl_jax.training.checkpoint import Checkpoints
    from maskcl_jax.training.train_state import TrainState

    params = {"kernel": jnp.ones((megabytes, 250_000), jnp.float32)}
    state = TrainState(jnp.int32(1), params, None, {}, ())
    with tempfile.TemporaryDirectory() as folder:
        checkpoints, begin = Checkpoints(folder), time.monotonic()
        checkpoints.save(1, state)
        waited = time.monotonic()
        checkpoints.close()
        written = time.monotonic()
        checkpoints = Checkpoints(folder)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        jax.block_until_ready(checkpoints.restore(shapes, 1))
        read = time.monotonic()
        checkpoints.close()
    speeds = {"training waits": waited - begin, "written": written - begin, "read": read - written}
    return ", ".join(f"{name} {megabytes / seconds:.0f} MB/s" for name, seconds in speeds.items())


def main() -> None:
    """Prints the table, or what is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generation", choices=HOSTS, default="v5e")
    parser.add_argument("--chips", default="16,64,256", help="numbers of chips, with commas")
    parser.add_argument("--price", type=float, help="of a chip-hour, in any currency")
    parser.add_argument("--measure", type=int, nargs="?", const=100, metavar="MB", help="save so many MB")
    for field in dataclasses.fields(Assumed):
        parser.add_argument(f"--{field.name}", type=float, default=field.default)
    options = parser.parse_args()
    if options.measure:
        print(measure(options.measure))
        return
    assumed = Assumed(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Assumed)})
    counts = [int(count) for count in options.chips.split(",")]
    print(table(json.loads(PROGRAMS.read_text()), options.generation, counts, assumed, options.price))


if __name__ == "__main__":
    main()
