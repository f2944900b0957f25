"""Folders and tar files that are splits of a data set by their names (train, val, test), and no classes."""

import collections
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from maskcl_jax.errors import UserError

# What names say, by one of their words.
WORDS = {
    "train": ("train", "training", "trainval", "trn"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing"),
    "unlabeled": ("unlabeled", "unlabelled", "unsupervised"),
}
ROLES = {word + ending: role for role, words in WORDS.items() for word in words for ending in ("", "set")}
FILLING = ("set", "split", "data", "dataset", "images", "image", "imgs", "img")  # `training_set` is as `training`
TESTED = ("val", "test")  # roles

Place = TypeVar("Place")


def check_folders(
    root: pathlib.Path, images: Sequence[pathlib.Path], field: str, *, has_test: bool, alone: bool = True
) -> None:
    """Raises UserError where the folders of images are splits: says what was understood, and which flags to give.

    A single folder is looked into, as its folders may be splits.

    Args:
        root: The images lie below it.
        images: Their paths.
        field: Where `root` was given: data.path, data.test_path, ...
        has_test: Whether images to test on are given elsewhere.
        alone: Whether a single split is refused too.
    """
    below = [path.relative_to(root).parts[:-1] for path in images]
    given = root
    while below and all(below):
        names = sorted({folders[0] for folders in below})
        roles = {role: given / name for name in reversed(names) if (role := role_of(name))}
        named = all(map(role_of, names)) and (alone or len(names) > 1)
        if {*roles} - {"unlabeled"} and (named or is_mixed(roles)):
            known = " and ".join(repr(roles[role].name) for role in WORDS if role in roles)
            where = f"{field}={str(root)!r} has {known}{f' in {given.name!r}' if given != root else ''}"
            raise UserError(f"{where}, which are no classes but splits: {flags(roles, field, has_test=has_test)}")
        if len(names) > 1:
            break
        given, below = given / names[0], [folders[1:] for folders in below]
    inner = sorted({folders[1] for folders in below if len(folders) > 1})
    if all(len(folders) > 1 for folders in below) and is_mixed([*map(role_of, inner)]) and all(map(role_of, inner)):
        known = " and ".join(map(repr, inner))
        raise UserError(
            f"{field}={str(root)!r} has {known} in each of its classes, which are splits: name the images of each in a "
            "text file, and set data.list=FILE and data.test_list=FILE"
        )


def check_files(files: Sequence[str], path: str, field: str, *, has_test: bool) -> None:
    """Raises UserError where files, or the folders that they lie in, are of several splits; as `check_folders`."""
    folder = os.path.commonpath([os.path.dirname(file) for file in files])
    found: dict[str, list[str]] = collections.defaultdict(list)
    for file in files:
        *folders, name = pathlib.Path(file).relative_to(folder).parts
        words = [*map(role_of, folders), *(ROLES.get(word, "") for word in words_of(name))]
        found[next(filter(None, words), "")].append(file)
    if is_mixed(found) or {*TESTED} <= {*found}:
        counts = " and ".join(f"{len(found[role])} files of {role!r}" for role in WORDS if role in found)
        patterns = {role: pattern(found[role], role) for role in WORDS if role in found}
        raise UserError(f"{field}={path!r} has {counts}, which are splits: {flags(patterns, field, has_test=has_test)}")


def words_of(name: str) -> list[str]:
    """`Train_set2017` -> train, set."""
    return re.findall("[a-z]+", name.lower())


def role_of(folder: str) -> str:
    """The split that a folder is by its name, "" of others."""
    words = [word for word in words_of(folder) if word not in FILLING]
    return ROLES.get(words[0], "") if len(words) == 1 else ""


def is_mixed(roles: Mapping[str, Place] | Sequence[str]) -> bool:
    """Whether there are images to train on and others to test on."""
    return "train" in roles and any(role in roles for role in TESTED)


def flags(places: Mapping[str, Place], field: str, *, has_test: bool) -> str:
    """Which flags to set, given where each split lies."""
    order = WORDS if field != "data.test_path" else (*TESTED, "train", "unlabeled")
    first = next(role for role in order if role in places)
    text = f"set {field}={places[first]}"
    tested = next((role for role in TESTED if role in places and role != first), "")
    if field == "data.path" and tested and not has_test:
        text += f" and data.test_path={places[tested]}"
    return text


def pattern(files: Sequence[str], role: str) -> str:
    """The folder of a split's files, or what their names share."""
    folder = os.path.commonpath([os.path.dirname(file) for file in files])
    if role_of(os.path.basename(folder)) == role:
        return folder
    word = next(word for word in words_of(os.path.basename(files[0])) if ROLES.get(word) == role)
    deep = any(os.path.dirname(file) != folder for file in files)
    return os.path.join(folder, *(["**"] if deep else []), f"*{word}*.tar")
