"""A folder of image files: labels from its first-level sub-folders, or none at all."""

import hashlib
import os
import pathlib

import numpy as np

from maskcl_jax.data import pixels
from maskcl_jax.data.sources.base import Encoded, Source
from maskcl_jax.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
TEST_SHARE = 0.1  # held out of a labelled folder where no test folder is given


class FolderSource(Source):
    """The images under `path`, and for testing those under `test_path`.

    Labelled where every image lies in a sub-folder of `path`: the first level is the class. Without labels,
    or with images directly in `path`, all images are for training and there is no test split unless
    `test_path` names one. A labelled folder without `test_path` holds out a tenth of every class, chosen by
    file name.
    """

    def __init__(self, data_config):
        super().__init__()
        if data_config.channels not in (1, 3):
            raise UserError(
                f"data.channels={data_config.channels} is not possible with data.source='folder': use 1 or 3"
            )
        root = _folder(data_config.path, "data.path")
        files = find_images(root)
        self._check_readable(root, files)
        self.class_names = class_names(root, files)
        self.num_classes = len(self.class_names)
        self._files = {"train": files, "test": []}
        self._roots = {"train": root, "test": root}
        if data_config.test_path:
            self._roots["test"] = _folder(data_config.test_path, "data.test_path")
            self._files["test"] = find_images(self._roots["test"])
            self._check_readable(self._roots["test"], self._files["test"])
            self._check_classes()
        elif self.num_classes:
            held = held_out(root, files)
            self._files = {
                "train": [f for f in files if f not in held],
                "test": [f for f in files if f in held],
            }
        classes = f"{self.num_classes} classes" if self.num_classes else "no labels"
        counts = f"{self.num_examples('train')} training and {self.num_examples('test')} test images"
        self.description = f"folder {root}, {counts}, {classes}"

    def num_examples(self, split):
        return len(self._files[split])

    def load(self, split):
        files, root = self._files[split], self._roots[split]
        number = {name: i for i, name in enumerate(self.class_names)}
        labels = [number[file.relative_to(root).parts[0]] if number else -1 for file in files]
        return Encoded([str(file) for file in files], np.array(labels, np.int32), is_path=True)

    def _check_readable(self, root: pathlib.Path, files: list[pathlib.Path]) -> None:
        """Stops at the first image that can be read: all of them would take as long as an epoch."""
        if not files:
            raise UserError(f"folder {root} has no images: it needs files ending in {', '.join(EXTENSIONS)}")
        for file in files:
            try:
                pixels.decode(file.read_bytes(), channels=3)
                return
            except Exception as error:  # Pillow's decoders raise a dozen types
                self.skip(str(file), pixels.reason_of(error))
        raise UserError(
            f"folder {root} has no readable image: all {len(files)} fail to decode, as {files[0].name} "
            f"({self.skipped[str(files[0])]}); give a folder of {', '.join(EXTENSIONS)} files"
        )

    def _check_classes(self) -> None:
        if not self.num_classes:
            return
        root = self._roots["test"]
        unknown = sorted({f.relative_to(root).parts[0] for f in self._files["test"]} - set(self.class_names))
        if unknown:
            raise UserError(
                f"data.test_path={root} has {unknown[0]!r}, which is no class of "
                f"data.path={self._roots['train']}: both need the same sub-folders"
            )


def find_images(root: pathlib.Path) -> list[pathlib.Path]:
    """Every image file under a folder, sorted; hidden files and folders are ignored, links followed once."""
    found, seen = [], set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above would never end
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = (name for name in files if name.lower().endswith(EXTENSIONS) and not name.startswith("."))
        found += [pathlib.Path(folder, name) for name in names]
    return sorted(found)


def class_names(root: pathlib.Path, files: list[pathlib.Path]) -> tuple[str, ...]:
    """The names of the first-level sub-folders with images; none where an image lies in no sub-folder."""
    parts = [file.relative_to(root).parts for file in files]
    return tuple(sorted({p[0] for p in parts})) if all(len(p) > 1 for p in parts) else ()


def held_out(root: pathlib.Path, files: list[pathlib.Path]) -> set[pathlib.Path]:
    """A tenth of every class, at least one of two; by a hash of the path: new files move few others."""
    classes: dict[str, list[pathlib.Path]] = {}
    for file in files:
        classes.setdefault(file.relative_to(root).parts[0], []).append(file)
    held = set()
    for members in classes.values():
        count = max(1, round(TEST_SHARE * len(members))) if len(members) > 1 else 0
        held |= set(sorted(members, key=lambda file: _hash(file.relative_to(root)))[:count])
    return held


def _hash(path: pathlib.Path) -> bytes:
    return hashlib.blake2b(path.as_posix().encode("utf-8", "surrogateescape")).digest()


def _folder(path: str, field: str) -> pathlib.Path:
    if not path:
        raise UserError(f"{field}={path!r} is empty: give the folder that holds the images")
    folder = pathlib.Path(path).expanduser()
    if not folder.exists():
        raise UserError(f"{field}={path!r} does not exist: give the folder that holds the images")
    if not folder.is_dir():
        raise UserError(f"{field}={path!r} is a file: give the folder that holds the images")
    return folder
