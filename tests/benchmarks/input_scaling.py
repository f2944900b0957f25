"""The input pipeline by the size of the data set and by threads: flat, and a line?

    python tests/benchmarks/input_scaling.py [--rounds=5]

One view of MAE from a folder of JPEGs. Of the rounds, in turn, the median: CPU time per image for 200 and for
20,000 files (the same 200 by other names), wall-clock time for one thread and for one on every core.
"""

import argparse
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


def time_per_image(folder: pathlib.Path, threads: int) -> tuple[float, float]:
    """(wall-clock, CPU) milliseconds per image."""
    c = runpy.run_path(str(ROOT / "configs" / "mae.py"))["get_config"](f"folder,path={folder}")
    c.data.threads = threads
    views, source = create(c).views, open_source(c.data)
    with pipeline.train_batches(source, views, data_config=c.data, batch_size=BATCH, seed=0) as batches:
        for _ in range(6):  # more than is prefetched
            next(batches)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(STEPS):
            next(batches)
        images = 1e-3 * STEPS * BATCH
        return (time.perf_counter() - wall) / images, (time.process_time() - cpu) / images


def main() -> None:
    """Prints two lines."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds, cores = parser.parse_args().rounds, os.cpu_count()
    with tempfile.TemporaryDirectory() as root:
        few, many = pathlib.Path(root, "few"), pathlib.Path(root, "many")
        jpegs.write(few, 200)
        for file in sorted(few.rglob("*.jpg")):
            for copy in range(100):
                other = many / file.parent.name / f"{copy}_{file.name}"
                other.parent.mkdir(parents=True, exist_ok=True)
                os.link(file, other)
        cases = {"200": (few, 1), "20,000": (many, 1), "all cores": (few, cores)}
        times = {name: [] for name in cases}
        for _ in range(rounds):
            for name, case in cases.items():
                times[name].append(time_per_image(*case))
        wall, cpu = ({n: statistics.median(t[i] for t in times[n]) for n in cases} for i in (0, 1))
    small, large = cpu["200"], cpu["20,000"]
    print(f"200 files {small:.2f} ms an image, 20,000 files {large:.2f}: {large / small:.2f} times")
    one, every = wall["200"], wall["all cores"]
    print(f"1 thread {1e3 / one:.0f} images/s, {cores} threads {1e3 / every:.0f}: {one / every:.2f} times")


if __name__ == "__main__":
    main()
