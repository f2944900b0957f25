"""MACRL (2022), reconstructed from the abstract: two masked views, contrasted, and both reconstructed.

    python -m maskcl_jax.main --config=configs/macrl.py
        Embedded photographs, a small ViT, two CPU cores, minutes.
    python -m maskcl_jax.main --config=configs/macrl.py:fashion_mnist,data_dir=DIR        (also cifar10, cifar100)
        A tfds data set prepared in DIR.
    python -m maskcl_jax.main --config=configs/macrl.py:folder,path=DIR
        Any folder of images, labeled by sub-folders or not; ViT-S/16, one GPU.
    python -m maskcl_jax.main --config=configs/macrl.py:tiny_imagenet,path=DIR/train
        Tiny-ImageNet as it is unpacked: one folder per class; ViT-Ti/8, one GPU.
    python -m maskcl_jax.main --config=configs/macrl.py:imagenet,data_dir=DIR
        ViT-B/16 under MAE's recipe, 300 epochs. Nothing says that the paper ran it. Not run by us.
    ... --config.method.mode=shared      the second branch: shared | ema_keys | ema_full
    ... --config.total_steps=4           a smoke run of any of these

The paper's body was not available to us and there is no released code: every number below is our choice, and no result
of the paper is quoted. Measured by us: see docs/results.md.
"""

from maskcl_jax.config import COLOR, SMALL_VIT, Config, build

# From the abstract: two branches with encoder and decoder, one of higher mask ratio and stronger augmentation; contrast
# of encoder features; L1 reconstruction. From a third-party summary: projector, memory bank. All numbers: our choice.
METHOD = {
    "name": "macrl",
    # The second branch. ema_keys: an EMA encoder and projector make the keys, and the online networks reconstruct the
    # second view too; shared: one set of weights does all; ema_full: the EMA networks do everything for the second
    # view, and its reconstruction is only logged.
    "mode": "ema_keys",
    "stop_grad_key": True,  # of mode shared: no gradient through the keys
    "mask_ratio": 0.75,  # of the query, the stronger
    "mask_ratio_key": 0.5,
    "swap_roles": False,  # the query takes the weaker mask ratio and augmentation, the key the stronger
    "key_as_query": False,  # the key's view is cropped and augmented as the query's
    "query_crop_scale": (0.2, 1.0),  # fraction of the image's area
    "key_crop_scale": (0.5, 1.0),
    "query_augment": COLOR,
    "key_augment": {**COLOR, "jitter_p": 0.0, "grey_p": 0.0, "blur_p": 0.0},  # none
    "reconstruction": "l1",  # l1 | l2
    "loss_on": "masked",  # masked | all patches
    "recon_target": "view",  # view; clean: the same crop before color augmentation
    "norm_pix": True,
    "lambda_query": 1.0,  # weights of the two reconstructions
    "lambda_key": 1.0,
    "contrast_weight": 1.0,
    "temperature": 0.2,
    "queue_size": 16384,  # keys in the memory bank; 0: none
    "in_batch_negatives": True,  # the other keys of the batch are negatives too
    "pool": "mean",  # what is contrasted: mean of the visible tokens | cls
    "projector": {"hidden": 2048, "out": 128, "norm": "affine"},  # norm affine | none
    "momentum": 0.999,  # of the EMA encoder
    "momentum_schedule": "fixed",  # fixed | cosine: rises to 1
    "decoder": {"width": 512, "depth": 8, "heads": 16, "mlp_ratio": 4.0},
    "bn_group_size": 0,  # 0: statistics of the whole batch
}

# Our choice for 28 and 32 pixels: more updates of smaller batches at a higher learning rate.
SMALL = {
    **SMALL_VIT,
    "method.decoder.width": 64,
    "method.decoder.depth": 1,
    "method.decoder.heads": 4,
    "method.projector.hidden": 384,
    "method.projector.out": 64,
    "method.query_augment.blur_p": 0.0,
    "method.momentum": 0.99,
    "method.queue_size": 2048,
    "optimizer.base_lr": 2e-3,
    "optimizer.warmup_epochs": 1.0,
}
# Our choice for CIFAR and Tiny-ImageNet, both of 64 patches: a GPU's afternoon.
CIFAR = {
    "variant": "Ti/4",
    "epochs": 400,
    "batch_size": 512,
    "dtype": "bfloat16",
    "method.decoder.width": 128,
    "method.decoder.depth": 2,
    "method.decoder.heads": 4,
    "method.projector.hidden": 384,
    "method.projector.out": 64,
    "method.query_augment.blur_p": 0.0,
    "method.momentum": 0.99,
    "method.queue_size": 4096,
    "optimizer.base_lr": 5e-4,
    "optimizer.warmup_epochs": 20.0,
}
PRESETS = {
    "embedded": {**SMALL, "epochs": 5, "batch_size": 128, "eval.every_epochs": 2.5},
    "synthetic": {**SMALL, "epochs": 2, "batch_size": 64},
    "fashion_mnist": {
        **SMALL,
        "epochs": 2,
        "batch_size": 256,
        "eval.every_epochs": 1.0,
        "eval.train_examples": 10_000,
        "eval.linear": True,
    },
    "cifar10": CIFAR,
    "cifar100": CIFAR,
    "tiny_imagenet": {
        **CIFAR,
        "variant": "Ti/8",
        "method.decoder.width": 192,
        "method.decoder.depth": 4,
        "method.decoder.heads": 3,
        "method.queue_size": 8192,
    },
    "folder": {  # our choice
        "variant": "S/16",
        "epochs": 300,
        "batch_size": 256,
        "dtype": "bfloat16",
        "optimizer.warmup_epochs": 20.0,
    },
    "imagenet": {
        # MAE's recipe, our choice.
        "variant": "B/16",
        "epochs": 300,
        "batch_size": 4096,
        "dtype": "bfloat16",
        "optimizer.base_lr": 1.5e-4,
        "optimizer.warmup_epochs": 40.0,
        "optimizer.b2": 0.95,
        "optimizer.weight_decay": 0.05,
        "eval.every_epochs": 20.0,
        "eval.train_examples": 100_000,
        "checkpoint.every_epochs": 1.0,
        "checkpoint.keep_every_epochs": 50.0,
    },
}


def get_config(argument: str | None = None) -> Config:
    """The config for `preset,key=value,...`; see the top of this file."""
    return build(argument, method=METHOD, presets=PRESETS)
