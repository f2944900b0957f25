"""Any image data set that TFDS has prepared, by name, read without TensorFlow. Nothing is ever downloaded.

A split whose images have one size, and fit `data.cache_mb` when decoded, is kept in memory. Of any other, images are
read from its files when they are needed.
"""

import concurrent.futures
import difflib
import functools
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from maskcl_jax.data import decode
from maskcl_jax.data.sources import records
from maskcl_jax.data.sources.base import SPLITS, Arrays, Encoded, Source, Split
from maskcl_jax.errors import UserError

MANUAL = {
    "imagenet2012": (
        "after putting ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar (from image-net.org) into "
        "{root}/downloads/manual"
    ),
}
# What a misspelled name is compared with.
KNOWN = ("caltech101", "cifar10", "cifar100", "coco", "fashion_mnist", "food101", "imagenet2012", "kmnist", "mnist",
         "oxford_flowers102", "oxford_iiit_pet", "places365_small", "stl10", "svhn_cropped")  # fmt: skip
FORMATS = ("tfrecord", "array_record")
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


class SplitFiles(NamedTuple):
    """The files of one split, and how many records each has."""

    files: list[str]
    counts: list[int]


class Prepared:
    """A data set as TFDS prepared it: what its `dataset_info.json` and `features.json` say.

    Attributes:
        full_name: Such as "fashion_mnist/3.0.1".
        features: {name: its description in `features.json`}, names of nested features joined by "/".
        splits: {name: SplitFiles}.
        label: The name of the class label, "" for none.
        class_names: One for each class.
    """

    def __init__(self, name: str, data_dir: str, *, threads: int = 0):
        self.threads = threads  # that index files, see `records.index_of`
        self.folder = prepared_folder(name, data_dir)
        info, features = (_json(self.folder / file) for file in ("dataset_info.json", "features.json"))
        self.name = info["name"]
        self.full_name = "/".join(filter(None, (self.name, info.get("configName"), info["version"])))
        self.format = info.get("fileFormat", "tfrecord")
        if self.format not in FORMATS:
            raise UserError(f"data.name={name!r} was prepared as {self.format}: prepare it as {' or '.join(FORMATS)}")
        self.features = _flat(features)
        self.splits = {split["name"]: self._files(split) for split in info["splits"]}
        kind = self.features.get("label", {}).get("pythonClassName", "")
        self.label = "label" if kind.endswith(".ClassLabel") else ""
        self.class_names = self._class_names() if self.label else ()

    def image_key(self) -> str:
        """`image`, or else the only image among the features. Raises UserError where that is not one."""
        images = [name for name, feature in self.features.items() if "image" in feature]
        if "image" in images:
            return "image"
        if len(images) != 1:
            raise UserError(
                f"data.name={self.full_name!r} has {len(images)} image features, none called 'image': choose another"
            )
        return images[0]

    def image_shape(self, key: str) -> tuple[int, ...]:
        """(height, width, channels) of all images, -1 where they differ."""
        return tuple(int(side) for side in self.features[key]["image"]["shape"].get("dimensions", (-1, -1, -1)))

    def ranges(self, instruction: str, *, field: str) -> list[tuple[str, int, int]]:
        """(split, first, last + 1) of each part of an instruction such as `train`, `train[:10%]` or `train+test`.

        As TFDS reads it: percentages are rounded to the closest record, negative numbers count from the end.

        Raises:
            UserError: No such split, or no such part of it; `field` is where it was written.
        """
        out = []
        for part in re.split(r"\s*\+\s*", instruction.strip()):
            match = re.fullmatch(r"([\w-]+)(?:\[(-?[\d.]*%?):(-?[\d.]*%?)\])?", part)
            if not match or match[1] not in self.splits:
                raise UserError(
                    f"{field}={instruction!r} is no split of {self.full_name}: it has {', '.join(self.splits)}"
                )
            total = sum(self.splits[match[1]].counts)
            percent = "%" in part
            try:
                first, last = _boundary(match[2], 0, total, percent), _boundary(match[3], total, total, percent)
            except ValueError:
                raise UserError(
                    f"{field}={instruction!r} is not understood, or more than the {total} images of {match[1]!r}: "
                    f"write for instance {match[1]}[:10%] or {match[1]}[100:200]"
                ) from None
            out.append((match[1], first, last))
        if not sum(max(0, last - first) for _, first, last in out):
            raise UserError(f"{field}={instruction!r} of {self.full_name} is empty: choose another")
        return out

    def records(self, instruction: str, *, field: str) -> records.Records:
        """The records of a split instruction. Raises UserError as `ranges`, and for damaged files."""
        files: list[str] = []
        parts = []
        for split, first, last in self.ranges(instruction, field=field):
            found = self.splits[split]
            scan = functools.partial(self._scan, dict(zip(*found, strict=True)))
            index = records.index_of(self.folder, found.files, scan, self.label, threads=self.threads)[first:last]
            index["file"] += len(files)
            files += self.splits[split].files
            parts.append(index)
        return records.Records(files, np.concatenate(parts))

    def _scan(self, counts: dict[str, int], file: str) -> np.ndarray:
        return records.scan(file, counts[file], self.label)

    def _files(self, split: dict) -> SplitFiles:
        counts = [int(count) for count in split.get("shardLengths", ())]
        template = split.get("filepathTemplate") or TEMPLATE
        names = []
        for number in range(len(counts)):
            shard, shards = f"{number:05d}", f"{len(counts):05d}"
            names.append(
                template.format(
                    DATASET=self.name, SPLIT=split["name"], FILEFORMAT=self.format, SHARD_X_OF_Y=f"{shard}-of-{shards}",
                    SHARD_INDEX=shard, NUM_SHARDS=shards,
                )
            )  # fmt: skip
        return SplitFiles([str(self.folder / name) for name in names], counts)

    def _class_names(self) -> tuple[str, ...]:
        file = self.folder / f"{self.label}.labels.txt"
        if file.exists():
            return tuple(line for line in file.read_text(encoding="utf-8").split("\n") if line)
        return tuple(map(str, range(int(self.features[self.label]["classLabel"]["numClasses"]))))


class Examples(Sequence):
    """Values of records by index, read when indexed.

    Args:
        of: The records.
        names: Of the values; with one name an element is that value, with several a tuple of them.
    """

    def __init__(self, of: records.Records, names: Sequence[str]):
        self._records, self._names = of, list(names)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        found = records.values(self._records[index], self._names)
        if len(found) < len(self._names):
            raise ValueError(f"a record without {next(name for name in self._names if name not in found)!r}")
        return found[self._names[0]] if len(self._names) == 1 else tuple(found[name] for name in self._names)


class TfdsSource(Source):
    """The data set `name` ("cifar10", "imagenet2012:5.*.*", "name/config") prepared under `data_dir`."""

    def __init__(self, data_config: Any):
        super().__init__()
        if data_config.channels not in (1, 3):
            raise UserError(f"data.channels={data_config.channels} is not possible with data.source='tfds': use 1 or 3")
        self._prepared = Prepared(data_config.name, data_config.data_dir, threads=data_config.threads)
        self._instructions = {"train": data_config.train_split, "test": data_config.test_split}
        self._cache, self._threads = data_config.cache_mb * 2**20, data_config.threads or os.cpu_count() or 1
        self._counts = {
            split: sum(last - first for _, first, last in self._prepared.ranges(text, field=f"data.{split}_split"))
            for split, text in self._instructions.items()
        }
        self._image = self._prepared.image_key()
        self.class_names = self._prepared.class_names
        self.num_classes = len(self.class_names)
        self.description = self.describe(f"tfds {self._prepared.full_name}")

    def num_examples(self, split: str) -> int:
        # A split that is kept in memory is counted as read: unreadable images are not in it.
        return len(self._splits[split]) if split in self._splits else self._counts[split]

    def load(self, split: str) -> Split:
        found = self._prepared.records(self._instructions[split], field=f"data.{split}_split")
        encoded, labels = Examples(found, [self._image]), found.entries["label"].astype(np.int32)
        marks = np.ascontiguousarray(found.entries["length"])
        shape = self._prepared.image_shape(self._image)
        if min(shape) < 1 or shape[-1] not in (1, 3) or len(found) * int(np.prod(shape)) > self._cache:
            return Encoded(encoded, labels, is_path=False, marks=marks)
        return self._decoded(split, Encoded(encoded, labels, is_path=False, marks=marks), shape)

    def facts(self, splits: Sequence[str] = SPLITS) -> dict[str, int | str]:
        """Those of every source, and `name`: of the data set, with its version."""
        return super().facts(splits) | {"name": self._prepared.full_name}

    def _decoded(self, split: str, encoded: Encoded, shape: tuple[int, ...]) -> Arrays:
        """All images of one shape in memory, without those that cannot be read."""
        images, good = np.empty((len(encoded), *shape), np.uint8), np.zeros(len(encoded), bool)

        def load(index: int) -> str:
            try:
                images[index] = decode.decode(encoded[index], shape[-1])
                good[index] = True
            except Exception as error:  # the decoders raise a dozen types
                return decode.reason_of(error)
            return ""

        with concurrent.futures.ThreadPoolExecutor(self._threads) as pool:
            for index, reason in enumerate(pool.map(load, range(len(encoded)))):
                if reason:
                    self.skip(f"{self._prepared.full_name} {split} example {index}", reason)
        if not good.any():
            raise UserError(f"data.name={self._prepared.full_name!r} has no readable image in its {split} split")
        arrays = Arrays(images, encoded.labels, encoded.marks)
        return arrays if good.all() else arrays.take(np.flatnonzero(good))


def prepared_folder(name: str, data_dir: str) -> pathlib.Path:
    """The folder `data_dir/name[/config]/version` of a prepared data set, the newest version that fits.

    Raises:
        UserError: There is none; says which command prepares it.
    """
    match = re.fullmatch(r"(\w+)(?:/([^:/]+))?(?::([\w.*]+))?", name)
    if not match:
        raise UserError(f"data.name={name!r} is no TFDS name: write name, name/config or name:version, as 'cifar10'")
    base, config, version = match.groups()
    root = pathlib.Path(data_dir or "~/tensorflow_datasets").expanduser()
    wanted = re.compile(re.escape(version or "*.*.*").replace(r"\*", r"\d+"))
    found: dict[str, list[pathlib.Path]] = {}  # by config, "" for none
    for depth in ("*", "*/*"):
        for file in (root / base).glob(f"{depth}/dataset_info.json"):
            if wanted.fullmatch(file.parent.name):
                found.setdefault("" if depth == "*" else file.parent.parent.name, []).append(file.parent)
    if not config and not found.get("") and len(found) > 1:
        names = ", ".join(sorted(f"{base}/{other}" for other in found))
        raise UserError(f"data.name={name!r} is prepared in several configs: choose one of {names}")
    versions = found.get(config or "") or ([] if config else next(iter(found.values()), []))
    if not versions:
        raise UserError(_how_to_prepare(name, base, root))
    return max(versions, key=lambda path: [int(part) for part in path.name.split(".")])


def _how_to_prepare(name: str, base: str, root: pathlib.Path) -> str:
    there = [child.name for child in root.iterdir() if child.is_dir()] if root.is_dir() else []
    close = [] if base in KNOWN else difflib.get_close_matches(base, sorted({*there, *KNOWN}), n=3)
    hint = f", did you mean {' or '.join(close)}? If not" if close else ""
    manual = MANUAL.get(base, "").format(root=root)
    return (
        f"data.name={name!r} is not prepared in data.data_dir={str(root)!r}{hint}: run `tfds build {name} "
        f"--data_dir={root}`, after pip install 'maskcl_jax[prepare]', "
    ) + (manual or "or give the data_dir that has it")


def _boundary(text: str | None, default: int, total: int, percent: bool) -> int:
    """A side of `[a:b]` in records."""
    if not text:
        return default
    number = round(float(text.rstrip("%")) * total / 100) if percent else int(text)
    if abs(number) > total:
        raise ValueError(text)
    return number + total if number < 0 else number


def _json(path: pathlib.Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}): prepare the data set again") from None


def _flat(features: dict, prefix: str = "") -> dict[str, dict]:
    out = {}
    for name, feature in features.get("featuresDict", {}).get("features", {}).items():
        out |= _flat(feature, f"{prefix}{name}/") or {prefix + name: feature}
    return out
