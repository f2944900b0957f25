"""Layouts: which parameter of ours is which tensor of theirs. Data, read in both directions by `convert`.

A row is (our path, their key, transform). Our paths start with `params` or `batch_stats`; those of an EMA target with
`target_params` or `target_batch_stats`, those of a queue with `queue`.
"""

from typing import NamedTuple

from maskcl_jax.models.resnet import ResNetSize


class Row(NamedTuple):
    """One tensor.

    Attributes:
        ours: Our path, "params/encoder/cls_token".
        theirs: Their key.
        transform: A name in `convert.TRANSFORMS`.
        part: Where they have three tensors for one of ours, which third of our last dimension this is.
    """

    ours: str
    theirs: str
    transform: str = "same"
    part: int | None = None


def linear(ours: str, theirs: str, *, bias: bool = True, part: int | None = None) -> list[Row]:
    """A dense layer, or a third of one."""
    rows = [Row(f"{ours}/kernel", f"{theirs}.weight", "transpose", part)]
    return [*rows, Row(f"{ours}/bias", f"{theirs}.bias", part=part)] if bias else rows


def norm_rows(ours: str, theirs: str) -> list[Row]:
    """A LayerNorm, or the affine part of a BatchNorm."""
    return [Row(f"{ours}/scale", f"{theirs}.weight"), Row(f"{ours}/bias", f"{theirs}.bias")]


def statistics_rows(ours: str, theirs: str) -> list[Row]:
    """A BatchNorm's running statistics, and the number of updates."""
    return [
        Row(f"{ours}/mean", f"{theirs}.running_mean"),
        Row(f"{ours}/var", f"{theirs}.running_var"),
        Row(f"{ours}/count", f"{theirs}.num_batches_tracked", "counter"),
    ]


class Names(NamedTuple):
    """What a code base calls the parts of a ViT; qkv: one fused layer, or three."""

    cls_token: str = "cls_token"
    positions: str = "pos_embed"
    patch_embed: str = "patch_embed.proj"
    blocks: str = "blocks"
    norm1: str = "norm1"
    qkv: tuple[str, ...] = ("attn.qkv",)
    proj: str = "attn.proj"
    norm2: str = "norm2"
    fc1: str = "mlp.fc1"
    fc2: str = "mlp.fc2"
    norm: str = "norm"


TIMM = Names()
MMENGINE = Names(
    patch_embed="patch_embed.projection",
    blocks="layers",
    norm1="ln1",
    norm2="ln2",
    fc1="ffn.layers.0.0",
    fc2="ffn.layers.1",
    norm="ln1",
)
# On disk in transformers 4 and 5; version 5 has other names in memory.
HF = Names(
    cls_token="embeddings.cls_token",
    positions="embeddings.position_embeddings",
    patch_embed="embeddings.patch_embeddings.projection",
    blocks="encoder.layer",
    norm1="layernorm_before",
    qkv=tuple(f"attention.attention.{name}" for name in ("query", "key", "value")),
    proj="attention.output.dense",
    norm2="layernorm_after",
    fc1="intermediate.dense",
    fc2="output.dense",
    norm="layernorm",
)


def blocks(ours: str, theirs: str, depth: int, names: Names = TIMM) -> list[Row]:
    """Transformer blocks."""
    rows = []
    for i in range(depth):
        a, b = f"{ours}/blocks_{i}", f"{theirs}.{i}"
        rows += norm_rows(f"{a}/norm1", f"{b}.{names.norm1}") + norm_rows(f"{a}/norm2", f"{b}.{names.norm2}")
        for part, name in enumerate(names.qkv):
            rows += linear(f"{a}/attn/qkv", f"{b}.{name}", part=None if len(names.qkv) == 1 else part)
        rows += linear(f"{a}/attn/proj", f"{b}.{names.proj}")
        rows += linear(f"{a}/mlp/fc1", f"{b}.{names.fc1}") + linear(f"{a}/mlp/fc2", f"{b}.{names.fc2}")
    return rows


def vit(
    depth: int, ours: str = "params/encoder", prefix: str = "", names: Names = TIMM, *, final_norm: bool = True
) -> list[Row]:
    """A ViT without a head; their keys begin with `prefix`."""
    return [
        Row(f"{ours}/cls_token", f"{prefix}{names.cls_token}"),
        Row(f"{ours}/pos_embed", f"{prefix}{names.positions}", "table"),
        Row(f"{ours}/patch_embed/kernel", f"{prefix}{names.patch_embed}.weight", "patch_conv"),
        Row(f"{ours}/patch_embed/bias", f"{prefix}{names.patch_embed}.bias"),
        *blocks(ours, f"{prefix}{names.blocks}", depth, names),
        *(norm_rows(f"{ours}/norm", f"{prefix}{names.norm}") if final_norm else []),
    ]


def timm_vit(depth: int) -> list[Row]:
    """timm's VisionTransformer without its head."""
    return vit(depth)


def decoder(
    depth: int,
    ours: str = "decoder",
    prefix: str = "",
    names: Names = TIMM,
    *,
    layers: str = "decoder_blocks",
    last_norm: str = "decoder_norm",
) -> list[Row]:
    """The decoder of a masked autoencoder; their keys begin with `prefix`."""
    path = f"params/{ours}"
    return [
        Row(f"{path}/mask_token", f"{prefix}mask_token"),
        Row(f"{path}/pos_embed", f"{prefix}decoder_pos_embed", "table"),
        *linear(f"{path}/embed", f"{prefix}decoder_embed"),
        *blocks(path, f"{prefix}{layers}", depth, names),
        *norm_rows(f"{path}/norm", f"{prefix}{last_norm}"),
        *linear(f"{path}/pred", f"{prefix}decoder_pred"),
    ]


def mae(depth: int, decoder_depth: int) -> list[Row]:
    """facebookresearch/mae `models_mae.py`, encoder and decoder."""
    return vit(depth) + decoder(decoder_depth)


def hf_mae(depth: int, decoder_depth: int) -> list[Row]:
    """transformers' ViTMAEForPreTraining: the spelling of version 4, which version 5 reads too (but does not write)."""
    return vit(depth, prefix="vit.", names=HF) + decoder(
        decoder_depth, prefix="decoder.", names=HF, layers="decoder_layers"
    )


def ccmim(depth: int, decoder_depth: int) -> list[Row]:
    """Sherrylone/ccMIM `models_ccmim.py`: MAE's keys and the projector's."""
    ours = "params/projector"
    return [
        *mae(depth, decoder_depth),
        *linear(f"{ours}/fc1", "projector.0", bias=False),
        *norm_rows(f"{ours}/bn1", "projector.1"),
        *statistics_rows("batch_stats/bn1", "projector.1"),
        *linear(f"{ours}/fc2", "projector.3", bias=False),
        *statistics_rows("batch_stats/bn2", "projector.4"),
    ]


def cmae(depth: int, pixel_depth: int, feature_depth: int) -> list[Row]:
    """ZhichengHuang/CMAE: online and target networks, both decoders, heads; the heads' running statistics apart."""
    rows = [
        *vit(depth, "params/encoder", "backbone.", MMENGINE),
        *vit(depth, "target_params/encoder", "target_backbone.", MMENGINE, final_norm=False),
        *decoder(pixel_depth, "decoder", "pixel_decoder.", MMENGINE, last_norm="ln1"),
        *decoder(feature_depth, "feature_decoder", "feature_decoder.", MMENGINE, last_norm="ln1"),
    ]
    heads = (
        ("params/projector", "projector"),
        ("target_params/projector", "target_projector"),
        ("params/predictor", "head.predictor"),
    )
    for ours, theirs in heads:
        rows += [
            *linear(f"{ours}/fc1", f"{theirs}.fc0"),
            *norm_rows(f"{ours}/bn1", f"{theirs}.bn0"),
            *linear(f"{ours}/fc2", f"{theirs}.fc1", bias=False),
        ]
    return rows


def cmae_statistics() -> list[Row]:
    """The running statistics of CMAE's three heads."""
    return [
        *statistics_rows("batch_stats/projector/bn1", "projector.bn0"),
        *statistics_rows("batch_stats/predictor/bn1", "head.predictor.bn0"),
        *statistics_rows("target_batch_stats/projector/bn1", "target_projector.bn0"),
    ]


def mocov3(depth: int) -> list[Row]:
    """facebookresearch/moco-v3 `MoCo_ViT`: base and momentum encoder with their projector as `head`, predictor."""
    rows = []
    for ours, theirs in (("", "base_encoder."), ("target_", "momentum_encoder.")):
        rows += [
            *vit(depth, f"{ours}params/encoder", theirs),
            *mocov3_head(ours, "projector", f"{theirs}head", layers=3),
        ]
    return rows + mocov3_head("", "predictor", "predictor", layers=2)


def mocov3_head(target: str, ours: str, theirs: str, *, layers: int) -> list[Row]:
    """Linear, BatchNorm and ReLU as the numbers of a torch Sequential; the last BatchNorm has no scale and bias."""
    rows = []
    for i in range(layers):
        rows += linear(f"{target}params/{ours}/fc{i + 1}", f"{theirs}.{3 * i}", bias=False)
        if i < layers - 1:
            rows += norm_rows(f"{target}params/{ours}/bn{i + 1}", f"{theirs}.{3 * i + 1}")
        rows += statistics_rows(f"{target}batch_stats/{ours}/bn{i + 1}", f"{theirs}.{3 * i + 1}")
    return rows


def batch_norm(ours: str, theirs: str, target: str = "") -> list[Row]:
    """A BatchNorm: scale, bias and running statistics; `ours` is the path below `params` and `batch_stats`."""
    return [*norm_rows(f"{target}params/{ours}", theirs), *statistics_rows(f"{target}batch_stats/{ours}", theirs)]


class ConvNames(NamedTuple):
    """What a code base calls the parts of a ResNet: for each layer, its convolution and its BatchNorm.

    {stage} counts from first_stage, {n} from first_conv, {i} from 0.
    """

    stem: tuple[str, str] = ("conv1", "bn1")
    block: str = "layer{stage}.{i}."
    layer: tuple[str, str] = ("conv{n}", "bn{n}")
    shortcut: tuple[str, str] = ("downsample.0", "downsample.1")
    first_stage: int = 1
    first_conv: int = 1


TORCHVISION = ConvNames()  # timm's, too
HF_RESNET = ConvNames(
    stem=("embedder.embedder.convolution", "embedder.embedder.normalization"),
    block="encoder.stages.{stage}.layers.{i}.",
    layer=("layer.{n}.convolution", "layer.{n}.normalization"),
    shortcut=("shortcut.convolution", "shortcut.normalization"),
    first_stage=0,
    first_conv=0,
)
# Source: facebookresearch/moco `detection/convert-pretrain.py`.
DETECTRON2 = ConvNames(
    stem=("stem.conv1", "stem.conv1.norm"),
    block="res{stage}.{i}.",
    layer=("conv{n}", "conv{n}.norm"),
    shortcut=("shortcut", "shortcut.norm"),
    first_stage=2,
)


def resnet(
    size: ResNetSize, ours: str = "encoder", prefix: str = "", target: str = "", names: ConvNames = TORCHVISION
) -> list[Row]:
    """A ResNet without its classifier; their keys begin with `prefix`.

    target: "target_" for an EMA target's. The shortcut of the first stage has a convolution in bottlenecks only.
    """
    counts, bottleneck = size

    def layer(a: str, suffix: str, theirs: tuple[str, str], above: str = "", **numbers: int) -> list[Row]:
        conv, bn = (f"{prefix}{above}{name.format(**numbers)}" for name in theirs)
        kernel = Row(f"{target}params/{a}conv{suffix}/kernel", f"{conv}.weight", "conv")
        return [kernel, *batch_norm(f"{a}bn{suffix}", bn, target)]

    rows = layer(f"{ours}/", "1", names.stem)
    for stage, count in enumerate(counts):
        for i in range(count):
            a = f"{ours}/layer{stage + 1}_{i}/"
            b = names.block.format(stage=stage + names.first_stage, i=i)
            for n in range(3 if bottleneck else 2):
                rows += layer(a, str(n + 1), names.layer, b, n=n + names.first_conv)
            if i == 0 and (stage or bottleneck):
                rows += layer(a, "_shortcut", names.shortcut, b)
    return rows


def mocov2(size: ResNetSize, layers: int = 2) -> list[Row]:
    """facebookresearch/moco `MoCo`: query and key encoder, each with its head as `fc`."""
    rows = []
    for target, theirs in (("", "encoder_q."), ("target_", "encoder_k.")):
        rows += resnet(size, prefix=theirs, target=target)
        for i in range(layers):  # of a torch Sequential; one layer alone is none
            name = f"{theirs}fc.{2 * i}" if layers > 1 else f"{theirs}fc"
            rows += linear(f"{target}params/projector/fc{i + 1}", name)
    return rows


def mocov2_queue() -> list[Row]:
    """The queue of facebookresearch/moco: keys are columns there."""
    return [Row("queue/keys", "queue", "transpose"), Row("queue/pointer", "queue_ptr", "pointer")]
