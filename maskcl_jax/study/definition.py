"""What a study consists of, how its file is read, and what is refused before anything runs."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from maskcl_jax import config as config_lib
from maskcl_jax.errors import UserError, check_choice
from maskcl_jax.evaluate import settings

SCALES = ("cpu", "gpu")


@dataclasses.dataclass(frozen=True)
class Data:
    """The images of a study: a part of a file that the `npz` source reads.

    Attributes:
        file: Its name in --data.
        train_per_class: Training images of each class, drawn once for all runs; 0: all.
        test_per_class: Test images of each class; 0: all.
        held_out: The test images are those training images that were not drawn: for choosing numbers.
        fields: Of the config, for every entry: the data's mean and std, say.
    """

    file: str
    train_per_class: int = 0
    test_per_class: int = 0
    held_out: bool = False
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def prepared(self) -> str:
        """The name of the file that holds the part."""
        sizes = [str(size or "all") for size in (self.train_per_class, self.test_per_class)]
        return "-".join([pathlib.PurePath(self.file).stem, *sizes, *(["heldout"] if self.held_out else [])]) + ".npz"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run: the words of `python -m maskcl_jax.evaluate`.

    Attributes:
        protocol: `knn`, `all`, `lowshot:finetune`, ...
        fields: `--config.FIELD=VALUE`; {data} in a text stands for the folder of --data.
        data: A preset of other data.
        late: After the other evaluations of all entries.
    """

    protocol: str
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data: str = ""
    late: bool = False


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of the table: a run of each seed and its evaluations, or evaluations of another entry's runs.

    Attributes:
        name: In the table.
        config: `FILE:PRESET` of its runs, "" with `of`.
        fields: Of the config, beside those of the study.
        of: The entry whose runs are evaluated.
        evaluations: Instead of the study's.
        seeds: Instead of the study's.
        note: Beside the name, in the table's legend.
    """

    name: str
    config: str = ""
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    of: str = ""
    evaluations: tuple[Evaluation, ...] = ()
    seeds: tuple[int, ...] = ()
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Study:
    """A question, and the runs that answer it.

    Attributes:
        question: In a sentence or two.
        budget: What every run may cost, fixed before the first.
        entries: In the order in which they run.
        data: The images; None where every entry names its own.
        fields: Of the config, for every entry with a run.
        evaluations: Of every entry that names none.
        seeds: Of every entry that names none.
        comparisons: Pairs (entry, other): the difference entry - other is reported.
    """

    question: str
    budget: str
    entries: tuple[Entry, ...]
    data: Data | None = None
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    evaluations: tuple[Evaluation, ...] = ()
    seeds: tuple[int, ...] = (0,)
    comparisons: tuple[tuple[str, str], ...] = ()

    def entry(self, name: str) -> Entry:
        """The entry of that name."""
        return next(entry for entry in self.entries if entry.name == name)

    def trained(self, entry: Entry) -> Entry:
        """The entry whose runs this one evaluates: another, or itself."""
        return self.entry(entry.of) if entry.of else entry


def load(file: str, scale: str) -> Study:
    """Executes a study file.

    Args:
        file: Its path.
        scale: One of SCALES.

    Returns:
        What its `get_study` makes of the scale, checked.

    Raises:
        UserError: There is no such file, it fails, or the study contradicts itself.
    """
    check_choice("--scale", scale, SCALES)
    if not pathlib.Path(file).is_file():
        raise UserError(f"study {file} is not a file: give one of studies/")
    what = f"study {file}"
    study = config_lib.call_in_file(file, "get_study", scale, what=what, remedy="see studies/cifar10.py")
    if not isinstance(study, Study):
        raise UserError(f"{what}: get_study returns a {type(study).__name__}: it must return a Study")
    for problem in problems(study):
        raise UserError(f"{what}: {problem}")
    return study


def problems(study: Study) -> list[str]:
    """What contradicts itself in a study, each in one line."""
    names = [entry.name for entry in study.entries]
    found = [f"entry {name!r} is there twice: rename one" for name in dict.fromkeys(names) if names.count(name) > 1]
    for entry in study.entries:
        if bool(entry.config) == bool(entry.of):
            found.append(f"entry {entry.name!r} needs either a config or the entry that it evaluates (of)")
        elif entry.of and (entry.of not in names or study.entry(entry.of).of):
            found.append(f"entry {entry.name!r}: of={entry.of!r} is no entry with a run: name one")
        elif not (entry.evaluations or study.evaluations):
            found.append(f"entry {entry.name!r} has no evaluation: name one")
    for pair in study.comparisons:
        found += [f"comparison {pair}: there is no entry {name!r}" for name in pair if name not in names]
    return found


def config_of(study: Study, entry: Entry, seed: int) -> Any:
    """The config of an entry's run, as its command line makes it, every field checked.

    Raises:
        UserError: For a file, a preset, a field or a value that is wrong.
    """
    file, _, argument = entry.config.partition(":")
    try:
        config = config_lib.load(file, argument or None)
        for name, value in run_fields(study, entry, seed).items():
            config_lib.set_field(config, name, value, written=f"{name}={value!r}")
        config_lib.check(config)
    except UserError as error:
        raise UserError(f"entry {entry.name!r}: {error}") from None
    return config


def check_evaluation(entry: Entry, evaluation: Evaluation, config: Any) -> None:
    """Raises UserError for a protocol, a preset or a field that the evaluation of a run does not have."""
    overrides = tuple(f"{name}={text(value)}" for name, value in evaluation.fields.items())
    try:
        settings.create(evaluation.protocol, config, data=evaluation.data, overrides=overrides)
    except UserError as error:
        raise UserError(f"entry {entry.name!r}: {error}") from None


def run_fields(study: Study, entry: Entry, seed: int) -> dict[str, Any]:
    """The fields that an entry's run sets; the data's, the study's and the entry's own, of which the last wins."""
    fields: dict[str, Any] = {"seed": seed}
    if study.data:
        fields |= {"data.source": "npz", "data.path": f"WORKDIR/data/{study.data.prepared}", **study.data.fields}
    return fields | dict(study.fields) | dict(entry.fields)


def text(value: Any) -> str:
    """A value as a command line writes it: tuples with commas."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
