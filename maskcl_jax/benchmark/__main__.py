"""Measures how fast a config is: `python -m maskcl_jax.benchmark --config=configs/mae.py:imagenet --mode=step`.

    --mode=step         the training step alone, on one synthetic batch; needs no data
    --mode=input        the input pipeline alone: everything that a batch holds, from the config's data
    --mode=end_to_end   both together, as in training, and the fraction of the time that the step waits for data
    --mode=evaluate     the frozen encoder over the training images, as k-NN reads them
    --mode=start        from the command to the first step, by phase: with an empty compile cache, and again
    ... --steps=50      steps that are timed, after --warmup=3 that are not
    ... --jpegs=512     so many JPEGs of 500 x 375 pixels, quality 92, made for the run, instead of the config's data
    ... --profile=DIR   a trace of some steps, for TensorBoard or Perfetto
    ... --json          one JSON object as the last line

What the numbers mean. A step's time is from one result to the next, the host one step ahead as in training; printed are
the median and the range of four fifths of the steps. Model FLOPs: the matrix products and convolutions of what JAX
traced, 2 per multiply-add, without what remat computes twice; beside it XLA's count of the compiled program. MFU: model
FLOPs over the chips' bf16 peak (`performance.devices`), whatever the dtype. Images are source images: two views of one
count once. Images per core: over the CPU time of all threads of this process, so that other load does not count. A
start leaves out the online evaluation before the first step, whose time is that of its images.
"""

import contextlib
import dataclasses
import json
import shlex
import sys
import tempfile

from absl import flags

from maskcl_jax import cli
from maskcl_jax import config as config_lib
from maskcl_jax.benchmark import modes, startup
from maskcl_jax.errors import UserError
from maskcl_jax.performance.devices import accelerator_fallback
from maskcl_jax.training import compile_cache

MODES = {"step": modes.step, "input": modes.host, "end_to_end": modes.end_to_end, "evaluate": modes.evaluate}

CONFIG = cli.define_config()
MODE = flags.DEFINE_enum("mode", "step", [*MODES, "start"], "What is timed.")
STEPS = flags.DEFINE_integer("steps", modes.Timer.steps, "Steps that are timed.", 2)
WARMUP = flags.DEFINE_integer("warmup", modes.Timer.warmup, "Steps before them.", 1)
JPEGS = flags.DEFINE_integer("jpegs", 0, "Make so many JPEGs and read them instead of the config's data.", 0)
PROFILE = flags.DEFINE_string("profile", "", "A folder for a trace of three more steps (not with --mode=input).")
JSON = flags.DEFINE_bool("json", False, "Print one JSON object as the last line.")


def main(argv: list[str]) -> None:
    """Measures, and prints the report."""
    if CONFIG.value is None:
        raise UserError("--config is missing: give one of configs/, for instance configs/mae.py:imagenet")
    if PROFILE.value and MODE.value == "input":
        raise UserError(f"--profile={PROFILE.value} has nothing to trace with --mode=input: no step runs")
    with contextlib.ExitStack() as stack:
        config = CONFIG.value
        if JPEGS.value:
            config = modes.with_jpegs(config, stack.enter_context(tempfile.TemporaryDirectory()), JPEGS.value)
        config_lib.check(config)
        if config.compile_cache:  # else it is off, so that the time of compiling is one
            compile_cache.use(config.compile_cache)
        if warning := accelerator_fallback():
            print(warning, file=sys.stderr)
        if MODE.value == "start":
            print_start(*startup.both(config))
            return
        timer = modes.Timer(steps=STEPS.value, warmup=WARMUP.value, profile=PROFILE.value)
        report = MODES[MODE.value](config, timer)
    print(modes.as_text(report))
    if JSON.value:
        speed = {"images_per_second_per_device": report.images_per_second_per_device}
        print(json.dumps(command() | dataclasses.asdict(report) | speed))


def print_start(first: dict[str, startup.Phase], again: dict[str, startup.Phase]) -> None:
    """Prints two starts."""
    print(startup.as_text(first, again))
    if JSON.value:
        starts = {"first": first, "again": again}
        print(json.dumps(command() | {name: {n: p._asdict() for n, p in s.items()} for name, s in starts.items()}))


def command() -> dict[str, str]:
    """What was written, for the JSON object."""
    return {"command": "python -m maskcl_jax.benchmark " + shlex.join(sys.argv[1:])}


if __name__ == "__main__":
    cli.run(main)
