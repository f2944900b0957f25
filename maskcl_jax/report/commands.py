"""What to type next: commands that work as they are printed, from the directory where the page was made."""

import json
import pathlib
import shlex
from collections.abc import Sequence

from maskcl_jax.evaluate.recipes import CHEAP
from maskcl_jax.interchange.files import RECORD
from maskcl_jax.report.look import Look
from maskcl_jax.report.record import Record

# What the formats of `export` are for.
LIBRARIES = {"timm": "timm", "hf": "transformers (Hugging Face)", "torchvision": "torchvision"}


def commands(record: Record, look: Look | None) -> list[tuple[str, str]]:
    """Returns (what for, command) for one run, of what its folder does not hold yet."""
    run, done = shlex.quote(record.workdir), record.evaluated
    rows = []
    if look is None or record.step < look.total:
        rows.append(("Continue the run", f"python -m maskcl_jax.main --workdir={run}"))
    if look is not None:
        labeled = bool(look.class_names) and look.split == "test"
        if labeled and not done.issuperset(CHEAP):
            rows.append(
                (
                    "Measure it: k-NN, logistic regression, few labels",
                    f"python -m maskcl_jax.evaluate --workdir={run} --protocol=all",
                )
            )
        if labeled and "finetune" not in done:
            rows.append(("Fine-tune it", f"python -m maskcl_jax.evaluate --workdir={run} --protocol=finetune"))
        if "features" not in done:
            rows.append(
                (
                    "Embeddings of every image as a file",
                    f"python -m maskcl_jax.evaluate --workdir={run} --protocol=features --config.split={look.split}",
                )
            )
        rows += [
            (f"Use it in {LIBRARIES[format]}", export(record, format))
            for format in look.exports
            if not exported(record, format)
        ]
    if any(pathlib.Path(record.workdir).glob("events.out.tfevents.*")):
        rows.append(("Look at all scalars", f"tensorboard --logdir={run}"))
    return rows


def exported(record: Record, format: str) -> bool:
    """Whether the folder that `export` writes holds the newest checkpoint."""
    try:
        made_of = json.loads((pathlib.Path(record.workdir) / format / RECORD).read_text())["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return made_of == max(record.checkpoints, default=-1)


def export(record: Record, format: str) -> str:
    """The command that writes a run's encoder into a folder beside its checkpoints."""
    out = shlex.quote(f"{record.workdir.rstrip('/')}/{format}")
    return f"python -m maskcl_jax.export --workdir={shlex.quote(record.workdir)} --format={format} --out={out}"


def again(records: Sequence[Record], out: str) -> str:
    """The command that makes the whole page."""
    runs = " ".join(shlex.quote(record.workdir) for record in records)
    return f"python -m maskcl_jax.report {runs} --out={shlex.quote(out)}"
