"""Image files: all under a folder, with labels from its sub-folders, or those that a list names, with labels or not."""

import collections
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from maskcl_jax.data import decode
from maskcl_jax.data.sources.base import Encoded, Source
from maskcl_jax.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".npy")
TEST_FRACTION = 0.1  # held out of labeled images where nothing is given to test on
SPLIT_NAMES = {"train": ("train", "training"), "test": ("val", "valid", "validation", "test", "testing")}
NAMED = 3  # examples in a message


@dataclasses.dataclass
class Survey:
    """What lies under a folder.

    Attributes:
      images: Files that are used, sorted.
      unused: How many files of each ending are not.
      folders: Folders that hold files, but none that is used.
      links: Links to folders that are read already, or lie above.
    """

    images: list[pathlib.Path] = dataclasses.field(default_factory=list)
    unused: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    folders: list[str] = dataclasses.field(default_factory=list)
    links: list[str] = dataclasses.field(default_factory=list)

    def remarks(self) -> list[str]:
        """One sentence for each kind of what is not used."""
        out = []
        if self.unused:
            kinds = ", ".join(f"{count} {ending}" for ending, count in self.unused.most_common(5))
            out.append(f"{self.unused.total()} files are not used, as their endings are not those of images: {kinds}")
        if self.folders:
            out.append(f"{len(self.folders)} folders have files but no image: {examples(self.folders)}")
        if self.links:
            out.append(f"{len(self.links)} links lead to folders that are read already: {examples(self.links)}")
        return out


class FolderSource(Source):
    """The images under `path`, and for testing those under `test_path`; or those of `list` and `test_list`.

    A folder is labeled where its images lie in two or more sub-folders: the first level is the class. A few images
    beside them are left out; many mean that there are no labels, as does a single sub-folder. A list is labeled where
    its lines have labels. Without labels all images are for training, and there is no test split unless one is given.
    Of labeled images a tenth of every class is held out, chosen by file name, where no test split is given.
    """

    def __init__(self, data_config: Any):
        super().__init__()
        self._channels, self._exif = data_config.channels, data_config.exif
        train, test = self._read(data_config, "list", "path"), ([], [])
        if data_config.test_list or data_config.test_path:
            labeled = any(label is not None for label in train[1])
            test = self._read(data_config, "test_list", "test_path", labeled=labeled)
        names = sorted({label for label in train[1] if label is not None}, key=_natural)
        self.class_names = tuple(names)
        self.num_classes = len(names)
        if test[0]:
            self._check_classes(test[1], data_config)
        elif names:
            held = held_out(*train, root=data_config.path)
            files, labels = train
            test, train = (
                ([files[i] for i in where], [labels[i] for i in where]) for where in map(np.flatnonzero, (held, ~held))
            )
        self._splits_of = {"train": train, "test": test}
        where = f"list {data_config.list}" if data_config.list else f"folder {data_config.path}"
        classes = f"{self.num_classes} classes" if names else "no labels"
        counts = f"{self.num_examples('train')} training and {self.num_examples('test')} test images"
        self.description = f"{where}, {counts}, {classes}"

    def num_examples(self, split: str) -> int:
        return len(self._splits_of[split][0])

    def load(self, split: str) -> Encoded:
        files, labels = self._splits_of[split]
        number = {name: i for i, name in enumerate(self.class_names)}
        return Encoded(files, np.array([number.get(label, -1) for label in labels], np.int32), is_path=True)

    def _read(
        self, data_config: Any, list_field: str, path_field: str, *, labeled: bool | None = None
    ) -> tuple[list[str], list[str | None]]:
        """(files, labels) that a list or a folder gives. labeled: whether sub-folders are classes; None: find out."""
        if file := data_config[list_field]:
            files, labels = read_list(file, data_config.path, field=f"data.{list_field}")
            place = f"data.{list_field}={file!r}"
        else:
            root = _folder(data_config[path_field], f"data.{path_field}")
            survey = survey_folder(root)
            for remark in survey.remarks():
                logging.warning("%s: %s", root, remark)
            if not survey.images:
                raise UserError(_no_images(root, survey))
            if path_field == "path":
                check_layout(root, survey.images, has_test=bool(data_config.test_path or data_config.test_list))
            files, labels = label_by_folder(root, survey.images, labeled=labeled)
            place = f"folder {root}"
        self._check_readable(place, files)
        return files, labels

    def _check_readable(self, place: str, files: Sequence[str]) -> None:
        """Stops at the first image that can be read: all of them would take as long as an epoch."""
        reason = ""
        for file in files:
            try:
                with open(file, "rb") as opened:
                    decode.decode(opened.read(), self._channels, exif=self._exif)
                return
            except Exception as error:  # the decoders raise a dozen types
                self.skip(file, decode.reason_of(error))
                reason = reason or self.skipped[file]
        raise UserError(
            f"{place} has no readable image: all {len(files)} fail to decode, as {os.path.basename(files[0])} "
            f"({reason}); give {', '.join(EXTENSIONS)} files of data.channels={self._channels}"
        )

    def _check_classes(self, labels: Sequence[str | None], data_config: Any) -> None:
        unknown = sorted({label for label in labels if label is not None} - set(self.class_names))
        if self.num_classes and unknown:
            test = data_config.test_list or data_config.test_path
            raise UserError(
                f"the test images in {test!r} have the class {unknown[0]!r}, which is no class of the training images: "
                "both need the same classes"
            )


def survey_folder(root: pathlib.Path) -> Survey:
    """Looks at everything under a folder; links to folders are followed once.

    Raises:
      UserError: A folder cannot be opened.
    """
    survey, seen = Survey(), set()

    def refuse(error: OSError) -> None:
        raise UserError(f"the folder {error.filename!r} cannot be read ({error.strerror}): allow it, or remove it")

    for folder, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above would never end
            survey.links.append(folder)
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        images = [name for name in files if name.lower().endswith(EXTENSIONS) and not name.startswith(".")]
        others = [name for name in files if not name.lower().endswith(EXTENSIONS) and not name.startswith(".")]
        survey.images += [pathlib.Path(folder, name) for name in images]
        survey.unused.update(os.path.splitext(name)[1].lower() or "without ending" for name in others)
        survey.unused.update({"hidden": sum(name.startswith(".") for name in files)})
        if others and not images:
            survey.folders.append(folder)
    survey.unused = +survey.unused
    survey.images.sort()
    return survey


def find_images(root: pathlib.Path) -> list[pathlib.Path]:
    """Every image file under a folder, sorted."""
    return survey_folder(root).images


def check_layout(root: pathlib.Path, images: Sequence[pathlib.Path], *, has_test: bool) -> None:
    """Raises UserError where the sub-folders are splits rather than classes."""
    names = {path.relative_to(root).parts[0] for path in images}
    train = next((name for name in sorted(names) if name.lower() in SPLIT_NAMES["train"]), None)
    test = next((name for name in sorted(names) if name.lower() in SPLIT_NAMES["test"]), None)
    if train and (test or len(names) == 1):
        hint = f" and data.test_path={root / test}" if test and not has_test else ""
        raise UserError(
            f"data.path={str(root)!r} has {' and '.join(repr(name) for name in (train, test) if name)}, which are no "
            f"classes but splits: set data.path={root / train}{hint}"
        )


def label_by_folder(
    root: pathlib.Path, images: Sequence[pathlib.Path], *, labeled: bool | None
) -> tuple[list[str], list[str | None]]:
    """(files, label of each), the label being the first sub-folder; None for all where that is no class.

    labeled: Whether it is one; None: where there are two or more, and few images beside them.
    """
    parts = [path.relative_to(root).parts for path in images]
    loose = [str(path) for path, part in zip(images, parts, strict=True) if len(part) == 1]
    names = {part[0] for part in parts if len(part) > 1}
    if labeled is None:
        labeled = len(names) > 1 and len(loose) <= max(1, len(images) // 100)
    if not labeled:
        if len(names) == 1 and not loose:
            logging.info("%s has the one sub-folder %r: its images are taken as unlabeled", root, min(names))
        elif names:
            logging.info("%s: no labels, as %d of %d images lie in no sub-folder", root, len(loose), len(images))
        return [str(path) for path in images], [None] * len(images)
    if loose:
        logging.warning("%s: the sub-folders are classes; %d images lie in none and are left out: %s",
                        root, len(loose), examples(loose))  # fmt: skip
    kept = [(str(path), part[0]) for path, part in zip(images, parts, strict=True) if len(part) > 1]
    return [file for file, _ in kept], [label for _, label in kept]


def read_list(file: str, root: str, *, field: str) -> tuple[list[str], list[str | None]]:
    """(files, label of each) that a text file names: one path a line, and behind a tab or a space perhaps a label.

    Args:
      file: The list. A path in it that is not absolute lies under `root`, or beside the list where that is "".
      root: `data.path`.
      field: What the list was given as.

    Raises:
      UserError: There is no such list, or it is no list of files.
    """
    try:
        text = pathlib.Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{field}={file!r} cannot be read ({type(error).__name__}): give a text file of paths"
        ) from None
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        raise UserError(f"{field}={file!r} is empty: give one path a line")
    base = pathlib.Path(root or pathlib.Path(file).parent).expanduser()
    # The first line decides what the others are: paths may have spaces.
    if "\t" in lines[0]:
        pairs = [line.split("\t", 1) for line in lines]
    elif (base / lines[0]).exists() or " " not in lines[0]:
        pairs = [[line] for line in lines]
    else:
        pairs = [line.rsplit(None, 1) for line in lines]
    odd = next((i for i, pair in enumerate(pairs) if len(pair) != len(pairs[0])), None)
    if odd is not None:
        raise UserError(
            f"{field}={file!r}: line {odd + 1}, {lines[odd]!r}, is of another form than the first: label all, or none"
        )
    files = [str(base / pair[0]) for pair in pairs]
    if repeated := len(files) - len(set(files)):
        logging.warning("%s=%r names %d files more than once", field, file, repeated)
    return files, [pair[1].strip() if len(pair) > 1 else None for pair in pairs]


def held_out(files: Sequence[str], labels: Sequence[str | None], *, root: str) -> np.ndarray:
    """(N,) bool: a tenth of every class, at least one of two; by a hash of the path: new files move few others."""
    base = pathlib.Path(root or ".").expanduser()
    classes: dict[str | None, list[int]] = {}
    for i, label in enumerate(labels):
        classes.setdefault(label, []).append(i)
    held = np.zeros(len(files), bool)
    for members in classes.values():
        count = max(1, round(TEST_FRACTION * len(members))) if len(members) > 1 else 0
        held[sorted(members, key=lambda i: _hash(os.path.relpath(files[i], base)))[:count]] = True
    return held


def examples(names: Sequence[str]) -> str:
    """The first of some names."""
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _hash(path: str) -> bytes:
    return hashlib.blake2b(path.encode("utf-8", "surrogateescape")).digest()


def _natural(label: str) -> tuple[int, int, str]:
    """Numbers in their order, before words."""
    return (0, int(label), label) if label.isdecimal() else (1, 0, label)


def _no_images(root: pathlib.Path, survey: Survey) -> str:
    if survey.unused[".tar"]:
        return f"folder {root} has no images but {survey.unused['.tar']} .tar files: set data.source=tar"
    there = f" ({survey.remarks()[0]})" if survey.unused else ""
    return f"folder {root} has no images: it needs files ending in {', '.join(EXTENSIONS)}{there}"


def _folder(path: str, field: str) -> pathlib.Path:
    if not path:
        raise UserError(f"{field}={path!r} is empty: give the folder that holds the images")
    folder = pathlib.Path(path).expanduser()
    if not folder.exists():
        raise UserError(f"{field}={path!r} does not exist: give the folder that holds the images")
    if not folder.is_dir():
        hint = "set data.source=tar" if path.endswith(".tar") else "give the folder that holds the images"
        raise UserError(f"{field}={path!r} is a file: {hint}")
    return folder
