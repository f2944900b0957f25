"""ccMIM (ICLR 2023): a masked autoencoder that hides what it attends to, and aligns the two halves.

    python -m maskcl_jax.main --config=configs/ccmim.py
        Embedded photographs, a small ViT, two CPU cores, minutes.
    python -m maskcl_jax.main --config=configs/ccmim.py:fashion_mnist,data_dir=DIR        (also cifar10, cifar100)
        A tfds data set prepared in DIR.
    python -m maskcl_jax.main --config=configs/ccmim.py:tiny_imagenet,path=DIR/train
        Tiny-ImageNet as it is unpacked: one folder per class; ViT-Ti/8, one GPU.
    python -m maskcl_jax.main --config=configs/ccmim.py:folder,path=DIR
        Any folder of images, labeled by sub-folders or not; ViT-S/16, one GPU.
    python -m maskcl_jax.main --config=configs/ccmim.py:imagenet,data_dir=DIR
        The released recipe: ViT-B/16, 800 epochs, batch 4096 (32 GPUs in the original). Not run by us.
    ... :imagenet,variant=L/16,epochs=300      another encoder, another length
    ... --config.method.masking=random         any other field
    ... --config.total_steps=4                 a smoke run of any of these

Measured by us: see docs/results.md. Published: the abstract gives no number, and the tables of the paper
have not been verified against its text, so none is quoted here.
"""

from maskcl_jax.config import SMALL_VIT, Config, build

# Sources: [C] the released code, Sherrylone/ccMIM at fdc9096 (README, main_pretrain.py, models_ccmim.py). The equations
# and tables of the paper could not be read: where the code has no option, a switch is our choice.
METHOD = {
    "name": "ccmim",
    "mask_ratio": 0.75,  # [C]
    "norm_pix": True,  # [C] --norm_pix_loss in the README's command
    "decoder": {"width": 512, "depth": 8, "heads": 16, "mlp_ratio": 4.0},  # [C]
    # Which patches are masked. importance: those that the cls token attends to [C]; random: [C] --random; gumbel, topk:
    # drawn, or taken, by the same scores, our choice.
    "masking": "importance",
    "importance_layers": (),  # blocks whose attention is summed: () is all of them [C]; (8, 11), say: our choice
    "align_weight": 0.1,  # of the contrastive loss [C]; 0.2 before 13 March 2023
    "align_grad": "stop",  # stop: no gradient through the masked branch [C]; both: through both, our choice
    "temperature": 0.5,  # [C]
    "projector": True,  # [C] since 17 March 2023; False: the cls tokens themselves are contrasted
    "projector_out": 256,  # [C]
    "bn_group_size": 0,  # images that share BatchNorm statistics; 0: the whole batch, our choice; [C] a GPU's 32
}

# Our choice for 28 and 32 pixels: more updates of smaller batches at a higher learning rate.
SMALL = {
    **SMALL_VIT,
    "method.decoder.width": 64,
    "method.decoder.depth": 1,
    "method.decoder.heads": 4,
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
    "tiny_imagenet": {**CIFAR, "variant": "Ti/8"},
    "folder": {  # our choice
        "variant": "S/16",
        "epochs": 300,
        "batch_size": 256,
        "dtype": "bfloat16",
        "optimizer.warmup_epochs": 20.0,
    },
    "imagenet": {
        # [C] the README's command; how often to evaluate and save is our choice.
        "variant": "B/16",
        "epochs": 800,
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
