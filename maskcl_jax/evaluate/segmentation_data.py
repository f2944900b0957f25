"""Images with masks, one class a pixel: from a tfds data set that has both, or from two folders with the same names."""

import collections
import concurrent.futures
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np
from PIL import Image

from maskcl_jax.data import decode
from maskcl_jax.data.loading import cropped
from maskcl_jax.data.order import Chunk, EvalOrder, TrainOrder
from maskcl_jax.data.pipeline import SKIPPED, Batches
from maskcl_jax.data.sources.base import PREFIX, SPLITS, hold_out_by_name
from maskcl_jax.data.sources.folder import find_images
from maskcl_jax.data.sources.layout import check_folders
from maskcl_jax.data.sources.tfds import Examples, Prepared
from maskcl_jax.errors import UserError
from maskcl_jax.evaluate.masks import Item, decode_mask, read
from maskcl_jax.views.base import Crop, View
from maskcl_jax.views.batches import HostBatch
from maskcl_jax.views.crop import CenterCrop, RandomResizedCrop

# Feature names of tfds data sets, in order of preference.
MASK_KEYS = ("segmentation_mask", "annotation", "segmentation_label", "mask")
RANGES_SHOWN = 8


class Pairs:
    """Images and their masks, with what the values of the masks mean.

    All masks are read once when this is created: values first_label .. first_label + num_classes - 1 are the classes
    0 .. num_classes - 1; smaller values and `ignore` are not counted.

    Args:
        splits: {"train": [(image, mask)], "test": [(image, mask)]}.
        description: Where they come from, in words.
        settings: Of the evaluation (`evaluate.recipes.segment`).

    Raises:
        UserError: Where a split has no image, a mask cannot be trusted (colors, lossy compression), a value has no
            class, or fewer than two classes are shown.
    """

    def __init__(self, splits: Mapping[str, Sequence[tuple[Item, Item]]], description: str, settings: Any):
        self.splits, self.settings = splits, settings
        self.first, self.ignore = settings.first_label, settings.ignore
        self.threads = settings.data.threads or os.cpu_count() or 1
        self.digests = {split: hashlib.blake2b(digest_size=16) for split in splits}
        self.values = {split: self.count_values(split) for split in splits}
        highest = max([self.first - 1, *(value for value in self.values["train"] if self.is_class(value))])
        self.num_classes = settings.classes or highest - self.first + 1
        for split in splits:
            self.check(split)
        counts = f"{len(splits['train'])} training and {len(splits['test'])} test images"
        self.description = (
            f"{description}, {counts}, {self.num_classes} classes of pixels; values in the masks: "
            f"{ranges(self.values['train'])} (train), {ranges(self.values['test'])} (test); not counted: "
            f"{self.ignored('train'):.1%} of the training pixels, {self.ignored('test'):.1%} of the test pixels"
        )

    def num_examples(self, split: str) -> int:
        """The number of images of "train" or "test"."""
        return len(self.splits[split])

    def count_values(self, split: str) -> collections.Counter[int]:
        """How many pixels of a split's masks have each value."""
        total: collections.Counter[int] = collections.Counter()
        with concurrent.futures.ThreadPoolExecutor(self.threads) as pool:
            for values in pool.map(
                lambda pair: np.unique(decode_mask(pair[1]), return_counts=True), self.splits[split]
            ):
                counts = dict(zip(*(column.tolist() for column in values), strict=True))
                self.digests[split].update(repr(counts).encode())
                total.update(counts)
        return total

    def facts(self, splits: Sequence[str] = SPLITS) -> dict[str, int | str]:
        """What tells these images from others, wherever their folder lies, as `Source.facts`.

        Returns:
            {train, test: numbers of images, classes, digest and test_digest: of what every mask shows}.
        """
        counts = {split: self.num_examples(split) for split in self.splits}
        digests = {f"{PREFIX[split]}digest": self.digests[split].hexdigest() for split in splits}
        return {**counts, "classes": self.num_classes, **digests}

    def is_class(self, value: int) -> bool:
        """Whether pixels of this value are counted."""
        return value != self.ignore and value >= self.first

    def ignored(self, split: str) -> float:
        """The fraction (0..1) of a split's pixels that are not counted."""
        values = self.values[split]
        return 1.0 - sum(count for value, count in values.items() if self.is_class(value)) / max(values.total(), 1)

    def check(self, split: str) -> None:
        """Raises UserError where the masks of a split are not those of at least two of the classes."""
        if not self.splits[split]:
            raise UserError(f"segmentation: the {split} split has no image")
        shown = sorted(value for value in self.values[split] if self.is_class(value))
        if shown and shown[-1] >= self.first + self.num_classes:
            raise UserError(
                f"a {split} mask shows {shown[-1]} but classes={self.num_classes}: raise it, or set ignore={shown[-1]}"
            )
        if len(shown) < 2:
            raise UserError(
                f"the {split} masks show {f'the class of value {shown[0]} only' if shown else 'no class'}, at least "
                f"two are needed: their values are {ranges(self.values[split])}; check first_label={self.first} and "
                f"ignore={self.ignore}"
            )

    def classes_of(self, mask: np.ndarray) -> np.ndarray:
        """Mask values (H, W) -> int32 classes, -1 where a pixel is not counted."""
        classes = mask.astype(np.int32) - self.first
        return np.where((mask != self.ignore) & (classes >= 0), classes, -1)

    def train_batches(self, *, batch_size: int, start: int, process_index: int, process_count: int) -> Batches:
        """Random crops, flipped at random, of images and masks alike.

        Args:
            batch_size: Of all processes together.
            start: The first step.
            process_index: Which part of every batch is loaded.
            process_count: The number of parts.

        Returns:
            An iterator over {image (b, H, W, C) uint8, mask (b, H, W) int32 with -1 for not counted, valid (b,) bool}.
        """
        s = self.settings
        crop = RandomResizedCrop(size=tuple(s.data.image_size), scale=tuple(s.crop_scale), interpolation="bilinear")
        order = TrainOrder(
            self.num_examples("train"),
            batch_size=batch_size,
            seed=s.seed,
            start_step=start,
            process_index=process_index,
            process_count=process_count,
        )
        return self.batches("train", crop, order)

    def eval_batches(self, split: str, *, batch_size: int, process_index: int, process_count: int) -> Batches:
        """Every image once: the whole of it resized to the encoder's size, and its mask likewise (nearest).

        Batches are as those of `train_batches`; rows of padding are not valid.
        """
        crop = CenterCrop(size=tuple(self.settings.data.image_size), interpolation="bilinear")
        indices = np.arange(self.num_examples(split))
        part = {"process_index": process_index, "process_count": process_count}
        return self.batches(split, crop, EvalOrder(indices, batch_size=batch_size, **part))

    def batches(self, split: str, crop: Crop, order: TrainOrder | EvalOrder) -> Batches:
        """The batches of an order."""
        dataset = grain.MapDataset.source(order).map(lambda chunk: self.load(split, crop, chunk))
        return Batches(dataset, None, chunks=1, threads=self.threads)

    def load(self, split: str, crop: Crop, chunk: Chunk) -> dict[str, Any]:
        """One batch: image, mask, valid."""
        view = View(crop=crop)
        image = np.zeros((chunk.size, *crop.size, self.settings.data.channels), np.uint8)
        mask = np.full((chunk.size, *crop.size), -1, np.int32)
        for row, index in enumerate(chunk.indices):
            example = HostBatch([view], seed=self.settings.seed, epoch=chunk.epoch, indices=np.array([index]))
            image[row], mask[row] = self.crop_pair(self.splits[split][index], view, example)
        return {"image": image, "mask": mask, "valid": np.arange(chunk.size) < len(chunk.indices), SKIPPED: []}

    def crop_pair(self, pair: tuple[Item, Item], view: View, example: HostBatch) -> tuple[np.ndarray, np.ndarray]:
        """One crop of an image, and the same of its mask. Raises UserError where they are unreadable or unequal."""
        name = pair[0] if isinstance(pair[0], str) else "an image"
        try:
            image = decode.decode(read(pair[0], "an image"), self.settings.data.channels)
        except UserError:
            raise
        except Exception as error:  # Pillow's decoders raise a dozen types
            raise UserError(f"{name} cannot be read ({type(error).__name__}): remove it") from None
        mask = decode_mask(pair[1])
        if mask.shape != image.shape[:2]:
            raise UserError(f"{name} measures {image.shape[:2]} and its mask {mask.shape}: they must be equal")
        crop = view.crop.sample(view, example, *np.array(mask.shape)[:, None])[0]
        top, left, height, width, flip = crop.tolist()
        region = Image.fromarray(self.classes_of(mask[top : top + height, left : left + width]))
        classes = np.asarray(region.resize(view.crop.size[::-1], Image.Resampling.NEAREST))
        return cropped(image, view, crop, (0, 0)), classes[:, ::-1] if flip else classes


def ranges(values: collections.Counter[int]) -> str:
    """Values in words: "0-3, 7, 255"."""
    parts: list[list[int]] = []
    for value in sorted(values):
        if parts and value == parts[-1][1] + 1:
            parts[-1][1] = value
        else:
            parts.append([value, value])
    words = [f"{low}-{high}" if high > low else str(low) for low, high in parts]
    more = len(words) - RANGES_SHOWN
    return ", ".join(words[:RANGES_SHOWN]) + (f" and {more} more, {len(values)} in all" if more > 0 else "")


def open_pairs(settings: Any) -> Pairs:
    """The images and masks that `settings.data`, mask_path and mask_key describe. Raises UserError for none."""
    if settings.data.exif:
        raise UserError(
            "data.exif=True: images and masks are compared as they are stored: turn the files, and set data.exif=False"
        )
    if settings.data.source == "folder":
        return folder_pairs(settings)
    if settings.data.source == "tfds":
        return tfds_pairs(settings)
    raise UserError(
        f"data.source={settings.data.source!r} has no masks: give --data=folder with data.path and mask_path, "
        "or a tfds data set with masks as data.name"
    )


def folder_pairs(settings: Any) -> Pairs:
    """The files of data.path with those of mask_path, and likewise for testing; else a tenth is held out, by name."""
    train, alone = match_masks(settings, "")
    if settings.data.test_path:
        test, more = match_masks(settings, "test_")
        alone += more
    else:
        if len(train) < 2:
            raise UserError(
                f"data.path={settings.data.path!r} has one image with a mask: set data.test_path, or add some"
            )
        kept, held = hold_out_by_name([*train], np.zeros(len(train)))
        names = [*train]
        train, test = ({names[i]: train[names[i]] for i in part} for part in (kept, held))
    unused = f", {alone} file{'s' if alone > 1 else ''} without a partner not used" if alone else ""
    splits = {"train": [*train.values()], "test": [*test.values()]}
    return Pairs(splits, f"folder {settings.data.path}{unused}", settings)


def match_masks(settings: Any, prefix: str) -> tuple[dict[str, tuple[Item, Item]], int]:
    """Pairs the images and masks of equal path, the ending aside.

    Args:
        settings: Of the evaluation.
        prefix: Of the fields, "" or "test_".

    Returns:
        ({path: (image, mask)}, how many files have no partner).
    """
    folders = {
        f"data.{prefix}path": settings.data[f"{prefix}path"],
        f"{prefix}mask_path": settings[f"{prefix}mask_path"],
    }
    for name, folder in folders.items():
        if not folder or not pathlib.Path(folder).is_dir():
            raise UserError(f"{name}={folder!r} is no folder: give the one that holds the files")
    by_stem: list[dict[str, str]] = []
    for name, folder in folders.items():
        files = find_images(pathlib.Path(folder))
        check_folders(pathlib.Path(folder), files, name, has_test=bool(settings.data.test_path), alone=False)
        by_stem.append({str(file.relative_to(folder).with_suffix("")): str(file) for file in files})
        if len(by_stem[-1]) < len(files):
            raise UserError(f"{folder} has files that differ in their ending only: which belongs to which is unclear")
    pairs: dict[str, tuple[Item, Item]] = {
        stem: (by_stem[0][stem], mask) for stem, mask in by_stem[1].items() if stem in by_stem[0]
    }
    if not pairs:
        (_, images), (field, masks) = folders.items()
        raise UserError(f"{field}={masks!r} has no mask named as an image in {images!r}: both need equal names")
    return pairs, len(by_stem[0]) + len(by_stem[1]) - 2 * len(pairs)


def tfds_pairs(settings: Any) -> Pairs:
    """A prepared tfds data set with masks; images and masks are read when they are needed."""
    prepared = Prepared(settings.data.name, settings.data.data_dir, threads=settings.data.threads)
    features = prepared.features
    key = settings.mask_key or next((key for key in MASK_KEYS if key in features), "")
    if key not in features:
        raise UserError(f"mask_key={key!r}: {prepared.full_name} has no such feature; it has {', '.join(features)}")
    names = [prepared.image_key(), key]
    splits = {}
    for name, instruction in (("train", settings.data.train_split), ("test", settings.data.test_split)):
        splits[name] = Examples(prepared.records(instruction, field=f"data.{name}_split"), names)
    return Pairs(splits, f"tfds {prepared.full_name}", settings)
