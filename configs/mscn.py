"""MSCN-style masking (Jing, Zhu, LeCun 2022), the baseline of `saliency_masking`: both views masked, nothing salient.

    python -m maskcl_jax.main --config=configs/mscn.py
        Embedded photographs, a small ResNet, two CPU cores, minutes.
    python -m maskcl_jax.main --config=configs/mscn.py:fashion_mnist,data_dir=DIR               (also cifar10, cifar100)
        A tfds data set prepared in DIR.
    python -m maskcl_jax.main --config=configs/mscn.py:imagenet100,path=DIR/train,test_path=DIR/val
        ResNet-50, 100 classes of ImageNet, 200 epochs, batch 128. Not run by us.
    python -m maskcl_jax.main --config=configs/mscn.py:folder,path=DIR                          (also imagenet)
        Any folder of images, labeled by sub-folders or not; ResNet-50, one GPU.
    ... --config.method.framework=simclr       instead of MoCo v2
    ... --config.total_steps=4                 a smoke run of any of these

Built after the drawing of Chin et al.: high-pass filter, then random masks filled with noise, in both branches. MSCN's
text was not available to us and no code was published: the numbers are Chin et al.'s, that MSCN had the same is not
known. Reproduced by Chin et al. on `imagenet100`, linear probe: 70.3 % top-1 on MoCo v2, 77.2 on SimCLR.
"""

import pathlib

from maskcl_jax.config import Config, load, set_field

# What differs from `saliency_masking.py`, whose every other field and number holds.
METHOD = {
    "masked": "both",
    "provider": "uniform",  # cells drawn whatever is salient
    "num_hard": 0,
}


def get_config(argument: str | None = None) -> Config:
    """The config for `preset,key=value,...`; see the top of this file."""
    config = load(pathlib.Path(__file__).with_name("saliency_masking.py"), argument)
    for name, value in METHOD.items():
        set_field(config, f"method.{name}", value, written=f"{name}={value!r}", layer="method")
    return config
