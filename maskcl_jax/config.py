"""What every config shares: defaults, data presets, the argument after the colon, and the checks on the whole.

A file of `configs/` calls `build` with its method's fields and one recipe a preset. Reading order of a value:
the defaults here < the data preset < the method's fields < the method's recipe for that preset < the argument
(`:imagenet,variant=L/16,epochs=300`) < `--config.a.b=v` on the command line.
"""

import ast
import difflib

import ml_collections

from maskcl_jax.errors import UserError
from maskcl_jax.models.resnet import resnet_size
from maskcl_jax.models.vit import vit_size

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

DEFAULTS = {
    "seed": 0,
    "epochs": 100,
    "total_steps": 0,  # wins over epochs where it is not 0
    "batch_size": 256,
    "dtype": "float32",  # of the computation; parameters, optimiser, statistics, softmax and losses stay float32
    # Devices: -1 takes what the other axis leaves. The batch is split over all of them; parameters, optimiser and EMA
    # target over `fsdp` (see `sharding`). May change when a run is resumed.
    "mesh": {"data": -1, "fsdp": 1},
    # Micro-batches a step, one after the other, for batches that memory cannot hold. Losses without negatives and
    # BatchNorm are those of the whole batch; what others see of it: `step.accumulated`.
    "accumulation": 1,
    # Chunks of images, for masked autoencoders: the decoder with its loss, forward and back, and passes without a
    # gradient take one after the other, to the same result in the memory of one. 0: as many as a CPU is fastest with,
    # elsewhere 1.
    "image_chunks": 0,
    # What the backward pass finds of a block's forward pass, and does not make again. none: all that it needs; cheap:
    # the block's input and what its weights make (little work is done twice); blocks: its input.
    "remat": "none",
    "compile_cache": "",  # a folder that keeps compiled programs: the next start of the same one need not wait
    "scan": False,  # a ViT's blocks as one compiled loop: a large one compiles in a fraction of the time
    "data": {
        "source": "",
        "name": "",  # tfds: the data set
        "data_dir": "",  # tfds: where it was prepared
        "path": "",  # folder: the training images; npz: the file
        "test_path": "",  # folder: the test images
        "train_split": "train",
        "test_split": "test",
        "image_size": (32, 32),  # height, width
        "channels": 3,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "eval_resize": 1.0,  # 1: the whole image; 256/224: shorter side to 256/224 of the size, then the centre
        "num_examples": 2048,  # synthetic only
        "num_classes": 8,  # synthetic only
        "parts": "tfds",  # scenes only: the source of the images that are put together
        "on_device": False,  # decoded images lie in device memory, and the step makes its views of them itself
        "cache_mb": 2048,  # a split that fits, decoded, is kept in host memory
        "threads": 0,  # of the input pipeline; 0: one a core
    },
    # MAE's augmentation: a crop and a flip, nothing else (facebookresearch/mae main_pretrain.py).
    "augment": {
        "crop_scale": (0.2, 1.0),
        "crop_ratio": (3 / 4, 4 / 3),
        "interpolation": "bicubic",
        "flip": True,
        "photometric": "device",  # who changes colours, device | host: the same operations and numbers
    },
    "optimizer": {
        "name": "adamw",
        "base_lr": 1.5e-4,  # at a batch of 256; the peak is base_lr * batch_size / 256
        "min_lr": 0.0,
        "warmup_epochs": 40.0,
        "per_epoch": False,  # the rate changes once an epoch, not at every step
        "weight_decay": 0.05,
        "decay_on": "matrices",
        "b1": 0.9,
        "b2": 0.95,
        "eps": 1e-8,
        "mu_dtype": "float32",  # of adamw's first moment; bfloat16 halves its bytes
        "momentum": 0.9,  # sgd and lars
        "clip_norm": 0.0,
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
        "linear": False,  # a linear classifier on the frozen features, too
        "pictures": 8,  # rows of the picture grid
    },
    "checkpoint": {"every_epochs": 5.0, "keep_last": 2, "keep_every_epochs": 0.0},
    "log": {"every_seconds": 10.0, "every_steps": 10},
}

DATA = {
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

# Short words that may stand in the argument, and the field each one sets.
SHORT = {
    "epochs": "epochs",
    "total_steps": "total_steps",
    "batch_size": "batch_size",
    "seed": "seed",
    "dtype": "dtype",
    "base_lr": "optimizer.base_lr",
    "warmup_epochs": "optimizer.warmup_epochs",
    "data_dir": "data.data_dir",
    "path": "data.path",
    "test_path": "data.test_path",
    "image_size": "data.image_size",
}


def build(arg: str | None, *, method: dict, recipes: dict[str, dict]) -> ml_collections.ConfigDict:
    """The config of one method for one preset.

    arg: what follows the colon on the command line: `preset,key=value,...`; None or "" is the preset "embedded".
    method: the fields of `config.method`. recipes: preset -> nested dict of what differs from the defaults;
    the key `variant` ("B/16", "R50") sets the encoder's size. Raises UserError for an unknown preset or key.
    """
    preset, options = parse(arg, presets=list(recipes))
    recipe = dict(recipes[preset])
    variant = options.pop("variant", recipe.pop("variant", None))
    config = ml_collections.ConfigDict(DEFAULTS)
    config.preset = preset
    config.method = ml_collections.ConfigDict(method)
    config.data.update(DATA[preset])
    merge(config, recipe)
    if variant is not None:
        config.model = ml_collections.ConfigDict(encoder_size(variant))
    if "patch_size" in config.model:
        config.model.attention = "xla"  # or "cudnn": 16 bits, on a GPU alone
    for key, value in options.items():
        set_field(config, SHORT[key], value, written=f"{key}={value}")
    return config


def encoder_size(variant: str) -> dict:
    """The fields of `config.model` for "B/16" (a ViT), "R50" or "R18/small" (a ResNet)."""
    return resnet_size(variant) if variant.startswith("R") else vit_size(variant)


def parse(arg: str | None, *, presets: list[str]) -> tuple[str, dict]:
    """`imagenet,variant=L/16,epochs=300` -> ("imagenet", {"variant": "L/16", "epochs": "300"})."""
    preset, *pairs = (arg or "embedded").split(",")
    if "=" in preset:
        preset, pairs = "embedded", [preset, *pairs]
    if preset not in presets:
        raise UserError(f"preset {preset!r} is unknown{suggestion(preset, presets)}: use one of {', '.join(presets)}")
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        known = ["variant", *SHORT]
        if not equals or key not in known:
            raise UserError(
                f"config argument {pair!r} is not understood{suggestion(key, known)}: write key=value with one of "
                f"{', '.join(known)}; any other field is set by --config.FIELD=VALUE"
            )
        options[key] = value
    return preset, options


def suggestion(word: str, known) -> str:
    """`, did you mean ...?` where something known looks alike."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def merge(config: ml_collections.ConfigDict, values: dict) -> None:
    """Sets nested fields; those under `model` and `method` may be new, all others must exist."""
    for key, value in values.items():
        if isinstance(value, dict) and key in config:
            merge(config[key], value)
        else:
            config[key] = value


def set_field(config: ml_collections.ConfigDict, path: str, text: str, *, written: str) -> None:
    """Sets `a.b` from text, as the type that the field already has."""
    *parents, name = path.split(".")
    for parent in parents:
        config = config[parent]
    kind = type(config[name])
    try:
        if kind is tuple:  # a comma separates options, so sides are written 64x32
            sides = [int(side) for side in text.split("x")]
            config[name] = tuple(sides * 2 if len(sides) == 1 else sides)
        else:
            config[name] = kind(ast.literal_eval(text)) if kind in (int, float) else text
    except (ValueError, SyntaxError, TypeError):
        raise UserError(f"config argument {written!r} has no valid value: {path} is of type {kind.__name__}") from None


def check(config: ml_collections.ConfigDict) -> None:
    """Checks, before anything is built, what no single room can see. Raises UserError."""
    positive = {
        "batch_size": config.batch_size,
        "eval.batch_size": config.eval.batch_size,
        "eval.k": config.eval.k,
        "eval.temperature": config.eval.temperature,
        "data.channels": config.data.channels,
        "accumulation": config.accumulation,
    }
    for field, value in positive.items():
        if value <= 0:
            raise UserError(f"{field}={value} is out of range: it must be greater than 0")
    if config.image_chunks < 0:
        raise UserError(f"image_chunks={config.image_chunks} is out of range: use 1 or more, or 0 for what suits")
    if config.epochs <= 0 and config.total_steps <= 0:
        raise UserError(f"epochs={config.epochs} gives no step: set epochs or total_steps to a positive number")
    if len(config.data.image_size) != 2 or min(config.data.image_size) < 1:
        raise UserError(f"data.image_size={config.data.image_size} is not a size: write (height, width)")
    for field in ("mean", "std"):
        values = config.data[field]
        if len(values) not in (1, config.data.channels):
            raise UserError(
                f"data.{field}={tuple(values)} has {len(values)} values for data.channels={config.data.channels}: "
                "give one for every channel, or one for all"
            )
    for field, value, known in (
        ("dtype", config.dtype, ("float32", "bfloat16")),
        ("optimizer.mu_dtype", config.optimizer.mu_dtype, ("float32", "bfloat16")),
        ("remat", config.remat, ("none", "cheap", "blocks")),
    ):
        if value not in known:
            raise UserError(f"{field}={value!r} is unknown: use {', '.join(known[:-1])} or {known[-1]}")


def split_fields(config) -> dict[str, int]:
    """What splits each device's share of a batch, by the field's name."""
    return {name: config[name] for name in ("accumulation", "image_chunks")}


def flat(config) -> dict:
    """{"data.image_size": (32, 32), ...}, tuples as lists, as JSON will hold them."""
    fields = {}
    for key, value in config.items():
        if hasattr(value, "items"):
            fields.update({f"{key}.{k}": v for k, v in flat(value).items()})
        else:
            fields[key] = list(value) if isinstance(value, tuple) else value
    return fields


def completed(fields: dict) -> dict:
    """A flat config with the defaults of all fields that the version which wrote it did not know.

    So a new field's default must be what was done before there was the field.
    """
    return flat(DEFAULTS) | fields


def unflat(fields: dict) -> ml_collections.ConfigDict:
    """The config of which `flat`, read back from JSON, is `fields`; `completed`."""
    nested: dict = {}
    for path, value in completed(fields).items():
        *parents, name = path.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = tuple(value) if isinstance(value, list) else value
    return ml_collections.ConfigDict(nested)
