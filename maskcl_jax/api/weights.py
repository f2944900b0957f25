"""Which encoder lies at a path: that of a run, or one of weights of an export or of another code base."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskcl_jax import methods
from maskcl_jax.errors import UserError, check_choice
from maskcl_jax.interchange import catalog, convert, files, importing
from maskcl_jax.interchange.positions import place_tables
from maskcl_jax.training import run as run_lib
from maskcl_jax.training import train_state


def open_run(path: pathlib.Path, *, network: str, step: int | None, layout: str) -> run_lib.Run:
    """Reads a run, or makes one of weights; arguments and errors are those of `load`."""
    if not path.exists():
        raise UserError(f"{path} does not exist: give the folder of a run or of an export, or a file of weights")
    if is_run(path):
        return run_lib.restore_run(str(path), step)
    if path.is_dir() and not any((path / name).is_file() for name in files.WEIGHTS):
        raise UserError(
            f"{path} holds neither a run (config.json, checkpoints) nor weights ({', '.join(files.WEIGHTS)}): "
            "give the folder of a run or of an export, or a file of weights"
        )
    if network == "target" or step is not None:
        raise UserError(f"{path} holds the weights of one network at one step: leave network and step out")
    check_choice("layout", layout or "timm", catalog.LAYOUTS)
    return run_of_weights(str(path), layout)


def is_run(path: pathlib.Path) -> bool:
    """Whether a folder is that of a run, not of weights: those of timm have a config.json, too."""
    return (path / "checkpoints").is_dir() or "method.name" in (
        files.read_json(path / "config.json") if (path / "config.json").is_file() else {}
    )


def run_of_weights(path: str, layout: str) -> run_lib.Run:
    """A run that has an encoder and nothing else, of the weights in a file or folder.

    Raises:
        UserError: The weights are of no layout or of several, or do not fit.
    """
    layout = layout or layout_of(path)
    weights = importing.read_weights(path, layout)
    config = importing.config_for(weights, layout, None)
    tree, _ = place_tables(weights.tree, weights.tables, weights.facts, config)
    method = methods.create(config)
    params, model_state = jax.eval_shape(method.init, jax.random.key(0))
    places = convert.paths_of({"params": params, **model_state})
    mine = ("params/encoder/", "batch_stats/encoder/")
    given = {path: value for path, value in convert.paths_of(tree).items() if path.startswith(mine)}
    importing.check_shapes(given, places)
    encoder: dict[str, Any] = {}
    for name, value in given.items():
        convert.set_path(encoder, name, value)
    state = train_state.TrainState(
        step=jnp.zeros((), jnp.int32),
        params=encoder.pop("params"),
        target_params=None,
        model_state=encoder,
        opt_state=None,
    )
    return run_lib.Run(config, method, state, path)


def layout_of(path: str) -> str:
    """Whose names weights have: as a file beside them says, or as only one code base has them. Else UserError."""
    state, texts = files.read_state(path)
    config = texts.get("config.json", {})
    if recorded := texts.get(files.RECORD, {}).get("format"):
        return recorded
    if "architecture" in config or "model_type" in config:
        return "timm" if "architecture" in config else "hf"
    fitting = [name for name in catalog.LAYOUTS if fits(state, name)]
    if len(fitting) != 1:
        known = f"as {', '.join(fitting)} name them" if fitting else f"not as {', '.join(catalog.LAYOUTS)} name them"
        raise UserError(f"{path}: its tensors are called {known}: say which with layout=NAME")
    return fitting[0]


def fits(state: dict[str, np.ndarray], layout: str) -> bool:
    """Whether tensors are named as a layout names them, none missing and none left over."""
    try:
        _, network, mine, _ = importing.choose(state, layout, "")
    except UserError:
        return False
    rows = network.rows(catalog.depths_of(list(mine), network))
    return all(row.theirs in mine for row in rows if row.transform != "counter")
