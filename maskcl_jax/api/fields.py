"""From the arguments of `pretrain` to the config of a run, and from those of `evaluate` to data."""

import contextlib
import hashlib
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from maskcl_jax import config as config_lib
from maskcl_jax.api import arrays
from maskcl_jax.config.fields import SHORT
from maskcl_jax.errors import UserError
from maskcl_jax.methods import METHODS, Method, import_class

SMALL = 64  # pixels: images in memory of at most this height and width are trained at their own size


class Chosen(NamedTuple):
    """What `data` and `preset` of `pretrain` come to.

    Attributes:
        preset: Of the method's config file.
        fields: Of the config, by dotted names.
        arrays: Of a data set in memory, see `arrays.named`; {} for others.
    """

    preset: str
    fields: dict[str, Any]
    arrays: dict[str, np.ndarray]


def choose(data: Any, preset: str) -> Chosen:
    """Reads `data` and `preset` of `pretrain`. Raises UserError for data that are of none of its kinds."""
    if arrays.is_arrays(data):
        return of_arrays(arrays.named(data), preset)
    if isinstance(data, os.PathLike) or (isinstance(data, str) and data not in config_lib.DATA and exists(data)):
        return of_path(pathlib.Path(data), preset)
    if not isinstance(data, str):
        raise UserError(f"data is of type {type(data).__name__}: give a folder, an array, or the name of a preset")
    if preset:
        if data not in config_lib.DATA:
            raise UserError(f"data={data!r} is neither a folder nor one of {', '.join(config_lib.DATA)}")
        return Chosen(preset, {f"data.{name}": value for name, value in config_lib.DATA[data].items()}, {})
    return Chosen(data, {}, {})


def exists(path: str) -> bool:
    """Whether a text is the path of something that is there."""
    return pathlib.Path(path).exists()


def of_path(path: pathlib.Path, preset: str) -> Chosen:
    """The choice for a folder of images, or a .npz file."""
    if not path.exists():
        raise UserError(
            f"data={str(path)!r} does not exist: give a folder of images, an array, or the name of a preset"
        )
    if path.is_file() and path.suffix != ".npz":
        raise UserError(f"data={str(path)!r} is a file: give a folder of images, or a .npz file")
    source = "folder" if path.is_dir() else "npz"
    place = {"data.source": source, "data.path": str(path.absolute())}
    return Chosen(preset or ("folder" if source == "folder" else "embedded"), place, {})


def of_arrays(given: dict[str, np.ndarray], preset: str) -> Chosen:
    """The choice for images in memory."""
    images = given["train_images"]
    height, width, channels = images.shape[1:]
    small = max(height, width) <= SMALL
    fields: dict[str, Any] = {"data.source": "npz", "data.channels": channels}
    if small and not preset:
        fields["data.image_size"] = (height, width)
    if channels != 3:  # the mean and std of the presets are those of color photographs
        fields |= arrays.moments(images)
    return Chosen(preset or ("embedded" if small else "folder"), fields, given)


def config_of(method: str | os.PathLike[str] | type[Method], chosen: Chosen, given: Mapping[str, Any]) -> Any:
    """The config of a run.

    Args:
        method: The name of a config, the path of a config file, or the class of a method.
        chosen: Its preset, and what the data set.
        given: The fields that the caller set, nested or dotted; they win.

    Raises:
        UserError: There is no such method, preset or field, or a value does not fit.
    """
    fields = flattened(given)
    file, class_name = (method, "") if isinstance(method, str | os.PathLike) else base_of(method)
    variant = fields.pop("variant", "")
    try:
        config = config_lib.load(os.fspath(file), f"{chosen.preset},variant={variant}" if variant else chosen.preset)
    except UserError as error:
        if str(error).startswith(f"preset {chosen.preset!r}"):
            raise UserError(
                f"data: {error}; or give a folder that exists, and preset= if it is none of these"
            ) from None
        raise
    layers: dict[str, dict[str, Any]] = {"data": chosen.fields, "pretrain": fields}
    if class_name:
        layers["data"] = {"method.name": class_name, **chosen.fields}
    for layer, values in layers.items():
        for name, value in values.items():
            plain = value.item() if isinstance(value, np.generic) else value
            plain = tuple(plain) if isinstance(plain, list) else plain
            if name == "data.image_size" and isinstance(plain, int):
                plain = (plain, plain)
            config_lib.set_field(config, name, plain, written=f"{name}={value!r}", layer=layer)
    return config


def flattened(fields: Mapping[str, Any], group: str = "") -> dict[str, Any]:
    """{"optimizer": {"base_lr": 1e-3}, "image_size": 64} -> {"optimizer.base_lr": 1e-3, "data.image_size": 64}."""
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        name = f"{group}{key}" if group else SHORT.get(key, key)
        flat |= flattened(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def base_of(method: Any) -> tuple[str, str]:
    """(the config file that a class without one of its own is trained with, what `method.name` calls the class).

    The file is that of the method it inherits from, "mae" for a class of its own.
    """
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise UserError(f"method is {method!r}: give the name of a config, a config file, or a subclass of Method")
    parents = {import_class(path): name for name, path in METHODS.items()}
    return next((parents[parent] for parent in method.__mro__ if parent in parents), "mae"), class_path(method)


def class_path(method: type[Method]) -> str:
    """`package.module:Class`. Raises UserError for a class inside a function, which no other process could find."""
    if "." in method.__qualname__:
        raise UserError(f"{method.__qualname__} lies inside a function or class: define it at the top of a module")
    return f"{method.__module__}:{method.__qualname__}"


def data_settings(data: Any, folder: pathlib.Path) -> tuple[str, dict[str, Any]]:
    """(data preset, fields that differ) of the data of an evaluation; those in memory are written to `folder`."""
    if data is None:
        return "", {}
    if arrays.is_arrays(data):
        given, digest = arrays.named(data), hashlib.blake2b(digest_size=4)
        for name in sorted(given):
            digest.update(name.encode() + np.ascontiguousarray(given[name]).tobytes())
        file = folder / "evaluate" / f"data-{digest.hexdigest()}.npz"
        arrays.save(given, file)
        return "npz", {"data.path": str(file.absolute())}
    chosen = choose(data, "")
    if not chosen.fields:
        return chosen.preset, {}
    return chosen.fields["data.source"], {"data.path": chosen.fields["data.path"]}


@contextlib.contextmanager
def in_words_of_python() -> Iterator[None]:
    """A context whose UserErrors name arguments (`workdir=DIR`) where the commands name flags (`--workdir=DIR`).

    The file that `--config=FILE` names is the argument `method` of `pretrain`.
    """
    try:
        yield
    except UserError as error:
        text, command, its_flags = str(error).partition("python -m")  # a command keeps its flags
        raise UserError(FLAG.sub(_argument, text) + command + its_flags) from error.__cause__


# Not in the middle of a path, such as runs/mae--full.
FLAG = re.compile(r"(?<![\w/.-])--(nocheck\b|full\b|config=|config\.)?(?=[a-z])?")
ARGUMENTS = {"nocheck": "check=False", "full": "full=True", "config=": "method="}


def _argument(flag: re.Match[str]) -> str:
    """What an argument is called where a command has the start of a flag."""
    return ARGUMENTS.get(flag[1] or "", "")
