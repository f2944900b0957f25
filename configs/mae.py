"""MAE (CVPR 2022), the baseline of the masked methods: an encoder of the visible quarter, a decoder of the rest.

    python -m maskcl_jax.main --config=configs/mae.py
        Embedded photographs, a small ViT, two CPU cores, minutes.
    python -m maskcl_jax.main --config=configs/mae.py:fashion_mnist,data_dir=DIR        (also cifar10, cifar100)
        A tfds data set prepared in DIR.
    python -m maskcl_jax.main --config=configs/mae.py:tiny_imagenet,path=DIR/train
        Tiny-ImageNet as it is unpacked: one folder a class; ViT-Ti/8, one GPU.
    python -m maskcl_jax.main --config=configs/mae.py:folder,path=DIR
        Any folder of images, labelled by sub-folders or not; ViT-S/16, one GPU.
    python -m maskcl_jax.main --config=configs/mae.py:imagenet,data_dir=DIR
        The released recipe: ViT-B/16, 1600 epochs, batch 4096 (64 V100 in the original). Not run by us.
    ... :imagenet,variant=L/16,epochs=800      another encoder, another length
    ... --config.total_steps=4                 a smoke run of any of these

Measured by us: see "Results" in the README. Published by the authors for ViT-B/16, 1600 epochs: 83.6 % top-1 after
fine-tuning, 68.0 % (paper) and 67.8 % (their PyTorch code) by linear probe.
"""

from maskcl_jax import config as config_lib
from maskcl_jax import recipes

# Source of every number: facebookresearch/mae at efb2a80 (PRETRAIN.md, main_pretrain.py, models_mae.py).
METHOD = {
    "name": "mae",
    "mask_ratio": 0.75,
    "norm_pix": True,  # the code's default is off; every released and best model has it on
    "decoder": {"width": 512, "depth": 8, "heads": 16, "mlp_ratio": 4.0},
}


def get_config(arg: str | None = None):
    """The config for `preset,key=value,...`; see the top of this file."""
    return config_lib.build(arg, method=METHOD, recipes=recipes.masked_autoencoder(epochs=1600))
