"""Runs protocols on a run: what `python -m maskcl_jax.evaluate` does, for programs."""

import importlib
import time

import jax

from maskcl_jax import config as config_lib
from maskcl_jax.evaluate import results, settings
from maskcl_jax.evaluate.session import open_session
from maskcl_jax.training import checkpoint
from maskcl_jax.training.run import restore_run

# protocol -> (module, function), imported when it is asked for.
RUNNERS = {
    "knn": ("frozen", "run_knn"),
    "logistic": ("frozen", "run_logistic"),
    "lowshot": ("frozen", "run_logistic"),
    "linear": ("linear", "run_linear"),
    "finetune": ("finetune", "run_finetune"),
    "segment": ("segment", "run_segment"),
    "features": ("features", "run_features"),
}


def evaluate(
    workdir: str, protocol: str, *, data: str = "", overrides: tuple[str, ...] = (), command: str = ""
) -> list:
    """The records (see `results.record`) of each evaluation that `protocol` names.

    data, overrides: see `settings.create`. Raises UserError, in one line, for what cannot work.
    """
    config = config_lib.unflat(checkpoint.read_config(workdir))
    asked = settings.create(protocol, config, data=data, overrides=overrides)
    run = restore_run(workdir, None if asked[0].step < 0 else asked[0].step)
    records, cache = [], {}
    for chosen in asked:
        session = open_session(run, chosen, cache)
        module, function = RUNNERS[chosen.protocol]
        begun = time.monotonic()
        if jax.process_index() == 0:
            print(f"{chosen.protocol} {chosen.recipe} | {session.source.description} | {session.feature}", flush=True)
        values = getattr(importlib.import_module(f"maskcl_jax.evaluate.{module}"), function)(session)
        if values is not None:
            records.append(results.record(session, values, seconds=time.monotonic() - begun, command=command))
    return records
