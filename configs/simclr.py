"""SimCLR (ICML 2020), a baseline of the ConvNet methods: each view finds the other among all others of the batch.

    python -m maskcl_jax.main --config=configs/simclr.py
        Embedded photographs, a small ResNet, two CPU cores, minutes.
    python -m maskcl_jax.main --config=configs/simclr.py:fashion_mnist,data_dir=DIR        (also cifar10, cifar100)
        A tfds data set prepared in DIR.
    python -m maskcl_jax.main --config=configs/simclr.py:folder,path=DIR
        Any folder of images, labelled by sub-folders or not; ResNet-50, one GPU.
    python -m maskcl_jax.main --config=configs/simclr.py:imagenet,data_dir=DIR
        The released recipe: ResNet-50, 100 epochs, batch 4096, LARS (32 TPU v3 cores in the original). Not run by us.
    python -m maskcl_jax.main --config=configs/simclr.py:imagenet100,path=DIR/train,test_path=DIR/val
        The same on a folder of 100 of its classes, batch 256.
    ... :imagenet,variant=R50x2,epochs=800     another encoder, another length
    ... --config.total_steps=4                 a smoke run of any of these

On a ViT: `configs/simclr_vit.py`. Measured by us: see "Results" in the README.
"""

from maskcl_jax import config as config_lib
from maskcl_jax import recipes

# Source of every number: google-research/simclr at 1e7f15d (tf2/run.py, model.py, data_util.py).
METHOD = {
    "name": "simclr",
    "temperature": 0.1,
    "projector": {"layers": 3, "out": 128},
    "augment": {**recipes.COLOURS, "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2},
    "bn_group_size": 0,
}
LARS = {
    "name": "lars",
    "base_lr": 0.3,
    "momentum": 0.9,
    "weight_decay": 1e-6,
    "decay_on": "matrices",
    "warmup_epochs": 10.0,
}
PUBLISHED = {"augment": {"crop_scale": (0.08, 1.0), "interpolation": "bicubic"}}

# Our choice for 28 and 32 pixels: no blur; the optimiser of the other ConvNet methods (`recipes.convnet`).
SMALL = {"temperature": 0.2, "projector": {"layers": 2, "out": 64}, "augment": {**recipes.COLOURS, "blur_p": 0.0}}
CIFAR = {"temperature": 0.2, "projector": {"layers": 2}, "augment": {"blur_p": 0.0}}


def get_config(arg: str | None = None):
    """The config for `preset,key=value,...`; see the top of this file."""
    presets = recipes.convnet(epochs=100, small=SMALL, cifar=CIFAR, optimizer=LARS, published=PUBLISHED)
    presets["imagenet"] |= {"batch_size": 4096}
    return config_lib.build(arg, method=METHOD, recipes=presets)
