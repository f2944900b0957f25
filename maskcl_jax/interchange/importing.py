"""A run of ours from weights of others: known, renamed, completed with first values, and saved at step 0."""

import json
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maskcl_jax import config as config_lib
from maskcl_jax import methods
from maskcl_jax.errors import UserError
from maskcl_jax.interchange import convert, facts, files
from maskcl_jax.interchange.catalog import LAYOUTS, Layout, depths_of
from maskcl_jax.interchange.positions import place_tables
from maskcl_jax.interchange.product import KINDS
from maskcl_jax.training import checkpoint, optimizer, train_state

# The method that a run of an encoder from a tool gets, where nothing tells another.
METHODS = {"mae": "mae", "ccmim": "ccmim", "cmae": "cmae", "mocov3": "mocov3", "moco_v2": "moco_v2"}
DEFAULT = {"vit": "mae", "resnet": "moco_v2", "full": "mae"}


class Weights(NamedTuple):
    """Weights under our names.

    tree: ours. tables: our path -> a position table as they store it. facts: of the encoder. notes: what to tell.
    """

    kind: str
    tree: dict[str, Any]
    tables: dict[str, np.ndarray]
    facts: facts.Facts
    notes: tuple[str, ...]


class Imported(NamedTuple):
    """A run before it is saved. kind: of the weights. fresh: the parts with first values. told: what to tell."""

    config: Any
    state: train_state.TrainState
    kind: str
    fresh: list[str]
    told: list[str]


def import_run(path: str, source: str, out: str, config=None) -> list[str]:
    """Makes `out` a run at step 0 of `imported`; returns what to tell the user.

    Raises UserError, and leaves nothing, where something does not fit.
    """
    with files.new_folder(out) as folder:
        run = imported(path, source, config)
        checkpoint.claim(str(folder), run.config)
        checkpoints = checkpoint.Checkpoints(str(folder))
        checkpoints.save(0, run.state)
        checkpoints.close()
        origin = {"file": path, "layout": source, "kind": run.kind, "new": run.fresh}
        checkpoint.write_text(folder / "origin.json", json.dumps(origin, indent=1))
    return run.told


def imported(path: str, source: str, config=None) -> Imported:
    """A run with the weights of `path`, named as `source` (a key of `LAYOUTS`) names them.

    config: of the run; default: that of the run that was exported, or the published one of the method, with the
    encoder's size as the weights have it. Raises UserError where something does not fit.
    """
    weights = read(path, source)
    config = fitted(weights, source, config)
    tree, told = place_tables(weights.tree, weights.tables, weights.facts, config)
    state, fresh = completed(tree, config, methods.create(config))
    new = f"new: {', '.join(fresh)}" if fresh else "nothing is new"
    told = [*weights.notes, *told, f"{config.method.name} at step 0; {new} (but for the optimiser)"]
    return Imported(config, state, weights.kind, fresh, told)


def read(path: str, source: str) -> Weights:
    """The weights of a file. Raises UserError where they are not `source`'s."""
    state, texts = files.read_state(path)
    kind, layout, state, others = choose(state, source, path)
    keys = list(state)
    depths = depths_of(keys, layout)
    if depths.encoder == 0:
        raise UserError(f"{path} does not fit {source}: missing {layout.counted['encoder']}0, the first block")
    final_norm = texts.get(files.RECORD, {}).get("final_norm", True)
    rows = layout.rows(depths._replace(final_norm=final_norm))
    # Files from before torch 0.4 do not count batches; strict loading does not ask for it.
    state = {row.theirs: np.zeros((), np.int64) for row in rows if row.transform == "counter"} | state
    tables = {row.ours: state.pop(row.theirs) for row in rows if row.transform == "table" and row.theirs in state}
    if len(tables) < sum(row.transform == "table" for row in rows):
        missing = [row.theirs for row in rows if row.transform == "table" and row.ours not in tables]
        raise UserError(f"{path} does not fit {source}: missing {convert.listed(missing)}")
    try:
        tree = convert.from_torch(state, [row for row in rows if row.transform != "table"], convert.Shape())
    except UserError as error:
        depth = getattr(depths.encoder, "depth", depths.encoder)
        raise UserError(f"{path} does not fit {source} ({kind}, depth {depth}): {error}") from None
    model, channels = facts.of_tensors(state, {row.ours: row.theirs for row in rows}, depths.encoder)
    told = [f"{path}: {len(keys)} tensors, {source}, {KINDS[kind]}"]
    told += [f"left out: {convert.listed(others)}"] if others else []
    told += [warning] if (warning := facts.eps_warning(texts)) else []
    return Weights(kind, tree, tables, facts.of_texts(texts, model, channels), tuple(told))


def choose(state: dict, source: str, path: str) -> tuple[str, Layout, dict, list[str]]:
    """(kind, layout, its tensors without prefix, keys left out): the first layout of `source` whose marker is there."""
    for kind, layout in LAYOUTS[source].items():
        for prefix in layout.prefixes:
            if prefix + layout.marker not in state:
                continue
            mine = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            others = [k for k in state if not k.startswith(prefix)]
            others += [k for k in mine if layout.others and re.fullmatch(layout.others, k)]
            strange = [k for k in others if not re.fullmatch(layout.others, k)]
            if strange:
                raise UserError(f"{path} does not fit {source}: left over {convert.listed(sorted(strange))}")
            return kind, layout, {k: v for k, v in mine.items() if k not in others}, sorted(others)
    wanted = " or ".join(layout.marker for layout in LAYOUTS[source].values())
    raise UserError(f"{path} has no key of {source}, such as {wanted}; it has {convert.listed(sorted(state))}")


def fitted(weights: Weights, source: str, config):
    """The config of the run, whose encoder is the one of the weights. Raises UserError where a given one's is not."""
    found, given = weights.facts, config is not None
    if not given and found.record is not None:
        config, given = recorded(found.record), True
    if given:
        compare(found, config)
        return config
    name = METHODS.get(source, DEFAULT[weights.kind])
    config = published(name)
    model = dict(found.model)
    if "patch_size" in model:
        model["heads"] = facts.heads_of(found, name)
    with config.unlocked():
        config.model = model
    config.data.channels = found.channels
    if found.channels != 3:
        config.data.mean, config.data.std = (0.5,), (0.25,)
    if size := found.size or square(weights):
        config.data.image_size = size
    for field in ("mean", "std"):
        if value := getattr(found, field):
            config.data[field] = value
    config.eval.feature = found.feature or config.eval.feature
    return config


def recorded(fields: dict):
    """The config that an export of ours records. Raises UserError where this version does not know its fields."""
    try:
        config = config_lib.unflat(fields)
        methods.create(config)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{files.RECORD} is of another version ({files.first_line(error)}): remove it") from None
    return config


def published(name: str):
    """The `imagenet` preset of a method."""
    return config_lib.load(name, "imagenet")


def square(weights: Weights) -> tuple[int, int] | None:
    """The images of a square position table; None for a ResNet. Raises UserError for a table that cannot be square."""
    table = weights.tables.get("params/encoder/pos_embed")
    if table is None:
        return None
    count = table.shape[1] - 1
    side = round(count**0.5)
    if side**2 != count:
        raise UserError(f"{count} patches are no square: give --config=FILE with --config.data.image_size")
    return (side * weights.facts.model["patch_size"],) * 2


def compare(found: facts.Facts, config) -> None:
    """Raises UserError listing where the encoder of a config is not that of the weights."""
    theirs = {f"model.{name}": value for name, value in found.model.items()} | {"data.channels": found.channels}
    ours = config_lib.flat(config)
    if "model.mlp_ratio" in theirs and "model.mlp_ratio" in ours:  # networks cut width * ratio down to an integer
        theirs["model.mlp_ratio"], ours["model.mlp_ratio"] = (
            int(ratio * found.model["width"]) for ratio in (theirs["model.mlp_ratio"], ours["model.mlp_ratio"])
        )
    wrong = [
        f"{name} is {value} in the weights, {ours.get(name, 'absent')} in the config"
        for name, value in theirs.items()
        if ours.get(name) != value
    ]
    if wrong:
        raise UserError(f"the config is of another network: {'; '.join(wrong)}")


def completed(tree: dict, config, method) -> tuple[train_state.TrainState, list[str]]:
    """(state at step 0, names of what has first values): `tree` laid over a new state.

    A target network that the weights do not have is a copy. Raises UserError listing shapes that do not fit.
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
        mine = laid(places, given)
        given |= convert.paths_of({"target_params": method.target_params(mine["params"])})
        online = convert.paths_of({"target_batch_stats": mine.get("batch_stats", {})})
        given |= {path: value for path, value in online.items() if path in known}
    places = laid(places, given)
    new = {network_name(path) for path in known if path not in given and not path.startswith("batch_stats/")}
    state = state.replace(
        params=places["params"],
        target_params=places.get("target_params"),
        model_state={name: places.get(name, {}) for name in state.model_state},
    )
    return state, sorted(new) + (["the target (a copy)"] if copied else [])


def network_name(path: str) -> str:
    """What to call the part that a path leads into: `decoder`, `queue`, `encoder/norm`."""
    where, part, *below = path.split("/")
    if where == "queue":
        return "queue"
    return f"{part}/{below[0]}" if part == "encoder" else part


def check_shapes(given: dict[str, np.ndarray], known: dict[str, Any]) -> None:
    """Raises UserError listing arrays for which a config's networks have no place, or one of another shape."""
    here = {path: np.shape(value) for path, value in known.items()}
    wrong = [
        f"{path} is {np.shape(value)} in the weights, {here.get(path, 'absent')} in the config"
        for path, value in given.items()
        if np.shape(value) != here.get(path)
    ]
    if wrong:
        raise UserError(
            f"the config is of other networks: {convert.listed(wrong)}: give --config=FILE with "
            "--config.method.FIELD=VALUE for each"
        )


def laid(places: dict, given: dict[str, Any]) -> dict:
    """`places` with the arrays of `given`, path by path."""
    tree: dict = {}
    for path, value in convert.paths_of(places).items():
        convert.set_path(tree, path, jnp.asarray(given.get(path, value)))
    return tree
