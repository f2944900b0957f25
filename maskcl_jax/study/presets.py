"""The values that a study's commands leave to presets.

A command names a preset of a config and a recipe of an evaluation. Their values may change from one version to the
next, so they are kept beside the figures: a figure of other values is not one of today's commands.
"""

from typing import Any

from maskcl_jax import config as config_lib
from maskcl_jax.evaluate import recipes, settings
from maskcl_jax.study.definition import Entry, Evaluation, Study
from maskcl_jax.study.pieces import Piece

Presets = dict[str, dict[str, Any]]  # name -> field -> value


def of_study(study: Study) -> Presets:
    """The presets of all configs and the recipes of all evaluations: {"mae:embedded": {...}, "knn": {...}, ...}."""
    found: Presets = {}
    for entry in study.entries:
        found |= of_config(study.trained(entry))
        for evaluation in entry.evaluations or study.evaluations:
            found |= of_evaluation(study.trained(entry), evaluation)
    return found


def of_config(entry: Entry) -> Presets:
    """The values of the preset that an entry's config names."""
    return {entry.config: config_lib.flat(preset_of(entry))}


def of_evaluation(entry: Entry, evaluation: Evaluation) -> Presets:
    """The values of the recipes that an evaluation of an entry's run uses."""
    config = preset_of(entry)
    config.model.update({f.removeprefix("model."): v for f, v in entry.fields.items() if f.startswith("model.")})
    used = {(s.protocol, s.recipe) for s in settings.create(evaluation.protocol, config)}
    tables = recipes.PROTOCOLS
    return {
        ":".join(filter(None, (protocol, recipe))): config_lib.flat(settings.SHARED | tables[protocol][recipe])
        for protocol, recipe in used
    }


def preset_of(entry: Entry) -> Any:
    """The config of an entry before the fields that the study sets."""
    file, _, argument = entry.config.partition(":")
    return config_lib.load(file, argument or None)


def changes(study: Study, piece: Piece, old: Presets) -> list[str]:
    """Which values a piece would get that an earlier one did not.

    Args:
        study: The study of the piece.
        piece: The command.
        old: What its presets were then. Presets and fields that are missing there count as unchanged: the default of a
            new field is what was done before.

    Returns:
        "mae:embedded: model.depth was 4, is 6", ... without the fields that the command sets itself.
    """
    entry = study.trained(study.entry(piece.entry))
    found = compared(of_config(entry), old, written(piece.needs or piece))
    if piece.needs:
        protocol = next(word.partition("=")[2] for word in piece.words if word.startswith("--protocol="))
        found += compared(of_evaluation(entry, Evaluation(protocol)), old, written(piece))
    return found


def written(piece: Piece) -> set[str]:
    """The fields that a command sets."""
    return {word.removeprefix("--config.").partition("=")[0] for word in piece.words if word.startswith("--config.")}


def compared(now: Presets, old: Presets, apart: set[str]) -> list[str]:
    """The fields of presets that have another value than before, apart from some."""
    return [
        f"{name}: {field} was {old[name][field]}, is {value}"
        for name, values in now.items()
        for field, value in values.items()
        if field not in apart and old.get(name, {}).get(field, value) != value
    ]
