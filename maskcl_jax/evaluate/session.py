"""What every protocol begins with: the run, its encoder, the data and their subsets, checked before anything runs."""

import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from maskcl_jax.data import pipeline, subsets
from maskcl_jax.data.segmentation import open_pairs
from maskcl_jax.data.sources import Source, open_source
from maskcl_jax.data.tfds_stream import Records
from maskcl_jax.errors import UserError
from maskcl_jax.evaluate import encoder as encoder_lib
from maskcl_jax.evaluate import knn
from maskcl_jax.evaluate.settings import name_of
from maskcl_jax.methods import base
from maskcl_jax.training import checkpoint, sharding
from maskcl_jax.training.run import Run


class Session(NamedTuple):
    """One evaluation. folder: where its files go.

    source: a Source whose "train" split holds the labelled subset alone; of segmentation `data.segmentation.Pairs`.
    """

    settings: Any
    run: Run
    encoder: encoder_lib.Encoder
    feature: str
    source: Any
    mesh: Any
    folder: pathlib.Path
    cache: dict  # features already computed in this process, shared by the protocols that run one after the other

    @property
    def name(self) -> str:
        """Of its files."""
        return name_of(self.settings, self.run.step)

    def batches(self, split: str, batch_size: int, source: Source | None = None):
        """Every image of a split once, as evaluations see it."""
        return pipeline.eval_batches(
            source or self.source,
            split,
            data_config=self.settings.data,
            batch_size=batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def feature_fn(self):
        """device images -> (B, D), whole on every device."""
        compute = jax.jit(
            lambda variables, images: self.encoder.features(variables, images, self.feature),
            out_shardings=sharding.replicated(self.mesh),
        )
        return lambda images: compute(self.encoder.variables, images)

    def put(self, batch):
        """A host batch on the devices."""
        return sharding.put(batch, self.mesh)

    def features(self, split: str):
        """(features, labels, index) of the labelled images of a split; computed once for several protocols."""
        labels = self.settings.labels if split == "train" else "all"
        if (split, labels) not in self.cache:
            batches = self.batches(split, self.settings.batch_size)
            self.cache[split, labels] = knn.collect_features(self.feature_fn(), batches, self.put)
        return self.cache[split, labels]

    def passing_features(self, split: str):
        """The same, a batch at a time and not kept; or in one piece where they were kept."""
        if (split, self.settings.labels) in self.cache:
            return [self.cache[split, self.settings.labels]]
        batches = self.batches(split, self.settings.batch_size)
        return knn.feature_batches(self.feature_fn(), batches, self.put)


def open_session(run: Run, settings, cache: dict | None = None) -> Session:
    """Checks everything that can be wrong before anything is computed.

    cache: of sessions that differ from this one in protocol and labels alone. Raises UserError for whatever the
    protocol cannot work with.
    """
    mesh = sharding.create_mesh()
    for field in ("batch_size", "eval_batch_size"):
        if field in settings:
            sharding.check_batch(settings[field], mesh, field=field)
    encoder = encoder_lib.open_encoder(
        run, network=settings.network, image_size=settings.data.image_size, seed=settings.seed
    )
    feature = settings.feature or encoder_lib.default_feature(run)
    if settings.protocol == "finetune" and encoder.is_vit:
        base.check_choice("pool", settings.pool, ("mean", "cls"))
        feature = settings.pool
    encoder_lib.check_feature(feature, encoder.module)
    folder = pathlib.Path(run.workdir) / "evaluate"
    if settings.protocol == "segment":
        return Session(settings, run, encoder, feature, open_pairs(settings), mesh, folder, {})
    source = open_source(settings.data)
    if settings.protocol != "features":
        check_labels(source, settings)
        source = labelled(source, settings, folder)
    return Session(settings, run, encoder, feature, source, mesh, folder, {} if cache is None else cache)


def check_labels(source: Source, settings) -> None:
    """Raises UserError where a protocol needs labels, or a test split, that the data do not have."""
    if source.num_classes == 0:
        raise UserError(f"--protocol={settings.protocol} needs labels: {source.description}; give others with --data")
    if source.num_examples("test") == 0:
        raise UserError(f"--protocol={settings.protocol} needs test images: {source.description}; set data.test_path")


def labelled(source: Source, settings, folder: pathlib.Path) -> Source:
    """The source with the labelled subset as its train split; the subset is listed in a file."""
    data = source.evaluated("train")
    if settings.labels == "all" and (isinstance(data, Records) or (data.labels >= 0).all()):
        return source
    labels = subsets.labels_of(data)
    indices = subsets.chosen(labels, settings.labels, seed=settings.seed, names=source.class_names)
    if settings.labels != "all" and jax.process_index() == 0:
        write_list(folder, source, indices, settings)
    return subsets.Part(source, {"train": ("train", indices), "test": ("test", None)})


def write_list(folder: pathlib.Path, source: Source, indices: np.ndarray, settings) -> None:
    """Which images a subset holds: by index, and where they are files by name."""
    data = source.evaluated("train")
    names = [data.payloads[i] for i in indices] if getattr(data, "is_path", False) else None
    content = {
        "data": source.description,
        "labels": settings.labels,
        "seed": settings.seed,
        "count": len(indices),
        "indices": indices.tolist(),
        "names": names,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"labels-{settings.labels.replace('%', 'pct')}-seed{settings.seed}.json"
    checkpoint.write_text(path, json.dumps(content))
