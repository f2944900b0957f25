"""The pieces of work of a study in their order, each one command of the package.

Commands are kept with two words for folders, WORKDIR and DATA, so that what is recorded is the same on every machine.
"""

import hashlib
import json
import re
import shlex
from typing import Any, NamedTuple

from maskcl_jax.errors import UserError, check_choice
from maskcl_jax.study import definition
from maskcl_jax.study.definition import Entry, Evaluation, Study


class Piece(NamedTuple):
    """One command of a study.

    Attributes:
        kind: "train" or "evaluate".
        entry: The name of the entry that needs it.
        seed: Of the run.
        run: The run's folder below WORKDIR.
        words: The command after `python -m`.
        needs: The training whose run is evaluated; None for a training.
    """

    kind: str
    entry: str
    seed: int
    run: str
    words: tuple[str, ...]
    needs: "Piece | None" = None

    @property
    def command(self) -> str:
        """What is recorded beside every figure."""
        return shlex.join(["python", "-m", *self.words])

    @property
    def key(self) -> str:
        """Of the commands of the training and of the evaluation.

        The values of presets are not in it: results.json has them beside the figures. Which code ran, a row says by its
        commit.
        """
        parts = [self.entry, self.command, *([self.needs.command] if self.needs else [])]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=6).hexdigest()


def pieces_of(study: Study, *, only: tuple[str, ...] = (), seeds: tuple[int, ...] = ()) -> list[Piece]:
    """The evaluations of a study in the order in which they run: seed by seed, and late ones after all others.

    Args:
        study: The study.
        only: Names of entries, or of their folders (`mae-rate-x3`): () is all.
        seeds: () is each entry's.

    Raises:
        UserError: For the name of an entry that is not there.
    """
    for name in only:
        check_choice("--only", slug(name), [slug(entry.name) for entry in study.entries])
    chosen = {slug(name) for name in only}
    entries = [entry for entry in study.entries if not only or slug(entry.name) in chosen]
    found = []
    for late in (False, True):
        for seed in sorted({seed for entry in entries for seed in entry.seeds or study.seeds}):
            for entry in entries:
                wanted = seed in (entry.seeds or study.seeds) and (not seeds or seed in seeds)
                evaluations = entry.evaluations or study.evaluations
                found += [evaluating(study, entry, e, seed) for e in evaluations if e.late == late and wanted]
    return found


def training(study: Study, entry: Entry, seed: int) -> Piece:
    """The training of an entry with one seed."""
    run = f"runs/{slug(entry.name)}-s{seed}"
    fields = definition.run_fields(study, entry, seed)
    words = ["maskcl_jax.main", f"--config={entry.config}", *assignments(fields), f"--workdir=WORKDIR/{run}"]
    return Piece("train", entry.name, seed, run, tuple(words))


def evaluating(study: Study, entry: Entry, evaluation: Evaluation, seed: int) -> Piece:
    """One evaluation of an entry with one seed."""
    needs = training(study, study.trained(entry), seed)
    words = ["maskcl_jax.evaluate", f"--workdir=WORKDIR/{needs.run}", f"--protocol={evaluation.protocol}"]
    words += [f"--data={evaluation.data}"] if evaluation.data else []
    words += assignments({"seed": seed} | dict(evaluation.fields))
    return Piece("evaluate", entry.name, seed, needs.run, tuple(words), needs)


def assignments(fields: dict[str, Any]) -> list[str]:
    """`--config.FIELD=VALUE` for each field; {data} in a text is the folder DATA."""
    return [f"--config.{name}={definition.text(value).replace('{data}', 'DATA')}" for name, value in fields.items()]


def slug(name: str) -> str:
    """The name of an entry as a folder's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def check(study: Study, pieces: list[Piece]) -> None:
    """Builds the config of every run, and the settings of every evaluation. Raises UserError for what is wrong."""
    slugs = [slug(entry.name) for entry in study.entries]
    for entry in study.entries:
        if slugs.count(slug(entry.name)) > 1:
            raise UserError(f"entry {entry.name!r}: another entry's runs would lie in the same folder: rename one")
    for name in dict.fromkeys(piece.entry for piece in pieces):
        entry = study.entry(name)
        config = definition.config_of(study, study.trained(entry), 0)
        for evaluation in entry.evaluations or study.evaluations:
            definition.check_evaluation(entry, evaluation, config)
