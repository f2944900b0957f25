"""The values that configs share: defaults, data presets, named settings, sizes of encoders."""

import re
from typing import Any

from maskcl_jax.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

DEFAULTS: dict[str, Any] = {
    "seed": 0,
    "epochs": 100,
    "total_steps": 0,  # takes precedence over epochs where it is not 0
    "batch_size": 256,
    "dtype": "float32",  # of the computation; parameters, optimizer, statistics, softmax and losses stay float32
    # Devices: -1 takes what the other axis leaves. The batch is split over all of them; parameters, optimizer and EMA
    # target over `fsdp` (see `training/sharding.py`). May change when a run is resumed.
    "mesh": {"data": -1, "fsdp": 1},
    # Micro-batches per step, one after the other, for batches that memory cannot hold. Losses without negatives and
    # BatchNorm are those of the whole batch; for other losses see `training/step.py`.
    "accumulation": 1,
    # Chunks of images, for masked autoencoders: the decoder with its loss, forward and backward, and passes without a
    # gradient take one chunk after the other: the same result in the memory of one. 0: as many as are fastest on a CPU,
    # 1 elsewhere.
    "image_chunks": 0,
    # What the forward pass of a block keeps for the backward pass. none: all activations; cheap: the block's input and
    # the outputs of its matrix products (little is computed twice); blocks: the block's input only; auto: the first of
    # them that fits into the devices' memory by an estimate (training/memory.py), and none where that is unknown.
    "remat": "auto",
    # Of networks. plain: what flax and jax.nn offer; fused: gradients written by hand (models/kernels.py), the same
    # up to rounding; auto: fused on a CPU, plain elsewhere. May change when a run is resumed.
    "kernels": "auto",
    # The folder that keeps compiled programs, so that the next start does not compile again. "": JAX's own setting
    # (JAX_COMPILATION_CACHE_DIR), else maskcl_jax/ in the user's cache folder; off: none.
    "compile_cache": "",
    "scan": False,  # a ViT's blocks as one compiled loop: a large ViT compiles in a fraction of the time
    "data": {
        "source": "",
        "name": "",  # tfds: the data set
        "data_dir": "",  # tfds: where it was prepared
        "path": "",  # folder, tar: the training images; npz: the file
        "test_path": "",  # folder, tar: the test images
        "list": "",  # folder: a text file of training images, one path a line, perhaps with a label
        "test_list": "",  # folder: the same of the test images
        "train_split": "train",
        "test_split": "test",
        "image_size": (32, 32),  # height, width
        "channels": 3,
        "exif": False,  # folder, tar, tfds: images are turned as their EXIF orientation says
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "eval_resize": 1.0,  # 1: the whole image; 256/224: shorter side to 256/224 of the size, then the center
        "num_examples": 2048,  # synthetic only
        "num_classes": 8,  # synthetic only
        "parts": "tfds",  # scenes only: the source of the images that a scene is composed of
        "on_device": False,  # decoded images stay in device memory, and the step makes its views of them
        "accept_changes": False,  # go on with a run whose images are no longer those it was started on
        "cache_mb": 2048,  # MiB: a decoded split that fits is kept in host memory
        "threads": 0,  # of the input pipeline; 0: one per CPU core
        # Processes that make training batches, instead of threads: a number, or auto, which takes some where an
        # ingredient of a view computes in Python (saliency from pixels, color on the host, RandAugment).
        "workers": "auto",
    },
    # MAE's augmentation: a crop and a flip, nothing else (facebookresearch/mae main_pretrain.py).
    "augment": {
        "crop_scale": (0.2, 1.0),  # fraction of the image's area
        "crop_ratio": (3 / 4, 4 / 3),  # width / height
        "interpolation": "bicubic",
        "flip": True,
        "photometric": "device",  # where color is augmented, device | host: the same operations and numbers
    },
    "optimizer": {
        "name": "adamw",
        "base_lr": 1.5e-4,  # at a batch of 256; the peak is base_lr * batch_size / 256
        "min_lr": 0.0,
        "warmup_epochs": 40.0,
        "per_epoch": False,  # the learning rate changes once an epoch, not at every step
        "weight_decay": 0.05,
        "decay_on": "matrices",  # matrices: more than one dimension; kernels: CMAE's rule; all
        "b1": 0.9,
        "b2": 0.95,
        "eps": 1e-8,
        "mu_dtype": "float32",  # of adamw's first moment; bfloat16 halves its bytes
        "momentum": 0.9,  # sgd and lars
        "clip_norm": 0.0,  # of the gradient; 0: not clipped
    },
    # Online evaluation: how often, and the k-NN protocol.
    "eval": {
        "every_epochs": 10.0,
        "k": 20,
        "temperature": 0.07,
        "feature": "mean",  # mean of the patch tokens | cls
        "batch_size": 256,
        "train_examples": 0,  # 0: all
        "test_examples": 0,
        "linear": False,  # also a linear classifier on the frozen features
        "pictures": 8,  # rows of the figure
    },
    "checkpoint": {"every_epochs": 5.0, "keep_last": 2, "keep_every_epochs": 0.0},
    "log": {
        "every_seconds": 10.0,
        "every_steps": 10,
        "report": True,  # the page RUN/report.html is written when the run is done, in a few seconds
        "to": ("tensorboard",),  # besides metrics.jsonl: tensorboard, wandb, trackio, mlflow; () for nothing
        "project": "maskcl_jax",  # of wandb and trackio; the experiment of mlflow
    },
}

# The fields of `config.data` by preset.
DATA: dict[str, dict[str, Any]] = {
    "embedded": {"source": "embedded"},
    "synthetic": {"source": "synthetic"},
    "fashion_mnist": {
        "source": "tfds",
        "name": "fashion_mnist",
        "image_size": (28, 28),
        "channels": 1,
        "mean": (0.286,),
        "std": (0.353,),
    },
    "embedded_scenes": {"source": "scenes", "parts": "embedded"},
    "scenes": {
        "source": "scenes",
        "parts": "tfds",
        "name": "fashion_mnist",
        "image_size": (28, 28),
        "channels": 1,
        "mean": (0.286,),
        "std": (0.353,),
    },
    "cifar10": {
        "source": "tfds",
        "name": "cifar10",
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
    },
    "cifar100": {
        "source": "tfds",
        "name": "cifar100",
        "mean": (0.5071, 0.4865, 0.4409),
        "std": (0.2673, 0.2564, 0.2762),
    },
    "imagenet": {
        "source": "tfds",
        "name": "imagenet2012",
        "test_split": "validation",
        "image_size": (224, 224),
        "eval_resize": 256 / 224,
    },
    "coco": {
        "source": "tfds",
        "name": "coco/2017",
        "test_split": "validation",
        "image_size": (224, 224),
        "eval_resize": 256 / 224,
    },
    "folder": {"source": "folder", "image_size": (224, 224), "eval_resize": 256 / 224},
    "npz": {"source": "npz"},
    "imagenet100": {"source": "folder", "image_size": (224, 224), "eval_resize": 256 / 224},
    "tiny_imagenet": {"source": "folder", "image_size": (64, 64)},
}

# MoCo v2's color augmentation (facebookresearch/moco main_moco.py --aug-plus), which its descendants vary.
COLOR = {
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "jitter_p": 0.8,
    "grey_p": 0.2,
    "blur_p": 0.5,
    "blur_sigma": (0.1, 2.0),  # pixels
    "solarize_p": 0.0,
    # The smallest value, in 0..1, that solarization inverts: uint8 levels of 128 and more. facebookresearch/moco-v3
    # calls Pillow's `ImageOps.solarize` without another threshold.
    "solarize_threshold": 128 / 256,
}
# Small encoders for 28 and 32 pixels, our choice: DeiT-Ti's ratios at a size that two CPU cores can train, and a ResNet
# of as much work.
SMALL_VIT = {"model.width": 96, "model.depth": 4, "model.heads": 3, "model.mlp_ratio": 4.0, "model.patch_size": 4}
SMALL_RESNET = {"model.depth": 10, "model.width": 16, "model.stem": "small"}

VIT_SIZES = {
    "Ti": {"width": 192, "depth": 12, "heads": 3},
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "H": {"width": 1280, "depth": 32, "heads": 16},
}
RESNETS = ("R10", "R14", "R18", "R34", "R50", "R101")  # 10 and 14 are for small images


def encoder_size(variant: str) -> dict[str, Any]:
    """The fields of `config.model` of a named encoder.

    "B/16" is a ViT-B with patches of 16 pixels; "R50" a ResNet-50, "R50x2" twice as wide, "R18/small" with the stem for
    images of up to about 64 pixels. Raises UserError for any other name.
    """
    name, _, patch = variant.partition("/")
    if name in VIT_SIZES and re.fullmatch(r"[1-9]\d*", patch):
        return {**VIT_SIZES[name], "mlp_ratio": 4.0, "patch_size": int(patch)}
    resnet = re.fullmatch(r"(R\d+)(?:x([1-9]\d*))?(?:/(small))?", variant)
    if resnet is None or resnet[1] not in RESNETS:
        raise UserError(
            f"variant={variant!r} is unknown: for a ViT use one of {', '.join(VIT_SIZES)} and the patch, as B/16; for "
            f"a ResNet one of {', '.join(RESNETS)}, as R50, R50x2 (twice as wide) or R18/small (for small images)"
        )
    return {"depth": int(resnet[1][1:]), "width": 64 * int(resnet[2] or 1), "stem": resnet[3] or "imagenet"}
