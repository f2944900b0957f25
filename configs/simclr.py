"""SimCLR (ICML 2020), a baseline of the ConvNet methods: each view finds the other among all others of the batch.

    python -m maskcl_jax.main --config=configs/simclr.py
        Embedded photographs, a small ResNet, two CPU cores, minutes.
    python -m maskcl_jax.main --config=configs/simclr.py:fashion_mnist,data_dir=DIR        (also cifar10, cifar100)
        A tfds data set prepared in DIR.
    python -m maskcl_jax.main --config=configs/simclr.py:folder,path=DIR
        Any folder of images, labeled by sub-folders or not; ResNet-50, one GPU.
    python -m maskcl_jax.main --config=configs/simclr.py:imagenet,data_dir=DIR
        The released recipe: ResNet-50, 100 epochs, batch 4096, LARS (32 TPU v3 cores in the original). Not run by us.
    python -m maskcl_jax.main --config=configs/simclr.py:imagenet100,path=DIR/train,test_path=DIR/val
        The same on a folder of 100 of its classes, batch 256.
    ... :imagenet,variant=R50x2,epochs=800     another encoder, another length
    ... --config.total_steps=4                 a smoke run of any of these

On a ViT: `configs/simclr_vit.py`. Measured by us: see docs/results.md.
"""

from maskcl_jax.config import COLOR, SMALL_RESNET, Config, build

# Source of every number here and in LARGE: google-research/simclr at 1e7f15d (tf2/run.py, model.py, data_util.py). The
# encoder is a ResNet there; a ViT (`config.model`), whose cls token is contrasted, is our choice after MoCo v3's paper.
METHOD = {
    "name": "simclr",
    "temperature": 0.1,
    # Layers as wide as the features but for the last, BatchNorm after each, ReLU between them; the paper has two. (The
    # last BatchNorm has a bias here, which the code's does not have: our choice.)
    "projector": {"layers": 3, "out": 128},
    # Color augmentation of both views.
    "augment": {**COLOR, "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2},
    "bn_group_size": 0,  # 0: statistics of the whole batch, both views together
}

# Our choice for runs of minutes at 28 and 32 pixels: the optimizer of the other ConvNet methods, no blur.
SMALL = {
    **SMALL_RESNET,
    "batch_size": 64,
    "method.temperature": 0.2,
    "method.projector.layers": 2,
    "method.projector.out": 64,
    "method.augment.brightness": 0.4,
    "method.augment.contrast": 0.4,
    "method.augment.saturation": 0.4,
    "method.augment.hue": 0.1,
    "method.augment.blur_p": 0.0,
    "optimizer.name": "sgd",
    "optimizer.base_lr": 0.24,
    "optimizer.weight_decay": 5e-4,
    "optimizer.decay_on": "all",
    "optimizer.warmup_epochs": 0.0,
}
# They warm up for some 50 steps, as the other ConvNet methods do.
PHOTOGRAPHS = {**SMALL, "epochs": 5, "optimizer.warmup_epochs": 0.5, "eval.every_epochs": 2.5}
MINUTES = {
    **SMALL,
    "epochs": 1,
    "optimizer.warmup_epochs": 0.05,
    "eval.every_epochs": 1.0,
    "eval.train_examples": 10_000,
    "eval.linear": True,
}
# Our choice: the schedule of MoCo's demo for CIFAR-10 on one device (facebookresearch/moco, branch colab-notebook).
CIFAR = {
    "variant": "R18/small",
    "epochs": 200,
    "batch_size": 512,
    "method.temperature": 0.2,
    "method.projector.layers": 2,
    "method.augment.blur_p": 0.0,
    "optimizer.name": "sgd",
    "optimizer.base_lr": 0.03,  # 0.06 at a batch of 512
    "optimizer.weight_decay": 5e-4,
    "optimizer.decay_on": "all",
    "optimizer.warmup_epochs": 0.0,
    "optimizer.per_epoch": True,
    "eval.k": 200,
    "eval.temperature": 0.1,
}
# The released recipe at a batch of 256; `imagenet` has its 4096. How often to evaluate and save is our choice.
LARGE = {
    "variant": "R50",
    "epochs": 100,
    "batch_size": 256,
    "dtype": "bfloat16",
    "augment.crop_scale": (0.08, 1.0),
    "optimizer.name": "lars",
    "optimizer.base_lr": 0.3,
    "optimizer.weight_decay": 1e-6,
    "optimizer.warmup_epochs": 10.0,
    "checkpoint.every_epochs": 1.0,
    "checkpoint.keep_every_epochs": 50.0,
}
PRESETS = {
    "embedded": PHOTOGRAPHS,
    "embedded_scenes": PHOTOGRAPHS,
    "synthetic": {**SMALL, "epochs": 2},
    "fashion_mnist": MINUTES,
    "scenes": MINUTES,
    "cifar10": CIFAR,
    "cifar100": CIFAR,
    "folder": LARGE,
    "imagenet100": {**LARGE, "eval.every_epochs": 20.0},
    "imagenet": {**LARGE, "batch_size": 4096, "eval.every_epochs": 20.0, "eval.train_examples": 100_000},
    "coco": {**LARGE, "epochs": 800, "eval.every_epochs": 20.0},
}


def get_config(argument: str | None = None) -> Config:
    """The config for `preset,key=value,...`; see the top of this file."""
    return build(argument, method=METHOD, presets=PRESETS)
