"""Damages the checkpoints of a run and restores it.

    python tests/campaigns/checkpoints.py [--seed=0] [--count=200] [--start=0]
    python tests/campaigns/checkpoints.py --seed=0 --only=113

A run has three checkpoints. Files of the newest, of the two newest or of all are cut, emptied, removed, overwritten,
made longer or exchanged, or its config is. Restoring must give, bit for bit, the state of the newest checkpoint that is
not damaged (or a damaged one's, where the damage does no harm), with one line that names each folder that is damaged;
or, where none is left, one line of refusal. No checkpoint may be used whose metadata (config, checksums, facts of the
data) are not what was written, and nothing may be printed besides. Nothing may change outside the run's folder, nor in
whole checkpoints. Every twentieth attempt starts `python -m maskcl_jax.main --workdir=RUN` in a process of its own.
"""

import functools
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import common
import numpy as np

sys.path.insert(0, str(common.ROOT / "tests"))

STEPS = (2, 4, 6)
METADATA = "_CHECKPOINT_METADATA"
TOTAL = 8  # steps of the run, so that it goes on for a little
FIELDS = {"total_steps": TOTAL, "checkpoint.keep_last": 3, "eval.pictures": 0}
CONTENT = {
    "cut": common.cut,
    "emptied": common.emptied,
    "bits": common.bits,
    "overwritten": common.noise,
    "zeros": common.zeros,
    "longer": common.longer,
}
KINDS = (*CONTENT, "missing", "missing folder", "exchanged files", "files of another step", "strangers", "config.json")


@functools.cache
def as_a_command() -> None:
    """Prints what a command prints."""
    from absl import logging

    from maskcl_jax import cli

    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    cli.silence_arrays()


@functools.cache
def whole_run(folder: pathlib.Path):
    """(the folder of a run with three checkpoints, {step: its arrays})."""
    import jax
    from helpers.tiny import tiny
    from helpers.untrained import run_of

    from maskcl_jax.data.sources import open_source
    from maskcl_jax.training import checkpoint, run_folder

    workdir = pathlib.Path(tempfile.mkdtemp(prefix="whole_", dir=folder)) / "run"
    run = run_of(tiny("mae", **FIELDS))
    run_folder.claim(str(workdir), run.config).close()
    checkpoints, arrays = checkpoint.Checkpoints(str(workdir), keep_last=3), {}
    facts = open_source(run.config.data).facts()
    for step in STEPS:
        state = jax.tree.map(lambda leaf, step=step: leaf + np.asarray(step / 16, leaf.dtype), run.state)
        state = jax.device_put(state.replace(step=np.asarray(step, np.int32)))
        checkpoints.save(step, state, run.config, facts)
        arrays[step] = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    checkpoints.close()
    (workdir / ".lock").unlink()
    return workdir, arrays


def files_of(folder: pathlib.Path) -> list[pathlib.Path]:
    """Every file below a folder, in the same order whatever names Orbax draws for some of them."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(files, key=lambda path: (path.parent, path.stat().st_size, path.name))


def digest_of(folder: pathlib.Path) -> str:
    """Of the names and contents of all files below a folder."""
    digest = hashlib.blake2b()
    for path in files_of(folder):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def damage(kind: str, workdir: pathlib.Path, rng: np.random.Generator) -> set[int]:
    """Damages a run; returns the steps whose checkpoints are touched."""
    steps = STEPS[-int(rng.choice([1, 1, 1, 2, 3])) :]
    for step in steps:
        folder = workdir / "checkpoints" / str(step)
        files = files_of(folder)
        chosen = [
            files[i] for i in rng.choice(len(files), min(len(files), int(rng.choice([1, 1, 2, 4]))), replace=False)
        ]
        if rng.random() < 0.4:  # the largest: it holds the arrays
            chosen = [max(files, key=lambda path: path.stat().st_size)]
        if kind in CONTENT:
            for path in chosen:
                if path.stat().st_size:
                    path.write_bytes(CONTENT[kind](bytearray(path.read_bytes()), rng))
        elif kind == "missing":
            for path in chosen:
                path.unlink()
        elif kind == "missing folder":
            folders = [path for path in folder.rglob("*") if path.is_dir()]
            shutil.rmtree(folders[rng.integers(len(folders))])
        elif kind == "exchanged files":
            a, b = (files[i] for i in rng.choice(len(files), 2, replace=False))
            first, second = a.read_bytes(), b.read_bytes()
            a.write_bytes(second), b.write_bytes(first)
        elif kind == "files of another step":
            other = workdir / "checkpoints" / str(STEPS[0])
            if step == STEPS[0]:
                continue
            if rng.random() < 0.5:
                shutil.rmtree(folder / "state")
                shutil.copytree(other / "state", folder / "state")
            else:
                same = [path for path in chosen if (other / path.relative_to(folder)).is_file()]
                for path in same:
                    shutil.copy(other / path.relative_to(folder), path)
    if kind == "strangers":
        return strangers(workdir / "checkpoints", rng)
    if kind == "config.json":
        path = workdir / "config.json"
        text = path.read_bytes()
        other = [b"[]", b"{}", b"null", b"3", b"\xff\xfe\0", b'{"seed": [1]}', text.replace(b'"mae"', b'"mea"')]
        chosen = rng.choice(["content", "other", "missing"])
        if chosen == "content":
            path.write_bytes(CONTENT[str(rng.choice(list(CONTENT)))](bytearray(text), rng))
        elif chosen == "other":
            path.write_bytes(other[rng.integers(len(other))])
        else:
            path.unlink()
        return set()
    return set(steps)


def strangers(checkpoints: pathlib.Path, rng: np.random.Generator) -> set[int]:
    """Things beside the checkpoints that are none; returns the steps that they are called by."""
    touched = set()
    for name in rng.choice(["8", "07", "notes", "8.tmp", "damaged-6", "-1", "1e3", "9"], 2, replace=False):
        place = checkpoints / str(name)
        if rng.random() < 0.5:
            place.write_bytes(rng.bytes(10))
        else:
            place.mkdir()
            if rng.random() < 0.5:
                (place / "state").mkdir()
        touched |= {int(name)} if str(name).isdecimal() else set()
    return touched


def restored(workdir: pathlib.Path, said: list[str]):
    """(config, state) as `python -m maskcl_jax.main --workdir=RUN` restores them."""
    from maskcl_jax import config as config_lib
    from maskcl_jax.data.sources import open_source
    from maskcl_jax.methods import create
    from maskcl_jax.training import checkpoint, run, run_folder

    config = config_lib.unflat(run_folder.read_config(str(workdir)))
    config_lib.check(config)
    method = create(config)
    facts = open_source(config.data).facts()
    lock = run_folder.claim(str(workdir), config)
    try:
        checkpoints = checkpoint.Checkpoints(str(workdir), keep_last=3)
        checkpoints.check_data(facts, accept=False)
        shapes = run.abstract_state(config, method)
        state = checkpoints.restore_newest(shapes, said.append, move=True)
        checkpoints.close()
    finally:
        lock.close()
    return config_lib.flat(config), state


def attempt(seed: int, index: int, folder: pathlib.Path) -> common.Outcome:
    """One damaged run."""
    import jax

    from maskcl_jax.errors import UserError
    from maskcl_jax.training import run_folder

    whole, arrays = whole_run(folder.parent)
    rng = np.random.default_rng([seed, index])
    kind = KINDS[index % len(KINDS)]
    workdir = folder / "run"
    shutil.copytree(whole, workdir)
    touched = damage(kind, workdir, rng)
    untouched = [step for step in STEPS if step not in touched]
    before = {step: digest_of(workdir / "checkpoints" / str(step)) for step in untouched}
    outcome, said, state, refusal = common.Outcome(kind, ""), [], None, ""
    if index // len(KINDS) % 20 == 19 or index % 20 == 19:
        return by_command(outcome, workdir, untouched, folder)
    as_a_command()
    log = folder / "log"
    with common.captured(log):
        try:
            original = run_folder.read_config(str(whole))
            used, state = restored(workdir, said)
        except UserError as error:
            refusal = str(error)
    printed = log.read_text(errors="replace")
    log.unlink()
    if kind == "config.json" and not refusal and run_folder.differing(used, original):
        outcome.failure = f"another config is used: {run_folder.differing(used, original)}"
    config_lost = kind == "config.json"
    if refusal:
        outcome.result = "refused"
        if untouched and not config_lost:
            outcome.failure = f"refused, though {untouched} are whole: {refusal}"
        elif str(workdir) not in refusal and not config_lost:
            outcome.failure = f"the folder is not named: {refusal}"
    elif state is None:
        outcome.result, outcome.failure = "started from step 0", "a run with checkpoints starts from step 0"
    else:
        step = int(state.step)
        outcome.result = "the newest, whole" if step == STEPS[-1] else "one before it"
        kept = json.loads((workdir / "checkpoints" / str(step) / METADATA).read_bytes())["custom_metadata"]
        ours = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
        if step not in arrays or not all(a.tobytes() == b.tobytes() for a, b in zip(ours, arrays[step], strict=True)):
            outcome.failure = f"other arrays than those saved at step {step}"
        elif kept != json.loads((whole / "checkpoints" / str(step) / METADATA).read_bytes())["custom_metadata"]:
            outcome.failure = f"step {step}, whose metadata are damaged, and said {said}"
        elif untouched and step < max(untouched):
            outcome.failure = f"step {step}, though {untouched} are whole"
        elif len(said) != len([other for other in STEPS if other > step]) and kind != "strangers":
            outcome.failure = f"step {step}, and said {said}"
    lines = [*said, refusal]
    if not outcome.failure and any("\n" in line or len(line) > 700 for line in lines):
        outcome.failure = f"more than a line: {lines}"
    if not outcome.failure and any("checkpoints/" not in line for line in said):
        outcome.failure = f"the folder is not named: {said}"
    if not outcome.failure and printed:
        outcome.failure = f"printed {printed[:1500]}"
    if not outcome.failure and {path.name for path in folder.iterdir()} != {"run"}:
        outcome.failure = f"wrote {list(folder.iterdir())}"
    changed = [step for step, digest in before.items() if digest_of(workdir / "checkpoints" / str(step)) != digest]
    if not outcome.failure and changed:
        outcome.failure = f"whole checkpoints changed: {changed}"
    return outcome


def by_command(outcome: common.Outcome, workdir: pathlib.Path, untouched: list[int], folder: pathlib.Path):
    """The same in a process of its own."""
    command = [sys.executable, "-m", "maskcl_jax.main", f"--workdir={workdir}"]
    options = {"env": common.environment(), "cwd": folder, "capture_output": True, "text": True, "check": False}
    done = subprocess.run(command, timeout=290, **options)
    resumed = next((line for line in done.stdout.splitlines() if line.startswith("resumed from step")), "")
    outcome.result = f"command ends with {done.returncode}"
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if "Traceback" in done.stdout + done.stderr or done.returncode not in (0, 2):
        outcome.failure = f"status {done.returncode}: {(done.stdout + done.stderr)[-1500:]}"
    elif done.returncode == 2 and len(lines) != 1:
        outcome.failure = f"refused with {done.stderr[-1500:]}"
    elif done.returncode == 0 and not resumed:
        outcome.failure = f"started from step 0: {done.stdout[-500:]}"
    elif done.returncode == 0 and untouched and int(resumed.split()[3]) < max(untouched):
        outcome.failure = f"{resumed}, though {untouched} are whole"
    elif {path.name for path in folder.iterdir()} != {"run"}:
        outcome.failure = f"wrote {list(folder.iterdir())}"
    return outcome


if __name__ == "__main__":
    common.run(attempt, __doc__, count=200, limit=60)
