"""Layouts: which parameter of ours is which tensor of theirs. Data, read in both directions by `convert`.

A row is (our path, their key, transform). Our paths start with `params` or `batch_stats`.
"""

from typing import NamedTuple


class Row(NamedTuple):
    """One tensor: our path, their key, and the name of a transform in `convert.TRANSFORMS`."""

    ours: str
    theirs: str
    transform: str = "same"


def linear(ours: str, theirs: str, *, bias: bool = True) -> list[Row]:
    """A dense layer."""
    rows = [Row(f"{ours}/kernel", f"{theirs}.weight", "transpose")]
    return [*rows, Row(f"{ours}/bias", f"{theirs}.bias")] if bias else rows


def norm(ours: str, theirs: str) -> list[Row]:
    """A LayerNorm, or the affine part of a BatchNorm."""
    return [Row(f"{ours}/scale", f"{theirs}.weight"), Row(f"{ours}/bias", f"{theirs}.bias")]


def running(ours: str, theirs: str) -> list[Row]:
    """A BatchNorm's running statistics; theirs count batches too, which nothing of ours reads."""
    return [
        Row(f"{ours}/mean", f"{theirs}.running_mean"),
        Row(f"{ours}/var", f"{theirs}.running_var"),
        Row("", f"{theirs}.num_batches_tracked", "counter"),
    ]


def blocks(ours: str, theirs: str, depth: int) -> list[Row]:
    """Transformer blocks by timm's names."""
    rows = []
    for i in range(depth):
        a, b = f"{ours}/blocks_{i}", f"{theirs}.{i}"
        rows += norm(f"{a}/norm1", f"{b}.norm1") + linear(f"{a}/attn/qkv", f"{b}.attn.qkv")
        rows += linear(f"{a}/attn/proj", f"{b}.attn.proj") + norm(f"{a}/norm2", f"{b}.norm2")
        rows += linear(f"{a}/mlp/fc1", f"{b}.mlp.fc1") + linear(f"{a}/mlp/fc2", f"{b}.mlp.fc2")
    return rows


def encoder(depth: int, ours: str = "params/encoder") -> list[Row]:
    """A ViT without positions and final norm, by timm's names."""
    return [
        Row(f"{ours}/cls_token", "cls_token"),
        Row(f"{ours}/patch_embed/kernel", "patch_embed.proj.weight", "patch_conv"),
        Row(f"{ours}/patch_embed/bias", "patch_embed.proj.bias"),
        *blocks(ours, "blocks", depth),
    ]


def timm_vit(depth: int) -> list[Row]:
    """timm's VisionTransformer with learned positions, without its head."""
    return [
        *encoder(depth),
        Row("params/encoder/pos_embed", "pos_embed"),
        *norm("params/encoder/norm", "norm"),
    ]


def mae(depth: int, decoder_depth: int) -> list[Row]:
    """facebookresearch/mae `models_mae.py`, encoder and decoder."""
    decoder = "params/decoder"
    return [
        *encoder(depth),
        Row("encoder", "pos_embed", "table"),
        *norm("params/encoder/norm", "norm"),
        *linear(f"{decoder}/embed", "decoder_embed"),
        Row(f"{decoder}/mask_token", "mask_token"),
        Row("decoder", "decoder_pos_embed", "table"),
        *blocks(decoder, "decoder_blocks", decoder_depth),
        *norm(f"{decoder}/norm", "decoder_norm"),
        *linear(f"{decoder}/pred", "decoder_pred"),
    ]


def ccmim(depth: int, decoder_depth: int) -> list[Row]:
    """Sherrylone/ccMIM `models_ccmim.py`: MAE's keys and the projector's."""
    ours = "params/projector"
    return [
        *mae(depth, decoder_depth),
        *linear(f"{ours}/fc1", "projector.0", bias=False),
        *norm(f"{ours}/bn1", "projector.1"),
        *running("batch_stats/bn1", "projector.1"),
        *linear(f"{ours}/fc2", "projector.3", bias=False),
        *running("batch_stats/bn2", "projector.4"),
    ]
