"""What to type next: commands that work as they are printed, from the directory where the page was made."""

import shlex
from collections.abc import Sequence

from maskcl_jax.report.look import Look
from maskcl_jax.report.record import Record


def commands(record: Record, look: Look | None) -> list[tuple[str, str]]:
    """Returns (what for, command) for one run."""
    run = shlex.quote(record.workdir)
    rows = []
    if look is None or record.step < look.total:
        rows.append(("Continue the run", f"python -m maskcl_jax.main --workdir={run}"))
    if look is not None:
        labeled = bool(look.class_names) and look.split == "test"
        if labeled:
            rows.append(
                (
                    "Measure it: k-NN, logistic regression, few labels",
                    f"python -m maskcl_jax.evaluate --workdir={run} --protocol=all",
                )
            )
            rows.append(("Fine-tune it", f"python -m maskcl_jax.evaluate --workdir={run} --protocol=finetune"))
        rows.append(
            (
                "Embeddings of every image as a file",
                f"python -m maskcl_jax.evaluate --workdir={run} --protocol=features --config.split={look.split}",
            )
        )
        rows += [(f"Use it in {format}", export(record, format)) for format in look.exports]
    return [*rows, ("Look at all scalars", f"tensorboard --logdir={run}")]


def export(record: Record, format: str) -> str:
    """The command that writes a run's encoder into a folder beside its checkpoints."""
    out = shlex.quote(f"{record.workdir.rstrip('/')}/{format}")
    return f"python -m maskcl_jax.export --workdir={shlex.quote(record.workdir)} --format={format} --out={out}"


def again(records: Sequence[Record], out: str) -> str:
    """The command that makes the whole page."""
    runs = " ".join(shlex.quote(record.workdir) for record in records)
    return f"python -m maskcl_jax.report {runs} --out={shlex.quote(out)}"
