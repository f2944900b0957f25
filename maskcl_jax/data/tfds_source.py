"""Any image data set that TFDS has prepared, by name. Nothing is ever downloaded.

A split that fits `cache_mb` is read once: decoded where all images have one shape, encoded otherwise. A
larger one is streamed from its records (`tfds_stream`).
"""

import difflib
import re

import numpy as np

from maskcl_jax.data.sources import Arrays, Encoded, Source
from maskcl_jax.data.tensorflow_host import tensorflow
from maskcl_jax.data.tfds_stream import Records
from maskcl_jax.errors import UserError

MANUAL = {
    "imagenet2012": (
        "after putting ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar (from image-net.org) into "
        "{root}/downloads/manual"
    ),
}


class TfdsSource(Source):
    """The data set `name` ("cifar10", "imagenet2012:5.*.*", "name/config") prepared under `data_dir`."""

    def __init__(self, data_config):
        super().__init__()
        import tensorflow_datasets as tfds

        tensorflow()
        self._builder = tfds.builder_from_directory(prepared_folder(data_config.name, data_config.data_dir))
        self._instructions = {"train": data_config.train_split, "test": data_config.test_split}
        self._cache = data_config.cache_mb * 2**20
        self._arrays = {}
        info = self._builder.info
        for split, field in self._instructions.items():
            try:
                count = info.splits[field].num_examples
            except (ValueError, KeyError):
                known = ", ".join(info.splits)
                raise UserError(
                    f"data.{split}_split={field!r} is no split of {info.full_name}: it has {known}"
                ) from None
            if not count:
                raise UserError(f"data.{split}_split={field!r} of {info.full_name} is empty: choose another")
        self._image = image_key(info.features, info.full_name)
        features = dict(info.features.items())
        self._label = "label" if isinstance(features.get("label"), tfds.features.ClassLabel) else None
        if self._label:
            self.class_names = tuple(features["label"].names)
        self.num_classes = len(self.class_names)
        counts = {split: info.splits[field].num_examples for split, field in self._instructions.items()}
        self.description = f"tfds {info.full_name}, {counts['train']} training and {counts['test']} test images, " + (
            f"{self.num_classes} classes" if self.num_classes else "no labels"
        )

    def num_examples(self, split):
        # A split that is kept in memory is counted as read: unreadable images are not in it.
        return len(self._splits[split]) if split in self._splits else self._info(split).num_examples

    def load(self, split):
        info, shape = self._info(split), self._builder.info.features[self._image].shape
        if None not in shape and info.num_examples * int(np.prod(shape)) <= self._cache:
            return self._read_arrays(split)
        if self._num_bytes(split) <= self._cache:
            payloads, labels = [], []
            for batch in self.dataset(self._instructions[split]).batch(1024).as_numpy_iterator():
                payloads += self.images(batch).tolist()
                labels.append(self.labels(batch))
            return Encoded(payloads, np.concatenate(labels), is_path=False)
        bytes_each = max(1, self._num_bytes(split) // info.num_examples)
        return Records(self, self._instructions[split], self._builder.info.splits, buffer=self._cache // bytes_each)

    def dataset(self, split, *, shuffle_seed: int | None = None, with_id: bool = False):
        """The undecoded examples of a split as a tf.data.Dataset, in order or shuffled by file."""
        import tensorflow_datasets as tfds

        keys = {key: True for key in (self._image, self._label) if key}
        read = tfds.ReadConfig(
            add_tfds_id=with_id,
            shuffle_seed=shuffle_seed,
            shuffle_reshuffle_each_iteration=False,
            interleave_cycle_length=1 if shuffle_seed is None else 16,
            try_autocache=False,
        )
        return self._builder.as_dataset(
            split=split,
            shuffle_files=shuffle_seed is not None,
            decoders=tfds.decode.PartialDecoding(keys, decoders={self._image: tfds.decode.SkipDecoding()}),
            read_config=read,
        )

    def images(self, examples: dict) -> np.ndarray:
        """The encoded images of a batch of examples, bytes objects."""
        return examples[self._image]

    def labels(self, examples: dict) -> np.ndarray:
        """The labels of a batch of examples, int32, -1 where the data set has none."""
        count = len(examples[self._image])
        return examples[self._label].astype(np.int32) if self._label else np.full(count, -1, np.int32)

    def _info(self, split):
        return self._builder.info.splits[self._instructions[split]]

    def _num_bytes(self, split) -> int:
        """Of a part of a split (`train[:10%]`), which TFDS does not know: its share of the whole."""
        info = self._info(split)
        if info.num_bytes:
            return info.num_bytes
        whole = [s for name, s in self._builder.info.splits.items() if name in self._instructions[split]]
        return max(s.num_bytes * info.num_examples // s.num_examples for s in whole)

    def _read_arrays(self, split) -> Arrays:
        tf = tensorflow()
        shape = self._builder.info.features[self._image].shape

        def decode(position, example):
            image = tf.io.decode_image(example[self._image], channels=shape[-1], expand_animations=False)
            label = example[self._label] if self._label else tf.constant(-1, tf.int64)
            return position, tf.ensure_shape(image, shape), label

        dataset = self.dataset(self._instructions[split]).enumerate()
        dataset = dataset.map(decode, num_parallel_calls=tf.data.AUTOTUNE).ignore_errors().batch(1024)
        batches = list(dataset.as_numpy_iterator())
        count = self._info(split).num_examples
        good = np.concatenate([np.zeros(0, np.int64), *(batch[0] for batch in batches)])
        for position in np.setdiff1d(np.arange(count), good):
            self.skip(f"{self._builder.info.full_name} {split} example {position}", "cannot be decoded")
        if not len(good):
            raise UserError(f"data.name={self._builder.info.full_name!r} has no readable image in its {split} split")
        images = np.concatenate([batch[1] for batch in batches])
        return Arrays(images, np.concatenate([batch[2] for batch in batches]).astype(np.int32))


def prepared_folder(name: str, data_dir: str):
    """The folder `data_dir/name[/config]/version` of a prepared data set, the newest version that fits.

    Raises UserError, with the command that prepares the data set, where there is none.
    """
    from etils import epath

    match = re.fullmatch(r"(\w+)(?:/([^:/]+))?(?::([\w.*]+))?", name)
    if not match:
        raise UserError(f"data.name={name!r} is no TFDS name: write name, name/config or name:version, as 'cifar10'")
    base, config, version = match.groups()
    root = epath.Path(data_dir or "~/tensorflow_datasets").expanduser()
    folder = root / base
    if not folder.exists():
        _check_known(base, name)
        raise UserError(_how_to_prepare(name, base, root))
    configs = [folder] if not config else [folder / config]
    if not config and not _versions(folder, None):
        configs = [child for child in folder.iterdir() if child.is_dir() and _versions(child, None)]
    if len(configs) > 1:
        names = ", ".join(sorted(f"{base}/{child.name}" for child in configs))
        raise UserError(f"data.name={name!r} is prepared in several configs: choose one of {names}")
    found = _versions(configs[0], version) if configs and configs[0].exists() else []
    if not found:
        raise UserError(_how_to_prepare(name, base, root))
    return max(found, key=lambda path: [int(part) for part in path.name.split(".")])


def _versions(folder, wanted: str | None) -> list:
    """The prepared versions in a folder that fit a pattern such as 5.*.*."""
    pattern = re.escape(wanted or "*.*.*").replace(r"\*", r"\d+")
    candidates = [child for child in folder.iterdir() if re.fullmatch(pattern, child.name)]
    return [child for child in candidates if (child / "dataset_info.json").exists()]


def _check_known(base: str, name: str) -> None:
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    if base not in known:
        close = difflib.get_close_matches(base, known, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "see https://www.tensorflow.org/datasets/catalog"
        raise UserError(f"data.name={name!r} is no data set of TFDS and not prepared under data_dir: {hint}")


def _how_to_prepare(name: str, base: str, root) -> str:
    command = f"python -m tensorflow_datasets.scripts.cli.main build {name} --data_dir={root}"
    manual = MANUAL.get(base, "").format(root=root)
    return f"data.name={name!r} is not prepared in data.data_dir={str(root)!r}: run `{command}`" + (
        f" {manual}" if manual else " or give the data_dir that has it"
    )


def image_key(features, full_name: str) -> str:
    """`image`, or else the only image among the features. Raises UserError where that is not one."""
    import tensorflow_datasets as tfds

    images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    if "image" in images:
        return "image"
    if len(images) != 1:
        raise UserError(
            f"data.name={full_name!r} has {len(images)} image features, none called 'image': choose another"
        )
    return images[0]
