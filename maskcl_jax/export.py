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

from absl import flags

from maskcl_jax import cli
from maskcl_jax.interchange.catalog import LAYOUTS
from maskcl_jax.interchange.exporting import export

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


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir", "format", "out"])
    cli.run(main)
