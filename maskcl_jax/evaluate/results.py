"""What an evaluation leaves: one JSON beside the checkpoints, one row on the screen."""

import datetime
import json
import pathlib
import platform
from importlib import metadata

import jax

from maskcl_jax import config as config_lib
from maskcl_jax.errors import UserError
from maskcl_jax.evaluate.knn import wilson
from maskcl_jax.training import checkpoint

LIBRARIES = ("maskcl_jax", "jax", "flax", "optax", "numpy", "scikit-learn", "tensorflow-datasets")
COLUMNS = ("run", "step", "protocol", "labels", "feature", "network", "data", "result", "n", "details")


def accuracy(correct: int, n: int) -> dict[str, float]:
    """{accuracy, low, high (Wilson 95 %), n_test} of so many right answers."""
    low, high = wilson(correct, n)
    return {"accuracy": correct / n, "low": low, "high": high, "n_test": n}


def record(session, values: dict, *, seconds: float, command: str) -> dict:
    """Writes RUN/evaluate/NAME.json, and returns what it holds."""
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
        checkpoint.write_text(session.folder / f"{session.name}.json", json.dumps(content, indent=1))
    return content


def versions() -> dict[str, str]:
    """Of Python and the libraries that a number may depend on."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def read_all(workdir: str) -> list[dict]:
    """All results in a run's folder, by date. Raises UserError where there is none."""
    folder = pathlib.Path(workdir) / "evaluate"
    found = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    found = [content for content in found if "values" in content]
    if not found:
        raise UserError(f"{folder} holds no result: run another --protocol first")
    return sorted(found, key=lambda content: content["date"])


def rows(content: dict) -> list[dict[str, str]]:
    """The rows of one result: one for each of its entries (several k of a k-NN)."""
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


def outcome(values: dict) -> dict[str, str]:
    """The figure of an entry, its interval, and what else it says of itself."""
    if "accuracy" in values:
        percent = [100 * values[key] for key in ("accuracy", "low", "high")]
        figure, known = "{:.2f} % ({:.2f}-{:.2f})".format(*percent), ("accuracy", "low", "high", "n_test")
    else:
        figure, known = f"mIoU {100 * values['miou']:.2f} %", ("miou", "n_test", "iou")
    details = ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in values.items()
        if key not in known
    )
    return {"result": figure, "n": str(values["n_test"]), "details": details}


def table(contents: list[dict]) -> str:
    """A Markdown table, aligned, of all rows."""
    body = [COLUMNS, *(tuple(row[c] for c in COLUMNS) for content in contents for row in rows(content))]
    widths = [max(len(line[i]) for line in body) for i in range(len(COLUMNS))]
    lines = ["| " + " | ".join(f"{text:<{w}}" for text, w in zip(line, widths, strict=True)) + " |" for line in body]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
