"""What every protocol begins with: the run, its encoder, the data and their subsets, checked before anything runs."""

import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from maskcl_jax.data import pipeline
from maskcl_jax.data.sources import SPLITS, Encoded, Source, open_source
from maskcl_jax.errors import UserError, check_choice
from maskcl_jax.evaluate import checks, knn, subsets
from maskcl_jax.evaluate import encoder as encoder_lib
from maskcl_jax.evaluate.segmentation_data import open_pairs
from maskcl_jax.evaluate.settings import name_of
from maskcl_jax.training import checkpoint, run_folder, sharding
from maskcl_jax.training.run import Run

Columns = tuple[np.ndarray, np.ndarray, np.ndarray]  # features (n, D) float32, labels (n,), index (n,)


class Session(NamedTuple):
    """One evaluation, ready to run.

    Attributes:
        settings: Of the protocol (`evaluate.settings`).
        run: That is evaluated.
        encoder: Its network, for the images of this evaluation.
        feature: The kind of feature.
        source: A Source, its train split the labeled subset only; for segmentation the `Pairs` of images and masks.
        mesh: All devices.
        folder: Where results go.
        cache: Features already computed in this process, for the protocols that run one after the other.
        unlabeled: Split -> fraction of its images without a label; only of splits that have some.
    """

    settings: ml_collections.ConfigDict
    run: Run
    encoder: encoder_lib.Encoder
    feature: str
    source: Any
    mesh: jax.sharding.Mesh
    folder: pathlib.Path
    cache: dict[tuple[str, str], Columns]
    unlabeled: dict[str, float]

    @property
    def name(self) -> str:
        """The name of the evaluation's files."""
        return name_of(self.settings, self.run.step)

    def batches(self, split: str, batch_size: int, source: Source | None = None) -> pipeline.Batches:
        """Every image of a split once, as evaluations see it."""
        return pipeline.eval_batches(
            source or self.source,
            split,
            data_config=self.settings.data,
            batch_size=batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def feature_fn(self) -> Callable[[jax.Array], jax.Array]:
        """A compiled function: images (B, H, W, C) on the devices -> features (B, D), whole on every device."""
        compute = jax.jit(
            lambda variables, images: self.encoder.features(variables, images, self.feature),
            out_shardings=sharding.replicated(self.mesh),
        )
        return lambda images: compute(self.encoder.variables, images)

    def put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """A batch of this process on the devices."""
        return sharding.put(batch, self.mesh)

    def features(self, split: str) -> Columns:
        """The labeled images of a split as features; computed once for several protocols.

        Raises:
            UserError: Where they measure nothing (`checks`).
        """
        labels = self.settings.labels if split == "train" else "all"
        if (split, labels) not in self.cache:
            batches = self.batches(split, self.settings.batch_size)
            self.cache[split, labels] = knn.collect_features(self.feature_fn(), batches, self.put)
        columns = self.cache[split, labels]
        self.refuse(checks.labels_problem(columns[1], split) or checks.features_problem(columns[0], split))
        return columns

    def feature_batches(self, split: str) -> Iterable[Columns]:
        """The same, a batch at a time and not kept; or in one piece where they were kept."""
        if (split, self.settings.labels) in self.cache:
            return [self.cache[split, self.settings.labels]]
        batches = self.batches(split, self.settings.batch_size)
        return knn.feature_batches(self.feature_fn(), batches, self.put)

    def check_encoder(self, batches: pipeline.Batches, compute: Callable[[Any, jax.Array], jax.Array]) -> None:
        """Refuses an encoder whose outputs on the first batch of images are all equal.

        Args:
            batches: Of the test split; one is drawn, then they are closed.
            compute: (variables, images (B, H, W, C)) -> outputs (B, ...).
        """
        batch = next(batches)
        batches.close()
        placed = self.put({name: batch[name] for name in ("image", "valid")})
        outputs = jax.jit(compute, out_shardings=sharding.replicated(self.mesh))
        rows = knn.to_host(outputs(self.encoder.variables, placed["image"]))[knn.to_host(placed["valid"])]
        self.refuse(checks.features_problem(rows, "test"))

    def facts(self, split: str) -> dict[str, Any]:
        """What tells the images of a split from others (`Source.facts`), and the weights of the encoder."""
        facts = {
            name: value for name, value in self.source.facts((split,)).items() if name not in SPLITS or name == split
        }
        sums = checkpoint.checksums(self.encoder.variables)
        return facts | {"encoder": hashlib.blake2b(repr(sums).encode(), digest_size=16).hexdigest()}

    def warn(self, problem: str) -> None:
        """Says once, not on every process, what a figure is worth ("" is nothing)."""
        if problem and jax.process_index() == 0:
            print(f"warning: {problem}", flush=True)

    def refuse(self, problem: str) -> None:
        """Raises UserError where there is a problem ("" is none)."""
        if problem:
            raise UserError(f"--protocol={self.settings.protocol} measures nothing on {self.described}: {problem}")

    @property
    def described(self) -> str:
        """The data, the encoder's network and the feature, in a few words."""
        source = self.source.description.split(",")[0]
        return f"{source} (network={self.encoder.network}, feature={self.feature})"


def open_session(run: Run, settings: ml_collections.ConfigDict, cache: dict | None = None) -> Session:
    """Checks everything that can be wrong before anything is computed.

    Args:
        run: The run to evaluate.
        settings: Of the protocol (`evaluate.settings.create`).
        cache: Of sessions that differ from this one in protocol and labels only.

    Returns:
        The session.

    Raises:
        UserError: For whatever the protocol cannot work with.
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
        check_choice("pool", settings.pool, ("mean", "cls"))
        feature = settings.pool
    encoder_lib.check_feature(feature, encoder.module)
    folder = pathlib.Path(run.workdir) / "evaluate"
    if settings.protocol == "segment":
        return Session(settings, run, encoder, feature, open_pairs(settings), mesh, folder, {}, {})
    source, unlabeled = open_source(settings.data), {}
    if settings.protocol != "features":
        check_splits(source, settings)
        unlabeled = check_labels(source, settings)
        source = labeled(source, settings, folder)
    return Session(settings, run, encoder, feature, source, mesh, folder, {} if cache is None else cache, unlabeled)


def check_splits(source: Source, settings: ml_collections.ConfigDict) -> None:
    """Raises UserError where a protocol needs labels, or a split, that the data do not have."""
    if source.num_classes == 0:
        raise UserError(f"--protocol={settings.protocol} needs labels: {source.description}; give others with --data")
    for split in SPLITS:
        if source.num_examples(split) == 0:
            raise UserError(
                f"--protocol={settings.protocol} needs {split} images: {source.description}; set "
                f"data.{'test_path' if split == 'test' else 'path'}"
            )


def check_labels(source: Source, settings: ml_collections.ConfigDict) -> dict[str, float]:
    """The fraction of unlabeled images of each split that has some.

    Raises:
        UserError: Where a split shows fewer than two classes.
    """
    fractions = {}
    for split in SPLITS:
        data = source.evaluated(split)
        if problem := checks.labels_problem(data.labels, split):
            raise UserError(
                f"--protocol={settings.protocol} measures nothing: {problem}; {source.description}; give other data"
            )
        fractions[split] = checks.unlabeled(data.labels)
    return {split: fraction for split, fraction in fractions.items() if fraction > 0}


def labeled(source: Source, settings: ml_collections.ConfigDict, folder: pathlib.Path) -> Source:
    """The source with the labeled subset as its train split; the subset is listed in a file."""
    data = source.evaluated("train")
    indices = None
    if settings.labels != "all" or (data.labels < 0).any():
        indices = subsets.choose(data.labels, settings.labels, seed=settings.seed, names=source.class_names)
        if settings.labels != "all" and jax.process_index() == 0:
            write_list(folder, source, indices, settings)
    return subsets.Part(source, {"train": ("train", indices), "test": ("test", None)})


def write_list(folder: pathlib.Path, source: Source, indices: np.ndarray, settings: ml_collections.ConfigDict) -> None:
    """Writes which images a subset holds: their indices, and their names where they are files."""
    data = source.evaluated("train")
    names = [data.payloads[i] for i in indices] if isinstance(data, Encoded) and data.is_path else None
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
    run_folder.write_text(path, json.dumps(content))
