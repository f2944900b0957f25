"""Runs protocols on a run: what `python -m maskcl_jax.evaluate` does, for programs."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from maskcl_jax import config as config_lib
from maskcl_jax.evaluate import features, finetune, frozen, linear, results, segment, settings
from maskcl_jax.evaluate.session import Columns, Session, open_session
from maskcl_jax.training import run_folder
from maskcl_jax.training.run import Run, restore_run

# protocol -> what runs it: values for `results.record`, or None where nothing is measured.
RUNNERS: dict[str, Callable[[Session], dict[str, Any] | None]] = {
    "knn": frozen.run_knn,
    "logistic": frozen.run_logistic,
    "lowshot": frozen.run_logistic,
    "linear": linear.run_linear,
    "finetune": finetune.run_finetune,
    "segment": segment.run_segment,
    "features": features.run_features,
}


def evaluate(
    workdir: str, protocol: str, *, data: str = "", overrides: tuple[str, ...] = (), command: str = ""
) -> list[dict[str, Any]]:
    """Evaluates a run.

    Args:
        workdir: The run's folder.
        protocol: `protocol[:recipe]`, see `settings.create`.
        data: A data preset instead of the run's data.
        overrides: "FIELD=VALUE" for each setting that differs.
        command: What the user typed, for the record.

    Returns:
        The records (see `results.record`) of each evaluation that `protocol` names.

    Raises:
        UserError: In one line, for what cannot work.
    """
    config = config_lib.unflat(run_folder.read_config(workdir))
    evaluations = settings.create(protocol, config, data=data, overrides=overrides)
    step = evaluations[0].step
    return evaluate_run(restore_run(workdir, None if step < 0 else step), evaluations, command=command)


def evaluate_run(run: Run, evaluations: list[ConfigDict], *, command: str = "") -> list[dict[str, Any]]:
    """Evaluates a run that was read.

    Args:
        run: The run; results go to its `workdir`.
        evaluations: Settings of each evaluation, see `settings.create`.
        command: What the user typed, for the record.

    Returns:
        The records, see `evaluate`.

    Raises:
        UserError: In one line, for what cannot work.
    """
    records: list[dict[str, Any]] = []
    cache: dict[tuple[str, str], Columns] = {}
    for chosen in evaluations:
        session = open_session(run, chosen, cache)
        start = time.monotonic()
        if jax.process_index() == 0:
            print(opening_line(session), flush=True)
        with contextlib.closing(lock(session)):
            values = RUNNERS[chosen.protocol](session)
        if values is not None:
            fractions = {f"unlabeled_{split}": fraction for split, fraction in session.unlabeled.items()}
            values["entries"] = [entry | fractions for entry in values["entries"]]
            records.append(results.record(session, values, seconds=time.monotonic() - start, command=command))
    return records


def lock(session: Session) -> run_folder.FileLock:
    """Locks the files of an evaluation. Raises UserError where another process computes it, or they have no place."""
    embeddings = features.files_of(session.run, session.settings)
    place = embeddings[0].with_suffix("") if embeddings else session.folder / session.name
    with contextlib.suppress(OSError):  # that of the lock is the error
        place.parent.mkdir(parents=True, exist_ok=True)
    what = f"the files of {place} are being written by another process"
    return run_folder.FileLock(place.with_name(f".{place.name}.lock"), what, "wait until it has ended")


def opening_line(session: Session) -> str:
    """What is evaluated, and which fraction of the images does not count."""
    parts = [f"{session.settings.protocol} {session.settings.recipe}", session.source.description, session.feature]
    parts += [f"{fraction:.1%} of the {split} images have no label" for split, fraction in session.unlabeled.items()]
    return " | ".join(parts)
