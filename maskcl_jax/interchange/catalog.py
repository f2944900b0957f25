"""Which layouts a code base or tool has: one for its ViT, its ResNet, or its whole pre-training model."""

import re
from collections.abc import Callable
from typing import NamedTuple

from maskcl_jax.interchange import layouts
from maskcl_jax.interchange.layouts import Row
from maskcl_jax.models.resnet import RESNET_DEPTHS


class Depths(NamedTuple):
    """How many of each a network has: all that the names of a state dict depend on.

    encoder: blocks of a ViT, or the depth of a ResNet. head: layers of MoCo v2's projector. final_norm: whether the ViT
    has one (CMAE's target has none).
    """

    encoder: int
    decoder: int = 0
    feature_decoder: int = 0
    head: int = 2
    final_norm: bool = True


class Layout(NamedTuple):
    """The names of one network in one code base.

    marker: a key by which it is known. counted: field of `Depths` -> what stands before the numbers of its blocks ({}
    for a ResNet, whose depth follows from all its keys). prefixes: what may stand before every key of it; keys without
    it are then another network's. others: a pattern of keys that may be left out: classifiers, another network.
    """

    rows: Callable[[Depths], list[Row]]
    marker: str
    counted: dict[str, str]
    prefixes: tuple[str, ...] = ("",)
    others: str = ""


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
    return Layout(lambda d: layouts.resnet(d.encoder, names=names), marker, {}, prefixes, others)


MAE_BLOCKS = {"encoder": "blocks.", "decoder": "decoder_blocks."}
CMAE_BLOCKS = {
    "encoder": "backbone.layers.",
    "decoder": "pixel_decoder.decoder_blocks.",
    "feature_decoder": "feature_decoder.decoder_blocks.",
}
MOCO_OTHERS = r"fc\..*|encoder_[qk]\..*|queue(_ptr)?"

# Of each name the whole models come first: their markers are the rarer ones.
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
            lambda d: layouts.mocov2(d.encoder, d.head) + layouts.mocov2_queue(), "encoder_k.conv1.weight", {}
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


def depths_of(keys, layout: Layout) -> Depths:
    """The depths of the network whose keys these are."""
    if not layout.counted:
        return Depths(resnet_depth(keys, layout), head=sum("encoder_q.fc" in key and "weight" in key for key in keys))
    counts = {}
    for field, before in layout.counted.items():
        numbers = (re.match(rf"{re.escape(before)}(\d+)\.", key) for key in keys)
        counts[field] = 1 + max((int(number[1]) for number in numbers if number), default=-1)
    return Depths(**counts)


def resnet_depth(keys, layout: Layout) -> int:
    """The depth whose keys are the most like these."""

    def strangers(depth: int) -> int:
        return len({row.theirs for row in layout.rows(Depths(depth))} ^ set(keys))

    return min(RESNET_DEPTHS, key=strangers)
