"""The input pipeline by the size of the data set, by threads and by worker processes: flat, and a line?

    python tests/benchmarks/input_scaling.py [--rounds=5] [--method=mae] [--workers]

Views of a method from a folder of JPEGs. Of the rounds, in turn, the median: CPU time per image for 200 and for 20,000
files (the same 200 by other names), wall-clock time for one thread and for one on every core. With --workers:
wall-clock time for one worker process and for two, the median and the best pair, and the CPU time of the parent beside
that of its workers. It says, on a busy machine too, what two workers reach on two cores: 2 / (1 + parent / workers).
"""

import argparse
import multiprocessing
import os
import pathlib
import runpy
import statistics
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from maskcl_jax.benchmark import jpegs  # noqa: E402
from maskcl_jax.data import pipeline  # noqa: E402
from maskcl_jax.data.sources import open_source  # noqa: E402
from maskcl_jax.methods import create  # noqa: E402

BATCH, STEPS = 64, 6


def time_per_image(method: str, folder: pathlib.Path, *, threads: int = 1, workers: int = 0) -> dict[str, float]:
    """Milliseconds per image: "wall", and CPU time of this process ("cpu") and of its worker processes ("workers")."""
    c = runpy.run_path(str(ROOT / "configs" / f"{method}.py"))["get_config"](f"folder,path={folder}")
    c.data.threads, c.data.workers = threads, str(workers)
    views, source = create(c).views, open_source(c.data)
    with pipeline.train_batches(source, views, data_config=c.data, batch_size=BATCH, seed=0) as batches:
        for _ in range(6):  # more than is prefetched
            next(batches)
        before = clocks()
        for _ in range(STEPS):
            next(batches)
        return {name: (now - before[name]) / (1e-3 * STEPS * BATCH) for name, now in clocks().items()}


def clocks() -> dict[str, float]:
    """Seconds by three clocks."""
    seconds = 0.0
    for child in multiprocessing.active_children():
        fields = pathlib.Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return {"wall": time.perf_counter(), "cpu": time.process_time(), "workers": seconds}


def main() -> None:
    """Prints two lines, or one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--method", default="mae")
    parser.add_argument("--workers", action="store_true")
    args, cores = parser.parse_args(), os.cpu_count()
    with tempfile.TemporaryDirectory() as root:
        few, many = pathlib.Path(root, "few"), pathlib.Path(root, "many")
        jpegs.write(few, 200)
        if args.workers:
            cases = {n: {"folder": few, "workers": n} for n in (1, 2)}
        else:
            for file in sorted(few.rglob("*.jpg")):
                for copy in range(100):
                    other = many / file.parent.name / f"{copy}_{file.name}"
                    other.parent.mkdir(parents=True, exist_ok=True)
                    os.link(file, other)
            cases = {"200": {"folder": few}, "20,000": {"folder": many}, "all": {"folder": few, "threads": cores}}
        rounds = [
            {name: time_per_image(args.method, **case) for name, case in cases.items()} for _ in range(args.rounds)
        ]

    def median(case, clock):
        return statistics.median(round_[case][clock] for round_ in rounds)

    if args.workers:
        one, two = median(1, "wall"), median(2, "wall")
        best = max(round_[1]["wall"] / round_[2]["wall"] for round_ in rounds)
        parent, workers = median(1, "cpu"), median(1, "workers")
        print(f"1 worker {1e3 / one:.0f} images/s, 2 workers {1e3 / two:.0f}: {one / two:.2f} times, best {best:.2f}")
        print(
            f"CPU time an image: parent {parent:.3f} ms, worker {workers:.2f}: at most {2 / (1 + parent / workers):.2f}"
        )
        return
    small, large = median("200", "cpu"), median("20,000", "cpu")
    print(f"200 files {small:.2f} ms an image, 20,000 files {large:.2f}: {large / small:.2f} times")
    one, every = median("200", "wall"), median("all", "wall")
    print(f"1 thread {1e3 / one:.0f} images/s, {cores} threads {1e3 / every:.0f}: {one / every:.2f} times")


if __name__ == "__main__":
    main()
