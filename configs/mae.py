"""MAE (CVPR 2022), the baseline of the masked methods: an encoder of the visible quarter, a decoder of the rest.

    python -m maskcl_jax.main --config=configs/mae.py
        Embedded photographs, a small ViT, two CPU cores, minutes.
    python -m maskcl_jax.main --config=configs/mae.py:fashion_mnist,data_dir=DIR        (also cifar10, cifar100)
        A tfds data set prepared in DIR.
    python -m maskcl_jax.main --config=configs/mae.py:tiny_imagenet,path=DIR/train
        Tiny-ImageNet as it is unpacked: one folder per class; ViT-Ti/8, one GPU.
    python -m maskcl_jax.main --config=configs/mae.py:folder,path=DIR
        Any folder of images, labeled by sub-folders or not; ViT-S/16, one GPU.
    python -m maskcl_jax.main --config=configs/mae.py:imagenet,data_dir=DIR
        The released recipe: ViT-B/16, 1600 epochs, batch 4096 (64 V100 in the original). Not run by us.
    ... :imagenet,variant=L/16,epochs=800      another encoder, another length
    ... --config.total_steps=4                 a smoke run of any of these

Measured by us: see docs/results.md. Published by the authors for ViT-B/16, 1600 epochs: 83.6 % top-1 after
fine-tuning, 68.0 % (paper) and 67.8 % (their PyTorch code) by linear probe.
"""

from maskcl_jax.config import SMALL_VIT, Config, build

# Source of every number here and in the preset `imagenet`: facebookresearch/mae at efb2a80 (PRETRAIN.md,
# main_pretrain.py, models_mae.py).
METHOD = {
    "name": "mae",
    "mask_ratio": 0.75,  # fraction of the patches that the encoder does not see
    "norm_pix": True,  # each target patch has mean 0 and variance 1. The code's default is off, its best models have it
    "decoder": {"width": 512, "depth": 8, "heads": 16, "mlp_ratio": 4.0},
}

# Our choice for 28 and 32 pixels: more updates of smaller batches at a higher learning rate.
SMALL = {
    **SMALL_VIT,
    "method.decoder.width": 64,
    "method.decoder.depth": 1,
    "method.decoder.heads": 4,
    "optimizer.base_lr": 2e-3,
    "optimizer.warmup_epochs": 1.0,
}
# Our choice for CIFAR and Tiny-ImageNet, both of 64 patches: a GPU's afternoon.
CIFAR = {
    "variant": "Ti/4",
    "epochs": 400,
    "batch_size": 512,
    "dtype": "bfloat16",
    "method.decoder.width": 128,
    "method.decoder.depth": 2,
    "method.decoder.heads": 4,
    "optimizer.base_lr": 5e-4,
    "optimizer.warmup_epochs": 20.0,
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
        "optimizer.warmup_epochs": 20.0,
    },
    "imagenet": {
        # The released recipe; how often to evaluate and save is our choice.
        "variant": "B/16",
        "epochs": 1600,
        "batch_size": 4096,
        "dtype": "bfloat16",
        "optimizer.base_lr": 1.5e-4,
        "optimizer.warmup_epochs": 40.0,
        "optimizer.b2": 0.95,
        "optimizer.weight_decay": 0.05,
        "eval.every_epochs": 20.0,
        "eval.train_examples": 100_000,
        "checkpoint.every_epochs": 1.0,
        "checkpoint.keep_every_epochs": 50.0,
    },
}


def get_config(argument: str | None = None) -> Config:
    """The config for `preset,key=value,...`; see the top of this file."""
    return build(argument, method=METHOD, presets=PRESETS)
