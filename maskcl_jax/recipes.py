"""Recipes that several methods share, so that they are compared under equal budgets.

Each function returns preset -> nested dict of what differs from `config.DEFAULTS`.
"""

# A small encoder for 28 and 32 pixels (our choice: DeiT-Ti's ratios at what two CPU cores can carry).
SMALL_ENCODER = {"width": 96, "depth": 4, "heads": 3, "mlp_ratio": 4.0, "patch_size": 4}
SMALL_DECODER = {"width": 64, "depth": 1, "heads": 4}


def masked_autoencoder(*, epochs: int) -> dict[str, dict]:
    """MAE's recipe and what the small data sets take instead.

    `imagenet` is the published one (facebookresearch/mae PRETRAIN.md, followed by ccMIM's README): batch 4096,
    40 epochs of warm-up, base learning rate 1.5e-4, AdamW (0.9, 0.95), weight decay 0.05. All others are our
    choice: more updates of a smaller batch at a higher base rate, for data that a published recipe would pass
    in a few hundred steps.
    """
    small = {
        "model": dict(SMALL_ENCODER),
        "method": {"decoder": SMALL_DECODER},
        "optimizer": {"base_lr": 2e-3, "warmup_epochs": 1.0},
    }
    return {
        "embedded": small | {"epochs": 5, "batch_size": 128, "eval": {"every_epochs": 2.5}},
        "synthetic": small | {"epochs": 2, "batch_size": 64},
        "fashion_mnist": small
        | {"epochs": 2, "batch_size": 256, "eval": {"every_epochs": 1.0, "train_examples": 10_000}},
        "cifar10": cifar(),
        "cifar100": cifar(),
        "folder": {
            "variant": "S/16",
            "epochs": 300,
            "batch_size": 256,
            "dtype": "bfloat16",
            "optimizer": {"warmup_epochs": 20.0},
        },
        "imagenet": {
            "variant": "B/16",
            "epochs": epochs,
            "batch_size": 4096,
            "dtype": "bfloat16",
            "eval": {"every_epochs": 20.0, "train_examples": 100_000},
            "checkpoint": {"every_epochs": 1.0, "keep_every_epochs": 50.0},
        },
    }


def cifar() -> dict:
    """ViT-Ti/4 on 32 pixels, 400 epochs: a GPU's afternoon, not a laptop's (our choice)."""
    return {
        "variant": "Ti/4",
        "epochs": 400,
        "batch_size": 512,
        "dtype": "bfloat16",
        "method": {"decoder": {"width": 128, "depth": 2, "heads": 4}},
        "optimizer": {"base_lr": 5e-4, "warmup_epochs": 20.0},
    }
