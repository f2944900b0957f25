"""Fields by their dotted names: how they are listed, set from values or text, and stored as JSON."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from maskcl_jax.config.defaults import COLOR, DEFAULTS
from maskcl_jax.errors import UserError

# Short names that the argument after the colon knows, and the field that each one sets.
SHORT = {
    "base_lr": "optimizer.base_lr",
    "warmup_epochs": "optimizer.warmup_epochs",
    "data_dir": "data.data_dir",
    "path": "data.path",
    "test_path": "data.test_path",
    "image_size": "data.image_size",
}


class Config(ml_collections.ConfigDict):
    """A ConfigDict that knows which layer set each of its fields.

    `origins["optimizer.base_lr"]` is "default", "data", "method", "preset", "argument" or "command line".
    """

    origins: dict[str, str]

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        object.__setattr__(self, "origins", {})  # ConfigDict would take it for a field
        super().__init__(*arguments, **keywords)


def set_field(config: ml_collections.ConfigDict, path: str, value: Any, *, written: str, layer: str = "") -> None:
    """Sets the field `a.b` to a value, or to what a text says of the type that the field has.

    Args:
        config: What is changed.
        path: The field's name, with dots.
        value: A number, bool, tuple or text. Text for a field that is none is read: `3e-4`, `true`, `64x32`, `(0.2,1)`.
        written: What the user wrote, for the error.
        layer: Goes into `Config.origins`.

    Raises:
        UserError: There is no such field, or the value is not one of its type.
    """
    fields = flat(config)
    if path not in fields:
        group = [field for field in fields if field.startswith(f"{path}.")]
        known = [*SHORT, "variant", *fields] if layer == "argument" else fields
        hint = f": it is a group, set for instance {group[0]}" if group else suggestion(path, known)
        raise UserError(f"{written}: {path!r} is not a field of the config{hint}")
    *parents, name = path.split(".")
    place = config
    for parent in parents:
        place = place[parent]
    try:
        place[name] = read_value(value, place[name]) if isinstance(value, str) else value
    except (ValueError, TypeError):
        raise UserError(f"{written} does not fit: {path} is {TYPES[type(place[name])]}") from None
    if path == "data.image_size" and len(place[name]) == 1:
        place[name] = place[name] * 2  # one side stands for both
    if isinstance(config, Config):
        config.origins[path] = layer


TYPES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    tuple: "a list of numbers, as 64x32 or '(0.2,1.0)' (quoted, for the shell)",
    str: "text",
}


def read_value(text: str, old: Any) -> Any:
    """The value that a text writes, of the type of `old`. Raises ValueError."""
    if isinstance(old, str):
        return text
    if isinstance(old, bool):
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError(text)
        return text.lower() in ("true", "1")
    if isinstance(old, tuple):
        inside = text.strip("()[] ").removesuffix(",")
        return tuple(read_value(item, old[0] if old else 0) for item in re.split("[,x]", inside) if inside)
    if isinstance(old, int) and re.search("[.eE]", text):
        number = float(text)
        if not number.is_integer():
            raise ValueError(text)
        return int(number)
    return type(old)(text)


def suggestion(word: str, known: Iterable[str]) -> str:
    """`, did you mean ...?` where a known word looks alike."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def is_vit(model: Mapping[str, Any] | ml_collections.ConfigDict) -> bool:
    """Whether the fields of `config.model` are those of a ViT; if not, they are those of a ResNet."""
    return "patch_size" in model


def split_fields(config: ml_collections.ConfigDict) -> dict[str, int]:
    """The fields that split each device's part of a batch, by name."""
    return {name: config[name] for name in ("accumulation", "image_chunks")}


def flat(config: Mapping[str, Any] | ml_collections.ConfigDict) -> dict[str, Any]:
    """{"data.image_size": [32, 32], ...}: dotted names, tuples as lists, as JSON holds them."""
    fields = {}
    for key, value in config.items():
        if hasattr(value, "items"):
            fields.update({f"{key}.{name}": inner for name, inner in flat(value).items()})
        else:
            fields[key] = list(value) if isinstance(value, tuple) else value
    return fields


def with_defaults(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A flat config with the defaults of the fields that the version which wrote it did not have.

    So the default of a new field must be what was done before the field existed.
    """
    model = {"model.stages": []} if "model.stem" in fields else {}
    suffix, threshold = ".solarize_p", COLOR["solarize_threshold"]
    colors = {f"{f.removesuffix(suffix)}.solarize_threshold": threshold for f in fields if f.endswith(suffix)}
    return flat(DEFAULTS) | model | colors | dict(fields)


def unflat(fields: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The config that `flat` wrote as `fields`, `with_defaults`."""
    nested: dict[str, Any] = {}
    for path, value in with_defaults(fields).items():
        *parents, name = path.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = tuple(value) if isinstance(value, list) else value
    return ml_collections.ConfigDict(nested)
