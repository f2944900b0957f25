"""MaskCo (ICCV 2021), after its abstract: predict the feature of a masked region and find its key among other regions.

    python -m maskcl_jax.main --config=configs/maskco.py
        Embedded photographs, a small ResNet, two CPU cores, minutes.
    python -m maskcl_jax.main --config=configs/maskco.py:fashion_mnist,data_dir=DIR
        A tfds data set prepared in DIR, one object an image.
    python -m maskcl_jax.main --config=configs/maskco.py:scenes,data_dir=DIR
        The same images, four to a picture, measured on each of the four; `:embedded_scenes` is that of the photographs.
        The baseline of either is configs/moco_v2.py with the same words.
    python -m maskcl_jax.main --config=configs/maskco.py:cifar10,data_dir=DIR               (also cifar100)
        ResNet-18, 200 epochs, one GPU. Not run by us.
    python -m maskcl_jax.main --config=configs/maskco.py:folder,path=DIR
        Any folder of images, labelled by sub-folders or not; ResNet-50, one GPU.
    python -m maskcl_jax.main --config=configs/maskco.py:coco,data_dir=DIR
        COCO's training images, ResNet-50, 800 epochs. It has no label an image: no online evaluation. Not run by us.
    python -m maskcl_jax.main --config=configs/maskco.py:imagenet,data_dir=DIR
        ResNet-50, 200 epochs, batch 256: MoCo v2's recipe. Not run by us.
    python -m maskcl_jax.main --config=configs/maskco.py:imagenet100,path=DIR/train,test_path=DIR/val
        The same on a folder of 100 of its classes.
    ... --config.method.mask_head.branch=none  without the mask prediction head, the paper's ablation
    ... --config.total_steps=4                 a smoke run of any of these

Of the paper its abstract, the start of its introduction and one caption were at hand; no code was published. The order
of the parts is the paper's, every number our choice, the recipe MoCo v2's with a warm-up. Measured by us: see "Results"
in the README.
"""

from maskcl_jax import config as config_lib
from maskcl_jax import recipes

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
    "symmetric": False,
    "query_augment": recipes.COLOURS,
    "key_augment": recipes.COLOURS,
    # Our choice, all of it: none of these numbers could be read in the paper.
    "regions": 1,  # masked in a query
    "extra_regions": 0,  # not masked: further negatives
    "box_side": (2 / 7, 1 / 2),  # 64 to 112 of 224 pixels: 2 to 3.5 cells of a ResNet-50's last map
    "box_ratio": (0.5, 2.0),
    "fill": "zero",  # the data's mean colour | noise | mean
    "mask_head": {"branch": "query", "blocks": 2},  # query | both | none
    "roi_size": 7,
    "roi_samples": 2,
    "same_image_negatives": False,
    "negative_iou": 0.3,
}

# Boxes of 12 to 20 of 32 pixels, 1.5 to 2.5 cells of a map of 4.
BOXES = {"box_side": (3 / 8, 5 / 8)}
# Against a queue of noise the full rate makes the projector a constant: see `recipes.convnet`.
OPTIMIZER = recipes.MOCO_OPTIMIZER | {"warmup_epochs": 1.0}


def get_config(arg: str | None = None):
    """The config for `preset,key=value,...`; see the top of this file."""
    presets = recipes.convnet(
        epochs=200,
        small=recipes.MOCO_SMALL | BOXES,
        cifar=recipes.MOCO_DEMO | BOXES,
        optimizer=OPTIMIZER,
        published={},
    )
    return config_lib.build(arg, method=METHOD, recipes=presets)
