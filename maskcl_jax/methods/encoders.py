"""The networks of a method: encoders and decoders as a config describes them, features, heads by name."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskcl_jax.config import is_vit
from maskcl_jax.errors import UserError, check_choice
from maskcl_jax.models.kernels import resolve
from maskcl_jax.models.resnet import RESNETS, STEMS, ResNet, average_pool
from maskcl_jax.models.vit import Decoder, ViT

ATTENTIONS = ("xla", "cudnn")
Stats = dict[str, Any]  # {network: its BatchNorm statistics}; `params` too has one entry a network


def vit(config: Any, *, positions: str, **fields: Any) -> ViT:
    """Returns the ViT of `config.model`. Raises UserError if it does not fit the images.

    positions: the table of the method; `config.model.positions`, which only runs of imported weights have, wins.
    """
    check_vit(config)
    m = config.model
    return ViT(
        image_size=tuple(config.data.image_size),
        channels=config.data.channels,
        patch_size=m.patch_size,
        width=m.width,
        depth=m.depth,
        heads=m.heads,
        mlp_ratio=m.mlp_ratio,
        positions=getattr(m, "positions", positions),
        dtype=jnp.dtype(config.dtype),
        **_compiled_as(config),
        **fields,
    )


def decoder(config: Any, field: str, *, grid: tuple[int, int], out: int, positions: str) -> Decoder:
    """Returns the decoder that `config.method.FIELD` describes. Raises UserError for sizes that do not fit.

    out: numbers per patch.
    """
    d = getattr(config.method, field)
    _check_transformer(f"method.{field}", d)
    _check_attention(config, f"method.{field}", d)
    return Decoder(
        grid=grid,
        width=d.width,
        depth=d.depth,
        heads=d.heads,
        out=out,
        mlp_ratio=d.mlp_ratio,
        positions=positions,
        dtype=jnp.dtype(config.dtype),
        **_compiled_as(config),
    )


def resnet(config: Any, *, bn_group_size: int = 0) -> ResNet:
    """Returns the ResNet of `config.model`. Raises UserError if there is none, or of unknown size."""
    m = config.model
    if is_vit(m):
        raise UserError(f"method {config.method.name!r} needs a ResNet: write for instance variant=R50 or R18/small")
    if m.depth not in RESNETS:
        raise UserError(f"model.depth={m.depth} is unknown: use one of {', '.join(map(str, RESNETS))}")
    # Other stages than those of the named depth, whose kind of blocks they have.
    stages = tuple(getattr(m, "stages", ())) or RESNETS[m.depth].stages
    if min(stages) < 1:
        raise UserError(f"model.stages={stages} is out of range: give the blocks of each stage, 1 or more")
    if m.width < 1:
        raise UserError(f"model.width={m.width} is out of range: use 1 or more")
    check_choice("model.stem", m.stem, STEMS)
    if config.scan:
        raise UserError("scan=True is for the blocks of a ViT, which are alike; a ResNet's are not: set it to False")
    size = {"stages": stages, "bottleneck": RESNETS[m.depth].bottleneck, "width": m.width, "stem": m.stem}
    options = {"dtype": jnp.dtype(config.dtype), "remat": _remat(config), "kernels": _kernels(config)}
    return ResNet(**size, **options, bn_group_size=bn_group_size)


def features(encoder: nn.Module, variables: dict[str, Any], images: jax.Array, *, kind: str) -> jax.Array:
    """Returns (B, D) float32 features in evaluation mode.

    Args:
        encoder: A `ViT` or a `ResNet`.
        variables: Its parameters and, of a ResNet, running statistics.
        images: As the encoder takes them.
        kind: Of a ViT: "cls", or "mean" of the patch tokens. A ResNet has the mean of its last feature map only.
    """
    if isinstance(encoder, ViT):
        return pooled(encoder.apply(variables, images), kind)
    return average_pool(encoder.apply(variables, images, train=False))


def pooled(tokens: jax.Array, kind: str) -> jax.Array:
    """Tokens (B, 1 + n, D), cls first -> (B, D) float32: the mean of the patch tokens ("mean") or the cls token."""
    tokens = tokens.astype(jnp.float32)
    return tokens[:, 1:].mean(axis=1) if kind == "mean" else tokens[:, 0]


def init_heads(heads: Mapping[str, tuple[nn.Module, int]], rng: jax.Array) -> tuple[dict[str, Any], Stats]:
    """Returns (params, batch_stats) of heads {name: (module, width of its input)}."""
    params, stats = {}, {}
    for (name, (head, width)), key in zip(heads.items(), jax.random.split(rng, len(heads)), strict=True):
        variables = head.init(key, jnp.zeros((2, width)), train=True)
        params[name] = variables["params"]
        if "batch_stats" in variables:
            stats[name] = variables["batch_stats"]
    return params, stats


def apply_in_training(
    network: nn.Module, name: str, params: Mapping[str, Any], stats: Stats, x: jax.Array
) -> tuple[jax.Array, Stats]:
    """Applies the network `name` in training mode.

    Args:
        network: The module.
        name: Of its parameters in `params` and, if it has BatchNorm, of its statistics in `stats`.
        params: Of all networks.
        stats: BatchNorm statistics of all networks.
        x: Its input.

    Returns:
        Its output, and `stats` after the batch.
    """
    if name not in stats:
        return network.apply({"params": params[name]}, x, train=True), stats
    variables = {"params": params[name], "batch_stats": stats[name]}
    out, updated = network.apply(variables, x, train=True, mutable=["batch_stats"])
    return out, {**stats, name: updated["batch_stats"]}


def check_vit(config: Any) -> None:
    """Raises UserError if a ViT of `config.model` cannot take images of `config.data.image_size`."""
    m, (height, width) = config.model, config.data.image_size
    if not is_vit(m):
        raise UserError(f"method {config.method.name!r} needs a ViT: write for instance variant=S/16")
    if min(m.width, m.depth, m.heads, m.patch_size) < 1:
        raise UserError(
            f"model width={m.width}, depth={m.depth}, heads={m.heads}, patch_size={m.patch_size}: none may be below 1"
        )
    if height % m.patch_size or width % m.patch_size:
        raise UserError(
            f"model.patch_size={m.patch_size} does not divide data.image_size={height}x{width}: change one of them"
        )
    _check_transformer("model", m)
    _check_attention(config, "model", m)


def _compiled_as(config: Any) -> dict[str, Any]:
    """The options of a transformer that change time and memory only."""
    options = {"remat": _remat(config), "scan": config.scan, "attention": _attention(config)}
    return options | {"kernels": _kernels(config)}


def _kernels(config: Any) -> str:
    return resolve(config.kernels)


def _remat(config: Any) -> str:
    """`config.remat`; where nothing has decided what "auto" is, as in evaluations, no backward pass needs memory."""
    return "none" if config.remat == "auto" else config.remat


def _attention(config: Any) -> str:
    return getattr(config.model, "attention", ATTENTIONS[0])  # runs of earlier versions do not have the field


def _check_transformer(field: str, m: Any) -> None:
    if m.width % m.heads:
        raise UserError(f"{field}.heads={m.heads} does not divide {field}.width={m.width}: change one of them")
    if m.get("mlp_ratio", 4.0) * m.width < 1:
        raise UserError(
            f"{field}.mlp_ratio={m.mlp_ratio} leaves its MLP no unit: it must be at least {1 / m.width:.3g}"
        )
    if m.width % 4:
        raise UserError(f"{field}.width={m.width} is not divisible by 4, which the sine-cosine table needs")


def _check_attention(config: Any, field: str, m: Any) -> None:
    chosen = _attention(config)
    check_choice("model.attention", chosen, ATTENTIONS)
    if chosen != "cudnn":
        return
    if config.dtype == "float32":
        raise UserError(
            "model.attention='cudnn' computes in 16 bits, not in dtype='float32': use dtype=bfloat16 or xla"
        )
    head = m.width // m.heads
    if head % 8 or head > 128:
        raise UserError(
            f"model.attention='cudnn' does not take {field}.width={m.width} in {field}.heads={m.heads}, {head} each: "
            "that must be a multiple of 8, at most 128; change one of them, or use xla"
        )
