"""Makes a run of PyTorch weights: `python -m maskcl_jax.import_torch FILE|DIR --method=M --out=RUN`.

  mae, ccmim, cmae, mocov3, moco_v2   the authors' checkpoints: the encoder alone, or the whole model
  timm, torchvision, hf, mmpretrain, mmdet, detectron2   encoders of these libraries, ViT or ResNet (hf: ViTMAE, too)

FILE is safetensors, a PyTorch file (read with weights_only=True: one that wants to run code is refused) or a pickle of
numpy arrays; DIR is a folder that holds one, for instance of timm, transformers, or maskcl_jax.export. Nothing may
be missing and nothing left over except classifiers, which are named. What the weights do not have gets initial values
and is named, too. The run's config is the published one of the method with the encoder of the weights; --config=FILE
gives another: other data, or another image size, to which the position table is then resized.

Go on training with `python -m maskcl_jax.main --workdir=RUN`.
"""

from absl import flags

from maskcl_jax import cli
from maskcl_jax.interchange.catalog import LAYOUTS
from maskcl_jax.interchange.importing import import_run

CONFIG = cli.define_config()
METHOD = flags.DEFINE_enum("method", None, list(LAYOUTS), "Whose names the weights have.")
OUT = flags.DEFINE_string("out", None, "The new run's folder.")


def main(argv: list[str]) -> None:
    """Writes the run and prints what was done with the weights."""
    for line in import_run(argv[1], cli.given(METHOD), cli.given(OUT), CONFIG.value):
        print(line)
    print(f"go on: python -m maskcl_jax.main --workdir={OUT.value}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["method", "out"])
    cli.run(main, positional="FILE|DIR")
