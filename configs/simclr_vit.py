"""SimCLR on a ViT, as MoCo v3's paper compares it: the recipe of MoCo v3, without target and predictor.

    python -m maskcl_jax.main --config=configs/simclr_vit.py
        Embedded photographs, a small ViT, two CPU cores, minutes.
    python -m maskcl_jax.main --config=configs/simclr_vit.py:fashion_mnist,data_dir=DIR        (also cifar10, cifar100)
        A tfds data set prepared in DIR.
    python -m maskcl_jax.main --config=configs/simclr_vit.py:tiny_imagenet,path=DIR/train
        Tiny-ImageNet as it is unpacked: one folder a class; ViT-Ti/8, one GPU.
    python -m maskcl_jax.main --config=configs/simclr_vit.py:folder,path=DIR
        Any folder of images, labelled by sub-folders or not; ViT-S/16, one GPU.
    python -m maskcl_jax.main --config=configs/simclr_vit.py:imagenet,data_dir=DIR
        ViT-B/16, 300 epochs, batch 4096. Not run by us.

Measured by us: see "Results" in the README. Published for 300 epochs by linear probe (MoCo v3's paper, its own
implementation, whose details it does not give): ViT-S 69.0 %, ViT-B 73.9 % top-1. Every number below is our choice.
"""

from maskcl_jax import config as config_lib
from maskcl_jax import recipes

METHOD = {
    "name": "simclr",
    "temperature": 0.2,
    "projector": {"layers": 3, "out": 256},
    "augment": recipes.COLOURS,
    "bn_group_size": 0,
}
SMALL = {"projector": {"out": 128}, "augment": {"blur_p": 0.0}}
PUBLISHED = {
    "optimizer": {"weight_decay": 0.1},
    "augment": {"crop_scale": (0.08, 1.0), "interpolation": "bilinear"},
    "remat": "cheap",  # of two whole views: a fourth of the memory less, 1 % of the work twice; the same numbers
}


def get_config(arg: str | None = None):
    """The config for `preset,key=value,...`; see the top of this file."""
    presets = recipes.vision_transformer(epochs=300, small=SMALL, cifar=SMALL, published=PUBLISHED, feature="cls")
    presets["folder"] |= {"augment": PUBLISHED["augment"]}
    return config_lib.build(arg, method=METHOD, recipes=presets)
