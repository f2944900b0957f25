"""Recipes that several methods share, so that they are compared under equal budgets.

Each function returns preset -> nested dict of what differs from `config.DEFAULTS`.
"""

# A small encoder for 28 and 32 pixels (our choice: DeiT-Ti's ratios at what two CPU cores can carry).
SMALL_ENCODER = {"width": 96, "depth": 4, "heads": 3, "mlp_ratio": 4.0, "patch_size": 4}
SMALL_DECODER = {"width": 64, "depth": 1, "heads": 4}
# A decoder for CIFAR's 32 pixels beside ViT-Ti/4 (our choice).
CIFAR_DECODER = {"width": 128, "depth": 2, "heads": 4}

# A small ResNet for 28 and 32 pixels (our choice): as much work as the small ViT.
SMALL_RESNET = {"depth": 10, "width": 16, "stem": "small"}

# Colours as MoCo v2 and its descendants change them; each config names its source.
COLOURS = {
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "jitter_p": 0.8,
    "grey_p": 0.2,
    "blur_p": 0.5,
    "blur_sigma": (0.1, 2.0),
    "solarize_p": 0.0,
}
NO_COLOURS = {**COLOURS, "jitter_p": 0.0, "grey_p": 0.0, "blur_p": 0.0}


def vision_transformer(
    *, epochs: int, small: dict, cifar: dict, published: dict, feature: str = "mean"
) -> dict[str, dict]:
    """MAE's recipe, which the ViT methods follow, and what the small data sets take instead.

    `imagenet` is the published one (facebookresearch/mae PRETRAIN.md, followed by ccMIM's README and CMAE's configs):
    batch 4096, 40 epochs of warm-up, base learning rate 1.5e-4, AdamW (0.9, 0.95), weight decay 0.05; `published`
    holds what a method does otherwise. All others are our choice: more updates of a smaller batch at a higher base
    rate, for data that a published recipe would pass in a few hundred steps.

    epochs: of the published recipe. small, cifar: fields of `config.method` for the small data sets. feature: what
    evaluation reads off the encoder.
    """
    tiny = {
        "model": dict(SMALL_ENCODER),
        "method": small,
        "optimizer": {"base_lr": 2e-3, "warmup_epochs": 1.0},
    }
    return {
        "embedded": tiny | {"epochs": 5, "batch_size": 128, "eval": {"every_epochs": 2.5, "feature": feature}},
        "synthetic": tiny | {"epochs": 2, "batch_size": 64, "eval": {"feature": feature}},
        "fashion_mnist": tiny
        | {
            "epochs": 2,
            "batch_size": 256,
            "eval": {"every_epochs": 1.0, "train_examples": 10_000, "feature": feature, "linear": True},
        },
        "cifar10": sixty_four_patches(cifar, feature),
        "cifar100": sixty_four_patches(cifar, feature),
        "tiny_imagenet": sixty_four_patches(cifar, feature, patch=8),
        "folder": {
            "variant": "S/16",
            "epochs": 300,
            "batch_size": 256,
            "dtype": "bfloat16",
            "optimizer": {"warmup_epochs": 20.0},
            "eval": {"feature": feature},
        },
        "imagenet": {
            "variant": "B/16",
            "epochs": epochs,
            "batch_size": 4096,
            "dtype": "bfloat16",
            "eval": {"every_epochs": 20.0, "train_examples": 100_000, "feature": feature},
            "checkpoint": {"every_epochs": 1.0, "keep_every_epochs": 50.0},
            **published,
        },
    }


def masked_autoencoder(*, epochs: int) -> dict[str, dict]:
    """`vision_transformer` for MAE and ccMIM, whose one extra network is the decoder."""
    return vision_transformer(
        epochs=epochs, small={"decoder": SMALL_DECODER}, cifar={"decoder": CIFAR_DECODER}, published={}
    )


def sixty_four_patches(method: dict, feature: str, *, patch: int = 4) -> dict:
    """ViT-Ti on CIFAR's 32 or Tiny-ImageNet's 64 pixels, 400 epochs: a GPU's afternoon, not a laptop's (our choice)."""
    return {
        "variant": f"Ti/{patch}",
        "epochs": 400,
        "batch_size": 512,
        "dtype": "bfloat16",
        "method": method,
        "optimizer": {"base_lr": 5e-4, "warmup_epochs": 20.0},
        "eval": {"feature": feature},
    }


# MoCo's optimiser: SGD without warm-up, decay on everything, the rate falling once an epoch (facebookresearch/moco).
MOCO_OPTIMIZER = {
    "name": "sgd",
    "base_lr": 0.03,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "decay_on": "all",
    "warmup_epochs": 0.0,
    "per_epoch": True,
}

# Fields of `config.method` of MoCo's demo for CIFAR-10 on one device (facebookresearch/moco, branch colab-notebook): 8
# groups of BatchNorm in a batch of 512, no blur.
MOCO_DEMO = {
    "temperature": 0.1,
    "momentum": 0.99,
    "queue_size": 4096,
    "projector": {"layers": 1},
    "bn_group_size": 64,
    "query_augment": {"blur_p": 0.0},
    "key_augment": {"blur_p": 0.0},
}
# Our choice for runs of minutes: a queue of 8 batches, whose keys are not yet old.
MOCO_SMALL = {**MOCO_DEMO, "queue_size": 512, "projector": {"layers": 2, "out": 64}, "bn_group_size": 32}


def convnet(*, epochs: int, small: dict, cifar: dict, optimizer: dict, published: dict) -> dict[str, dict]:
    """A contrastive ConvNet's recipe, `imagenet` (R50, batch 256), and what the small data sets take instead.

    epochs, optimizer, published: of the published recipe, which `imagenet100`, `folder` and `coco` (800 epochs, as
    DenseCL trained MoCo v2 there, at MoCo's own rate) follow. small, cifar: fields
    of `config.method` for the small data sets. `cifar10` and `cifar100` are MoCo's demo on one device (branch
    colab-notebook): ResNet-18, batch 512, rate 0.06, decay 5e-4. All other small presets are our choice. They
    warm up for some 50 steps: at the full rate, and against a queue of noise, MaskCo's projector was seen to become a
    constant, and to stay one.
    """
    optimizer_of_small = {**MOCO_OPTIMIZER, "base_lr": 0.24, "weight_decay": 5e-4, "per_epoch": False}
    tiny = {
        "model": dict(SMALL_RESNET),
        "method": small,
        "batch_size": 64,
        "optimizer": optimizer_of_small,
    }
    demo = {
        "variant": "R18/small",
        "epochs": 200,
        "batch_size": 512,
        "method": cifar,
        "optimizer": {**MOCO_OPTIMIZER, "base_lr": 0.03, "weight_decay": 5e-4},  # 0.06 at 512
        "eval": {"k": 200, "temperature": 0.1},
    }
    large = {
        "variant": "R50",
        "batch_size": 256,
        "dtype": "bfloat16",
        "optimizer": optimizer,
        "augment": {"interpolation": "bilinear"},
        "checkpoint": {"every_epochs": 1.0, "keep_every_epochs": 50.0},
        **published,
    }
    photographs = tiny | {
        "epochs": 5,
        "optimizer": optimizer_of_small | {"warmup_epochs": 0.5},
        "eval": {"every_epochs": 2.5},
    }
    minutes = tiny | {
        "epochs": 1,
        "optimizer": optimizer_of_small | {"warmup_epochs": 0.05},
        "eval": {"every_epochs": 1.0, "train_examples": 10_000, "linear": True},
    }
    return {
        "embedded": photographs,
        "embedded_scenes": photographs,
        "synthetic": tiny | {"epochs": 2},
        "fashion_mnist": minutes,
        "scenes": minutes,
        "cifar10": demo,
        "cifar100": demo,
        "folder": large | {"epochs": epochs},
        "imagenet100": large | {"epochs": epochs, "eval": {"every_epochs": 20.0}},
        "imagenet": large | {"epochs": epochs, "eval": {"every_epochs": 20.0, "train_examples": 100_000}},
        "coco": large | {"epochs": 800, "eval": {"every_epochs": 20.0}},
    }


# Fields of `config.method` of the masked ConvNets. [C] joycenerd/Saliency-Guided-Masking-for-ConvNets at c6e62b8 with
# its README's command; what it does not name is MoCo v2's. 224 pixels; the rest is scaled from there.
MASKED_CONVNET = {
    "framework": "moco_v2",
    "strategy": "high_pass",  # [C] --mask-strategy: the best of its three
    "masked": "query",  # [C]
    "provider": "boundary",  # our choice; [C] takes a ResNet-50 trained with labels
    "maps_path": "",
    "ema_warmup": 0.1,  # our choice
    "spread": 0.6,  # the authors' poster, [C]
    "grid": 7,  # [C]
    "ratio": (0.05, 0.25),  # [C]
    "num_hard": 1,  # [C] --num-nonsem 1
    "hard_weight": 2.0,  # [C] --alpha 2.0
    "negative_ratio": (0.4, 0.7),  # [C]
    "negative_cap": (0.56, 0.55),  # [C]
    "focal_p": 0.2,  # [C]
    "focal_window": 200,  # [C]
    "negative_window": 130,  # [C]
    "channelwise_p": 0.7,  # [C]
    "noise_std": 0.18,  # [C]
    "negative_noise_std": 0.14,  # [C]
    "tile_noise": False,  # [C] True
    "high_pass": {"sigma": 5.0, "taps": 11},  # [C]
    "blur": {"sigma": 10.0, "taps": 31},  # [C]
    "hard_grad": False,  # of framework simclr, our choice
    "hard_both": False,  # of framework simclr, our choice
    "augment": COLOURS,  # of framework simclr, our choice
    "temperature": 0.2,
    "momentum": 0.999,
    "momentum_schedule": "fixed",
    "queue_size": 65536,
    "projector": {"layers": 2, "out": 128},
    "bn_group_size": 32,  # [C] a GPU's share of 128 images
    "shuffle_bn": True,
    "symmetric": False,
    "query_augment": COLOURS,
    "key_augment": COLOURS,
}


def masked_convnet() -> dict[str, dict]:
    """`convnet` for the masked ConvNets: `imagenet100` is the paper's run, batch 128; grids that fit the small images.

    Our choice for 28 and 32 pixels: 4 pixels a cell. The high-pass filter keeps about its size in pixels, sigma 2.5:
    scaled down with the image it was seen to leave nothing to learn from, while so, filtered images vary as much as at
    224 (standard deviation 0.3 to 0.5), and the noise holds. In runs of minutes a hard negative weighs as any other: at
    2, and a temperature of 0.1, it was seen to outweigh the rest, and the network to collapse.
    """
    fields = {"augment": {"blur_p": 0.0}, "high_pass": {"sigma": 20.0, "taps": 81}}
    small = {**MOCO_SMALL, **fields, "hard_weight": 1.0}
    presets = convnet(
        epochs=200,
        small=small | {"grid": 8},
        cifar={**MOCO_DEMO, **fields, "grid": 8},
        optimizer=MOCO_OPTIMIZER,
        published={},
    )
    presets["fashion_mnist"]["method"] = small | {"grid": 7}
    presets["imagenet100"] |= {"batch_size": 128}
    return presets
