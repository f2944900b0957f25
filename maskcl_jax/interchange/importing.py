"""Makes a run of other code bases' weights: recognized, renamed, completed with initial values, saved at step 0."""

import contextlib
import json
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from maskcl_jax import config as config_lib
from maskcl_jax import methods
from maskcl_jax.errors import UserError, first_line
from maskcl_jax.interchange import convert, facts, files
from maskcl_jax.interchange.catalog import LAYOUTS, Layout, depths_of
from maskcl_jax.interchange.positions import place_tables
from maskcl_jax.interchange.product import KINDS
from maskcl_jax.training import checkpoint, optimizer, run_folder, train_state

# The method of a run by the source of its weights; DEFAULT is for tools that have none.
METHODS = {"mae": "mae", "ccmim": "ccmim", "cmae": "cmae", "mocov3": "mocov3", "moco_v2": "moco_v2"}
DEFAULT = {"vit": "mae", "resnet": "moco_v2", "full": "mae"}


class Weights(NamedTuple):
    """Weights under our names.

    Attributes:
        kind: "vit", "resnet" or "full" (see `catalog`).
        tree: Our arrays, without position tables.
        tables: Our path -> a position table as they store it.
        facts: What the files say of the encoder.
        notes: Lines for the user.
    """

    kind: str
    tree: dict[str, Any]
    tables: dict[str, np.ndarray]
    facts: facts.Facts
    notes: tuple[str, ...]


class Imported(NamedTuple):
    """A run before it is saved.

    Attributes:
        config: Of the run.
        state: At step 0.
        kind: Of the weights.
        initialized: The parts with initial values.
        notes: Lines for the user.
    """

    config: ConfigDict
    state: train_state.TrainState
    kind: str
    initialized: list[str]
    notes: list[str]


def import_run(path: str, source: str, out: str, config: ConfigDict | None = None) -> list[str]:
    """Writes the run that `build_run` makes of weights.

    Args:
        path: Of the weights, see `build_run`.
        source: A key of `LAYOUTS`.
        out: The new run's folder.
        config: See `build_run`.

    Returns:
        Lines for the user.

    Raises:
        UserError: And leaves nothing, where something does not fit.
    """
    with files.new_folder(out) as folder:
        run = build_run(path, source, config)
        with (
            contextlib.closing(run_folder.claim(str(folder), run.config)),
            contextlib.closing(checkpoint.Checkpoints(str(folder))) as checkpoints,
        ):
            checkpoints.save(0, run.state, run.config)
        origin = {"file": path, "layout": source, "kind": run.kind, "new": run.initialized}
        run_folder.write_text(folder / "origin.json", json.dumps(origin, indent=1))
    return run.notes


def build_run(path: str, source: str, config: ConfigDict | None = None) -> Imported:
    """Makes a run of weights.

    Args:
        path: A file of weights, or a folder that holds one.
        source: A key of `LAYOUTS`: whose names the weights have.
        config: Of the run; default: that of the run that was exported, or the published one of the method, with the
            encoder's size as the weights have it.

    Returns:
        The run.

    Raises:
        UserError: Where something does not fit.
    """
    weights = read_weights(path, source)
    config = config_for(weights, source, config)
    try:
        tree, notes = place_tables(weights.tree, weights.tables, weights.facts, config)
    except UserError as error:
        raise UserError(f"{path} does not fit {source}: {error}") from None
    state, initialized = complete(tree, config, methods.create(config))
    new = f"new: {', '.join(initialized)}" if initialized else "nothing is new"
    notes = [*weights.notes, *notes, f"{config.method.name} at step 0; {new} (except the optimizer)"]
    return Imported(config, state, weights.kind, initialized, notes)


def read_weights(path: str, source: str) -> Weights:
    """The weights of a file. Raises UserError where they are not `source`'s."""
    state, texts = files.read_state(path)
    kind, layout, state, others = choose(state, source, path)
    keys = list(state)
    depths = depths_of(keys, layout)
    if layout.counted and depths.encoder == 0:
        raise UserError(f"{path} does not fit {source}: missing {layout.counted['encoder']}0, the first block")
    final_norm = texts.get(files.RECORD, {}).get("final_norm", True)
    rows = layout.rows(depths._replace(final_norm=final_norm))
    # Files from before torch 0.4 do not count batches; strict loading does not ask for it.
    state = {row.theirs: np.zeros((), np.int64) for row in rows if row.transform == "counter"} | state
    tables = {row.ours: state.pop(row.theirs) for row in rows if row.transform == "table" and row.theirs in state}
    if len(tables) < sum(row.transform == "table" for row in rows):
        missing = [row.theirs for row in rows if row.transform == "table" and row.ours not in tables]
        raise UserError(f"{path} does not fit {source}: missing {convert.comma_separated(missing)}")
    keys_of = {row.ours: row.theirs for row in rows}
    try:
        for ours, table in tables.items():
            if table.ndim != 3 or len(table) != 1 or table.shape[1] < 2:
                raise UserError(f"{keys_of[ours]} has the shape {table.shape}, which no position table has")
        tree = convert.from_torch(state, [row for row in rows if row.transform != "table"], convert.Shape())
        model, channels = facts.of_tensors(state, keys_of, depths.encoder, depths.resnet)
    except UserError as error:
        depth = depths.encoder or depths.resnet.depth
        raise UserError(f"{path} does not fit {source} ({kind}, depth {depth}): {error}") from None
    notes = [f"{path}: {len(keys)} tensors, {source}, {KINDS[kind]}"]
    notes += [f"left out: {convert.comma_separated(others)}"] if others else []
    notes += [warning] if (warning := facts.eps_warning(texts)) else []
    return Weights(kind, tree, tables, facts.of_texts(texts, model, channels), tuple(notes))


def choose(
    state: dict[str, np.ndarray], source: str, path: str
) -> tuple[str, Layout, dict[str, np.ndarray], list[str]]:
    """(kind, layout, its tensors without prefix, keys left out) of the first layout whose marker the weights have."""
    for kind, layout in LAYOUTS[source].items():
        for prefix in layout.prefixes:
            if prefix + layout.marker not in state:
                continue
            mine = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            others = [k for k in state if not k.startswith(prefix)]
            others += [k for k in mine if layout.others and re.fullmatch(layout.others, k)]
            unknown = [k for k in others if not re.fullmatch(layout.others, k)]
            if unknown:
                raise UserError(f"{path} does not fit {source}: left over {convert.comma_separated(sorted(unknown))}")
            return kind, layout, {k: v for k, v in mine.items() if k not in others}, sorted(others)
    markers = " or ".join(layout.marker for layout in LAYOUTS[source].values())
    raise UserError(
        f"{path} has no key of {source}, such as {markers}; it has {convert.comma_separated(sorted(state))}"
    )


def config_for(weights: Weights, source: str, config: ConfigDict | None) -> ConfigDict:
    """The config of the run, whose encoder is that of the weights. Raises UserError where a given one's is not."""
    known = weights.facts
    if config is None and known.record is not None:
        config = recorded_config(known.record)
    if config is not None:
        check_encoder(known, config)
        return config
    name = METHODS.get(source, DEFAULT[weights.kind])
    config = config_lib.load(name, "imagenet")
    model = dict(known.model)
    if config_lib.is_vit(model):
        model["heads"] = facts.heads_of(known, name)
    with config.unlocked():
        config.model = model
    config.data.channels = known.channels
    if known.channels != 3:
        config.data.mean, config.data.std = (0.5,), (0.25,)
    config.data.image_size = known.size or square_size(weights) or config.data.image_size
    config.data.mean, config.data.std = known.mean or config.data.mean, known.std or config.data.std
    config.eval.feature = known.feature or config.eval.feature
    return config


def recorded_config(fields: dict[str, Any]) -> ConfigDict:
    """The config that an export of ours records. Raises UserError where this version does not know its fields."""
    try:
        config = config_lib.unflat(fields)
        config_lib.check(config)
        methods.create(config)
    except UserError as error:
        raise UserError(f"{files.RECORD} is damaged, or of another version ({error}): remove it") from None
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{files.RECORD} is of another version ({first_line(error, 200)}): remove it") from None
    return config


def square_size(weights: Weights) -> tuple[int, int] | None:
    """The image size of a square position table; None for a ResNet. Raises UserError for one that is not square."""
    table = weights.tables.get("params/encoder/pos_embed")
    if table is None:
        return None
    count = table.shape[1] - 1
    side = round(count**0.5)
    if side**2 != count:
        raise UserError(f"{count} patches are no square: {facts.with_config('--config.data.image_size=H,W')}")
    return (side * weights.facts.model["patch_size"],) * 2


def check_encoder(known: facts.Facts, config: ConfigDict) -> None:
    """Raises UserError listing where the encoder of a config is not that of the weights."""
    theirs = {f"model.{name}": value for name, value in known.model.items()} | {"data.channels": known.channels}
    ours = config_lib.flat(config)
    if "model.mlp_ratio" in theirs and "model.mlp_ratio" in ours:  # networks round width * ratio down
        theirs["model.mlp_ratio"], ours["model.mlp_ratio"] = (
            int(ratio * known.model["width"]) for ratio in (theirs["model.mlp_ratio"], ours["model.mlp_ratio"])
        )
    for fields in (theirs, ours):
        if "model.stem" in fields:  # stages may be given by the depth alone
            fields["model.depth"] = facts.resnet_name(fields.pop("model.depth"), fields.pop("model.stages", ()))
    wrong = [
        f"{name} is {value} in the weights, {ours.get(name, 'absent')} in the config"
        for name, value in theirs.items()
        if ours.get(name) != value
    ]
    if wrong:
        raise UserError(f"the config is of another network: {'; '.join(wrong)}")


def complete(
    tree: dict[str, Any], config: ConfigDict, method: methods.Method
) -> tuple[train_state.TrainState, list[str]]:
    """A new state with the weights; a target network that they do not have is a copy.

    Args:
        tree: Our arrays.
        config: Of the run.
        method: Of the run.

    Returns:
        (state at step 0, names of the parts with initial values).

    Raises:
        UserError: Listing shapes that do not fit.
    """
    tx = optimizer.create(config, lambda step: 0.0, frozen=method.frozen)
    state = jax.jit(lambda key: train_state.create(method, tx, key))(jax.random.key(config.seed))
    places = {"params": state.params, **state.model_state}
    if state.target_params is not None:
        places["target_params"] = state.target_params
    given, known = convert.paths_of(tree), convert.paths_of(places)
    check_shapes(given, known)
    copied = "target_params" not in tree and state.target_params is not None
    if copied:
        mine = overlay(places, given)
        given |= convert.paths_of({"target_params": method.target_params(mine["params"])})
        online = convert.paths_of({"target_batch_stats": mine.get("batch_stats", {})})
        given |= {path: value for path, value in online.items() if path in known}
    places = overlay(places, given)
    new = {network_name(path) for path in known if path not in given and not path.startswith("batch_stats/")}
    state = state.replace(
        params=places["params"],
        target_params=places.get("target_params"),
        model_state={name: places.get(name, {}) for name in state.model_state},
    )
    return state, sorted(new) + (["the target (a copy)"] if copied else [])


def network_name(path: str) -> str:
    """The name of the part that a path leads into: `decoder`, `queue`, `encoder/norm`."""
    where, part, *below = path.split("/")
    if where == "queue":
        return "queue"
    return f"{part}/{below[0]}" if part == "encoder" else part


def check_shapes(given: dict[str, np.ndarray], known: dict[str, Any]) -> None:
    """Raises UserError listing arrays that a config's networks do not have, or have in another shape."""
    here = {path: np.shape(value) for path, value in known.items()}
    wrong = [
        f"{path} is {np.shape(value)} in the weights, {here.get(path, 'absent')} in the config"
        for path, value in given.items()
        if np.shape(value) != here.get(path)
    ]
    if wrong:
        raise UserError(
            f"the config is of other networks: {convert.comma_separated(wrong)}: "
            f"{facts.with_config('--config.method.FIELD=VALUE for each')}"
        )


def overlay(places: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """A tree with the arrays of `given` (path -> array) instead of its own."""
    tree: dict[str, Any] = {}
    for path, value in convert.paths_of(places).items():
        convert.set_path(tree, path, jnp.asarray(given.get(path, value)))
    return tree
