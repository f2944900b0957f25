"""A start from the command to the end of the first step, by phase."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import jax

from maskcl_jax import config as config_lib
from maskcl_jax.benchmark import modes
from maskcl_jax.data import pipeline
from maskcl_jax.data.sources import open_source
from maskcl_jax.errors import UserError
from maskcl_jax.training import compile_cache, loop
from maskcl_jax.training.logging import summary_table


class Phase(NamedTuple):
    """What one phase of a start takes.

    Attributes:
        wall: Seconds.
        cpu: CPU seconds of all threads: other load on the machine hardly changes them.
    """

    wall: float
    cpu: float


def both(config: Any) -> tuple[dict[str, Phase], dict[str, Phase]]:
    """Starts twice, each in a process of its own, with a compile cache that is empty at first.

    Args:
        config: Of the run that would be started; its data must be there.

    Returns:
        The phases of the first start and those of the second, by name, in order.

    Raises:
        UserError: A start fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        return once(config, folder), once(config, folder)


def once(config: Any, cache: str) -> dict[str, Phase]:
    """Starts once in a new process, with a folder as its compile cache. Raises UserError where that fails."""
    config = config.copy_and_resolve_references()
    config.compile_cache = cache
    fields = {name: list(v) if isinstance(v, tuple) else v for name, v in config_lib.flat(config).items()}
    done = subprocess.run(
        [sys.executable, "-c", f"from maskcl_jax.benchmark import startup; startup.timed_process({time.time()!r})"],
        input=json.dumps(fields),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UserError(f"a start of {config.method.name} fails: {(done.stderr.splitlines() or ['?'])[-1]}")
    return {name: Phase(*times) for name, times in json.loads(done.stdout.splitlines()[-1]).items()}


def phases(config: Any, began: float) -> dict[str, Phase]:
    """Does what a start does, to the end of the first step.

    Args:
        config: Of the run.
        began: `time.time()` when the process was started.

    Returns:
        The phases, by name, in order.
    """
    marks = [("", began, 0.0)]

    def mark(name: str) -> None:
        marks.append((name, time.time(), time.process_time()))

    mark("imports")
    compile_cache.use(config.compile_cache)
    source = open_source(config.data)
    mark("data")
    program = modes.program_of(config, pipeline.steps_per_epoch(source, config.batch_size), source)
    mark("tracing the initial values")
    state = jax.block_until_ready(program.new_state())
    mark("initial values")
    lowered = program.trace().lower()
    mark("tracing the step")
    step = lowered.compile()
    mark("compiling the step")
    with contextlib.closing(loop.open_batches(source, program, 0)) as batches:
        batch = program.put(next(batches))
        mark("first batch")
        jax.block_until_ready(step(state, batch))
    mark("first step")
    return {
        name: Phase(wall - before, cpu - earlier)
        for (_, before, earlier), (name, wall, cpu) in itertools.pairwise(marks)
    }


def as_text(first: dict[str, Phase], again: dict[str, Phase]) -> str:
    """Two starts as a table, wall-clock and CPU seconds."""

    def cell(phase: Phase) -> str:
        return f"{phase.wall:6.2f} s ({phase.cpu:6.2f} of CPU)"

    rows = {name: f"{cell(phase)}  again {cell(again[name])}" for name, phase in first.items()}
    totals = [Phase(*map(sum, zip(*start.values(), strict=True))) for start in (first, again)]
    return summary_table(rows | {"all": f"{cell(totals[0])}  again {cell(totals[1])}"})


def timed_process(started: float) -> None:
    """Prints the phases of the config that stands on the standard input; in a process of its own.

    Args:
        started: When the process was started, in seconds of `time.time`.
    """
    print(json.dumps(phases(config_lib.unflat(json.load(sys.stdin)), started)))
