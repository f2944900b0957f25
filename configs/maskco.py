"""MaskCo (ICCV 2021), after its abstract: predict the feature of a masked region and find its key among other regions.

    python -m maskcl_jax.main --config=configs/maskco.py
        Embedded photographs, a small ResNet, two CPU cores, minutes.
    python -m maskcl_jax.main --config=configs/maskco.py:fashion_mnist,data_dir=DIR
        A tfds data set prepared in DIR, one object per image.
    python -m maskcl_jax.main --config=configs/maskco.py:scenes,data_dir=DIR
        The same images, four to a scene, evaluated on each of the four; `:embedded_scenes` is that of the photographs.
        The baseline of either is configs/moco_v2.py with the same words.
    python -m maskcl_jax.main --config=configs/maskco.py:cifar10,data_dir=DIR               (also cifar100)
        ResNet-18, 200 epochs, one GPU. Not run by us.
    python -m maskcl_jax.main --config=configs/maskco.py:folder,path=DIR
        Any folder of images, labeled by sub-folders or not; ResNet-50, one GPU.
    python -m maskcl_jax.main --config=configs/maskco.py:coco,data_dir=DIR
        COCO's training images, ResNet-50, 800 epochs. Its images have no label: no online evaluation. Not run by us.
    python -m maskcl_jax.main --config=configs/maskco.py:imagenet,data_dir=DIR
        ResNet-50, 200 epochs, batch 256: MoCo v2's recipe. Not run by us.
    python -m maskcl_jax.main --config=configs/maskco.py:imagenet100,path=DIR/train,test_path=DIR/val
        The same on a folder of 100 of its classes.
    ... --config.method.mask_head.branch=none  without the mask prediction head, the paper's ablation
    ... --config.total_steps=4                 a smoke run of any of these

Of the paper its abstract, the start of its introduction and one caption were at hand; no code was published. The order
of the parts is the paper's, every number our choice, the recipe MoCo v2's with a warm-up. Measured by us: see
docs/results.md.
"""

from maskcl_jax.config import COLOR, SMALL_RESNET, Config, build

METHOD = {
    "name": "maskco",
    # The fields of MoCo v2, the paper's baseline (facebookresearch/moco at 78b69ca).
    "temperature": 0.2,
    "momentum": 0.999,
    "momentum_schedule": "fixed",
    "queue_size": 65536,  # keys of regions
    "projector": {"layers": 2, "out": 128},
    "bn_group_size": 32,
    "shuffle_bn": True,
    "symmetric": False,  # True: a region is masked in each view in turn
    "query_augment": COLOR,
    "key_augment": COLOR,
    # Our choice, all of it: none of these numbers could be read in the paper.
    "regions": 1,  # masked in a query
    "extra_regions": 0,  # not masked: further negatives, for same_image_negatives
    # Sides of a region as fractions of the query's shorter side: 64 to 112 of 224 pixels, 2 to 3.5 cells of the last
    # map of a ResNet-50. The key is cropped again until both views have room for one.
    "box_side": (2 / 7, 1 / 2),
    "box_ratio": (0.5, 2.0),  # width / height
    # What a masked pixel becomes, after normalization. zero: the data's mean color; noise: normal; mean: of the image's
    # other pixels.
    "fill": "zero",
    # branch query: only queries pass through the head; both: keys pass through its EMA copy (figure 3 can be read
    # either way); none: the paper's ablation, the head is what makes the method work. blocks: residual bottlenecks.
    "mask_head": {"branch": "query", "blocks": 2},
    "roi_size": 7,  # bins of RoIAlign along each side, whose mean is projected
    "roi_samples": 2,  # points per bin along each side
    "same_image_negatives": False,  # True: the key's other regions of the image are negatives too (figure 3: may be)
    "negative_iou": 0.3,  # of these, regions that overlap the query's by more are left out
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
    "method.box_side": (3 / 8, 5 / 8),  # 12 to 20 of 32 pixels, 1.5 to 2.5 cells of a map of 4
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
    "method.box_side": (3 / 8, 5 / 8),  # 12 to 20 of 32 pixels, 1.5 to 2.5 cells of a map of 4
    "optimizer.name": "sgd",
    "optimizer.base_lr": 0.03,  # 0.06 at a batch of 512
    "optimizer.weight_decay": 5e-4,
    "optimizer.decay_on": "all",
    "optimizer.warmup_epochs": 0.0,
    "optimizer.per_epoch": True,
    "eval.k": 200,
    "eval.temperature": 0.1,
}
# MoCo v2's recipe with a warm-up: against a queue of noise the full learning rate makes the projector a constant. On
# COCO 800 epochs, as DenseCL trained MoCo v2 there. All of it our choice for MaskCo.
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
    "optimizer.warmup_epochs": 1.0,
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
