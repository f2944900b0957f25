"""MoCo v3 (ICCV 2021) on a ViT, the baseline of the masked methods: two views, keys from an EMA of the encoder.

    python -m maskcl_jax.main --config=configs/mocov3.py
        Embedded photographs, a small ViT, two CPU cores, minutes.
    python -m maskcl_jax.main --config=configs/mocov3.py:fashion_mnist,data_dir=DIR        (also cifar10, cifar100)
        A tfds data set prepared in DIR.
    python -m maskcl_jax.main --config=configs/mocov3.py:tiny_imagenet,path=DIR/train
        Tiny-ImageNet as it is unpacked: one folder a class; ViT-Ti/8, one GPU.
    python -m maskcl_jax.main --config=configs/mocov3.py:folder,path=DIR
        Any folder of images, labelled by sub-folders or not; ViT-S/16, one GPU.
    python -m maskcl_jax.main --config=configs/mocov3.py:imagenet,data_dir=DIR
        The released recipe: ViT-B/16, 300 epochs, batch 4096 (64 V100 in the original). Not run by us.
    ... :imagenet,variant=S/16 --config.model.heads=12      their ViT-S has 12 heads, the usual one 6
    ... --config.total_steps=4                              a smoke run of any of these

Measured by us: see "Results" in the README. Published by the authors for ViT-B/16, 300 epochs: 76.7 % top-1 by linear
probe, 83.2 % after fine-tuning (their repository's README).
"""

from maskcl_jax import config as config_lib
from maskcl_jax import recipes

# Source of every number: facebookresearch/moco-v3 at c349e6e (CONFIG.md, main_moco.py, vits.py, moco/builder.py).
METHOD = {
    "name": "mocov3",
    "temperature": 0.2,
    "momentum": 0.99,
    "momentum_schedule": "cosine",  # to 1, --moco-m-cos; fixed is our choice
    "projector": {"hidden": 4096, "out": 256},  # three layers
    "predictor": {"hidden": 4096},  # two layers
    "freeze_patch_embed": True,  # --stop-grad-conv1
    "query_augment": {**recipes.COLOURS, "saturation": 0.2, "blur_p": 1.0},
    "key_augment": {**recipes.COLOURS, "saturation": 0.2, "blur_p": 0.1, "solarize_p": 0.2},
    "bn_group_size": 0,
}

# Our choice for 28 and 32 pixels: no blur (a sigma of 2 leaves little of them), smaller heads.
SMALL = {
    "projector": {"hidden": 512, "out": 128},
    "predictor": {"hidden": 512},
    "query_augment": {"blur_p": 0.0},
    "key_augment": {"blur_p": 0.0},
}
PUBLISHED = {
    "optimizer": {"b2": 0.999, "weight_decay": 0.1, "decay_on": "all"},
    "augment": {"crop_scale": (0.08, 1.0), "interpolation": "bilinear"},
    "remat": "cheap",  # of two whole views: a fourth of the memory less, 1 % of the work twice; the same numbers
}


def get_config(arg: str | None = None):
    """The config for `preset,key=value,...`; see the top of this file."""
    presets = recipes.vision_transformer(epochs=300, small=SMALL, cifar=SMALL, published=PUBLISHED, feature="cls")
    presets["folder"] |= {"augment": PUBLISHED["augment"]}
    return config_lib.build(arg, method=METHOD, recipes=presets)
