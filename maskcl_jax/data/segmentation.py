"""Images with masks, one class a pixel: from a tfds set that has both, or two folders with the same names."""

import concurrent.futures
import io
import itertools
import os
import pathlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from maskcl_jax.data import crops, order, pixels, subsets
from maskcl_jax.data.folder import find_images
from maskcl_jax.data.prefetch import Prefetcher
from maskcl_jax.errors import UserError
from maskcl_jax.views import View

MASK_KEYS = (
    "segmentation_mask",
    "annotation",
    "segmentation_label",
    "mask",
)  # of tfds features, the first that is there
TEST_SHARE = 0.1  # held out of a folder where no test folder is given


class Pairs:
    """{split: [(image, mask)]}, file paths or encoded images, and what their values mean.

    num_classes: values first .. first + num_classes - 1 are classes 0 ...; others, and `ignore`, are not counted.
    """

    def __init__(self, splits: dict[str, list], description: str, settings):
        self.splits, self.settings = splits, settings
        self.first, self.ignore = settings.first_label, settings.ignore
        self.num_classes = settings.classes or self.classes_shown()
        counts = f"{len(splits['train'])} training and {len(splits['test'])} test images"
        self.description = f"{description}, {counts}, {self.num_classes} classes of pixels"

    def num_examples(self, split: str) -> int:
        """Images of "train" or "test"."""
        return len(self.splits[split])

    def classes_shown(self) -> int:
        """As many classes as the training masks show."""
        highest = -1
        for _, mask in self.splits["train"]:
            values = np.unique(decoded_mask(mask)).astype(np.int64)
            highest = max([highest, *values[values != self.ignore].tolist()])
        if highest < self.first:
            raise UserError(f"no training mask shows a class: check first_label={self.first} and ignore={self.ignore}")
        return highest - self.first + 1

    def classes_of(self, mask: np.ndarray) -> np.ndarray:
        """Mask values (H, W) -> int32 classes, -1 where a pixel is not counted."""
        classes = mask.astype(np.int32) - self.first
        counted = (mask != self.ignore) & (classes >= 0)
        if counted.any() and classes[counted].max() >= self.num_classes:
            worst = int(classes[counted].max()) + self.first
            raise UserError(f"a mask shows {worst} but classes={self.num_classes}: raise it, or set ignore={worst}")
        return np.where(counted, classes, -1)

    def train_batches(self, *, batch_size: int, start: int, process_index: int, process_count: int) -> Prefetcher:
        """Random crops, perhaps flipped, of images and masks alike, from step `start` on: image, mask, valid."""
        s = self.settings
        view = View(size=tuple(s.data.image_size), crop_scale=tuple(s.crop_scale), interpolation="bilinear")
        part = {"process_index": process_index, "process_count": process_count}
        count = self.num_examples("train")
        slots = (
            order.train_slots(step, num_examples=count, batch_size=batch_size, seed=s.seed, **part)
            for step in itertools.count(start)
        )
        return Prefetcher(self.made("train", view, slots))

    def eval_batches(self, split: str, *, batch_size: int, process_index: int, process_count: int) -> Prefetcher:
        """Every image once, all of it resized to the encoder's size, as is its mask (nearest); padding is not valid."""
        view = crops.EvalView(size=tuple(self.settings.data.image_size), interpolation="bilinear")
        part = {"process_index": process_index, "process_count": process_count}
        slots = order.eval_slots(np.arange(self.num_examples(split)), batch_size=batch_size, **part)
        return Prefetcher(self.made(split, view, iter(slots)))

    def made(self, split: str, view, slots) -> Iterator[dict]:
        """The batches of these slots."""
        size, channels = tuple(view.size), self.settings.data.channels
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for slot in slots:
                draws = crops.draw(view, seed=self.settings.seed, epoch=slot.epoch, indices=slot.indices)
                work = [
                    (self.splits[split][i], view, draws.noise[n], draws.flip[n]) for n, i in enumerate(slot.indices)
                ]
                found = list(pool.map(lambda job: self.pair(*job), work))
                image = np.zeros((slot.size, *size, channels), np.uint8)
                mask = np.full((slot.size, *size), -1, np.int32)
                for row, (shown, classes) in enumerate(found):
                    image[row], mask[row] = shown, classes
                yield {"image": image, "mask": mask, "valid": np.arange(slot.size) < len(found)}

    def pair(self, pair, view, noise, flip) -> tuple[np.ndarray, np.ndarray]:
        """One crop of an image, and the same of its mask. Raises UserError where they are unreadable or unequal."""
        name = pair[0] if isinstance(pair[0], str) else "an image"
        try:
            image = pixels.decode(read(pair[0]), self.settings.data.channels)
        except Exception as error:  # Pillow's decoders raise a dozen types
            raise UserError(f"{name} cannot be read ({type(error).__name__}): remove it") from None
        mask = decoded_mask(pair[1])
        if mask.shape != image.shape[:2]:
            raise UserError(f"{name} measures {image.shape[:2]} and its mask {mask.shape}: they must be equal")
        box = crops.boxes([view], [noise], *mask.shape)[0]
        shown = pixels.crop_and_resize(image, box, size=view.size, interpolation=view.interpolation, flip=flip)
        top, left, height, width = box
        cut = Image.fromarray(self.classes_of(mask[top : top + height, left : left + width]))
        classes = np.asarray(cut.resize((view.size[1], view.size[0]), Image.Resampling.NEAREST))
        return shown, classes[:, ::-1] if flip else classes


def read(item) -> bytes:
    """The bytes of a file, or those that are already here."""
    return pathlib.Path(item).read_bytes() if isinstance(item, str) else item


def decoded_mask(item) -> np.ndarray:
    """(H, W) values of a mask: palette numbers, grey values, or the first channel."""
    try:
        with Image.open(io.BytesIO(read(item))) as image:
            values = np.asarray(image)
    except (OSError, ValueError) as error:
        name = item if isinstance(item, str) else "a mask"
        raise UserError(f"{name} cannot be read as a mask ({type(error).__name__}): give PNG files") from None
    return values if values.ndim == 2 else values[..., 0]


def open_pairs(settings) -> Pairs:
    """The images and masks that `settings.data`, mask_path and mask_key describe. Raises UserError for none."""
    if settings.data.source == "folder":
        return folder_pairs(settings)
    if settings.data.source == "tfds":
        return tfds_pairs(settings)
    raise UserError(
        f"data.source={settings.data.source!r} has no masks: give --data=folder with data.path and mask_path, or tfds "
        "set with masks as data.name"
    )


def folder_pairs(settings) -> Pairs:
    """The files of data.path with those of mask_path, and likewise for testing; else a tenth is held out."""
    train = matched(settings.data.path, settings.mask_path, "mask_path")
    if settings.data.test_path:
        test = matched(settings.data.test_path, settings.test_mask_path, "test_mask_path")
    else:
        kept, held = subsets.held_out(len(train), TEST_SHARE, seed=0)
        train, test = [train[i] for i in kept], [train[i] for i in held]
    return Pairs({"train": train, "test": test}, f"folder {settings.data.path}", settings)


def matched(images: str, masks: str, field: str) -> list[tuple[str, str]]:
    """(image, mask) of every mask: the same path, the ending aside."""
    for name, folder in (("data.path", images), (field, masks)):
        if not folder or not pathlib.Path(folder).is_dir():
            raise UserError(f"{name}={folder!r} is no folder: give the one that holds the files")
    stems = {str(file.relative_to(images).with_suffix("")): str(file) for file in find_images(pathlib.Path(images))}
    found = [(stems.get(str(m.relative_to(masks).with_suffix(""))), str(m)) for m in find_images(pathlib.Path(masks))]
    pairs = [pair for pair in found if pair[0]]
    if not pairs:
        raise UserError(f"{field}={masks!r} has no mask named as an image in {images!r}: both need equal names")
    return pairs


def tfds_pairs(settings) -> Pairs:
    """All of a prepared tfds set with masks, encoded, in memory."""
    import tensorflow_datasets as tfds

    from maskcl_jax.data.tensorflow_host import tensorflow
    from maskcl_jax.data.tfds_source import image_key, prepared_folder

    tensorflow()
    builder = tfds.builder_from_directory(prepared_folder(settings.data.name, settings.data.data_dir))
    features = builder.info.features
    key = settings.mask_key or next((key for key in MASK_KEYS if key in features), "")
    if key not in features:
        raise UserError(f"mask_key={key!r}: {builder.info.full_name} has no such feature; it has {', '.join(features)}")
    image = "image" if "image" in features else image_key(features, builder.info.full_name)
    skip = {image: tfds.decode.SkipDecoding(), key: tfds.decode.SkipDecoding()}
    decoders = tfds.decode.PartialDecoding({image: True, key: True}, decoders=skip)
    splits = {}
    for name, field in (("train", settings.data.train_split), ("test", settings.data.test_split)):
        try:
            dataset = builder.as_dataset(split=field, decoders=decoders, shuffle_files=False)
        except ValueError:
            known = ", ".join(builder.info.splits)
            raise UserError(f"data.{name}_split={field!r} is no split of {builder.info.full_name}: {known}") from None
        splits[name] = [(example[image], example[key]) for example in dataset.as_numpy_iterator()]
    return Pairs(splits, f"tfds {builder.info.full_name}", settings)
