"""Exports a run to PyTorch: `python -m maskcl_jax.export --workdir=RUN --format=F --out=DIR`.

  timm         a folder for timm.create_model("local-dir:DIR", pretrained=True)
  hf           a folder for transformers' from_pretrained; --full: ViTMAEForPreTraining with its decoder
  torchvision  a ResNet state dict, with the lines that build the network
  detectron2   a .pkl for DetectionCheckpointer, with the YAML lines that its config needs
  mmpretrain, mmdet   a .pth for init_cfg=dict(type='Pretrained', ...)
  mae, cmae    the authors' names; --full: all networks and heads, for continued training
  ccmim, mocov3, moco_v2   likewise, with --full alone

Every folder has a README.md with the lines that load it. Where PyTorch is installed the export is loaded as a user
would load it and compared with the run on photographs, features and preprocessing; a feature that differs by more than
1e-4, or another preprocessing, leaves nothing behind.
"""

import pathlib
from typing import Any

from absl import flags

from maskcl_jax import cli
from maskcl_jax.errors import UserError
from maskcl_jax.interchange.catalog import LAYOUTS
from maskcl_jax.interchange.check import check as check_export
from maskcl_jax.interchange.check import import_problem
from maskcl_jax.interchange.files import new_folder
from maskcl_jax.interchange.product import Product, product_of
from maskcl_jax.interchange.writing import check_fits, readme, write_files
from maskcl_jax.training.run import Run, restore_run

WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.")
FORMAT = flags.DEFINE_enum("format", None, list(LAYOUTS), "What to export to.")
OUT = flags.DEFINE_string("out", None, "The new folder.")
STEP = flags.DEFINE_integer("step", None, "Of the checkpoint; default: the newest.")
NETWORK = flags.DEFINE_enum("network", "online", ["online", "target"], "Which encoder: the trained one, or its EMA.")
FULL = flags.DEFINE_bool("full", False, "The whole pre-training model, where the format has names for it.")
CHECK = flags.DEFINE_bool("check", None, "Load it and compare; default: where the libraries are installed.")


def main(argv: list[str]) -> None:
    """Writes the folder and prints its README."""
    options = {"network": NETWORK.value, "full": FULL.value, "check": CHECK.value}
    print(export(cli.given(WORKDIR), cli.given(FORMAT), cli.given(OUT), step=STEP.value, **options))


def export(workdir: str, format: str, out: str, *, step: int | None = None, **options: Any) -> str:
    """Exports the run in `workdir`.

    Args:
        workdir: the run's folder.
        format: a name of `LAYOUTS`.
        out: the new folder.
        step: of the checkpoint; default: the newest.
        **options: see `export_run`.

    Returns:
        The README.

    Raises:
        UserError: see `export_run`.
    """
    if pathlib.Path(out).exists():
        raise UserError(f"--out={out} exists: give another, or remove it")
    return export_run(restore_run(workdir, step), format, out, **options)


def export_run(
    run: Run, format: str, out: str, *, network: str = "online", full: bool = False, check: bool | None = None
) -> str:
    """Exports a run.

    Args:
        run: the run.
        format: a name of `LAYOUTS`.
        out: the new folder.
        network: "online" or "target", the EMA.
        full: the whole pre-training model instead of an encoder.
        check: load it and compare; None: where the libraries can be imported.

    Returns:
        The README.

    Raises:
        UserError: and leaves nothing, where something does not fit or the check fails.
    """
    if full and network == "target":
        raise UserError("--full exports both networks: leave --network out")
    product = product_of(run, format=format, network=network, full=full)
    check_fits(product)
    with new_folder(out) as folder:
        write_files(product, folder)
        text = readme(product, out, verdict_of(product, str(folder), check))
        (folder / "README.md").write_text(text)
    return text


def verdict_of(product: Product, folder: str, wanted: bool | None) -> str:
    """What the check says, or why there was none."""
    if wanted is False:
        return "not checked: --nocheck"
    if reason := import_problem(product):
        if wanted:
            raise UserError(f"--check: {reason}: install it, or write --nocheck")
        return f"not checked: {reason}"
    return check_export(product, folder)


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir", "format", "out"])
    cli.run(main)
