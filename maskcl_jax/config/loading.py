"""How a config is put together from its layers, and how a config file is found and executed."""

import pathlib
import runpy
import traceback
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from maskcl_jax.config.defaults import DATA, DEFAULTS, encoder_size
from maskcl_jax.config.fields import SHORT, Config, flat, is_vit, set_field, suggestion
from maskcl_jax.errors import UserError, first_line


def build(argument: str | None, *, method: Mapping[str, Any], presets: Mapping[str, Mapping[str, Any]]) -> Config:
    """The config of one method for one preset.

    Args:
        argument: What follows the colon on the command line, `preset,key=value,...`. The first preset is the default.
            A key is `variant` (the encoder: B/16, R50), one of `SHORT`, or any field.
        method: The fields of `config.method`, nested.
        presets: What each preset sets, by the name of the field: {"optimizer.base_lr": 2e-3, ...}. Fields of `model`
            are new, `variant` sets all of them, every other field must exist. A preset of the name of a data preset
            starts from its `data`.

    Raises:
        UserError: The preset or a field is unknown, or a value does not fit its field.
    """
    preset, options = parse(argument, presets)
    fields = dict(presets[preset])
    variant, layer = fields.pop("variant", ""), "preset"
    if "variant" in options:
        variant, layer = options.pop("variant"), "argument"
        fields = {path: value for path, value in fields.items() if not path.startswith("model.")}
    config = Config(DEFAULTS)
    config.preset, config.model, config.method = preset, {}, copied(method)
    config.data.update(DATA.get(preset, {}))
    config.origins.update(dict.fromkeys(flat(config), "default"))
    if (argument or "").startswith(preset):
        config.origins["preset"] = "argument"
    config.origins.update({f"data.{name}": "data" for name in DATA.get(preset, {})})
    config.origins.update({path: "method" for path in config.origins if path.startswith("method.")})
    if variant:
        set_model(config, encoder_size(variant), layer)
    sizes = {path: value for path, value in fields.items() if path.startswith("model.")}
    set_model(config, {path.removeprefix("model."): value for path, value in sizes.items()}, "preset")
    if is_vit(config.model):
        set_model(config, {"attention": "xla"}, "default")  # or "cudnn": 16 bits, only on a GPU
    elif "stages" not in config.model:
        set_model(config, {"stages": ()}, "default")  # (): those of the named depth; else the blocks of each stage
    for path, value in fields.items():
        set_field(config, path, value, written=f"preset {preset!r}: {path}={value!r}", layer="preset")
    for key, text in options.items():
        set_field(config, SHORT.get(key, key), text, written=f"config argument '{key}={text}'", layer="argument")
    return config


def copied(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A copy whose groups are groups of their own: ConfigDict would make one of two fields that are the same dict."""
    return {name: copied(value) if isinstance(value, Mapping) else value for name, value in fields.items()}


def set_model(config: Config, fields: Mapping[str, Any], layer: str) -> None:
    """Adds fields to `config.model`, which has others for a ViT than for a ResNet."""
    config.model.update(fields)
    config.origins.update({f"model.{name}": layer for name in fields})


def parse(argument: str | None, presets: Iterable[str]) -> tuple[str, dict[str, str]]:
    """`imagenet,variant=L/16,epochs=300` -> ("imagenet", {"variant": "L/16", "epochs": "300"})."""
    known = list(presets)
    preset, *pairs = (argument or known[0]).split(",")
    if "=" in preset:
        preset, pairs = known[0], [preset, *pairs]
    if preset not in known:
        raise UserError(f"preset {preset!r} is unknown{suggestion(preset, known)}: use one of {', '.join(known)}")
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"config argument {pair!r} is not understood: write key=value")
        options[key] = value
    return preset, options


def load(file: str | pathlib.Path, argument: str | None = None) -> Config:
    """Executes a config file and returns what its `get_config` makes of the argument.

    Args:
        file: The path of a file, or the name of one of `configs/`: "configs/ccmim.py", "ccmim".
        argument: `preset,key=value,...`, see `build`.

    Raises:
        UserError: There is no such file, it has no `get_config`, it fails, or the argument is not understood.
    """
    what = f"--config={file}"
    config = call_in_file(find_file(str(file)), "get_config", argument, what=what, remedy="give one of configs/")
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(
            f"--config={file}: get_config returns {type(config).__name__}, not a config: return build(argument, "
            "method=METHOD, presets=PRESETS)"
        )
    return config


def call_in_file(path: str | pathlib.Path, function: str, argument: Any, *, what: str, remedy: str) -> Any:
    """Executes a Python file of the user's and returns what one of its functions makes of an argument.

    Args:
        path: Of the file.
        function: The name of the function.
        argument: Its only argument.
        what: What a message calls the file.
        remedy: What to do where it has no such function.

    Raises:
        UserError: The file has no such function, or fails.
    """
    try:
        namespace = runpy.run_path(str(path))
        if function not in namespace:
            raise UserError(f"{what} has no {function} function: {remedy}")
        return namespace[function](argument)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever such a file does wrong
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        line = f" (line {lines[-1]})" if lines else ""
        raise UserError(f"{what} fails{line}: {type(error).__name__}: {first_line(error)}") from error


def find_file(name: str) -> pathlib.Path:
    """The path that a config's name means: a file of this path, or one of `configs/` by its name. Raises UserError."""
    if pathlib.Path(name).is_file():
        return pathlib.Path(name)
    package = pathlib.Path(__file__).parents[1]
    # An installed package contains configs/; in the repository it is beside the package.
    known = {file.stem: file for folder in (package.parent, package) for file in sorted(folder.glob("configs/*.py"))}
    stem = name.removeprefix("configs/").removesuffix(".py")
    if stem not in known:
        raise UserError(
            f"--config={name} is neither a file nor the name of a config{suggestion(stem, known)}: give a path, or one "
            f"of {', '.join(known)}"
        )
    return known[stem]
