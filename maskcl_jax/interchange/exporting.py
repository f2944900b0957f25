"""Exports a run: one function for the command and for programs."""

import pathlib
from typing import Any, NamedTuple

from maskcl_jax.errors import UserError
from maskcl_jax.interchange.check import check as check_export
from maskcl_jax.interchange.check import import_problem
from maskcl_jax.interchange.files import new_folder
from maskcl_jax.interchange.product import Product, product_of
from maskcl_jax.interchange.writing import check_fits, readme, write_files
from maskcl_jax.training.run import Run, restore_run


class Exported(NamedTuple):
    """What an export tells its user.

    Attributes:
        readme: The text of the folder's README.md.
        verdict: What the check says, or why there was none; a line of the README.
    """

    readme: str
    verdict: str


def export(workdir: str, format: str, out: str, *, step: int | None = None, **options: Any) -> str:
    """Exports the run in `workdir`.

    Args:
        workdir: The run's folder.
        format: A name of `LAYOUTS`.
        out: The new folder.
        step: Of the checkpoint; default: the newest.
        **options: See `export_run`.

    Returns:
        The README.

    Raises:
        UserError: See `export_run`.
    """
    if pathlib.Path(out).exists():
        raise UserError(f"--out={out} exists: give another, or remove it")
    return export_run(restore_run(workdir, step), format, out, **options).readme


def export_run(
    run: Run, format: str, out: str, *, network: str = "online", full: bool = False, check: bool | None = None
) -> Exported:
    """Exports a run.

    Args:
        run: The run.
        format: A name of `LAYOUTS`.
        out: The new folder.
        network: "online" or "target", the EMA.
        full: The whole pre-training model instead of an encoder.
        check: Load it and compare; None: where the libraries can be imported.

    Returns:
        The README, and what the check says.

    Raises:
        UserError: And leaves nothing, where something does not fit or the check fails.
    """
    if full and network == "target":
        raise UserError("--full exports both networks: leave --network out")
    product = product_of(run, format=format, network=network, full=full)
    check_fits(product)
    with new_folder(out) as folder:
        write_files(product, folder)
        verdict = verdict_of(product, str(folder), check)
        text = readme(product, out, verdict)
        (folder / "README.md").write_text(text)
    return Exported(text, verdict)


def verdict_of(product: Product, folder: str, wanted: bool | None) -> str:
    """What the check says, or why there was none."""
    if wanted is False:
        return "not checked: --nocheck"
    if reason := import_problem(product):
        if wanted:
            raise UserError(f"--check: {reason}: install it, or write --nocheck")
        return f"not checked: {reason}"
    return check_export(product, folder)
