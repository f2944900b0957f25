"""What files of weights say of the network: the shapes of the tensors, and the JSON files beside them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from maskcl_jax.config import VIT_SIZES
from maskcl_jax.errors import UserError
from maskcl_jax.interchange.files import RECORD
from maskcl_jax.models.resnet import RESNETS, ResNetSize
from maskcl_jax.models.transformer import LAYER_NORM_EPS

# Width -> heads, where no file states them. Wrong heads would be no error: the shapes are the same.
HEADS = {size["width"]: size["heads"] for size in VIT_SIZES.values()}
MOCO_V3_HEADS = HEADS | {384: 12}  # facebookresearch/moco-v3 `vits.py`


class Facts(NamedTuple):
    """What is known of an encoder; None where no file states it.

    Attributes:
        model: Fields of `config.model`; heads only where a file states them.
        channels: Of the images.
        size: (height, width) of the images.
        mean: Of the pixels in 0..1.
        std: Of the pixels in 0..1.
        feature: "cls" or "mean".
        record: The config of the run that was exported, flat.
    """

    model: dict[str, Any]
    channels: int
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    feature: str | None = None
    record: dict[str, Any] | None = None


def of_tensors(
    state: dict[str, np.ndarray], keys: dict[str, str], depth: int, resnet: ResNetSize
) -> tuple[dict[str, Any], int]:
    """Reads an encoder's size off its tensors.

    Args:
        state: Their key -> array.
        keys: Our path -> their key.
        depth: Blocks of a ViT.
        resnet: The stages of a ResNet.

    Returns:
        (fields of `config.model`, channels of the images).

    Raises:
        UserError: For patches that are not square.
    """
    if "params/encoder/conv1/kernel" in keys:
        width, channels, kernel, _ = state[keys["params/encoder/conv1/kernel"]].shape
        stem = "imagenet" if kernel == 7 else "small"
        return resnet_fields(resnet) | {"width": width, "stem": stem}, channels
    width, channels, patch, across = state[keys["params/encoder/patch_embed/kernel"]].shape
    if patch != across:
        raise UserError(f"patches of {patch}x{across} pixels: only square ones are supported")
    bias = state[keys["params/encoder/blocks_0/mlp/fc1/bias"]]
    if bias.ndim != 1 or not width:
        raise UserError(
            f"{keys['params/encoder/blocks_0/mlp/fc1/bias']} has the shape {bias.shape}: it must be a vector"
        )
    hidden = len(bias)
    return {"width": width, "depth": depth, "mlp_ratio": hidden / width, "patch_size": patch}, channels


def resnet_fields(size: ResNetSize) -> dict[str, Any]:
    """`depth` and `stages` of `config.model` of a ResNet; of one without a name the depth that has such blocks."""
    if size.is_named:
        return {"depth": size.depth, "stages": ()}
    named = next(depth for depth, known in RESNETS.items() if known.bottleneck == size.bottleneck)
    return {"depth": named, "stages": size.stages}


def resnet_name(depth: int, stages: Sequence[int]) -> str:
    """The name of the ResNet of a config's `model.depth` and `model.stages` (none: those of the depth)."""
    if depth not in RESNETS:
        return f"unknown ResNet-{depth}"
    named = RESNETS[depth]
    return ResNetSize(tuple(stages) or named.stages, named.bottleneck).name


def of_texts(texts: dict[str, dict[str, Any]], model: dict[str, Any], channels: int) -> Facts:
    """The facts of `of_tensors`, and what the JSON files {name: content} add."""
    if RECORD in texts:
        record = texts[RECORD]
        return Facts(model, channels, record=record.get("config", {}))
    config = texts.get("config.json", {})
    if "architecture" in config:
        return of_timm(config, model, channels)
    if "model_type" in config:
        return of_transformers(config, texts.get("preprocessor_config.json", {}), model, channels)
    return Facts(model, channels)


def of_timm(config: dict[str, Any], model: dict[str, Any], channels: int) -> Facts:
    """The facts with those of timm's config.json."""
    arguments, pretrained = config.get("model_args", {}), config.get("pretrained_cfg", config)
    if "num_heads" in arguments:
        model = model | {"heads": arguments["num_heads"]}
    size = arguments.get("img_size") or pretrained.get("input_size", (0, None, None))[1:]
    pool = arguments.get("global_pool", config.get("global_pool"))
    return Facts(
        model,
        channels,
        size=pair(size),
        mean=moments(pretrained.get("mean")),
        std=moments(pretrained.get("std")),
        feature={"token": "cls", "avg": "mean"}.get(pool),
    )


def of_transformers(
    config: dict[str, Any], preprocessor: dict[str, Any], model: dict[str, Any], channels: int
) -> Facts:
    """The facts with those of transformers' config.json and preprocessor_config.json."""
    ours = {"hidden_act": "relu" if config["model_type"] == "resnet" else "gelu", "downsample_in_bottleneck": False}
    for field, value in ours.items():
        if config.get(field, value) != value:
            raise UserError(f"config.json: {field}={config[field]!r} makes another network than ours ({value!r})")
    if "num_attention_heads" in config:
        model = model | {"heads": config["num_attention_heads"]}
    return Facts(
        model,
        channels,
        size=pair(config.get("image_size")),
        mean=moments(preprocessor.get("image_mean")),
        std=moments(preprocessor.get("image_std")),
    )


def eps_warning(texts: dict[str, dict[str, Any]]) -> str:
    """A warning for a transformers model whose LayerNorm is not quite ours; "" for others."""
    eps = texts.get("config.json", {}).get("layer_norm_eps", LAYER_NORM_EPS)
    if eps == LAYER_NORM_EPS:
        return ""
    return f"layer_norm_eps was {eps:g} there and is {LAYER_NORM_EPS:g} here: features differ slightly"


def pair(size: Any) -> tuple[int, int] | None:
    """(height, width) of one side or two; None where one is unknown."""
    if size is None or (isinstance(size, list | tuple) and None in size):
        return None
    return (size, size) if isinstance(size, int) else tuple(size)


def moments(values: Any) -> tuple[float, ...] | None:
    """Means or stds of the channels, as the config has them."""
    return None if values is None else tuple(values)


def with_config(fields: str) -> str:
    """The end of an error about weights of which a config must say more: the command that takes one."""
    return f"give python -m maskcl_jax.import_torch --config=FILE and {fields}"


def heads_of(facts: Facts, method: str) -> int:
    """The heads of a ViT: as a file states them, or those of the published size of this width. Else UserError."""
    if "heads" in facts.model:
        return facts.model["heads"]
    known = MOCO_V3_HEADS if method == "mocov3" else HEADS
    if facts.model["width"] not in known:
        raise UserError(
            f"how many heads a ViT of width {facts.model['width']} has cannot be read off its weights: "
            f"{with_config('--config.model.heads=N')}"
        )
    return known[facts.model["width"]]
