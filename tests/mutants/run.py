"""Makes one mistake at a time in a copy of the repository and runs the test that must see it.

    python tests/mutants/run.py [--only NAME ...] [--list]

Prints a line for each mutant of `table.py` and exits with status 1 unless every one is killed.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from mutants.mutant import Mutant
from mutants.table import MUTANTS

ROOT = pathlib.Path(__file__).parents[2]
TIMEOUT = 600  # seconds for one test


def copy_tracked(folder: pathlib.Path) -> None:
    """Copies the tracked files, as they are in the working tree."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def pytest(folder: pathlib.Path, tests: list[str], cache: pathlib.Path) -> tuple[int, str]:
    """Runs tests in a copy. Returns (the exit status of pytest, -1 after `TIMEOUT` for each test; the output)."""
    # Programs that no mutant changes are compiled once for all.
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *tests]
    with tempfile.TemporaryFile("w+") as output:
        options = {"cwd": folder, "env": environment, "stdout": output, "stderr": subprocess.STDOUT}
        try:
            status = subprocess.run(command, timeout=TIMEOUT * len(tests), check=False, **options).returncode
        except subprocess.TimeoutExpired:
            status = -1
        output.seek(0)
        return status, output.read()


def outcome(mutant: Mutant, folder: pathlib.Path, cache: pathlib.Path) -> str:
    """Copies the repository, makes the mistake, runs the test; in words what came of it."""
    copy_tracked(folder)
    path = folder / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        return "no longer applies"
    path.write_text(text.replace(mutant.old, mutant.new))
    status, output = pytest(folder, [mutant.test], cache)
    if status == 1:
        return "killed"
    if status == 0:
        return "SURVIVED"
    # Neither passed nor failed: a mutant that cannot be imported, or a test that does not end, shows nothing.
    return f"no verdict (pytest's status {status}): {output.strip().splitlines()[-1:]}"


def main() -> int:
    """The command line. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=sorted(m.name for m in MUTANTS), metavar="NAME")
    parser.add_argument("--list", action="store_true", help="names, files and tests")
    flags = parser.parse_args()
    chosen = [m for m in MUTANTS if not flags.only or m.name in flags.only]
    width = max(len(mutant.name) for mutant in chosen)
    if flags.list:
        for mutant in chosen:
            print(f"{mutant.name:{width}} {mutant.file}  {mutant.test}")
        return 0
    outcomes = []
    with tempfile.TemporaryDirectory() as base:
        cache, whole = pathlib.Path(base, "cache"), pathlib.Path(base, "whole")
        copy_tracked(whole)
        status, output = pytest(whole, sorted({m.test for m in chosen}), cache)
        if status:
            print(f"{output}\nwithout a mutant the tests do not pass")
            return 1
        for mutant in chosen:
            start, folder = time.monotonic(), pathlib.Path(base, mutant.name)
            outcomes.append(outcome(mutant, folder, cache))
            shutil.rmtree(folder)
            print(f"{mutant.name:{width}} {outcomes[-1]} ({time.monotonic() - start:.0f} s)", flush=True)
    print(f"{outcomes.count('killed')} of {len(outcomes)} mutants are killed")
    return int(set(outcomes) != {"killed"})


if __name__ == "__main__":
    sys.exit(main())
