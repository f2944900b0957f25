"""SimCLR on a ViT, as MoCo v3's paper compares it: the recipe of MoCo v3, without target and predictor.

    python -m maskcl_jax.main --config=configs/simclr_vit.py
        Embedded photographs, a small ViT, two CPU cores, minutes.
    python -m maskcl_jax.main --config=configs/simclr_vit.py:fashion_mnist,data_dir=DIR        (also cifar10, cifar100)
        A tfds data set prepared in DIR.
    python -m maskcl_jax.main --config=configs/simclr_vit.py:tiny_imagenet,path=DIR/train
        Tiny-ImageNet as it is unpacked: one folder per class; ViT-Ti/8, one GPU.
    python -m maskcl_jax.main --config=configs/simclr_vit.py:folder,path=DIR
        Any folder of images, labeled by sub-folders or not; ViT-S/16, one GPU.
    python -m maskcl_jax.main --config=configs/simclr_vit.py:imagenet,data_dir=DIR
        ViT-B/16, 300 epochs, batch 4096. Not run by us.

Measured by us: see docs/results.md. Published for 300 epochs by linear probe (MoCo v3's paper, its own
implementation, whose details it does not give): ViT-S 69.0 %, ViT-B 73.9 % top-1. Every number below is our choice.
"""

from maskcl_jax.config import COLOR, SMALL_VIT, Config, build

METHOD = {
    "name": "simclr",
    "temperature": 0.2,
    "projector": {"layers": 3, "out": 256},  # of the cls token, as MoCo v3's paper compares
    "augment": COLOR,  # color augmentation of both views
    "bn_group_size": 0,  # 0: statistics of the whole batch, both views together
}

# Our choice for 28 and 32 pixels: more updates of smaller batches at a higher learning rate.
SMALL = {
    **SMALL_VIT,
    "method.projector.out": 128,
    "method.augment.blur_p": 0.0,
    "optimizer.base_lr": 2e-3,
    "optimizer.warmup_epochs": 1.0,
    "eval.feature": "cls",
}
# Our choice for CIFAR and Tiny-ImageNet, both of 64 patches: a GPU's afternoon.
CIFAR = {
    "variant": "Ti/4",
    "epochs": 400,
    "batch_size": 512,
    "dtype": "bfloat16",
    "method.projector.out": 128,
    "method.augment.blur_p": 0.0,
    "optimizer.base_lr": 5e-4,
    "optimizer.warmup_epochs": 20.0,
    "eval.feature": "cls",
}
PRESETS = {
    "embedded": {**SMALL, "epochs": 5, "batch_size": 128, "eval.every_epochs": 2.5},
    "synthetic": {**SMALL, "epochs": 2, "batch_size": 64},
    "fashion_mnist": {
        **SMALL,
        "epochs": 2,
        "batch_size": 256,
        "eval.every_epochs": 1.0,
        "eval.train_examples": 10_000,
        "eval.linear": True,
    },
    "cifar10": CIFAR,
    "cifar100": CIFAR,
    "tiny_imagenet": {**CIFAR, "variant": "Ti/8"},
    "folder": {  # our choice
        "variant": "S/16",
        "epochs": 300,
        "batch_size": 256,
        "dtype": "bfloat16",
        "augment.crop_scale": (0.08, 1.0),
        "augment.interpolation": "bilinear",
        "optimizer.warmup_epochs": 20.0,
        "eval.feature": "cls",
    },
    "imagenet": {
        # MoCo v3's recipe, but for b2 and the rule of weight decay.
        "variant": "B/16",
        "epochs": 300,
        "batch_size": 4096,
        "dtype": "bfloat16",
        "augment.crop_scale": (0.08, 1.0),
        "augment.interpolation": "bilinear",
        "optimizer.base_lr": 1.5e-4,
        "optimizer.warmup_epochs": 40.0,
        "optimizer.b2": 0.95,
        "optimizer.weight_decay": 0.1,
        "eval.every_epochs": 20.0,
        "eval.train_examples": 100_000,
        "eval.feature": "cls",
        "checkpoint.every_epochs": 1.0,
        "checkpoint.keep_every_epochs": 50.0,
    },
}


def get_config(argument: str | None = None) -> Config:
    """The config for `preset,key=value,...`; see the top of this file."""
    return build(argument, method=METHOD, presets=PRESETS)
