"""Several commands of the package, one after the other: each is a process of its own, forked from one with imports."""

import json
import pathlib
import subprocess
import sys

# What every command would import first: half of the time of a tiny one.
LIBRARIES = ("maskcl_jax.training.loop", "maskcl_jax.interchange.exporting")
FORKING = """
import importlib, json, os, runpy, sys, warnings
libraries, commands = json.load(sys.stdin)
for library in libraries:
    importlib.import_module(library)
warnings.filterwarnings("ignore", ".*fork", RuntimeWarning)  # of JAX, which has started no thread yet
for module, *words in commands:
    if (process := os.fork()) == 0:
        sys.argv = [module, *words]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        sys.exit()
    if status := os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]):
        sys.exit(f"python -m {' '.join([module, *words])}: exit status {status}")
"""


def output_of(
    commands: list[list[str]], *, cwd: pathlib.Path, env: dict[str, str], libraries: tuple[str, ...] = LIBRARIES
) -> str:
    """What `python -m MODULE WORDS` of each command prints; fails with what is on stderr where one of them fails."""
    done = subprocess.run(
        [sys.executable, "-c", FORKING],
        input=json.dumps([libraries, commands]),
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
