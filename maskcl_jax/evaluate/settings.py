"""The settings of one evaluation: a recipe by name, the run's data or others, and the overrides of the command line."""

import hashlib
import json

from ml_collections import ConfigDict

from maskcl_jax import config as config_lib
from maskcl_jax.errors import UserError
from maskcl_jax.evaluate.recipes import CHEAP, PROTOCOLS

SHARED = {
    "network": "online",  # online | target (the EMA) | random (initial values)
    "feature": "",  # "": the recipe's, else the run's own
    "step": -1,  # of the checkpoint; -1: the newest
    "seed": 0,  # of subsets, initial values and augmentation
    "labels": "all",  # of the training images: all, a fraction of every class as 1%, or a count of every class as 5
}
FIXED = ("protocol", "recipe", "data.on_device")  # cannot be overridden
ENCODER_FIELDS = ("image_size", "channels", "mean", "std")  # data fields that another data set does not change


def create(
    protocol: str, run_config: ConfigDict, *, data: str = "", overrides: tuple[str, ...] = ()
) -> list[ConfigDict]:
    """The settings of each evaluation that `protocol[:recipe]` names.

    Args:
        protocol: "all" is every protocol of CHEAP, "lowshot:finetune" the run's recipe of finetune on lowshot's labels.
        run_config: Of the run.
        data: A preset of `config.DATA` instead of the run's data; its images are resized to the run's size.
        overrides: "FIELD=VALUE"; `data.FIELD` for the data.

    Returns:
        One ConfigDict for each evaluation; several for several amounts of labels.

    Raises:
        UserError: For a protocol, recipe, preset or field that is unknown, and a value out of its range.
    """
    name, _, recipe = protocol.partition(":")
    if name == "all":
        check_overrides(overrides)
        chosen = ((cheap, overrides_of(overrides, cheap)) for cheap in CHEAP)
        return [s for cheap, own in chosen for s in create(cheap, run_config, data=data, overrides=own)]
    few_labels = protocol == "lowshot:finetune"
    if few_labels:
        name, recipe = "finetune", ""
    if name not in PROTOCOLS:
        words = [*PROTOCOLS, "all", "table"]
        raise UserError(
            f"--protocol={name} is unknown{config_lib.suggestion(name, words)}: use one of {', '.join(words)}"
        )
    recipe = recipe or default_recipe(name, run_config)
    if recipe not in PROTOCOLS[name]:
        raise UserError(f"--protocol={name}:{recipe}: use one of {', '.join(filter(None, PROTOCOLS[name]))}")
    settings = ConfigDict({"protocol": name, "recipe": recipe} | SHARED | PROTOCOLS[name][recipe])
    settings.data = data_of(data, run_config)
    if few_labels:
        settings.labels = PROTOCOLS["lowshot"][""]["labels"]
    for text in overrides:
        override(settings, text)
    config_lib.check_values(settings)
    return [with_labels(settings, amount) for amount in settings.labels.split(",")]


def overrides_of(overrides: tuple[str, ...], protocol: str) -> tuple[str, ...]:
    """The overrides whose fields one of several protocols has; `labels` is only lowshot's."""
    fields = SHARED.keys() | PROTOCOLS[protocol][""].keys()
    fields = fields if protocol == "lowshot" else fields - {"labels"}
    return tuple(text for text in overrides if text.partition("=")[0] in fields or text.startswith("data."))


def check_overrides(overrides: tuple[str, ...]) -> None:
    """Raises UserError for a field that none of the cheap protocols has."""
    used = {text for protocol in CHEAP for text in overrides_of(overrides, protocol)}
    for text in overrides:
        if text not in used:
            raise UserError(f"--config.{text} is a field of none of {', '.join(CHEAP)}: leave it out")


def default_recipe(protocol: str, run_config: ConfigDict) -> str:
    """The recipe for the run's encoder where none is named."""
    if protocol == "finetune":
        if not config_lib.is_vit(run_config.model):
            return "resnet"
        width = run_config.model.width
        return "small" if width < 384 else "mae_b" if width < 1024 else "mae_l" if width < 1280 else "mae_h"
    return next(iter(PROTOCOLS[protocol]))


def data_of(preset: str, run_config: ConfigDict) -> ConfigDict:
    """The run's data, or those of a preset with the image size and normalization of the run's encoder."""
    if not preset:
        return ConfigDict(run_config.data)
    if preset not in config_lib.DATA:
        known_data = ", ".join(config_lib.DATA)
        raise UserError(f"--data={preset} is unknown{config_lib.suggestion(preset, config_lib.DATA)}: use {known_data}")
    data = ConfigDict(config_lib.DEFAULTS["data"] | config_lib.DATA[preset])
    for field in ENCODER_FIELDS:
        data[field] = run_config.data[field]
    return data


def override(settings: ConfigDict, text: str) -> None:
    """Sets "a.b=value" as the type that the field has. Raises UserError for an unknown field or an unfit value."""
    path, equals, value = text.partition("=")
    fields = config_lib.flat(settings)
    if path not in fields or path in FIXED:
        raise UserError(
            f"--config.{path} is not a field of {settings.protocol}{config_lib.suggestion(path, fields)}: it has "
            f"{', '.join(f for f in fields if not f.startswith('data.') and f not in FIXED)}, and data.*"
        )
    if not equals:
        raise UserError(f"--config.{path} has no value: write --config.{path}=VALUE")
    config_lib.set_field(settings, path, value, written=f"--config.{text}")


def with_labels(settings: ConfigDict, amount: str) -> ConfigDict:
    """A copy for one amount of labels."""
    copy = ConfigDict(settings)
    copy.labels = amount.strip()
    return copy


def name_of(settings: ConfigDict, step: int) -> str:
    """The name of the evaluation's files: protocol, recipe, step, and a hash of all settings.

    So other settings never overwrite its files, nor continue from them.
    """
    text = json.dumps(config_lib.flat(settings), sort_keys=True)
    parts = [
        settings.protocol,
        settings.recipe,
        f"step{step}",
        hashlib.blake2b(text.encode(), digest_size=4).hexdigest(),
    ]
    return "-".join(part for part in parts if part)
