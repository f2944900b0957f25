"""Compiles a config's training step for TPUs that are not there: does it fit, what does it cost, what does it send?

    python -m maskcl_jax.compile_check --config=configs/cmae.py:imagenet --topology=v5e:4x4
    ... --search-batch       also the largest batch that fits, by one compilation a try
    ... --quick              the compiler's lowest effort: a third of the time or less, memory a few per cent off
    ... --json               one JSON object
    ... --mfu=0.4            what is assumed for the chip-hours of the whole run

Needs the TPU compiler (`pip install 'jax[tpu]'`), no TPU, no account, no data and no TensorFlow. A compilation takes
some minutes of a CPU and up to 8 GB of memory for a ViT-B. Nothing is run: times are never measured here. Exit status:
0 it fits, 1 it does not, 2 what was written cannot work.
"""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
import time

import jax
from absl import flags

from maskcl_jax import cli
from maskcl_jax import config as config_lib
from maskcl_jax.errors import UserError
from maskcl_jax.methods import create as create_method
from maskcl_jax.models.kernels import resolve
from maskcl_jax.performance import flops, hlo
from maskcl_jax.performance.chips import CHIPS
from maskcl_jax.training import sharding
from maskcl_jax.training.logging import summary_table
from maskcl_jax.training.step import Program

GIB = 2**30
# What libtpu 0.0.42 knows and we have tried; chips are the product.
FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SOLID = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8")
TOPOLOGIES = {"v4": SOLID, "v5e": FLAT, "v5p": SOLID, "v6e": FLAT}
# Training images by `data.name`; of other data the count changes no shape, only the schedule's constants.
IMAGES = {
    "imagenet2012": 1_281_167,
    "coco/2017": 118_287,
    "fashion_mnist": 60_000,
    "cifar10": 50_000,
    "cifar100": 50_000,
}
OTHER_DATA = 1_281_167

# This machine is no TPU VM: nobody answers the question which one it is, so libtpu is told that it is a small one, and
# does not ask. No chip is touched, so several programs may compile at once.
LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

CONFIG = cli.define_config()
TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "Generation and shape: v4, v5e, v5p or v6e, 4 to 256 chips.")
SEARCH = flags.DEFINE_bool("search_batch", False, "Find the largest batch that fits.")
QUICK = flags.DEFINE_bool("quick", False, "Compile at the lowest effort; what is told of memory is then an estimate.")
JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")
MFU = flags.DEFINE_float("mfu", 0.4, "Assumed share of the chip's peak, for the chip-hours of the run.", 0.01, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What one compilation told. Bytes and FLOPs are of one chip and one step; None: not known, as it did not fit."""

    method: str
    preset: str
    topology: str
    chips: int
    batch_size: int
    fits: bool
    parameters: int
    state_bytes: int
    peak_bytes: int | None  # of a step that does not fit: what the compiler says it would need, if it says
    usable_bytes: int
    matrix_flops: float  # `flops.matrix_flops`
    model_flops: float  # the same without what `remat` does twice
    compiler_flops: float | None  # `cost_analysis`, which takes a loop's body once
    collectives: dict[str, hlo.Traffic] | None
    compile_seconds: float
    versions: str
    effort: float = 0.0  # of the compiler: 0 its own, -1 the lowest
    images: int | None  # of the whole run
    largest_batch: int | None = None  # of all chips; 0: not even one image a chip

    @property
    def flops_per_image(self) -> float:
        """FLOPs of a training step, for one source image, without what `remat` does twice."""
        return self.model_flops * self.chips / self.batch_size

    def chip_hours(self, mfu: float) -> float | None:
        """Of the whole run, at a share `mfu` of the peak."""
        if self.images is None:
            return None
        return self.images * self.flops_per_image / (mfu * chip_of(self.topology).bf16_flops) / 3600


def main(argv: list[str]) -> None:
    """Compiles, perhaps searches, prints."""
    if CONFIG.value is None:
        raise UserError("--config is missing: give one of configs/, for instance configs/cmae.py:imagenet")
    devices = devices_of(TOPOLOGY.value)
    if QUICK.value:
        jax.config.update("jax_exec_time_optimization_effort", -1.0)
    report = check(CONFIG.value, TOPOLOGY.value, devices)
    if SEARCH.value:
        say = functools.partial(print, file=sys.stderr, flush=True)
        report = dataclasses.replace(report, largest_batch=largest_batch(CONFIG.value, report, devices, say))
    print(json.dumps(as_json(report, MFU.value), indent=1) if JSON.value else as_text(report, MFU.value))
    sys.exit(0 if report.fits else 1)


def chip_of(topology: str):
    """The `Chip` of a topology's name."""
    return next(chip for chip in CHIPS if chip.name == topology.partition(":")[0])


def devices_of(topology: str) -> list:
    """The devices of TPUs that are not there. Raises UserError for a topology that is unknown, or without libtpu."""
    generation, _, shape = topology.partition(":")
    if shape not in TOPOLOGIES.get(generation, ()):
        known = "; ".join(f"{name}: {' '.join(shapes)}" for name, shapes in TOPOLOGIES.items())
        raise UserError(f"--topology={topology} is unknown: write GENERATION:SHAPE, of {known}")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("libtpu, the TPU's compiler, is missing: pip install 'jax[tpu]'")
    for name, value in LIBTPU.items():
        os.environ.setdefault(name, value)
    if not jax.config.jax_platforms:
        jax.config.update("jax_platforms", "cpu")  # nor shall JAX look for a TPU to run on
    from jax.experimental import topologies

    # A v4 chip's two cores are one device to a program, as on the machine.
    options = {"chip_config_name": "megacore"} if generation == "v4" else {}
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices)


def program_of(config, devices) -> Program:
    """A config's step on devices that need not be there. Raises UserError."""
    config_lib.check(config)
    mesh = sharding.create_mesh(config.mesh, devices)
    config = config.copy_and_resolve_references()
    config.kernels = resolve(config.kernels, devices[0].platform)  # not those of this machine
    sharding.check_batch(config.batch_size, mesh, **config_lib.split_fields(config))
    per_epoch = max(1, IMAGES.get(config.data.name, OTHER_DATA) // config.batch_size)
    return Program.of(config, mesh, create_method(config, mesh), per_epoch)


def check(config, topology: str, devices) -> Report:
    """Compiles the training step of `config` for all chips of a topology. Raises UserError for what cannot work."""
    program = program_of(config, devices)
    traced, state = program.trace(), program.shapes
    begin = time.monotonic()
    compiled, needed = compiled_or_needed(traced.lower())
    seconds = time.monotonic() - begin
    known = {}
    if compiled is not None:
        known["collectives"] = hlo.collectives(compiled.as_text())
        known["compiler_flops"] = compiled.cost_analysis().get("flops")
        needed = peak_bytes(compiled.memory_analysis())
    return Report(
        method=config.method.name,
        preset=config.preset,
        topology=topology,
        chips=len(devices),
        batch_size=config.batch_size,
        fits=compiled is not None,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        state_bytes=sharding.bytes_per_device(state, jax.tree.map(lambda leaf: leaf.sharding, state)),
        peak_bytes=needed,
        usable_bytes=int(chip_of(topology).usable_gib * GIB),
        matrix_flops=flops.matrix_flops(traced.jaxpr) / len(devices),
        model_flops=program.model_flops() / len(devices),
        compile_seconds=seconds,
        versions=f"jax {jax.__version__}, libtpu {importlib.metadata.version('libtpu')}",
        effort=jax.config.jax_exec_time_optimization_effort,
        images=run_images(config),
        **{"collectives": None, "compiler_flops": None, **known},
    )


def compiled_or_needed(lowered):
    """(compiled, None), or (None, the bytes it would need) where it does not fit; None also where nobody says."""
    try:
        return lowered.compile(), None
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, needed_bytes(str(error))


def needed_bytes(message: str) -> int | None:
    """What the compiler's refusal says that the program would need: `Used 17.20G of 15.75G hbm`."""
    found = re.search(r"Used ([\d.]+)([KMG]) of|required for HLO temporaries \(([\d.]+)([KMG])\)", message)
    if found is None:
        return None
    number, unit = (found[1], found[2]) if found[1] else (found[3], found[4])
    return int(float(number) * {"K": 2**10, "M": 2**20, "G": GIB}[unit])


def peak_bytes(memory) -> int:
    """The most that a step holds at once: what comes in, what goes out to other places than it came from, the rest."""
    new_outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + new_outputs + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes


def run_images(config) -> int | None:
    """Source images of the whole run; None where the size of the data is not known here."""
    if config.total_steps:
        return config.total_steps * config.batch_size
    count = IMAGES.get(config.data.name)
    return None if count is None else round(config.epochs * (count // config.batch_size)) * config.batch_size


def largest_batch(config, report: Report, devices, say) -> int:
    """The largest batch that fits, of all chips together: powers of two times the config's, then eighths between.

    A batch that the method refuses (a queue that it does not divide, say) counts as one that does not fit.
    """

    def fits(per_chip):
        tried = config.copy_and_resolve_references()
        tried.batch_size = per_chip * report.chips
        try:
            good = check(tried, report.topology, devices).fits
        except UserError as error:
            say(f"batch {tried.batch_size}: refused, {error}")
            return False
        say(f"batch {tried.batch_size}: {'fits' if good else 'does not fit'}")
        return good

    return report.chips * largest(report.batch_size // report.chips, report.fits, fits)


def largest(first: int, first_fits: bool, fits) -> int:
    """The largest number that `fits`, to an eighth of it, from a first one that was tried; 0 where 1 does not."""
    good, bad = (first, 2 * first) if first_fits else (first // 2, first)
    while first_fits and fits(bad):
        good, bad = bad, 2 * bad
    while not first_fits and good and not fits(good):
        good, bad = good // 2, good
    while bad - good > max(1, good // 8):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def as_json(report: Report, mfu: float) -> dict:
    """The report, and what follows from it."""
    traffic = report.collectives and {kind: t._asdict() for kind, t in report.collectives.items()}
    return {
        **dataclasses.asdict(report),
        "collectives": traffic,
        "flops_per_image": report.flops_per_image,
        "assumed_mfu": mfu,
        "chip_hours": report.chip_hours(mfu),
    }


def as_text(report: Report, mfu: float) -> str:
    """The report as a table."""
    r, chip = report, chip_of(report.topology)
    quick = " at the lowest effort, so memory is an estimate" if r.effort < 0 else ""
    peak = "the compiler does not say" if r.peak_bytes is None else gib(r.peak_bytes)
    rows = {
        "step": f"{r.method}, preset {r.preset}: batch {r.batch_size}, {r.batch_size / r.chips:g} a chip",
        "chips": f"{r.chips} x {chip.name}, {r.topology} ({r.versions}), compiled in {r.compile_seconds:.0f} s{quick}",
        "fits": ("yes" if r.fits else "NO") + f": {peak} of {gib(r.usable_bytes)} HBM that a program may use",
        "parameters": f"{r.parameters / 1e6:.1f} M",
        "state": f"{gib(r.state_bytes)} a chip: parameters, EMA target, optimiser, statistics, queue",
        "FLOPs": f"{r.model_flops / 1e12:.2f} T a chip and step, {r.flops_per_image / 1e9:.1f} G an image",
    }
    if r.matrix_flops > r.model_flops:
        rows["with remat"] = f"{r.matrix_flops / 1e12:.2f} T a chip and step"
    if r.compiler_flops is not None:
        rows["compiler's"] = f"{r.compiler_flops / 1e12:.2f} T a chip and step; a loop counts once"
    if r.collectives is not None:
        kinds = (f"{t.count} {kind} of {t.bytes / 2**20:.1f} MiB" for kind, t in sorted(r.collectives.items()))
        rows["collectives"] = ", ".join(kinds) or "none"
    if hours := r.chip_hours(mfu):
        rows["run"] = f"{r.images:,} images: {hours:,.0f} chip-hours at an assumed {mfu:.0%} of {chip.name}'s peak"
    if r.largest_batch is not None:
        rows["largest"] = f"batch {r.largest_batch}, {r.largest_batch // r.chips} a chip" if r.largest_batch else "none"
    return summary_table(rows)


def gib(count: int) -> str:
    """Bytes as GiB."""
    return f"{count / GIB:.2f} GiB"


if __name__ == "__main__":
    cli.run(main)
