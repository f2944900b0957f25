"""Layouts: which parameter of ours is which tensor of theirs. Data, read in both directions by `convert`.

A row is (our path, their key, transform). Our paths start with `params` or `batch_stats`; those of an EMA target with
`target_params` or `target_batch_stats`.
"""

from typing import NamedTuple

from maskcl_jax.models.resnet import RESNET_DEPTHS


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
    """A BatchNorm's running statistics, and how often they moved."""
    return [
        Row(f"{ours}/mean", f"{theirs}.running_mean"),
        Row(f"{ours}/var", f"{theirs}.running_var"),
        Row(f"{ours}/count", f"{theirs}.num_batches_tracked", "counter"),
    ]


class Names(NamedTuple):
    """What a code base calls the parts of a ViT."""

    patch_embed: str = "patch_embed.proj"
    blocks: str = "blocks"
    norm1: str = "norm1"
    norm2: str = "norm2"
    fc1: str = "mlp.fc1"
    fc2: str = "mlp.fc2"


TIMM = Names()
MMENGINE = Names("patch_embed.projection", "layers", "ln1", "ln2", "ffn.layers.0.0", "ffn.layers.1")


def blocks(ours: str, theirs: str, depth: int, names: Names = TIMM) -> list[Row]:
    """Transformer blocks."""
    rows = []
    for i in range(depth):
        a, b = f"{ours}/blocks_{i}", f"{theirs}.{i}"
        rows += norm(f"{a}/norm1", f"{b}.{names.norm1}") + linear(f"{a}/attn/qkv", f"{b}.attn.qkv")
        rows += linear(f"{a}/attn/proj", f"{b}.attn.proj") + norm(f"{a}/norm2", f"{b}.{names.norm2}")
        rows += linear(f"{a}/mlp/fc1", f"{b}.{names.fc1}") + linear(f"{a}/mlp/fc2", f"{b}.{names.fc2}")
    return rows


def encoder(depth: int, ours: str = "params/encoder", prefix: str = "", names: Names = TIMM) -> list[Row]:
    """A ViT without positions and final norm; their keys begin with `prefix`."""
    return [
        Row(f"{ours}/cls_token", f"{prefix}cls_token"),
        Row(f"{ours}/patch_embed/kernel", f"{prefix}{names.patch_embed}.weight", "patch_conv"),
        Row(f"{ours}/patch_embed/bias", f"{prefix}{names.patch_embed}.bias"),
        *blocks(ours, f"{prefix}{names.blocks}", depth, names),
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


def cmae(depth: int, pixel_depth: int, feature_depth: int) -> list[Row]:
    """ZhichengHuang/CMAE: online and target networks, both decoders, heads; the heads' running statistics apart."""
    rows = [
        *encoder(depth, "params/encoder", "backbone.", MMENGINE),
        Row("encoder", "backbone.pos_embed", "table"),
        *norm("params/encoder/norm", "backbone.ln1"),
        *encoder(depth, "target_params/encoder", "target_backbone.", MMENGINE),
        Row("encoder", "target_backbone.pos_embed", "table"),
    ]
    decoders = (("decoder", "pixel_decoder", pixel_depth), ("feature_decoder", "feature_decoder", feature_depth))
    for ours, theirs, decoder_depth in decoders:
        rows += [
            Row(f"params/{ours}/mask_token", f"{theirs}.mask_token"),
            Row(ours, f"{theirs}.decoder_pos_embed", "table"),
            *linear(f"params/{ours}/embed", f"{theirs}.decoder_embed"),
            *blocks(f"params/{ours}", f"{theirs}.decoder_blocks", decoder_depth, MMENGINE),
            *norm(f"params/{ours}/norm", f"{theirs}.ln1"),
            *linear(f"params/{ours}/pred", f"{theirs}.decoder_pred"),
        ]
    heads = (
        ("params/projector", "projector"),
        ("target_params/projector", "target_projector"),
        ("params/predictor", "head.predictor"),
    )
    for ours, theirs in heads:
        rows += [
            *linear(f"{ours}/fc1", f"{theirs}.fc0"),
            *norm(f"{ours}/bn1", f"{theirs}.bn0"),
            *linear(f"{ours}/fc2", f"{theirs}.fc1", bias=False),
        ]
    return rows


def cmae_statistics() -> list[Row]:
    """The running statistics of CMAE's three heads."""
    return [
        *running("batch_stats/projector/bn1", "projector.bn0"),
        *running("batch_stats/predictor/bn1", "head.predictor.bn0"),
        *running("target_batch_stats/projector/bn1", "target_projector.bn0"),
    ]


def mocov3(depth: int) -> list[Row]:
    """facebookresearch/moco-v3 `MoCo_ViT`: base and momentum encoder with their projector as `head`, predictor."""
    rows = []
    for ours, theirs in (("", "base_encoder."), ("target_", "momentum_encoder.")):
        rows += [
            *encoder(depth, f"{ours}params/encoder", theirs),
            Row("encoder", f"{theirs}pos_embed", "table"),
            *norm(f"{ours}params/encoder/norm", f"{theirs}norm"),
            *mocov3_head(ours, "projector", f"{theirs}head", layers=3),
        ]
    return rows + mocov3_head("", "predictor", "predictor", layers=2)


def mocov3_head(target: str, ours: str, theirs: str, *, layers: int) -> list[Row]:
    """Linear, BatchNorm and ReLU as the numbers of a torch Sequential; the last BatchNorm has no scale and bias."""
    rows = []
    for i in range(layers):
        rows += linear(f"{target}params/{ours}/fc{i + 1}", f"{theirs}.{3 * i}", bias=False)
        if i < layers - 1:
            rows += norm(f"{target}params/{ours}/bn{i + 1}", f"{theirs}.{3 * i + 1}")
        rows += running(f"{target}batch_stats/{ours}/bn{i + 1}", f"{theirs}.{3 * i + 1}")
    return rows


def batch_norm(ours: str, theirs: str, target: str = "") -> list[Row]:
    """A BatchNorm: scale, bias and running statistics. ours: the path below `params` and `batch_stats`."""
    return [*norm(f"{target}params/{ours}", theirs), *running(f"{target}batch_stats/{ours}", theirs)]


def resnet(depth: int, ours: str = "encoder", prefix: str = "", target: str = "") -> list[Row]:
    """torchvision's and timm's ResNet without its classifier; their keys begin with `prefix`.

    target: "target_" for an EMA target's. The shortcut of the first stage has a convolution in bottlenecks only.
    """
    counts, bottleneck = RESNET_DEPTHS[depth]

    def layer(a: str, b: str, conv: str, bn: str, suffix: str) -> list[Row]:
        kernel = Row(f"{target}params/{a}conv{suffix}/kernel", f"{prefix}{b}{conv}.weight", "conv")
        return [kernel, *batch_norm(f"{a}bn{suffix}", f"{prefix}{b}{bn}", target)]

    rows = layer(f"{ours}/", "", "conv1", "bn1", "1")
    for stage, count in enumerate(counts, start=1):
        for i in range(count):
            a, b = f"{ours}/layer{stage}_{i}/", f"layer{stage}.{i}."
            for n in range(1, 4 if bottleneck else 3):
                rows += layer(a, b, f"conv{n}", f"bn{n}", str(n))
            if i == 0 and (stage > 1 or bottleneck):
                rows += layer(a, b, "downsample.0", "downsample.1", "_shortcut")
    return rows


def mocov2(depth: int) -> list[Row]:
    """facebookresearch/moco `MoCo` with --mlp: query and key encoder, each with its head as `fc`."""
    rows = []
    for target, theirs in (("", "encoder_q."), ("target_", "encoder_k.")):
        rows += resnet(depth, prefix=theirs, target=target)
        rows += linear(f"{target}params/projector/fc1", f"{theirs}fc.0")
        rows += linear(f"{target}params/projector/fc2", f"{theirs}fc.2")
    return rows
