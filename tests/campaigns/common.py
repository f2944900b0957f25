"""What the campaigns share: flags, a worker process with a watchdog, the table of outcomes.

A campaign makes damaged things one after the other, each from (seed, index) only, and says of each what came of it. It
runs in a worker process: one that hangs or dies costs that one attempt, and is a failure.
"""

import argparse
import collections
import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Callable

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
PROGRESS = 60  # seconds between two lines of progress
START = 120  # seconds for the imports of a worker, beside the limit of its first attempt


@dataclasses.dataclass
class Outcome:
    """What came of one attempt.

    Attributes:
      kind: What was done.
      result: The class of what came of it.
      failure: What is wrong with it, "" for nothing.
      counts: Further figures, which are added up.
    """

    kind: str
    result: str
    failure: str = ""
    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


Attempt = Callable[[int, int, pathlib.Path], Outcome]  # (seed, index, an empty folder)


def environment() -> dict[str, str]:
    """For processes that train: the CPU, programs that are compiled quickly, this checkout."""
    cheap = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    fixed = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": cheap, "PYTHONPATH": str(ROOT)}
    fixed |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    return os.environ | fixed


@contextlib.contextmanager
def captured(file: pathlib.Path):
    """What this process, its threads and its libraries print goes to a file."""
    kept = [os.dup(number) for number in (1, 2)]
    with file.open("wb") as opened:
        for number in (1, 2):
            os.dup2(opened.fileno(), number)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, old in zip((1, 2), kept, strict=True):
                os.dup2(old, number)
                os.close(old)


def bits(data: bytearray, rng: np.random.Generator) -> bytearray:
    """A few bits turned."""
    for _ in range(int(rng.integers(1, 30))):
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    return data


def zeros(data: bytearray, rng: np.random.Generator) -> bytearray:
    """A part overwritten with zeros."""
    first = int(rng.integers(len(data)))
    length = int(rng.integers(1, len(data) - first + 1))
    data[first : first + length] = bytes(length)
    return data


def noise(data: bytearray, rng: np.random.Generator) -> bytearray:
    """A part overwritten with noise."""
    first = int(rng.integers(len(data)))
    length = int(rng.integers(1, min(64, len(data) - first) + 1))
    data[first : first + length] = rng.bytes(length)
    return data


def cut(data: bytearray, rng: np.random.Generator) -> bytearray:
    """The end missing."""
    return data[: rng.integers(0, len(data))]


def longer(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Noise behind the end."""
    return data + rng.bytes(int(rng.integers(1, 2000)))


def exchanged(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Two parts in the other order."""
    a, b = sorted(rng.integers(0, len(data), 2))
    return data[:a] + data[b:] + data[a:b]


def emptied(data: bytearray, rng: np.random.Generator) -> bytearray:
    """Nothing, or as many zeros."""
    return bytearray(len(data) if rng.random() < 0.5 else 0)


def described(error: BaseException) -> str:
    """The end of a traceback."""
    return "".join(traceback.format_exception(error))[-3000:]


def work(attempt: Attempt, seed: int, indices: list[int], folder: str, limit: float, pipe) -> None:
    """In the worker: makes the attempts and sends (index, outcome) of each."""
    for index in indices:
        own, begun = pathlib.Path(folder) / str(index), time.process_time()
        own.mkdir()
        try:
            outcome = attempt(seed, index, own)
        except BaseException as error:
            outcome = Outcome("campaign", "traceback", described(error))
        taken = time.process_time() - begun
        if taken > limit and not outcome.failure:
            outcome = dataclasses.replace(outcome, result="slow", failure=f"took {taken:.0f} s of a CPU core")
        pipe.send((index, outcome))
    pipe.close()


def outcomes(attempt: Attempt, seed: int, indices: list[int], folder: str, limit: float):
    """Yields (index, outcome) of every attempt. limit: seconds of a CPU core for one, and a fifth of its seconds."""
    context = multiprocessing.get_context("spawn")
    patience = 5 * limit
    while indices:
        receiver, sender = context.Pipe(duplex=False)
        worker = context.Process(target=work, args=(attempt, seed, indices, folder, limit, sender), daemon=False)
        worker.start()
        sender.close()
        wait = patience + START
        try:
            while indices:
                if not receiver.poll(wait):
                    yield indices[0], Outcome("campaign", "hang", f"no answer after {wait:.0f} s")
                    break
                yield receiver.recv()
                indices, wait = indices[1:], patience
        except EOFError:
            worker.join()
            yield indices[0], Outcome("campaign", "died", f"the process ended with status {worker.exitcode}")
        finally:  # also where the campaign ends before the last attempt
            worker.kill()
            worker.join()
        indices = indices[1:]


def run(
    attempt: Attempt, doc: str, *, count: int, limit: float = 60.0, until: Callable[..., bool] | None = None
) -> None:
    """Runs a campaign from the command line; exits with status 1 where anything failed.

    Args:
      attempt: Makes one attempt.
      doc: For --help.
      count: The default of --count.
      limit: Seconds of a CPU core for one attempt; one that takes five times as long by the clock is a hang.
      until: With the sum of `Outcome.counts` so far and --count: whether to end. Default: after --count attempts.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=count)
    parser.add_argument("--start", type=int, default=0, help="the first index")
    parser.add_argument("--only", type=int, help="one index")
    flags = parser.parse_args()
    if flags.only is not None:
        flags.start, flags.count, until = flags.only, 1, None
    last = flags.start + flags.count
    table: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    counts, failures, begun = collections.Counter[str](), [], time.monotonic()
    said = begun
    os.environ |= environment()
    print(f"{pathlib.Path(sys.argv[0]).name}: seed {flags.seed}, from index {flags.start}", flush=True)
    with tempfile.TemporaryDirectory(prefix="campaign_") as folder, tempfile.TemporaryDirectory() as compiled:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
        for index, outcome in outcomes(attempt, flags.seed, list(range(flags.start, last)), folder, limit):
            table[outcome.kind][outcome.result] += 1
            counts += outcome.counts
            if time.monotonic() - said > PROGRESS:
                said = time.monotonic()
                print(f"index {index}, {len(failures)} failures, {dict(counts)}", file=sys.stderr, flush=True)
            if outcome.failure:
                failures.append(index)
                again = f"python {sys.argv[0]} --seed={flags.seed} --only={index}"
                print(
                    f"FAILED {index} ({outcome.kind}, {outcome.result}): {outcome.failure}\n  again: {again}",
                    flush=True,
                )
            elif flags.only is not None:
                print(f"{index}: {outcome.kind}: {outcome.result}")
            if until is not None and until(counts, flags.count):
                break
    results = sorted({result for row in table.values() for result in row})
    print("| kind | count | " + " | ".join(results) + " |\n|---" + "|---:" * (1 + len(results)) + "|")
    for kind, row in sorted(table.items()):
        print(f"| {kind} | {row.total()} | " + " | ".join(str(row[result]) for result in results) + " |")
    total = sum(table.values(), collections.Counter[str]())
    print(f"| all | {total.total()} | " + " | ".join(str(total[result]) for result in results) + " |")
    for name, number in sorted(counts.items()):
        print(f"{name}: {number}")
    command = shlex.join(["python", *sys.argv])
    print(f"{len(failures)} failures {failures or ''}; {time.monotonic() - begun:.0f} s; {command} (seed {flags.seed})")
    sys.exit(1 if failures else 0)
