"""MACRL (2022), reconstructed from the abstract: two masked views, contrasted, and both repaired.

    python -m maskcl_jax.main --config=configs/macrl.py
        Embedded photographs, a small ViT, two CPU cores, minutes.
    python -m maskcl_jax.main --config=configs/macrl.py:fashion_mnist,data_dir=DIR        (also cifar10, cifar100)
        A tfds data set prepared in DIR.
    python -m maskcl_jax.main --config=configs/macrl.py:folder,path=DIR
        Any folder of images, labelled by sub-folders or not; ViT-S/16, one GPU.
    python -m maskcl_jax.main --config=configs/macrl.py:tiny_imagenet,path=DIR/train
        Tiny-ImageNet as it is unpacked: one folder a class; ViT-Ti/8, one GPU.
    python -m maskcl_jax.main --config=configs/macrl.py:imagenet,data_dir=DIR
        ViT-B/16 under MAE's recipe, 300 epochs. Nothing says that the paper ran it. Not run by us.
    ... --config.method.mode=shared      the second branch: shared | ema_keys | ema_full
    ... --config.total_steps=4           a smoke run of any of these

The paper's body was not available to us and there is no released code: every number below is our choice, and no result
of the paper is quoted. Measured by us: see "Results" in the README.
"""

from maskcl_jax import config as config_lib
from maskcl_jax import recipes

# From the abstract: two branches with encoder and decoder, one of higher mask ratio and stronger augmentation; contrast
# of encoder features; L1 reconstruction. From a third-party summary: projector, memory bank. All numbers: our choice.
METHOD = {
    "name": "macrl",
    "mode": "ema_keys",
    "stop_grad_key": True,  # of mode shared
    "mask_ratio": 0.75,  # of the query
    "mask_ratio_key": 0.5,
    "swap_roles": False,
    "key_as_query": False,
    "query_crop_scale": (0.2, 1.0),
    "key_crop_scale": (0.5, 1.0),
    "query_augment": recipes.COLOURS,
    "key_augment": recipes.NO_COLOURS,
    "reconstruction": "l1",
    "loss_on": "masked",
    "recon_target": "view",
    "norm_pix": True,
    "lambda_query": 1.0,
    "lambda_key": 1.0,
    "contrast_weight": 1.0,
    "temperature": 0.2,
    "queue_size": 16384,
    "in_batch_negatives": True,
    "pool": "mean",
    "projector": {"hidden": 2048, "out": 128, "norm": "affine"},
    "momentum": 0.999,
    "momentum_schedule": "fixed",
    "decoder": {"width": 512, "depth": 8, "heads": 16, "mlp_ratio": 4.0},
    "bn_group_size": 0,
}

SMALL = {
    "projector": {"hidden": 384, "out": 64},
    "query_augment": {"blur_p": 0.0},
    "momentum": 0.99,
}
PUBLISHED = {"remat": "cheap"}  # two views, two decoders: a fourth of the memory less, 1 % of the work twice


def get_config(arg: str | None = None):
    """The config for `preset,key=value,...`; see the top of this file."""
    small = {**SMALL, "decoder": recipes.SMALL_DECODER, "queue_size": 2048}
    cifar = {**SMALL, "decoder": recipes.CIFAR_DECODER, "queue_size": 4096}
    tiny_imagenet = {**cifar, "decoder": {"width": 192, "depth": 4, "heads": 3}, "queue_size": 8192}
    presets = recipes.vision_transformer(epochs=300, small=small, cifar=cifar, published=PUBLISHED)
    presets["tiny_imagenet"] = recipes.sixty_four_patches(tiny_imagenet, "mean", patch=8)
    return config_lib.build(arg, method=METHOD, recipes=presets)
