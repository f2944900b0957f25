"""Which layouts a code base or tool has: one for its ViT, its ResNet, or its whole pre-training model."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from maskcl_jax.interchange import layouts
from maskcl_jax.interchange.layouts import Row
from maskcl_jax.models.resnet import RESNETS, ResNetSize


class Depths(NamedTuple):
    """The sizes that the names of a state dict depend on.

    Attributes:
        encoder: Blocks of a ViT; 0 for a ResNet.
        decoder: Blocks of the decoder.
        feature_decoder: Blocks of CMAE's second decoder.
        head: Layers of MoCo v2's projector.
        final_norm: Whether the ViT has one (CMAE's target does not).
        resnet: The stages of a ResNet.
    """

    encoder: int = 0
    decoder: int = 0
    feature_decoder: int = 0
    head: int = 2
    final_norm: bool = True
    resnet: ResNetSize = RESNETS[10]


class Layout(NamedTuple):
    """The names of one network in one code base.

    Attributes:
        rows: Depths -> the table.
        marker: A key by which the network is recognized.
        counted: Field of `Depths` -> the prefix of its numbered blocks; {} for a ResNet.
        prefixes: That every key of the network may have; keys without it are then another network's.
        others: A pattern of keys that may be left out: classifiers, another network.
        stages: Of a ResNet, the prefix of the keys of its blocks, and their names.
    """

    rows: Callable[[Depths], list[Row]]
    marker: str
    counted: dict[str, str]
    prefixes: tuple[str, ...] = ("",)
    others: str = ""
    stages: tuple[str, layouts.ConvNames] | None = None


def vit(names: layouts.Names, *, prefixes: tuple[str, ...] = ("",), others: str) -> Layout:
    """A ViT alone."""
    return Layout(
        lambda d: layouts.vit(d.encoder, names=names, final_norm=d.final_norm),
        names.cls_token,
        {"encoder": f"{names.blocks}."},
        prefixes,
        others,
    )


def resnet(names: layouts.ConvNames, *, prefixes: tuple[str, ...] = ("",), others: str) -> Layout:
    """A ResNet alone."""
    marker = f"{names.stem[0]}.weight"
    return Layout(lambda d: layouts.resnet(d.resnet, names=names), marker, {}, prefixes, others, ("", names))


MAE_BLOCKS = {"encoder": "blocks.", "decoder": "decoder_blocks."}
CMAE_BLOCKS = {
    "encoder": "backbone.layers.",
    "decoder": "pixel_decoder.decoder_blocks.",
    "feature_decoder": "feature_decoder.decoder_blocks.",
}
MOCO_OTHERS = r"fc\..*|encoder_[qk]\..*|queue(_ptr)?"

# Whole models come first: their markers are the rarer ones.
LAYOUTS: dict[str, dict[str, Layout]] = {
    "timm": {
        "vit": vit(layouts.TIMM, others=r"head\..*"),
        "resnet": resnet(layouts.TORCHVISION, others=r"fc\..*"),
    },
    "hf": {
        "full": Layout(
            lambda d: layouts.hf_mae(d.encoder, d.decoder),
            "decoder.mask_token",
            {"encoder": "vit.encoder.layer.", "decoder": "decoder.decoder_layers."},
        ),
        "vit": vit(layouts.HF, prefixes=("", "vit."), others=r"pooler\..*|classifier\..*"),
        "resnet": resnet(layouts.HF_RESNET, prefixes=("", "resnet."), others=r"classifier\..*"),
    },
    "mae": {
        "full": Layout(lambda d: layouts.mae(d.encoder, d.decoder), "decoder_embed.weight", MAE_BLOCKS),
        "vit": vit(layouts.TIMM, others=r"head\..*"),
    },
    "ccmim": {
        "full": Layout(lambda d: layouts.ccmim(d.encoder, d.decoder), "projector.0.weight", MAE_BLOCKS),
        "vit": vit(layouts.TIMM, others=r"head\..*"),
    },
    "cmae": {
        "full": Layout(
            lambda d: layouts.cmae(d.encoder, d.decoder, d.feature_decoder) + layouts.cmae_statistics(),
            "target_backbone.cls_token",
            CMAE_BLOCKS,
        ),
        "vit": vit(layouts.MMENGINE, prefixes=("", "backbone."), others=r"head\..*"),
    },
    "mocov3": {
        "full": Layout(
            lambda d: layouts.mocov3(d.encoder), "momentum_encoder.cls_token", {"encoder": "base_encoder.blocks."}
        ),
        "vit": vit(layouts.TIMM, prefixes=("", "base_encoder."), others=r"head\..*|predictor\..*"),
    },
    "moco_v2": {
        "full": Layout(
            lambda d: layouts.mocov2(d.resnet, d.head) + layouts.mocov2_queue(),
            "encoder_k.conv1.weight",
            {},
            stages=("encoder_q.", layouts.TORCHVISION),
        ),
        "resnet": resnet(layouts.TORCHVISION, prefixes=("", "encoder_q."), others=MOCO_OTHERS),
    },
    "torchvision": {
        "resnet": resnet(layouts.TORCHVISION, prefixes=("", "encoder_q."), others=MOCO_OTHERS),
    },
    "detectron2": {"resnet": resnet(layouts.DETECTRON2, others=r"(stem\.)?fc\..*")},
    "mmpretrain": {
        "vit": vit(layouts.MMENGINE, prefixes=("", "backbone."), others=r"head\..*"),
        "resnet": resnet(layouts.TORCHVISION, prefixes=("", "backbone."), others=r"head\..*|fc\..*"),
    },
    "mmdet": {"resnet": resnet(layouts.TORCHVISION, prefixes=("", "backbone."), others=r"fc\..*")},
}


def depths_of(keys: Sequence[str], layout: Layout) -> Depths:
    """The depths of the network whose keys these are."""
    if layout.stages is not None:
        head = sum("encoder_q.fc" in key and "weight" in key for key in keys)
        return Depths(resnet=resnet_size(keys, *layout.stages), head=head)

    def count(prefix: str) -> int:
        numbers = (re.match(rf"{re.escape(prefix)}(\d+)\.", key) for key in keys)
        return 1 + max((int(number[1]) for number in numbers if number), default=-1)

    counts: dict[str, Any] = {field: count(prefix) for field, prefix in layout.counted.items()}
    return Depths(**counts)


def resnet_size(keys: Sequence[str], prefix: str, names: layouts.ConvNames) -> ResNetSize:
    """The blocks that these keys name; a ResNet-10 where they name none, so that all of its keys are missing."""
    block = re.escape(prefix + names.block).replace(r"\{stage\}", r"(\d+)").replace(r"\{i\}", r"(\d+)")
    blocks = {(int(match[1]), int(match[2])) for match in (re.match(block, key) for key in keys) if match}
    if not blocks:
        return RESNETS[10]
    count = 1 + max(stage for stage, _ in blocks) - names.first_stage
    stages = [{i for stage, i in blocks if stage == names.first_stage + number} for number in range(count)]
    third = names.layer[0].format(n=2 + names.first_conv)
    bottleneck = any(re.match(block + re.escape(third), key) for key in keys)
    return ResNetSize(tuple(1 + max(numbers, default=0) for numbers in stages), bottleneck)
