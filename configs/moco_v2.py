"""MoCo v2 (2020), the baseline of the ConvNet methods: find the other view's key among those of earlier batches.

    python -m maskcl_jax.main --config=configs/moco_v2.py
        Embedded photographs, a small ResNet, two CPU cores, minutes.
    python -m maskcl_jax.main --config=configs/moco_v2.py:fashion_mnist,data_dir=DIR
        A tfds data set prepared in DIR.
    python -m maskcl_jax.main --config=configs/moco_v2.py:scenes,data_dir=DIR               (also embedded_scenes)
        The same images, four to a scene, evaluated on each of the four: where two crops show different things.
    python -m maskcl_jax.main --config=configs/moco_v2.py:cifar10,data_dir=DIR              (also cifar100)
        The authors' demo on one device: ResNet-18, 200 epochs. Not run by us.
    python -m maskcl_jax.main --config=configs/moco_v2.py:folder,path=DIR
        Any folder of images, labeled by sub-folders or not; ResNet-50, one GPU.
    python -m maskcl_jax.main --config=configs/moco_v2.py:imagenet,data_dir=DIR
        The released recipe: ResNet-50, 200 epochs, batch 256 (8 V100, 53 hours in the original). Not run by us.
    python -m maskcl_jax.main --config=configs/moco_v2.py:coco,data_dir=DIR
        COCO's training images, 800 epochs. Its images have no label: no online evaluation. Not run by us.
    python -m maskcl_jax.main --config=configs/moco_v2.py:imagenet100,path=DIR/train,test_path=DIR/val
        The same on a folder of 100 of its classes.
    ... :imagenet,variant=R18,epochs=800       another encoder, another length
    ... --config.total_steps=4                 a smoke run of any of these

Measured by us: see docs/results.md. Published by the authors for ResNet-50 by linear probe: 67.5 % top-1 after
200 epochs, 71.1 % after 800 (their repository's README); the demo's k-NN on CIFAR-10 after 200 epochs: 82.6 %.
"""

from maskcl_jax.config import COLOR, SMALL_RESNET, Config, build

# Source of every number here and in LARGE: facebookresearch/moco at 78b69ca (main_moco.py with --mlp --moco-t 0.2
# --aug-plus --cos).
METHOD = {
    "name": "moco_v2",
    "temperature": 0.2,
    "momentum": 0.999,  # of the EMA encoder
    "momentum_schedule": "fixed",  # cosine (rises to 1) is our choice
    "queue_size": 65536,  # keys
    "projector": {"layers": 2, "out": 128},  # no BatchNorm; the hidden layer is as wide as the features
    # Images that share BatchNorm statistics: a GPU's part of the batch. 0: the whole batch, by which the network can
    # tell its own batch from the queue.
    "bn_group_size": 32,
    # Keys are encoded in a random order, so that a query and its key do not share their statistics; here on any number
    # of devices, one too.
    "shuffle_bn": True,
    "symmetric": False,  # each view is query and key in turn: an option of the demo for CIFAR-10, off there
    "query_augment": COLOR,  # color augmentation of the two views, alike in the code
    "key_augment": COLOR,
}

# Our choice for runs of minutes at 28 and 32 pixels.
SMALL = {
    **SMALL_RESNET,
    "batch_size": 64,
    "method.temperature": 0.1,
    "method.momentum": 0.99,
    "method.queue_size": 512,  # 8 batches: no key is old
    "method.projector.out": 64,
    "method.query_augment.blur_p": 0.0,
    "method.key_augment.blur_p": 0.0,
    "optimizer.name": "sgd",
    "optimizer.base_lr": 0.24,
    "optimizer.weight_decay": 5e-4,
    "optimizer.decay_on": "all",
    "optimizer.warmup_epochs": 0.0,
}
# A warm-up of some 50 steps: at the full learning rate, against a queue of noise, MaskCo's projector became a constant
# and stayed one.
PHOTOGRAPHS = {**SMALL, "epochs": 5, "optimizer.warmup_epochs": 0.5, "eval.every_epochs": 2.5}
MINUTES = {
    **SMALL,
    "epochs": 1,
    "optimizer.warmup_epochs": 0.05,
    "eval.every_epochs": 1.0,
    "eval.train_examples": 10_000,
    "eval.linear": True,
}
# MoCo's demo for CIFAR-10 on one device (facebookresearch/moco, branch colab-notebook). No blur there.
CIFAR = {
    "variant": "R18/small",
    "epochs": 200,
    "batch_size": 512,
    "method.temperature": 0.1,
    "method.momentum": 0.99,
    "method.queue_size": 4096,
    "method.projector.layers": 1,
    "method.bn_group_size": 64,  # 8 groups
    "method.query_augment.blur_p": 0.0,
    "method.key_augment.blur_p": 0.0,
    "optimizer.name": "sgd",
    "optimizer.base_lr": 0.03,  # 0.06 at a batch of 512
    "optimizer.weight_decay": 5e-4,
    "optimizer.decay_on": "all",
    "optimizer.warmup_epochs": 0.0,
    "optimizer.per_epoch": True,
    "eval.k": 200,
    "eval.temperature": 0.1,
}
# The released recipe: `imagenet`. On COCO 800 epochs, as DenseCL trained MoCo v2 there, at MoCo's own learning rate.
# How often to evaluate and save is our choice.
LARGE = {
    "variant": "R50",
    "epochs": 200,
    "batch_size": 256,
    "dtype": "bfloat16",
    "augment.interpolation": "bilinear",
    "optimizer.name": "sgd",
    "optimizer.base_lr": 0.03,
    "optimizer.weight_decay": 1e-4,
    "optimizer.decay_on": "all",
    "optimizer.warmup_epochs": 0.0,
    "optimizer.per_epoch": True,
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
    "imagenet": {**LARGE, "eval.every_epochs": 20.0, "eval.train_examples": 100_000},
    "coco": {**LARGE, "epochs": 800, "eval.every_epochs": 20.0},
}


def get_config(argument: str | None = None) -> Config:
    """The config for `preset,key=value,...`; see the top of this file."""
    return build(argument, method=METHOD, presets=PRESETS)
