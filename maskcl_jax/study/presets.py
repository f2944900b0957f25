"""The values that a study's commands leave to presets.

A command names a preset of a config and a recipe of an evaluation. Their values may change from one version to the
next, so they are kept beside the figures: a figure of other values is not one of today's commands.
"""

from collections.abc import Iterable
from typing import Any

from maskcl_jax import config as config_lib
from maskcl_jax.evaluate import recipes, settings
from maskcl_jax.study.definition import Entry, Evaluation, Study
from maskcl_jax.study.pieces import Piece

Presets = dict[str, dict[str, Any]]  # name -> field -> value
Changes = dict[str, dict[str, str]]  # name -> field -> "was 4, is 6"


def of_study(study: Study) -> Presets:
    """The presets of all configs and the recipes of all evaluations: {"mae:embedded": {...}, "knn": {...}, ...}."""
    found: Presets = {}
    for entry in study.entries:
        found |= of_run(study.trained(entry), entry.evaluations or study.evaluations)
    return found


def of_run(entry: Entry, evaluations: Iterable[Evaluation]) -> Presets:
    """The preset of an entry's run, and the recipes of evaluations of it, before what their commands set."""
    file, _, argument = entry.config.partition(":")
    config = config_lib.load(file, argument or None)
    found: Presets = {entry.config: config_lib.flat(config)}
    # The encoder decides which recipe a protocol takes.
    config.model.update({f.removeprefix("model."): v for f, v in entry.fields.items() if f.startswith("model.")})
    for evaluation in evaluations:
        for chosen in settings.create(evaluation.protocol, config):
            recipe = recipes.PROTOCOLS[chosen.protocol][chosen.recipe]
            name = ":".join(filter(None, (chosen.protocol, chosen.recipe)))
            found[name] = config_lib.flat(settings.SHARED | recipe)
    return found


def changes(old: Presets, now: Presets) -> Changes:
    """The fields that have another value than before.

    Presets and fields that only one of the two has count as unchanged: the default of a new field is what was done
    before.
    """
    return {
        name: {f: f"was {old[name][f]}, is {v}" for f, v in now[name].items() if old[name].get(f, v) != v}
        for name in old.keys() & now.keys()
    }


def concerning(study: Study, piece: Piece, changed: Changes) -> list[str]:
    """The changes that make a piece another one: "mae:embedded: model.depth was 4, is 6", ...

    Args:
        study: The study of the piece.
        piece: The command, whose own fields win over those of presets.
        changed: The result of `changes`.
    """
    if not any(changed.values()):
        return []
    entry = study.trained(study.entry(piece.entry))
    protocols = [word.partition("=")[2] for word in piece.words if word.startswith("--protocol=")]
    lines = []
    for name in of_run(entry, map(Evaluation, protocols)):
        command = piece.needs if piece.needs and name == entry.config else piece
        own = {word.removeprefix("--config.").partition("=")[0] for word in command.words}
        lines += [f"{name}: {field} {how}" for field, how in changed.get(name, {}).items() if field not in own]
    return lines
