"""Folders and tar files that are splits of a data set by their names (train, val, test), and no classes."""

import collections
import glob
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

    The folders inside a single one are checked too. A few images beside the folders do not count.

    Args:
        root: The images lie below it.
        images: Their paths.
        field: Where `root` was given: data.path, data.test_path, ...
        has_test: Whether images to test on are given elsewhere.
        alone: Whether a single split is refused too.
    """
    below = [path.relative_to(root).parts[:-1] for path in images]
    given = root
    while below := _in_folders(below):
        names = sorted({folders[0] for folders in below})
        roles = {role: given / name for name in reversed(names) if (role := role_of(name))}
        named = {*map(role_of, names)} == {*roles} and (alone or len(names) > 1)
        if {*roles} - {"unlabeled"} and (named or is_mixed(roles)):
            splits, remedy = (
                [roles[role].name for role in WORDS if role in roles],
                flags(roles, field, has_test=has_test),
            )
            if len(several := [name for name in names if role_of(name)]) > len(roles):
                splits, remedy = several, "put the images of each split into one folder"
            known = " and ".join(map(repr, splits))
            where = f"{field}={str(root)!r} has {known}{f' in {given.name!r}' if given != root else ''}"
            what = "which are splits, not classes" if len(splits) > 1 else "which is a split, not a class"
            raise UserError(f"{where}, {what}: {remedy}")
        if len(names) > 1:
            break
        given, below = given / names[0], [folders[1:] for folders in below]
    inner = sorted({folders[1] for folders in below if len(folders) > 1})
    roles_inside = [*map(role_of, inner)]
    if all(len(folders) > 1 for folders in below) and all(roles_inside) and is_mixed(roles_inside):
        known = " and ".join(map(repr, inner))
        raise UserError(
            f"{field}={str(root)!r} has {known} in each of its classes, which are splits: name the images of each in a "
            "text file, and set data.list=FILE and data.test_list=FILE"
        )


def _in_folders(below: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The folders of the images that lie in any; [] if too many images lie in none."""
    inside = [folders for folders in below if folders]
    return inside if are_few(len(below) - len(inside), len(below)) else []


def are_few(loose: int, images: int) -> bool:
    """Whether so few images lie beside the folders of the others that they may be left out."""
    return loose <= max(1, images // 100)


def check_files(files: Sequence[str], path: str, field: str, *, has_test: bool) -> None:
    """Raises UserError where files, or the folders that they lie in, are of several splits; as `check_folders`."""
    files = [os.path.normpath(file) for file in files]
    folder = os.path.commonpath([os.path.dirname(file) for file in files])
    found: dict[str, list[str]] = collections.defaultdict(list)
    for file in files:
        *folders, name = pathlib.Path(file).relative_to(folder).parts
        words = [*map(role_of, folders), *(ROLES.get(word, "") for word in words_of(name))]
        found[next(filter(None, words), "")].append(file)
    if is_mixed(found) or {*TESTED} <= {*found}:
        of_role = {role: found[role] for role in WORDS if role in found}
        counts = " and ".join(f"{len(of)} file{'s' if len(of) > 1 else ''} of {role!r}" for role, of in of_role.items())
        patterns = {role: pattern(of, role) for role, of in of_role.items()}
        advised = flags(patterns, field, has_test=has_test) if all(patterns.values()) else ""
        remedy = advised or "move the files of each split into a folder of its own"
        raise UserError(f"{field}={path!r} has {counts}, which are splits: {remedy}")


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
    """The folder of a split's files, or a pattern that has these files and no others; "" if none is found."""
    folder = os.path.commonpath([os.path.dirname(file) for file in files])
    within = glob.escape(folder)
    if sorted(glob.glob(os.path.join(within, "**", "*.tar"), recursive=True)) == sorted(files):
        return folder or os.curdir
    deep = any(os.path.dirname(file) != folder for file in files)
    words = {word for word in re.findall("[A-Za-z]+", os.path.basename(files[0])) if ROLES.get(word.lower()) == role}
    tried = [os.path.join(within, *(["**"] if deep else []), f"*{word}*.tar") for word in sorted(words)]
    above = {part for part in pathlib.Path(files[0]).relative_to(folder).parts[:-1] if role_of(part) == role}
    tried += [os.path.join(within, "**", glob.escape(name), "**", "*.tar") for name in sorted(above)]
    return next((text for text in tried if sorted(glob.glob(text, recursive=True)) == sorted(files)), "")
