"""Saliency-guided masking for contrastive ConvNets (Chin et al., WACV 2024): MoCo v2 or SimCLR with a masked query.

    python -m maskcl_jax.main --config=configs/saliency_masking.py
        Embedded photographs, a small ResNet, two CPU cores, minutes.
    python -m maskcl_jax.main --config=configs/saliency_masking.py:fashion_mnist,data_dir=DIR   (also cifar10, cifar100)
        A tfds data set prepared in DIR.
    python -m maskcl_jax.main --config=configs/saliency_masking.py:imagenet100,path=DIR/train,test_path=DIR/val
        The paper's run: ResNet-50, 100 classes of ImageNet, 200 epochs, batch 128 (4 GPUs). Not run by us.
    python -m maskcl_jax.main --config=configs/saliency_masking.py:folder,path=DIR              (also imagenet)
        Any folder of images, labelled by sub-folders or not; ResNet-50, one GPU.
    ... --config.method.strategy=blur          what fills masked cells: high_pass | blur | mean
    ... --config.method.masked=both            which view is masked: query | key | both | none
    ... --config.method.num_hard=0             without the hard negative
    ... --config.method.provider=ema           who says what is salient: boundary | spectral_residual | fine_grained |
                                               center | uniform | ema | maps (with --config.method.maps_path=DIR)
    ... --config.method.framework=simclr       in place of MoCo v2
    ... --config.total_steps=4                 a smoke run of any of these

Published by the authors for `imagenet100`, linear probe: 73.8 % top-1 with high_pass, 72.5 blur, 70.8 mean, beside 68.2
for MoCo v2; on SimCLR 77.9, 77.8, 77.4 beside 69.8 (their repository's README). Their salient cells come from a network
trained with ImageNet's labels; ours do not.
"""

from maskcl_jax import config as config_lib
from maskcl_jax import recipes

# Source of every number: `recipes.MASKED_CONVNET`.
METHOD = {"name": "saliency_masking", **recipes.MASKED_CONVNET}


def get_config(arg: str | None = None):
    """The config for `preset,key=value,...`; see the top of this file."""
    return config_lib.build(arg, method=METHOD, recipes=recipes.masked_convnet())
