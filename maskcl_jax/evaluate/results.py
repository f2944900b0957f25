"""The results of an evaluation: one JSON file beside the checkpoints, rows of a table on the screen."""

import base64
import datetime
import json
import pathlib
import platform
import zlib
from importlib import metadata
from typing import Any

import jax
import numpy as np

from maskcl_jax import config as config_lib
from maskcl_jax.errors import UserError
from maskcl_jax.evaluate.knn import wilson
from maskcl_jax.evaluate.session import Session
from maskcl_jax.training import run_folder

LIBRARIES = ("maskcl_jax", "jax", "flax", "optax", "numpy", "scikit-learn", "grain")
COLUMNS = ("run", "step", "protocol", "labels", "feature", "network", "data", "result", "n", "details")


def accuracy(correct: int, n: int) -> dict[str, float]:
    """{accuracy, low, high (Wilson 95 %), n_test} of `correct` right predictions of `n`."""
    low, high = wilson(correct, n)
    return {"accuracy": correct / n, "low": low, "high": high, "n_test": n}


def accuracy_of(right: np.ndarray, index: np.ndarray) -> dict[str, Any]:
    """The same of each test image's outcome, which `correct` keeps, so that two evaluations can be compared in pairs.

    Args:
        right: (n,) bool, whether an image was classified correctly.
        index: (n,) the images' positions in the test split.
    """
    return accuracy(int(right.sum()), len(right)) | {"correct": pack_bits(right[np.argsort(index, kind="stable")])}


def pack_bits(right: np.ndarray) -> str:
    """(n,) bool as text: its bits in base64."""
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def unpack_bits(text: str, n: int) -> np.ndarray:
    """What `pack_bits` made a text of, (n,) bool."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=n).astype(bool)


def pack_counts(pixels: np.ndarray) -> str:
    """Counts of pixels, (n, 3, C), as text: int32 in zlib and base64."""
    return base64.b64encode(zlib.compress(pixels.astype("<i4").tobytes(), 9)).decode()


def unpack_counts(text: str, n: int) -> np.ndarray:
    """What `pack_counts` made a text of, (n, 3, C) int32."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i4").reshape(n, 3, -1)


def record(session: Session, values: dict[str, Any], *, seconds: float, command: str) -> dict[str, Any]:
    """Writes RUN/evaluate/NAME.json.

    Args:
        session: The evaluation.
        values: {"entries": [{accuracy | miou, n_test, ...}], ...}, the figures.
        seconds: How long it took.
        command: What the user typed.

    Returns:
        The content of the file.
    """
    run, s = session.run, session.settings
    content = {
        "protocol": s.protocol,
        "recipe": s.recipe,
        "method": run.config.method.name,
        "workdir": str(run.workdir),
        "step": run.step,
        "network": s.network,
        "feature": session.feature,
        "labels": s.labels,
        "data": session.source.description,
        "values": values,
        "settings": config_lib.flat(s),
        "seconds": round(seconds, 1),
        "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
    }
    if jax.process_index() == 0:
        session.folder.mkdir(parents=True, exist_ok=True)
        run_folder.write_text(session.folder / f"{session.name}.json", json.dumps(content, indent=1))
    return content


def versions() -> dict[str, str]:
    """The versions of Python and the libraries that a figure may depend on."""
    installed = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def records(workdir: str) -> list[dict[str, Any]]:
    """All results in a run's folder, by date; [] where there is none."""
    contents = [json.loads(path.read_text()) for path in (pathlib.Path(workdir) / "evaluate").glob("*.json")]
    return sorted((content for content in contents if "values" in content), key=lambda content: content["date"])


def read_all(workdir: str) -> list[dict[str, Any]]:
    """All results in a run's folder, by date. Raises UserError where there is none."""
    contents = records(workdir)
    if not contents:
        raise UserError(f"{pathlib.Path(workdir) / 'evaluate'} holds no result: run another --protocol first")
    return contents


def rows(content: dict[str, Any]) -> list[dict[str, str]]:
    """The rows of one record: one for each of its entries (several k of a k-NN)."""
    name = content["protocol"] + (f":{content['recipe']}" if content["recipe"] else "")
    shared = {
        "run": pathlib.Path(content["workdir"]).name,
        "step": str(content["step"]),
        "protocol": name,
        "labels": content["labels"],
        "feature": content["feature"],
        "network": content["network"],
        "data": content["data"].split(",")[0],
    }
    return [shared | outcome(values) for values in content["values"]["entries"]]


def outcome(values: dict[str, Any]) -> dict[str, str]:
    """The columns `result` (figure and interval), `n` and `details` of an entry."""
    if "accuracy" in values:
        percent = [100 * values[key] for key in ("accuracy", "low", "high")]
        figure, shown = "{:.2f} % ({:.2f}-{:.2f})".format(*percent), {"accuracy", "low", "high", "n_test", "correct"}
    else:
        figure, shown = f"mIoU {100 * values['miou']:.2f} %", {"miou", "n_test", "iou", "pixels"}
    details = ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in values.items()
        if key not in shown
    )
    return {"result": figure, "n": str(values["n_test"]), "details": details}


def table(contents: list[dict[str, Any]]) -> str:
    """A Markdown table, aligned, of the rows of all records."""
    body = [COLUMNS, *(tuple(row[c] for c in COLUMNS) for content in contents for row in rows(content))]
    widths = [max(len(line[i]) for line in body) for i in range(len(COLUMNS))]
    lines = ["| " + " | ".join(f"{text:<{w}}" for text, w in zip(line, widths, strict=True)) + " |" for line in body]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
