"""Compiles a config's training step for TPUs without having them: memory, FLOPs, bytes, collectives.

    python -m maskcl_jax.compile_check --config=configs/cmae.py:imagenet --topology=v5e:4x4
    ... --search_batch       also the largest batch that fits, by one compilation a try
    ... --quick              the compiler's lowest effort: a third of the time or less, memory a few percent off
    ... --json               one JSON object
    ... --mfu=0.4            the MFU that is assumed for the chip-hours of the whole run

Needs the TPU compiler (`pip install 'jax[tpu]'`), no TPU, no account and no data. A compilation takes some minutes of
a CPU and up to 8 GB of memory for a ViT-B. Nothing is run, so no time is measured; the bound is the least time that
the chip's peak and the bandwidth of its memory allow (a roofline). Exit status: 0 it fits, 1 it does not, 2 the command
cannot work.
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import flags
from jax.experimental import topologies

from maskcl_jax import cli
from maskcl_jax import config as config_lib
from maskcl_jax.errors import UserError
from maskcl_jax.methods import create as create_method
from maskcl_jax.models.kernels import resolve
from maskcl_jax.performance import compiled as compiled_lib
from maskcl_jax.performance import flops
from maskcl_jax.performance.devices import CHIPS, Chip
from maskcl_jax.training import memory, sharding
from maskcl_jax.training.logging import summary_table
from maskcl_jax.training.step import Program

GIB = 2**30
# The shapes that libtpu 0.0.42 knows and that were tried; their product is the number of chips.
SHAPES_2D = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SHAPES_3D = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8")
TOPOLOGIES = {"v4": SHAPES_3D, "v5e": SHAPES_2D, "v5p": SHAPES_3D, "v6e": SHAPES_2D}
# Training images by `data.name`. Of other data the number changes no shape, only the schedule's constants.
IMAGES = {
    "imagenet2012": 1_281_167,
    "coco/2017": 118_287,
    "fashion_mnist": 60_000,
    "cifar10": 50_000,
    "cifar100": 50_000,
}
OTHER_DATA = 1_281_167

# Environment variables for libtpu. On a machine that is no TPU VM no metadata server answers which one it is: the
# variables say that it is a small one. No chip is touched, so several programs may compile at once.
LIBTPU_VARIABLES = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

CONFIG = cli.define_config()
TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "Generation and shape: v4, v5e, v5p or v6e, 4 to 256 chips.")
SEARCH = flags.DEFINE_bool("search_batch", False, "Find the largest batch that fits.")
QUICK = flags.DEFINE_bool("quick", False, "Compile at the lowest effort; memory is then an estimate.")
JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")
MFU = flags.DEFINE_float("mfu", 0.4, "Assumed fraction of the chip's peak, for the chip-hours of the run.", 0.01, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """The result of one compilation. Bytes and FLOPs are of one chip and one step.

    Attributes:
        method: `config.method.name`.
        preset: `config.preset`.
        topology: GENERATION:SHAPE.
        chips: Their number.
        batch_size: Images per step.
        remat: `config.remat`, or what "auto" chose.
        fits: Whether the program fits into memory.
        parameters: Trained parameters.
        state_bytes: The train state.
        peak_bytes: Peak memory. If it does not fit, what the compiler says it would need; None if it does not say.
        usable_bytes: Memory that a program may use.
        matrix_flops: `flops.matrix_flops` of the step.
        model_flops: The same without what `remat` computes twice.
        compiler_flops: XLA's count, in which a loop's body counts once; None if it does not fit.
        bytes_accessed: XLA's count, see `compiled.bytes_accessed`; None if it does not fit.
        collectives: By kind; None if it does not fit.
        compile_seconds: Time of the compilation.
        versions: Of JAX and libtpu.
        effort: Of the compiler: 0 its default, -1 the lowest.
        images: Images of the whole run; None if the size of the data is unknown here.
        largest_batch: The largest batch that fits, 0 if not even one image per chip does; None if not searched.
    """

    method: str
    preset: str
    topology: str
    chips: int
    batch_size: int
    remat: str
    fits: bool
    parameters: int
    state_bytes: int
    peak_bytes: int | None
    usable_bytes: int
    matrix_flops: float
    model_flops: float
    compiler_flops: float | None
    bytes_accessed: float | None
    collectives: dict[str, compiled_lib.Traffic] | None
    compile_seconds: float
    versions: str
    effort: float = 0.0
    images: int | None
    largest_batch: int | None = None

    @property
    def flops_per_image(self) -> float:
        """Model FLOPs of a training step for one source image."""
        return self.model_flops * self.chips / self.batch_size

    @property
    def bound(self) -> compiled_lib.Bound | None:
        """What FLOPs and bytes leave possible; None if the bytes are unknown."""
        if not self.bytes_accessed:
            return None
        work = {"matrix_flops": self.matrix_flops, "model_flops": self.model_flops}
        return compiled_lib.bound(chip_in(self.topology), bytes_accessed=self.bytes_accessed, **work)

    def chip_hours(self, mfu: float) -> float | None:
        """Chip-hours of the whole run at an MFU; None if the number of images is unknown."""
        if self.images is None:
            return None
        return self.images * self.flops_per_image / (mfu * chip_in(self.topology).bf16_flops) / 3600


def main(argv: list[str]) -> None:
    """Compiles, searches the largest batch if asked to, prints, and exits with the status."""
    if CONFIG.value is None:
        raise UserError("--config is missing: give one of configs/, for instance configs/cmae.py:imagenet")
    devices = topology_devices(TOPOLOGY.value)
    if QUICK.value:
        jax.config.update("jax_exec_time_optimization_effort", -1.0)
    report = check(CONFIG.value, TOPOLOGY.value, devices)
    if SEARCH.value:
        report = dataclasses.replace(report, largest_batch=largest_batch(CONFIG.value, report, devices))
    print(json.dumps(as_json(report, MFU.value), indent=1) if JSON.value else as_text(report, MFU.value))
    sys.exit(0 if report.fits else 1)


def chip_in(topology: str) -> Chip:
    """The chip of a topology, GENERATION:SHAPE."""
    return next(chip for chip in CHIPS if chip.name == topology.partition(":")[0])


def topology_devices(topology: str) -> list[jax.Device]:
    """Devices to compile for, without any TPU. Raises UserError for an unknown topology, or without libtpu."""
    generation, _, shape = topology.partition(":")
    if shape not in TOPOLOGIES.get(generation, ()):
        known = "; ".join(f"{name}: {' '.join(shapes)}" for name, shapes in TOPOLOGIES.items())
        raise UserError(f"--topology={topology} is unknown: write GENERATION:SHAPE, of {known}")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("libtpu, the TPU's compiler, is missing: pip install 'jax[tpu]'")
    for name, value in LIBTPU_VARIABLES.items():
        os.environ.setdefault(name, value)
    if not jax.config.values["jax_platforms"]:
        jax.config.update("jax_platforms", "cpu")  # or JAX would look for a TPU to run on
    # A v4 chip's two cores are one device to a program, as on the machine.
    options = {"chip_config_name": "megacore"} if generation == "v4" else {}
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices)


def create_program(config: Any, devices: Sequence[jax.Device]) -> Program:
    """The training step of a config on devices that need not exist here. Raises UserError."""
    config_lib.check(config)
    mesh = sharding.create_mesh(config.mesh, devices)
    config = config.copy_and_resolve_references()
    config.kernels = resolve(config.kernels, devices[0].platform)  # not those of this machine
    sharding.check_batch(config.batch_size, mesh, parts=config_lib.split_fields(config))
    config = memory.with_remat(config, mesh)
    per_epoch = max(1, IMAGES.get(config.data.name, OTHER_DATA) // config.batch_size)
    return Program.from_config(config, mesh, create_method(config, mesh), per_epoch)


def check(config: Any, topology: str, devices: Sequence[jax.Device]) -> Report:
    """Compiles the training step of `config` for all chips of a topology. Raises UserError for what cannot work."""
    program = create_program(config, devices)
    traced, state = program.trace(), program.shapes
    begin = time.monotonic()
    compiled, needed = compile_or_needed_bytes(traced.lower())
    seconds = time.monotonic() - begin
    usable_gib = chip_in(topology).usable_gib
    assert usable_gib is not None  # known of every TPU
    return Report(
        method=config.method.name,
        preset=config.preset,
        topology=topology,
        chips=len(devices),
        batch_size=config.batch_size,
        remat=program.config.remat,
        fits=compiled is not None,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        state_bytes=sharding.bytes_per_device(state, jax.tree.map(lambda leaf: leaf.sharding, state)),
        peak_bytes=needed if compiled is None else compiled_lib.peak_bytes(compiled),
        usable_bytes=int(usable_gib * GIB),
        matrix_flops=flops.matrix_flops(traced.jaxpr) / len(devices),
        model_flops=program.model_flops() / len(devices),
        compiler_flops=None if compiled is None else compiled_lib.compiler_flops(compiled),
        bytes_accessed=None if compiled is None else compiled_lib.bytes_accessed(compiled),
        collectives=None if compiled is None else compiled_lib.count_collectives(compiled.as_text() or ""),
        compile_seconds=seconds,
        versions=f"jax {jax.__version__}, libtpu {importlib.metadata.version('libtpu')}",
        effort=jax.config.values["jax_exec_time_optimization_effort"],
        images=run_images(config),
    )


def compile_or_needed_bytes(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled | None, int | None]:
    """(compiled, None), or (None, bytes needed) if it does not fit; both None if the compiler does not say how much."""
    try:
        return lowered.compile(), None
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, needed_bytes(str(error))


def needed_bytes(message: str) -> int | None:
    """What a program would need by the compiler's error message, for instance `Used 17.20G of 15.75G hbm`."""
    match = re.search(r"Used ([\d.]+)([KMG]) of|required for HLO temporaries \(([\d.]+)([KMG])\)", message)
    if match is None:
        return None
    number, unit = (match[1], match[2]) if match[1] else (match[3], match[4])
    return int(float(number) * {"K": 2**10, "M": 2**20, "G": GIB}[unit])


def run_images(config: Any) -> int | None:
    """Source images of the whole run; None if the size of the data is unknown here."""
    if config.total_steps:
        return config.total_steps * config.batch_size
    count = IMAGES.get(config.data.name)
    return None if count is None else round(config.epochs * (count // config.batch_size)) * config.batch_size


def largest_batch(config: Any, report: Report, devices: Sequence[jax.Device]) -> int:
    """The largest batch that fits on all chips together, within an eighth; prints each try to stderr.

    A batch that the method refuses (one that does not divide its queue, for instance) counts as one that does not fit.
    """

    def fits(per_chip: int) -> bool:
        candidate = config.copy_and_resolve_references()
        candidate.batch_size = per_chip * report.chips
        try:
            result = check(candidate, report.topology, devices).fits
            text = "fits" if result else "does not fit"
        except UserError as error:
            result, text = False, f"refused, {error}"
        print(f"batch {candidate.batch_size}: {text}", file=sys.stderr, flush=True)
        return result

    return report.chips * largest(report.batch_size // report.chips, report.fits, fits)


def largest(first: int, first_fits: bool, fits: Callable[[int], bool]) -> int:
    """The largest number that `fits`, within an eighth: doubles or halves `first`, then bisects; 0 for none."""
    good, bad = (first, 2 * first) if first_fits else (first // 2, first)
    while first_fits and fits(bad):
        good, bad = bad, 2 * bad
    while not first_fits and good and not fits(good):
        good, bad = good // 2, good
    while bad - good > max(1, good // 8):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def as_json(report: Report, mfu: float) -> dict[str, Any]:
    """The fields of the report, and what follows from them at an assumed MFU."""
    return {
        **dataclasses.asdict(report),
        "flops_per_image": report.flops_per_image,
        "bound": report.bound and report.bound._asdict(),
        "assumed_mfu": mfu,
        "chip_hours": report.chip_hours(mfu),
    }


def as_text(report: Report, mfu: float) -> str:
    """The report as a table, with the chip-hours at an assumed MFU."""
    r, chip = report, chip_in(report.topology)
    quick = " at the lowest effort, so memory is an estimate" if r.effort < 0 else ""
    peak = "the compiler does not say" if r.peak_bytes is None else gib(r.peak_bytes)
    rows = {
        "step": f"{r.method}, preset {r.preset}: batch {r.batch_size}, {r.batch_size / r.chips:g} a chip",
        "remat": r.remat,
        "chips": f"{r.chips} x {chip.name}, {r.topology} ({r.versions}), compiled in {r.compile_seconds:.0f} s{quick}",
        "fits": ("yes" if r.fits else "NO") + f": {peak} of {gib(r.usable_bytes)} HBM that a program may use",
        "parameters": f"{r.parameters / 1e6:.1f} M",
        "state": f"{gib(r.state_bytes)} a chip: parameters, EMA target, optimizer, model state",
        "FLOPs": f"{r.model_flops / 1e12:.2f} T a chip and step, {r.flops_per_image / 1e9:.1f} G an image",
    }
    if r.matrix_flops > r.model_flops:
        rows["with remat"] = f"{r.matrix_flops / 1e12:.2f} T a chip and step"
    if r.compiler_flops is not None:
        rows["compiler's"] = f"{r.compiler_flops / 1e12:.2f} T a chip and step; a loop counts once"
    if (bound := r.bound) and r.bytes_accessed:
        rows["bytes"] = f"{r.bytes_accessed / 1e9:.1f} GB a chip and step, read and written; a loop counts once"
        times = f"{1e3 * bound.compute:.1f} ms of FLOPs, {1e3 * bound.memory:.1f} ms of bytes"
        rows["bound"] = f"{times}: at best {bound.mfu:.0%} MFU, {bound_speed(r, bound):,.0f} images/s a chip"
    if r.collectives is not None:
        kinds = (f"{t.count} {kind} of {t.bytes / 2**20:.1f} MiB" for kind, t in sorted(r.collectives.items()))
        rows["collectives"] = ", ".join(kinds) + "; in a loop counted once" if r.collectives else "none"
    if hours := r.chip_hours(mfu):
        rows["run"] = f"{r.images:,} images: {hours:,.0f} chip-hours at an assumed {mfu:.0%} of {chip.name}'s peak"
    if r.largest_batch is not None:
        rows["largest"] = f"batch {r.largest_batch}, {r.largest_batch // r.chips} a chip" if r.largest_batch else "none"
    return summary_table(rows)


def bound_speed(report: Report, bound: compiled_lib.Bound) -> float:
    """Images/s of a chip at a step's bound."""
    return report.batch_size / report.chips / bound.seconds


def gib(count: int) -> str:
    """Bytes as GiB."""
    return f"{count / GIB:.2f} GiB"


if __name__ == "__main__":
    cli.run(main)
