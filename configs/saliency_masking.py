"""Saliency-guided masking for contrastive ConvNets (Chin et al., WACV 2024): MoCo v2 or SimCLR with a masked query.

    python -m maskcl_jax.main --config=configs/saliency_masking.py
        Embedded photographs, a small ResNet, two CPU cores, minutes.
    python -m maskcl_jax.main --config=configs/saliency_masking.py:fashion_mnist,data_dir=DIR   (also cifar10, cifar100)
        A tfds data set prepared in DIR.
    python -m maskcl_jax.main --config=configs/saliency_masking.py:imagenet100,path=DIR/train,test_path=DIR/val
        The paper's run: ResNet-50, 100 classes of ImageNet, 200 epochs, batch 128 (4 GPUs). Not run by us.
    python -m maskcl_jax.main --config=configs/saliency_masking.py:folder,path=DIR              (also imagenet)
        Any folder of images, labeled by sub-folders or not; ResNet-50, one GPU.
    ... --config.method.strategy=blur          what fills masked cells: high_pass | blur | mean
    ... --config.method.masked=both            which view is masked: query | key | both | none
    ... --config.method.num_hard=0             without the hard negative
    ... --config.method.provider=ema           who says what is salient: boundary | spectral_residual | fine_grained |
                                               center | uniform | ema | maps (with --config.method.maps_path=DIR)
    ... --config.method.framework=simclr       instead of MoCo v2
    ... --config.total_steps=4                 a smoke run of any of these

Published by the authors for `imagenet100`, linear probe: 73.8 % top-1 with high_pass, 72.5 blur, 70.8 mean, beside 68.2
for MoCo v2; on SimCLR 77.9, 77.8, 77.4 beside 69.8 (their repository's README). Their salient cells come from a network
trained with ImageNet's labels; ours do not.
"""

from maskcl_jax.config import COLOR, SMALL_RESNET, Config, build

# Sources: [C] joycenerd/Saliency-Guided-Masking-for-ConvNets at c6e62b8 with its README's command; [P] the authors'
# poster. What neither names is MoCo v2's (facebookresearch/moco at 78b69ca). Lengths are for images of 224 pixels and
# scale with the image.
METHOD = {
    "name": "saliency_masking",
    "framework": "moco_v2",  # [C]; simclr: the paper has results of it, but no code
    # What fills masked cells. high_pass: all inputs are high-passed, masked cells are noise; blur: the blurred view;
    # mean: its mean color. [C] --mask-strategy: high_pass is the best of the three.
    "strategy": "high_pass",
    # Which view is masked: query [C] | key | both | none (the poster's comparison). Of simclr: query is the first view.
    "masked": "query",
    # Who says what is salient: boundary | spectral_residual | fine_grained | center | uniform | ema | maps. ema: the
    # channel sum of the EMA encoder's last map (SCDA [C], but self-supervised: our choice), after `boundary` was used
    # for the fraction `ema_warmup` of the run. Default: our choice; [C] takes a ResNet-50 trained with labels.
    "provider": "boundary",
    "maps_path": "",  # of provider maps: the folder of the maps
    "ema_warmup": 0.1,  # our choice
    "spread": 0.6,  # salient is a value >= mean - 0.6 std [P, C]
    "grid": 7,  # cells along a side [C]; at sizes other than 224 our choice
    "ratio": (0.05, 0.25),  # fraction of the salient, and of the other cells, that is masked; drawn uniformly [C]
    # Hard negatives of an image, copies of the key; 0: none. [C] --num-nonsem 1. Of moco_v2 they are keys of the EMA
    # encoder. Only the image's own query contrasts with them [P]: the code takes those of image 0 for the whole batch.
    "num_hard": 1,
    "hard_weight": 2.0,  # times the similarity to a hard negative, inside the exponential. [C] --alpha 2.0
    "negative_ratio": (0.4, 0.7),  # fraction of a hard negative's salient cells that is masked [C]
    "negative_cap": (0.56, 0.55),  # of high_pass, the most that is masked, see `ops.cells.counts` [C]
    # Down to high_pass: of strategy high_pass only. With probability focal_p masks keep one window (of a hard negative:
    # hide one), whatever is salient.
    "focal_p": 0.2,  # [C]
    "focal_window": 200,  # side of the window, in 224ths of the image's [C]
    "negative_window": 130,  # likewise, of a hard negative [C]
    "channelwise_p": 0.7,  # of the others: every channel has cells of its own [C]
    "noise_std": 0.18,  # [C]
    "negative_noise_std": 0.14,  # [C]
    "tile_noise": False,  # one patch of noise in all cells of a batch [C]; False (our choice): independent noise
    "high_pass": {"sigma": 5.0, "taps": 11},  # [C]
    "blur": {"sigma": 10.0, "taps": 31},  # of strategy blur [C]
    # Of framework simclr, our choice: whether gradient reaches the hard negatives; whether the second view's anchors
    # have hard negatives too, made of the first view; color augmentation of both views.
    "hard_grad": False,
    "hard_both": False,
    "augment": COLOR,
    # Of framework moco_v2, and the first of both: see `moco_v2.py`.
    "temperature": 0.2,
    "momentum": 0.999,
    "momentum_schedule": "fixed",
    "queue_size": 65536,
    "projector": {"layers": 2, "out": 128},
    "bn_group_size": 32,  # [C] a GPU's part of 128 images
    "shuffle_bn": True,
    "symmetric": False,  # `masked` says which view is masked
    "query_augment": COLOR,
    "key_augment": COLOR,
}

# Our choice for 28 and 32 pixels: cells of 4 pixels. The high-pass filter keeps about its size in pixels, sigma 2.5:
# scaled down with the image it left nothing to learn from; so, filtered images vary as much as at 224 (std 0.3 to 0.5)
# and the noise fits them. In runs of minutes a hard negative weighs as much as any other: at a weight of 2 and a
# temperature of 0.1 it outweighed the rest, and the network collapsed.
SMALL = {
    **SMALL_RESNET,
    "batch_size": 64,
    "method.temperature": 0.1,
    "method.momentum": 0.99,
    "method.queue_size": 512,  # 8 batches: no key is old
    "method.projector.out": 64,
    "method.query_augment.blur_p": 0.0,
    "method.key_augment.blur_p": 0.0,
    "method.hard_weight": 1.0,
    "method.grid": 8,
    "method.augment.blur_p": 0.0,
    "method.high_pass.sigma": 20.0,
    "method.high_pass.taps": 81,
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
    "method.grid": 7,  # of 28 pixels
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
    "method.grid": 8,
    "method.augment.blur_p": 0.0,
    "method.high_pass.sigma": 20.0,
    "method.high_pass.taps": 81,
    "optimizer.name": "sgd",
    "optimizer.base_lr": 0.03,  # 0.06 at a batch of 512
    "optimizer.weight_decay": 5e-4,
    "optimizer.decay_on": "all",
    "optimizer.warmup_epochs": 0.0,
    "optimizer.per_epoch": True,
    "eval.k": 200,
    "eval.temperature": 0.1,
}
# MoCo v2's recipe. `imagenet100` is the paper's run, of batch 128 [C]. How often to evaluate and save is our choice.
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
    "optimizer.warmup_epochs": 0.0,
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
    "imagenet100": {**LARGE, "batch_size": 128, "eval.every_epochs": 20.0},
    "imagenet": {**LARGE, "eval.every_epochs": 20.0, "eval.train_examples": 100_000},
    "coco": {**LARGE, "epochs": 800, "eval.every_epochs": 20.0},
}


def get_config(argument: str | None = None) -> Config:
    """The config for `preset,key=value,...`; see the top of this file."""
    return build(argument, method=METHOD, presets=PRESETS)
