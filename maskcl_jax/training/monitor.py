"""What a run shows besides the metrics of its steps: online k-NN, figures, the closing table."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from maskcl_jax.data import on_device, pipeline
from maskcl_jax.data.sources import Source
from maskcl_jax.evaluate import checks, knn
from maskcl_jax.evaluate.logistic import logistic_accuracy
from maskcl_jax.methods import Arrays, Method
from maskcl_jax.performance import devices
from maskcl_jax.training import sharding, visualize
from maskcl_jax.training.throughput import Throughput
from maskcl_jax.training.train_state import TrainState


class Monitor:
    """Evaluates the encoder online: before the first step, and then every few epochs.

    Attributes:
        problem: Why the last evaluation measured nothing, before it: why the data allow none; "" if it did.
        k: Neighbors that voted in it.
    """

    def __init__(
        self,
        config: Any,
        workdir: str,
        *,
        source: Source,
        method: Method,
        mesh: jax.sharding.Mesh,
        images: jax.Array | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        """Computes nothing yet.

        Args:
            config: The run's.
            workdir: The run's folder.
            source: Of the images.
            method: Of the states.
            mesh: The devices.
            images: The data set, if it lies on the devices (`on_device.place`); None if batches come from the host.
            say: Is given lines for the user.
        """
        self.config = config
        self.say = say
        self.said: set[str] = set()
        self.problem = data_problem(source)
        self.k = config.eval.k
        self.folder = pathlib.Path(workdir)
        self.source = source
        self.method = method
        self.mesh = mesh
        self.images = images
        self.features = jax.jit(
            lambda state, images: method.features(state.params, state.model_state, images, kind=config.eval.feature),
            out_shardings=sharding.replicated(mesh),
        )
        self.pictures = jax.jit(
            lambda state, batch: method.pictures(state.params, state.model_state, batch),
            out_shardings=sharding.replicated(mesh),
        )
        self.picture_batch: dict[str, np.ndarray] | Arrays | None = None

    def evaluate(self, state: TrainState) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Returns (scalars, figures) of a state: see `classify` and `draw`."""
        return self.classify(state), self.draw(state)

    def classify(self, state: TrainState) -> dict[str, float]:
        """Classifies the test split by k-NN, and by a linear classifier if `eval.linear`.

        Args:
            state: Whose encoder makes the features.

        Returns:
            `knn_accuracy` and perhaps `linear_accuracy`, in percent; {} if nothing can be measured.
        """
        if problem := data_problem(self.source):
            return self.not_measured(problem)
        e = self.config.eval
        splits = []
        for split, limit in (("train", e.train_examples), ("test", e.test_examples)):
            features, labels, _ = knn.collect_features(
                lambda images: self.features(state, images),
                self.batches(split, limit),
                lambda batch: sharding.put(batch, self.mesh),
            )
            splits += [features, labels]
            if problem := checks.labels_problem(labels, split):
                return self.not_measured(problem)
            if fraction := checks.unlabeled(self.source.evaluated(split).labels):
                self.say_once(f"{fraction:.1%} of the {split} images have no label and do not count")
            self.say_once(checks.features_problem(features, split))
        if problem := checks.neighbors_problem(e.k, len(splits[0])):
            self.say_once(f"{problem}: all of them vote")
        self.problem = ""
        result = knn.knn_accuracy(*splits, k=e.k, temperature=e.temperature, num_classes=self.source.num_classes)
        scalars, self.k = {"knn_accuracy": 100.0 * result["accuracy"]}, result["k"]
        if e.linear:
            scalars["linear_accuracy"] = 100.0 * logistic_accuracy(*splits)
        return scalars

    def not_measured(self, problem: str) -> dict[str, float]:
        """Returns no scalars, and keeps the reason."""
        self.problem = problem
        self.say_once(problem)
        return {}

    def say_once(self, problem: str) -> None:
        """Says what the accuracies are worth, each problem once."""
        if problem and problem not in self.said:
            self.said.add(problem)
            self.say(f"k-NN: {problem}")

    def batches(self, split: str, limit: int) -> pipeline.Batches:
        """Returns this process's `eval_batches` of a split; limit: 0, or the size of a fixed subset."""
        return pipeline.eval_batches(
            self.source,
            split,
            data_config=self.config.data,
            batch_size=self.config.eval.batch_size,
            limit=limit,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def draw(self, state: TrainState) -> dict[str, np.ndarray]:
        """Draws the figure of the run's first images, the same ones every time, and saves it as PNG.

        Args:
            state: Whose networks are shown.

        Returns:
            {"pictures": the figure, (H, W, 3) uint8}; {} if `eval.pictures` is 0.
        """
        rows = self.config.eval.pictures
        if rows == 0:
            return {}
        if self.picture_batch is None:
            self.picture_batch = self.first_rows(rows)
        columns = jax.device_get(self.pictures(state, self.picture_batch))
        grid = visualize.grid({name: np.asarray(columns[name]) for name in self.method.picture_names}, max_rows=rows)
        if jax.process_index() == 0:
            visualize.save_png(self.folder / "pictures" / f"step_{int(state.step):08d}.png", grid)
        return {"pictures": grid}

    def first_rows(self, rows: int) -> dict[str, np.ndarray] | Arrays:
        """Returns the first rows of batch 0, all of them on every device: they are few."""
        if self.images is not None:
            return self.first_rows_on_device(rows)
        batches = pipeline.train_batches(
            self.source,
            self.method.views,
            data_config=self.config.data,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            start_step=0,
        )
        first = next(batches)
        batches.close()
        return {k: v[:rows] for k, v in first.items() if k not in ("label", "index")}

    def first_rows_on_device(self, rows: int) -> Arrays:
        """Returns the same of images that lie on the devices, as the first step makes them."""
        c, views = self.config, self.method.views
        count = self.source.num_examples("train")
        index = next(on_device.indices(count, batch_size=c.batch_size, seed=c.seed))["index"]
        key = on_device.key_of(jax.random.fold_in(jax.random.key(c.seed), 0))

        def first(images, index):
            batch = on_device.batch_of(views, images, index, key)
            return {name: value[:rows] for name, value in batch.items() if name != "index"}

        return jax.jit(first, out_shardings=sharding.replicated(self.mesh))(self.images, index)


def data_problem(source: Source) -> str:
    """Why k-NN cannot be measured on some data, as far as is known before an image is read; "" where it can."""
    if source.num_classes == 0:
        return "the data has no labels"
    return "" if source.num_examples("test") else "there are no test images (data.test_path)"


def history(workdir: str, name: str) -> list[tuple[int, float]]:
    """Returns (step, value) of one metric, in order, from the run's metrics.jsonl; [] without the file.

    Args:
        workdir: The run's folder.
        name: Of the metric.
    """
    path = pathlib.Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(row["step"], row[name]) for row in rows if name in row]


def closing_rows(config: Any, workdir: str, *, rate: Throughput, skipped: int, monitor: Monitor) -> dict[str, str]:
    """Returns the table at the end of a run, name -> text. What was not measured has no row; that of k-NN says why.

    Args:
        config: The run's.
        workdir: The run's folder.
        rate: Of this process's steps.
        skipped: Images that could not be read.
        monitor: The run's; k and the reason why there is no k-NN are the last evaluation's.
    """
    losses, knns, linear = (history(workdir, name) for name in ("loss", "knn_accuracy", "linear_accuracy"))
    rows = {}
    if losses:
        rows["loss"] = f"{losses[0][1]:.4f} -> {losses[-1][1]:.4f}"
    if knns:
        e = config.eval
        rows["k-NN"] = f"{knns[0][1]:.1f} % at step {knns[0][0]} -> {knns[-1][1]:.1f} % at step {knns[-1][0]}"
        rows["k-NN protocol"] = f"k {monitor.k}, temperature {e.temperature}, cosine, feature {e.feature}, online"
    else:
        rows["k-NN"] = f"not measured: {monitor.problem or f'eval.every_epochs={config.eval.every_epochs}'}"
    if linear:
        rows["linear"] = f"{linear[0][1]:.1f} % at step {linear[0][0]} -> {linear[-1][1]:.1f} % at step {linear[-1][0]}"
        rows["linear protocol"] = f"logistic regression, feature {config.eval.feature}, frozen, no augmentation, online"
    if overall := rate.overall():
        rows["images/s"] = f"{overall:.1f}, {overall / jax.device_count():.1f} a device"
        if mfu := rate.mfu(overall):
            rows["MFU"] = f"{mfu:.1%} of the devices' bf16 peak"
        rows["data wait"] = f"{rate.data_wait():.1%} of the time of the steps"
    if memory := devices.peak_memory():
        rows["device memory"] = f"{memory / 2**30:.2f} GiB at the peak, on the fullest device"
    if skipped:
        rows["skipped images"] = f"{skipped} could not be read; the log names them"
    folder = pathlib.Path(workdir)
    rows["checkpoint"] = str(folder / "checkpoints")
    if any(folder.glob("pictures/*.png")):
        rows["pictures"] = str(folder / "pictures")
    if any(folder.glob("events.out.tfevents.*")):
        rows["curves"] = f"tensorboard --logdir={workdir}"
    return rows
