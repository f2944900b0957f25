"""MoCo v2 (2020), the baseline of the ConvNet methods: find the other view's key among those of earlier batches.

    python -m maskcl_jax.main --config=configs/moco_v2.py
        Embedded photographs, a small ResNet, two CPU cores, minutes.
    python -m maskcl_jax.main --config=configs/moco_v2.py:fashion_mnist,data_dir=DIR
        A tfds data set prepared in DIR.
    python -m maskcl_jax.main --config=configs/moco_v2.py:scenes,data_dir=DIR               (also embedded_scenes)
        The same images, four to a picture, measured on each of the four: where two crops show different things.
    python -m maskcl_jax.main --config=configs/moco_v2.py:cifar10,data_dir=DIR              (also cifar100)
        The authors' demo on one device: ResNet-18, 200 epochs. Not run by us.
    python -m maskcl_jax.main --config=configs/moco_v2.py:folder,path=DIR
        Any folder of images, labelled by sub-folders or not; ResNet-50, one GPU.
    python -m maskcl_jax.main --config=configs/moco_v2.py:imagenet,data_dir=DIR
        The released recipe: ResNet-50, 200 epochs, batch 256 (8 V100, 53 hours in the original). Not run by us.
    python -m maskcl_jax.main --config=configs/moco_v2.py:coco,data_dir=DIR
        COCO's training images, 800 epochs. It has no label an image: no online evaluation. Not run by us.
    python -m maskcl_jax.main --config=configs/moco_v2.py:imagenet100,path=DIR/train,test_path=DIR/val
        The same on a folder of 100 of its classes.
    ... :imagenet,variant=R18,epochs=800       another encoder, another length
    ... --config.total_steps=4                 a smoke run of any of these

Measured by us: see "Results" in the README. Published by the authors for ResNet-50 by linear probe: 67.5 % top-1 after
200 epochs, 71.1 % after 800 (their repository's README); the demo's k-NN on CIFAR-10 after 200 epochs: 82.6 %.
"""

from maskcl_jax import config as config_lib
from maskcl_jax import recipes

# Source of every number: facebookresearch/moco at 78b69ca (main_moco.py with --mlp --moco-t 0.2 --aug-plus --cos).
METHOD = {
    "name": "moco_v2",
    "temperature": 0.2,
    "momentum": 0.999,
    "momentum_schedule": "fixed",
    "queue_size": 65536,
    "projector": {"layers": 2, "out": 128},
    "bn_group_size": 32,  # a GPU's share of the batch
    "shuffle_bn": True,
    "symmetric": False,
    "query_augment": recipes.COLOURS,
    "key_augment": recipes.COLOURS,
}


def get_config(arg: str | None = None):
    """The config for `preset,key=value,...`; see the top of this file."""
    presets = recipes.convnet(
        epochs=200, small=recipes.MOCO_SMALL, cifar=recipes.MOCO_DEMO, optimizer=recipes.MOCO_OPTIMIZER, published={}
    )
    return config_lib.build(arg, method=METHOD, recipes=presets)
