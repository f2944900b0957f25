"""MoCo v3 (ICCV 2021) on a ViT, the baseline of the masked methods: two views, keys from an EMA of the encoder.

    python -m maskcl_jax.main --config=configs/mocov3.py
        Embedded photographs, a small ViT, two CPU cores, minutes.
    python -m maskcl_jax.main --config=configs/mocov3.py:fashion_mnist,data_dir=DIR        (also cifar10, cifar100)
        A tfds data set prepared in DIR.
    python -m maskcl_jax.main --config=configs/mocov3.py:tiny_imagenet,path=DIR/train
        Tiny-ImageNet as it is unpacked: one folder per class; ViT-Ti/8, one GPU.
    python -m maskcl_jax.main --config=configs/mocov3.py:folder,path=DIR
        Any folder of images, labeled by sub-folders or not; ViT-S/16, one GPU.
    python -m maskcl_jax.main --config=configs/mocov3.py:imagenet,data_dir=DIR
        The released recipe: ViT-B/16, 300 epochs, batch 4096 (64 V100 in the original). Not run by us.
    ... :imagenet,variant=S/16 --config.model.heads=12      their ViT-S has 12 heads, the usual one 6
    ... --config.total_steps=4                              a smoke run of any of these

Measured by us: see docs/results.md. Published by the authors for ViT-B/16, 300 epochs: 76.7 % top-1 by linear
probe, 83.2 % after fine-tuning (their repository's README).
"""

from maskcl_jax.config import COLOR, SMALL_VIT, Config, build

# Source of every number here and in the preset `imagenet`: facebookresearch/moco-v3 at c349e6e (CONFIG.md,
# main_moco.py, vits.py, moco/builder.py).
METHOD = {
    "name": "mocov3",
    "temperature": 0.2,
    "momentum": 0.99,  # of the EMA encoder
    "momentum_schedule": "cosine",  # rises to 1, --moco-m-cos; fixed is our choice
    "projector": {"hidden": 4096, "out": 256},  # three layers
    "predictor": {"hidden": 4096},  # two layers
    "freeze_patch_embed": True,  # --stop-grad-conv1: the patch projection stays random
    # Color augmentation of the two views.
    "query_augment": {**COLOR, "saturation": 0.2, "blur_p": 1.0},
    "key_augment": {**COLOR, "saturation": 0.2, "blur_p": 0.1, "solarize_p": 0.2},
    "bn_group_size": 0,  # 0: statistics of the whole batch (SyncBN), each view on its own
}

# Our choice for 28 and 32 pixels: no blur (a sigma of 2 leaves little of them), smaller heads, more updates of smaller
# batches at a higher learning rate.
SMALL = {
    **SMALL_VIT,
    "method.projector.hidden": 512,
    "method.projector.out": 128,
    "method.predictor.hidden": 512,
    "method.query_augment.blur_p": 0.0,
    "method.key_augment.blur_p": 0.0,
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
    "method.projector.hidden": 512,
    "method.projector.out": 128,
    "method.predictor.hidden": 512,
    "method.query_augment.blur_p": 0.0,
    "method.key_augment.blur_p": 0.0,
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
        # How often to evaluate and save is our choice.
        "variant": "B/16",
        "epochs": 300,
        "batch_size": 4096,
        "dtype": "bfloat16",
        "augment.crop_scale": (0.08, 1.0),
        "augment.interpolation": "bilinear",
        "optimizer.base_lr": 1.5e-4,
        "optimizer.warmup_epochs": 40.0,
        "optimizer.b2": 0.999,
        "optimizer.weight_decay": 0.1,
        "optimizer.decay_on": "all",
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
