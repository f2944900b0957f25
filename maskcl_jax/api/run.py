"""Runs from Python: training, evaluation and export, by the same code as the commands."""

import functools
import json
import math
import os
import pathlib
import signal
import tempfile
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from maskcl_jax import config as config_lib
from maskcl_jax import methods
from maskcl_jax.api import arrays, fields, weights
from maskcl_jax.api.encoder import Encoder, load
from maskcl_jax.errors import UserError, check_choice
from maskcl_jax.evaluate import features, results, settings
from maskcl_jax.evaluate.evaluation import evaluate_run
from maskcl_jax.interchange.catalog import LAYOUTS
from maskcl_jax.interchange.exporting import export_run
from maskcl_jax.report import after_training
from maskcl_jax.training import loop, run_folder


class Curve(NamedTuple):
    """One metric of a run.

    Attributes:
        steps: (n,) int64, after how many steps it was measured.
        values: (n,) float64; NaN where it was not finite.

    Example:
        >>> import numpy as np
        >>> import maskcl_jax as mc
        >>> curve = mc.Curve(np.array([10, 20]), np.array([1.9, 1.4]))  # as run.metrics["loss"] is one
        >>> steps, values = curve
        >>> values[-1].item()
        1.4
    """

    steps: np.ndarray
    values: np.ndarray


class Run(os.PathLike[str]):
    """The folder of a run. Whatever takes the path of a run takes a `Run` too.

    Args:
        path: The folder.

    Raises:
        UserError: It is no run's.

    Attributes:
        path: The folder.

    Example:
        >>> import maskcl_jax as mc
        >>> run = mc.Run("runs/example")
        >>> run.config.method.name, run.step
        ('mae', 7)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path)
        run_folder.read_config(str(path))

    @property
    def config(self) -> ml_collections.ConfigDict:
        """The config that the run was started with."""
        return config_lib.unflat(run_folder.read_config(str(self.path)))

    @property
    def step(self) -> int:
        """Steps of the newest checkpoint; 0 where there is none."""
        return max((int(entry.name) for entry in self.path.glob("checkpoints/*") if entry.name.isdigit()), default=0)

    @property
    def metrics(self) -> dict[str, Curve]:
        """Everything in metrics.jsonl by name, for instance `plt.plot(*run.metrics["loss"])`."""
        file, columns = self.path / "metrics.jsonl", {}
        for line in file.read_text().splitlines() if file.exists() else []:
            row = json.loads(line)
            for name in row.keys() - {"step"}:
                columns.setdefault(name, []).append((row["step"], math.nan if row[name] is None else row[name]))
        return {
            name: Curve(np.array([step for step, _ in pairs], np.int64), np.array([value for _, value in pairs], float))
            for name, pairs in sorted(columns.items())
        }

    @property
    def pictures(self) -> list[pathlib.Path]:
        """The figures that the run drew of its first images, as PNG, in the order of the steps."""
        return sorted(self.path.glob("pictures/step_*.png"))

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The encoder of the newest checkpoint; `load` has options."""
        return load(self.path)

    def evaluate(self, data: Any = None, protocol: str = "knn", **options: Any) -> "Result":
        """Evaluates the encoder of the newest checkpoint.

        Args:
            data: Default: the run's own; else see `maskcl_jax.evaluate`.
            protocol: "knn", "logistic", "linear", ..., see there.
            **options: Settings of the protocol, and `folder`.

        Returns:
            The figures.

        Raises:
            UserError: The protocol cannot work with these data or settings.
        """
        return evaluate(self, data, protocol, **options)

    def export(self, format: str, out: str | os.PathLike[str], **options: Any) -> pathlib.Path:
        """Exports the encoder of the newest checkpoint to PyTorch.

        Args:
            format: "timm", "hf", "torchvision", ..., see `maskcl_jax.export`.
            out: The new folder.
            **options: `network`, `full` and `check`, see there.

        Returns:
            The folder.

        Raises:
            UserError: Something does not fit, or the check fails; nothing is left.
        """
        return export(self, format, out, **options)

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}): {self.config.method.name}, preset {self.config.preset}, step {self.step}"


class Result(NamedTuple):
    """What an evaluation measured; printed as a Markdown table.

    Attributes:
        records: Of each evaluation, as in the files `RUN/evaluate/*.json`.
        files: The files of embeddings and figures that "features" wrote; none of other protocols.

    Example:
        >>> import maskcl_jax as mc
        >>> result = mc.evaluate("runs/example", protocol="knn", k=(1, 5))
        >>> [entry["k"] for entry in result.entries]
        [1, 5]
    """

    records: list[dict[str, Any]]
    files: tuple[pathlib.Path, ...] = ()

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The figures: `accuracy` (0 to 1) with `low` and `high` (95 %), or `miou`; `n_test` and more."""
        return [entry for record in self.records for entry in record["values"]["entries"]]

    @property
    def accuracy(self) -> float:
        """The accuracy, 0 to 1.

        Raises:
            UserError: None was measured, or several.
        """
        found = [entry["accuracy"] for entry in self.entries if "accuracy" in entry]
        if len(found) != 1:
            raise UserError(f"{len(found)} accuracies were measured: choose one of `entries`")
        return found[0]

    def __repr__(self) -> str:
        if self.records:
            return results.table(self.records)
        return "\n".join(["wrote", *map(str, self.files)]) if self.files else "nothing measured, and no file kept"

    def _repr_markdown_(self) -> str:
        return repr(self)


@fields.in_words_of_python()
def pretrain(
    method: str | os.PathLike[str] | type[methods.Method] = "ccmim",
    data: Any = "embedded",
    workdir: str | os.PathLike[str] | None = None,
    *,
    preset: str = "",
    **config: Any,
) -> Run:
    """Trains a method, as `python -m maskcl_jax.main` does; the same call again continues the run.

    Ctrl-C (or a notebook's stop button) saves a checkpoint before `KeyboardInterrupt` is raised. The run is that of
    this process alone; several processes are started by the command.

    Args:
        method: The name of a config ("ccmim"), the path of a config file, or a subclass of `Method`, which is trained
            with the config of the method that it inherits from ("mae" if it inherits from none).
        data: A folder of images, labeled by sub-folders or not; a .npz file; images (N, H, W, C) uint8 in memory; a
            pair (images, labels); a dict with `train_images`, `train_labels`, `test_images` and `test_labels`; or the
            name of a preset of the config ("embedded", "cifar10"). Images in memory are copied to `workdir/data.npz`,
            so that commands can read the run.
        workdir: The run's folder; default: runs/METHOD-PRESET.
        preset: Of the config: encoder, length, batch size. Default: "folder" for folders and images above 64 pixels,
            "embedded" (a small ViT) for other images in memory, which are trained at their own size.
        **config: Fields that differ: `epochs=5`, `variant="S/16"`, `image_size=64`, `base_lr=1e-3`; nested,
            `optimizer={"weight_decay": 0.1}`; or with dots, as those of the groups `method` and `data` must be:
            `**{"method.mask_ratio": 0.6}`.

    Returns:
        The run.

    Raises:
        UserError: Something cannot work as it is written.
        Diverged: A loss is not finite.
        KeyboardInterrupt: The run was interrupted, and is saved.

    Example:
        >>> import maskcl_jax as mc
        >>> import numpy as np
        >>> images = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3), np.uint8)
        >>> small = {"model": {"depth": 1}, "eval": {"pictures": 0}, "log": {"report": False}}
        >>> run = mc.pretrain("mae", images, "runs/noise", total_steps=2, batch_size=16, **small)
        >>> run.metrics["loss"].steps
        array([1, 2])
    """
    chosen = fields.choose(data, preset)
    settled = fields.config_of(method, chosen, config)
    name = method.__name__ if isinstance(method, type) else pathlib.Path(method).stem
    folder = pathlib.Path(f"runs/{name}-{settled.preset}" if workdir is None else workdir)
    if chosen.arrays:
        settled.data.path = str((folder / "data.npz").absolute())
        config_lib.check(settled)
        methods.create(settled)
        arrays.save(chosen.arrays, folder / "data.npz")
    try:
        loop.train(settled.lock(), str(folder))
    except SystemExit as stopped:
        if stopped.code == 128 + signal.SIGINT:
            raise KeyboardInterrupt(f"stopped, and saved in {folder}: the same call goes on there") from None
        raise
    if line := after_training(settled, str(folder)):
        print(line, flush=True)
    return Run(folder)


@fields.in_words_of_python()
def evaluate(
    model: Encoder | str | os.PathLike[str],
    data: Any = None,
    protocol: str = "knn",
    *,
    folder: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Result:
    """Evaluates an encoder, as `python -m maskcl_jax.evaluate` does.

    Args:
        model: An `Encoder`, or what `load` takes: a run, or weights.
        data: Default: the run's own. Or a preset, a folder labeled by sub-folders, or arrays, see `pretrain`.
        protocol: "knn", "logistic", "lowshot", "linear", "finetune", "segment", "features" or "all"; with a recipe,
            "linear:mae". See the page on evaluation.
        folder: Where results go, in `folder/evaluate`; default: the run's folder. Those of weights are not kept.
        **options: Settings of the protocol (`k=(5, 20)`, `feature="cls"`, `network="target"`), nested or with dots.

    Returns:
        The figures.

    Raises:
        UserError: The protocol cannot work with these data or settings.

    Example:
        >>> import maskcl_jax as mc
        >>> result = mc.evaluate("runs/example", k=5)
        >>> 0 <= result.accuracy <= 1
        True
    """
    with tempfile.TemporaryDirectory() as unkept:
        wanted = fields.flattened(options)
        if isinstance(model, Encoder):
            run, size = model.run, "x".join(map(str, model.image_size))
            wanted = {"network": model.network, "feature": model.feature, "data.image_size": size} | wanted
        else:
            step = wanted.get("step", -1)
            run = weights.open_run(pathlib.Path(model), network="online", step=None if step < 0 else step, layout="")
        place = folder or (run.workdir if weights.is_run(pathlib.Path(run.workdir)) else unkept)
        preset, written = fields.data_settings(data, pathlib.Path(place))
        texts = tuple(f"{name}={value}" for name, value in (written | wanted).items())
        evaluations = settings.create(protocol, run.config, data=preset, overrides=texts)
        placed = run._replace(workdir=str(place))
        records = evaluate_run(placed, evaluations, command="maskcl_jax.evaluate()")
        files = [file for chosen in evaluations for file in features.files_of(placed, chosen)]
    # Outside: what was written for weights without a `folder` is gone here.
    return Result(records, tuple(file for file in files if file.exists()))


@fields.in_words_of_python()
def export(
    model: Encoder | str | os.PathLike[str],
    format: str,
    out: str | os.PathLike[str],
    *,
    network: str = "",
    full: bool = False,
    check: bool | None = None,
) -> pathlib.Path:
    """Exports an encoder to PyTorch, as `python -m maskcl_jax.export` does.

    Args:
        model: An `Encoder`, or what `load` takes: a run, or weights.
        format: "timm", "hf" (transformers), "torchvision", "detectron2", "mmpretrain", "mmdet", or a method's authors.
        out: The new folder; its README.md has the lines that load it.
        network: "online" or "target" (the EMA); default: the encoder's, or "online".
        full: The whole pre-training model, where the format has names for it.
        check: Whether to load the export as a user would and compare it; default: where the libraries can be imported.
            A printed line says what the check found, or why there was none.

    Returns:
        The folder.

    Raises:
        UserError: Something does not fit, or the check fails; nothing is left.

    Example:
        >>> import maskcl_jax as mc
        >>> folder = mc.export("runs/example", "timm", "exported", check=False)
        >>> sorted(path.name for path in folder.iterdir())
        ['README.md', 'config.json', 'export.json', 'model.safetensors']
    """
    check_choice("format", format, LAYOUTS)
    if isinstance(model, Encoder):
        if model.network == "random" or model.image_size != tuple(model.config.data.image_size):
            raise UserError(f"{model!r} is not as it was trained: load it without network and image_size")
        run, network = model.run, network or model.network
    else:
        run = weights.open_run(pathlib.Path(model), network=network, step=None, layout="")
    verdict = export_run(run, format, os.fspath(out), network=network or "online", full=full, check=check).verdict
    if check is not False:  # who left the check out need not be told
        print(f"{os.fspath(out)}: {verdict}", flush=True)
    return pathlib.Path(out)
