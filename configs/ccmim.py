"""ccMIM (ICLR 2023): a masked autoencoder that hides what it attends to, and aligns the two halves.

    python -m maskcl_jax.main --config=configs/ccmim.py
        Embedded photographs, a small ViT, two CPU cores, minutes.
    python -m maskcl_jax.main --config=configs/ccmim.py:fashion_mnist,data_dir=DIR        (also cifar10, cifar100)
        A tfds data set prepared in DIR.
    python -m maskcl_jax.main --config=configs/ccmim.py:tiny_imagenet,path=DIR/train
        Tiny-ImageNet as it is unpacked: one folder a class; ViT-Ti/8, one GPU.
    python -m maskcl_jax.main --config=configs/ccmim.py:folder,path=DIR
        Any folder of images, labelled by sub-folders or not; ViT-S/16, one GPU.
    python -m maskcl_jax.main --config=configs/ccmim.py:imagenet,data_dir=DIR
        The released recipe: ViT-B/16, 800 epochs, batch 4096 (32 GPUs in the original). Not run by us.
    ... :imagenet,variant=L/16,epochs=300      another encoder, another length
    ... --config.method.masking=random         any other field
    ... --config.total_steps=4                 a smoke run of any of these

Measured by us: see "Results" in the README. Published: the abstract gives no number, and the tables of the paper
have not been verified against its text, so none is quoted here.
"""

from maskcl_jax import config as config_lib
from maskcl_jax import recipes

# Sources: [C] the released code, Sherrylone/ccMIM at fdc9096 (README, main_pretrain.py, models_ccmim.py).
METHOD = {
    "name": "ccmim",
    "mask_ratio": 0.75,  # [C]
    "norm_pix": True,  # [C] --norm_pix_loss in the README's command
    "decoder": {"width": 512, "depth": 8, "heads": 16, "mlp_ratio": 4.0},  # [C]
    "masking": "importance",  # [C]; random is [C] --random; gumbel and topk are our choice
    "importance_layers": (),  # [C] all blocks; a tuple of block numbers is our choice (the figure draws one layer)
    "align_weight": 0.1,  # [C]; 0.2 before 13 March 2023
    "align_grad": "stop",  # [C]; both: gradient through the masked branch too, our choice
    "temperature": 0.5,  # [C]
    "projector": True,  # [C] since 17 March 2023; False: contrasts the cls tokens themselves
    "projector_out": 256,  # [C]
    "bn_group_size": 0,  # 0: statistics of the whole batch, our choice; [C] has them per GPU: 32
}


def get_config(arg: str | None = None):
    """The config for `preset,key=value,...`; see the top of this file."""
    return config_lib.build(arg, method=METHOD, recipes=recipes.masked_autoencoder(epochs=800))
