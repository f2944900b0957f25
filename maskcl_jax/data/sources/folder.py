"""Image files: all under a folder, with labels from its sub-folders, or those that a list names, with labels or not."""

import collections
import itertools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from maskcl_jax.data.decode import EXTENSIONS
from maskcl_jax.data.sources.base import Encoded, Source, examples, in_words
from maskcl_jax.data.sources.layout import are_few, check_folders
from maskcl_jax.errors import UserError

CHECKED = 10_000  # files of a hidden folder

Labels = list[str | None]  # of files: names of classes, None for none


class FolderSource(Source):
    """The images under `path`, and for testing those under `test_path`; or those of `list` and `test_list`.

    A folder is labeled where its images lie in two or more sub-folders: the first level is the class. A few images
    beside them are left out; many mean that there are no labels, as does a single sub-folder; the description says so.
    Folders that are splits by their names are refused. A list is labeled where
    its lines have labels. Without labels all images are for training, and there is no test split unless one is given.
    Of labeled images a tenth of every class is held out, chosen by file name, where no test split is given.
    """

    def __init__(self, data_config: Any):
        super().__init__()
        self._notes: list[str] = []  # what was understood of the folders
        files, labels = self._read(data_config, "")
        self.class_names = tuple(sorted({label for label in labels if label is not None}, key=_natural))
        self.num_classes = len(self.class_names)
        train = self._encoded(files, labels)
        test = train.take(np.arange(0))
        if given := data_config.test_list or data_config.test_path:
            test_files, test_labels = self._read(data_config, "test_", labeled=self.num_classes > 0)
            unknown = sorted({label for label in test_labels if label is not None} - {*self.class_names})
            if self.num_classes and unknown:
                raise UserError(
                    f"the test images in {given!r} have the class {unknown[0]!r}, which is no class of the training "
                    "images: both need the same classes"
                )
            test = self._encoded(test_files, test_labels)
        elif self.num_classes:
            root = pathlib.Path(data_config.path or ".").expanduser()
            train, test = train.hold_out([os.path.relpath(file, root) for file in files])
        self._opened = {"train": train, "test": test}
        what = f"list {data_config.list}" if data_config.list else f"folder {data_config.path}"
        self.description = self.describe(what, self._notes)

    def load(self, split: str) -> Encoded:
        return self._opened[split]

    def _encoded(self, files: Sequence[str], labels: Labels) -> Encoded:
        number = {name: i for i, name in enumerate(self.class_names)}
        numbers = [-1 if label is None else number.get(label, -1) for label in labels]
        return Encoded(files, np.array(numbers, np.int32), is_path=True)

    def _read(self, data_config: Any, prefix: str, *, labeled: bool | None = None) -> tuple[list[str], Labels]:
        """(files, labels) that a list or a folder gives. labeled: whether sub-folders are classes; None: find out."""
        if file := data_config[f"{prefix}list"]:
            what = f"data.{prefix}list={file!r}"
            files, labels = read_list(file, data_config.path, what=what)
        else:
            root = _folder(data_config[f"{prefix}path"], f"data.{prefix}path")
            what = f"folder {root}"
            images = find_images(root)
            if not images:
                tars = len(list(root.rglob("*.tar")))
                remedy = f"but {tars} .tar files: set data.source=tar" if tars else f"({', '.join(EXTENSIONS)})"
                raise UserError(f"folder {root} has no images {remedy}")
            has_test = bool(data_config.test_path or data_config.test_list)
            check_folders(root, images, f"data.{prefix}path", has_test=has_test)
            files, labels, note = label_by_folder(root, images, labeled=labeled)
            self._notes += [f"{'for testing, ' if prefix else ''}{note}"] if note else []
        self.check_readable(self._encoded(files, labels), what, data_config)
        return files, labels


def find_images(root: pathlib.Path) -> list[pathlib.Path]:
    """Every image file under a folder, sorted; links to folders are followed once.

    What is not used is counted and named in the log.

    Raises:
        UserError: A folder cannot be opened.
    """
    images: list[pathlib.Path] = []
    unused: collections.Counter[str] = collections.Counter()
    links, hidden, seen, visited, filled = [], [], set(), [], []

    def refuse(error: OSError) -> None:
        raise UserError(f"the folder {error.filename!r} cannot be read ({error.strerror}): allow it, or remove it")

    for folder, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above would never end
            links.append(folder)
            folders.clear()
            continue
        seen.add(real)
        visited.append(folder)
        hidden += [os.path.join(folder, name) for name in sorted(folders) if name.startswith(".")]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        shown = [name for name in files if not name.startswith(".")]
        found = [name for name in shown if name.lower().endswith(EXTENSIONS)]
        others = [os.path.splitext(name)[1].lower() or "without ending" for name in {*shown}.difference(found)]
        filled += [folder] if found else []
        images += [pathlib.Path(folder, name) for name in found]
        unused.update(others + ["hidden"] * (len(files) - len(shown)))
    if unused:
        logging.warning("%s: %d files are not used, as their endings are not those of images: %s",
                        root, unused.total(), in_words(unused))  # fmt: skip
    used = {str(above) for folder in filled for above in (pathlib.Path(folder), *pathlib.Path(folder).parents)}
    without = [folder for folder in visited if folder not in used and os.path.dirname(folder) in used]
    for folders, problem in (
        (without, "folders have no image"),
        ([folder for folder in hidden if _has_image(folder)], "hidden folders have images, which are not used"),
        (links, "links lead to folders that are read already"),
    ):
        if folders:
            logging.warning("%s: %d %s: %s", root, len(folders), problem, examples(folders))
    return sorted(images)


def _has_image(folder: str) -> bool:
    """Whether one of the first files under a folder is an image; a hidden folder, of git for instance, may be large."""
    names = (name for _, _, files in os.walk(folder) for name in files)
    return any(name.lower().endswith(EXTENSIONS) for name in itertools.islice(names, CHECKED))


def label_by_folder(
    root: pathlib.Path, images: Sequence[pathlib.Path], *, labeled: bool | None
) -> tuple[list[str], Labels, str]:
    """Labels images by the first sub-folder that they lie in.

    Args:
        root: The images lie below it.
        images: Their paths.
        labeled: Whether sub-folders are classes; None: where there are two or more, and few images beside them.

    Returns:
        (files, label of each, None for all where sub-folders are no classes; a note for the user, "" for none).
    """
    folders = [(str(path), path.relative_to(root).parts[:-1]) for path in images]
    loose = [file for file, parts in folders if not parts]
    names = {parts[0] for _, parts in folders if parts}
    if undecided := labeled is None:
        labeled = len(names) > 1 and are_few(len(loose), len(images))
    kept, count = [file for file, parts in folders if parts or not labeled], f"{len(loose)} of {len(images)} images"
    if labeled:
        note = f"{count} lie in no sub-folder and are left out: {examples(loose)}" if loose else ""
        return kept, [parts[0] for _, parts in folders if parts], note
    note = ""
    if undecided and len(names) == 1 and not loose:
        deeper = len({parts[1] for _, parts in folders if len(parts) > 1}) > 1
        remedy = (
            f"data.path={root / min(names)} takes its sub-folders as classes" if deeper else "data.list=FILE gives some"
        )
        note = f"a single sub-folder, {min(names)!r}, is no class: {remedy}"
    elif undecided and names:
        note = f"as {count} lie in no sub-folder: move them, or give labels by data.list=FILE"
    return kept, [None] * len(images), note


def read_list(file: str, root: str, *, what: str) -> tuple[list[str], Labels]:
    """(files, label of each) that a text file names: one path a line, and behind a tab or a space perhaps a label.

    Args:
        file: The list. A path in it that is not absolute lies under `root`, or beside the list where that is "".
        root: `data.path`.
        what: The field and its value.

    Raises:
        UserError: There is no such list, or it is no list of files.
    """
    try:
        text = pathlib.Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what} cannot be read ({type(error).__name__}): give a text file of paths") from None
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        raise UserError(f"{what} is empty: give one path a line")
    base = pathlib.Path(root or pathlib.Path(file).parent).expanduser()
    # The first line decides what the others are: paths may have spaces.
    if "\t" in lines[0]:
        pairs = [line.split("\t", 1) for line in lines]
    elif (base / lines[0]).exists() or " " not in lines[0]:
        pairs = [[line] for line in lines]
    else:
        pairs = [line.rsplit(None, 1) for line in lines]
    for number, (line, pair) in enumerate(zip(lines, pairs, strict=True), 1):
        if len(pair) != len(pairs[0]):
            raise UserError(f"{what}: line {number}, {line!r}, is of another form than the first: label all, or none")
    files = [str(base / pair[0]) for pair in pairs]
    if repeated := len(files) - len(set(files)):
        logging.warning("%s names %d files more than once", what, repeated)
    return files, [pair[1].strip() if len(pair) > 1 else None for pair in pairs]


def _natural(label: str) -> tuple[int, int, str]:
    """Numbers in their order, before words."""
    return (0, int(label), label) if label.isdecimal() else (1, 0, label)


def _folder(path: str, field: str) -> pathlib.Path:
    folder = pathlib.Path(path).expanduser()
    if path and folder.is_dir():
        return folder
    problem = "is a file" if path and folder.exists() else "does not exist" if path else "is empty"
    hint = "set data.source=tar" if path.endswith(".tar") else "give the folder that holds the images"
    raise UserError(f"{field}={path!r} {problem}: {hint}")
