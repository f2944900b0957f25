"""Where the metrics of a run go besides its folder: Weights & Biases, Trackio, MLflow.

Each writer has those methods of `clu.metric_writers.MetricWriter` that a run calls, with the same arguments; it is no
subclass, because importing that module imports TensorFlow. The libraries are imported when they are asked for. Where a
run goes on, it goes on there too: RUN/trackers.json keeps what it is called.
"""

import importlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from maskcl_jax.config import suggestion
from maskcl_jax.errors import UserError, first_line, import_problem
from maskcl_jax.training import run_folder
from maskcl_jax.training.tensorboard import EventWriter

RECORD = "trackers.json"
TENSORBOARD = "tensorboard"


class Writer(Protocol):
    """What a run asks of a writer; the arguments are those of `clu.metric_writers.MetricWriter`."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes one value a name."""

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes (N, H, W, 3) uint8 a name."""

    def flush(self) -> None:
        """Sends or writes what is pending."""

    def close(self) -> None:
        """Ends the writing."""


class WandbWriter:
    """Weights & Biases. Its own variables hold: WANDB_MODE=offline writes to RUN/wandb, WANDB_ENTITY names a team.

    A run that goes on repeats the steps after its checkpoint with the same values; wandb keeps the first ones.
    """

    package = "wandb"

    def __init__(self, library: Any, folder: pathlib.Path, config: Mapping[str, Any], name: str) -> None:
        self.library = library
        known = {"id": name, "resume": "allow"} if name else {}
        options = {"name": folder.absolute().name, "dir": str(folder), "config": dict(config)}
        self.run = library.init(project=config["log.project"], **options, **known)
        self.name = self.run.id

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        self.run.log(dict(scalars), step=step)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        self.run.log({name: list(map(self.library.Image, batch)) for name, batch in images.items()}, step=step)

    def flush(self) -> None:
        """Nothing: wandb sends in the background."""

    def close(self) -> None:
        self.run.finish()


class TrackioWriter:
    """Trackio: a local database (TRACKIO_DIR), shown by `trackio show`."""

    package = "trackio"

    def __init__(self, library: Any, folder: pathlib.Path, config: Mapping[str, Any], name: str) -> None:
        self.library, self.name = library, name or folder.absolute().name
        # embed: a notebook would open a dashboard, beside the output of the run.
        options = {"config": dict(config), "resume": "allow" if name else "never", "embed": False}
        self.run = library.init(project=config["log.project"], name=self.name, **options)
        self.name = self.run.name

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        self.run.log(dict(scalars), step=step)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        for name, batch in images.items():
            for image in batch:
                self.run.log({name: self.library.Image(image)}, step=step)

    def flush(self) -> None:
        """Nothing: trackio writes in the background."""

    def close(self) -> None:
        self.run.finish()


class MlflowWriter:
    """MLflow, where MLFLOW_TRACKING_URI says."""

    package = "mlflow"

    def __init__(self, library: Any, folder: pathlib.Path, config: Mapping[str, Any], name: str) -> None:
        self.client = library.MlflowClient()
        if name:
            self.name = name
            self.client.update_run(name, status="RUNNING")
            return
        project = config["log.project"]
        experiment = self.client.get_experiment_by_name(project)
        number = experiment.experiment_id if experiment else self.client.create_experiment(project)
        self.name = self.client.create_run(number, run_name=folder.absolute().name).info.run_id
        for field, value in config.items():
            self.client.log_param(self.name, field, str(value)[:500])  # all that MLflow keeps of a value

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self.client.log_metric(self.name, name, float(value), step=step)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        for name, batch in images.items():
            for number, image in enumerate(batch):
                self.client.log_image(self.name, image, artifact_file=f"{name}/step_{step:08d}_{number}.png")

    def flush(self) -> None:
        """Nothing: the client writes at once."""

    def close(self) -> None:
        self.client.set_terminated(self.name)


TRACKERS: dict[str, Any] = {"wandb": WandbWriter, "trackio": TrackioWriter, "mlflow": MlflowWriter}


def check(names: Sequence[str]) -> None:
    """Checks `log.to` before a run begins. Raises UserError for an unknown name, or a library that cannot be used."""
    known = (TENSORBOARD, *TRACKERS)
    for name in names:
        if name not in known:
            raise UserError(f"log.to={name} is unknown{suggestion(name, known)}: use {', '.join(known)}, or ()")
        if name in TRACKERS and (reason := import_problem(TRACKERS[name].package)):
            raise UserError(f"log.to={name}: {reason}: pip install 'maskcl_jax[{name}]'")


def open_writers(names: Sequence[str], workdir: str | pathlib.Path, config: Mapping[str, Any]) -> list[Writer]:
    """Opens the writers of a run.

    Args:
        names: `config.log.to`.
        workdir: The run's folder.
        config: Of the run, flat.

    Raises:
        UserError: A library cannot start, for want of a login for instance.
    """
    writers: list[Writer] = []
    folder = pathlib.Path(workdir)
    record = folder / RECORD
    kept = json.loads(record.read_text()) if record.exists() else {}
    for name in dict.fromkeys(names):
        if name == TENSORBOARD:
            writers.append(EventWriter(folder))
            continue
        kind = TRACKERS[name]
        try:
            writer = kind(importlib.import_module(kind.package), folder, config, kept.get(name, ""))
        except Exception as error:  # of another library: it raises anything
            raise UserError(f"log.to={name}: it cannot start ({type(error).__name__}: {first_line(error)})") from error
        writers.append(writer)
        kept[name] = writer.name
        run_folder.write_text(record, json.dumps(kept))
    return writers
