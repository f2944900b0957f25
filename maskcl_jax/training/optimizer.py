"""Optimizers from a config: learning rate schedule, weight decay rules, optax chain."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from maskcl_jax.errors import UserError


def warmup_cosine(
    step: jax.typing.ArrayLike, *, peak: float, warmup: float, total: float, minimum: float = 0.0
) -> jax.Array:
    """Linear warm-up from 0 to `peak`, then half a cosine down to `minimum`.

    Args:
        step: Where in the run, from 0. It shares its unit (steps, or epochs with fractions) with `warmup` and `total`:
            the value depends on their ratios only.
        peak: The highest value.
        warmup: Length of the warm-up.
        total: Length of the run.
        minimum: The value at the end.

    Returns:
        The learning rate; 0 at step 0 if there is a warm-up.

    Source: facebookresearch/mae `util/lr_sched.py`.
    """
    step = jnp.asarray(step, jnp.float32)
    rising = peak * step / max(warmup, 1e-9)
    progress = jnp.clip((step - warmup) / max(total - warmup, 1e-9), 0.0, 1.0)
    falling = minimum + (peak - minimum) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return jnp.where(step < warmup, rising, falling)


def warmup_steps(config: Any, *, total_steps: int, steps_per_epoch: int) -> int:
    """Steps of warm-up: `warmup_epochs`, but at most half of the run (our choice, for very short runs)."""
    return min(round(config.optimizer.warmup_epochs * steps_per_epoch), total_steps // 2)


def shortened_warmup(config: Any, *, total_steps: int, steps_per_epoch: int) -> str | None:
    """A warning where `warmup_epochs` is more than half of the run, which `warmup_steps` shortens; None elsewhere."""
    wanted = round(config.optimizer.warmup_epochs * steps_per_epoch)
    used = warmup_steps(config, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    if used == wanted:
        return None
    return (
        f"warning: optimizer.warmup_epochs={config.optimizer.warmup_epochs} is {wanted} steps, more than half of the "
        f"run's {total_steps}: the warm-up has {used} steps"
    )


def learning_rate(config: Any, *, total_steps: int, steps_per_epoch: int) -> optax.Schedule:
    """The schedule of a run: warm-up and cosine to a peak of base_lr * batch_size / 256 (the linear scaling rule).

    With `optimizer.per_epoch` the value of an epoch's first step holds for the whole epoch; the warm-up, which that
    recipe does not have, rises with every step. With `optimizer.milestones`, which only evaluations have, the learning
    rate is divided by ten at each of these epochs instead.

    Args:
        config: Reads `optimizer` and `batch_size`.
        total_steps: Length of the run.
        steps_per_epoch: Steps per epoch.

    Returns:
        step -> learning rate.

    Raises:
        UserError: There is a warm-up beside milestones.

    Source: facebookresearch/moco `adjust_learning_rate`, for `per_epoch`.
    """
    o = config.optimizer
    warmup = warmup_steps(config, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    peak = o.base_lr * config.batch_size / 256
    if milestones := getattr(o, "milestones", ()):
        if o.warmup_epochs:
            raise UserError(
                f"optimizer.warmup_epochs={o.warmup_epochs} does not go with optimizer.milestones={tuple(milestones)}, "
                "which has no warm-up: set optimizer.warmup_epochs=0, or optimizer.milestones=()"
            )
        steps = jnp.asarray([epoch * steps_per_epoch for epoch in milestones])
        return lambda step: peak * 0.1 ** jnp.sum(jnp.asarray(step) >= steps)

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step)
        if o.per_epoch:
            step = jnp.where(step < warmup, step, jnp.maximum(step // steps_per_epoch * steps_per_epoch, warmup))
        return warmup_cosine(step, peak=peak, warmup=warmup, total=total_steps, minimum=o.min_lr)

    return schedule


def map_with_names(params: Any, function: Callable[[tuple[str, ...], jax.Array], Any]) -> Any:
    """The tree of function(path, leaf), path being the names of a leaf from the root."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(tuple(k.key for k in path), leaf), params)


# --- Weight decay: which parameters decay, as masks for optax --------------------------------------------------


def decayed_matrices(params: Any) -> Any:
    """MAE's rule: every tensor of more than one dimension decays.

    So biases and norms do not; cls and mask tokens, stored as (1, 1, D), do.

    Source: timm `add_weight_decay` as facebookresearch/mae calls it.
    """
    return jax.tree.map(lambda p: p.ndim > 1, params)


def decayed_by_name(params: Any) -> Any:
    """CMAE's rule: kernels and the scales of BatchNorm decay; biases, LayerNorms and tokens do not.

    Source: the names that CMAE's configs exclude: `ln`, `bias`, `pos_embed`, `mask_token`, `cls_token`.
    """

    def decays(path: tuple[str, ...], _: jax.Array) -> bool:
        layer, name = ("", *path)[-2:]
        return name == "kernel" or (name == "scale" and layer.startswith("bn"))

    return map_with_names(params, decays)


def decayed_without_tokens(params: Any) -> Any:
    """MAE's rule for fine-tuning: tensors of more than one dimension, except the cls token and the position table."""
    return map_with_names(params, lambda path, leaf: leaf.ndim > 1 and path[-1] not in ("cls_token", "pos_embed"))


def decayed_but_named(params: Any) -> Any:
    """CMAE's rule for fine-tuning: all except biases, cls token, position table and the norms; `fc_norm` decays."""

    def decays(path: tuple[str, ...], _: jax.Array) -> bool:
        return path[-1] not in ("bias", "cls_token", "pos_embed") and path[-2] not in ("norm", "norm1", "norm2")

    return map_with_names(params, decays)


DECAY_RULES: dict[str, Callable[[Any], Any]] = {
    "matrices": decayed_matrices,
    "kernels": decayed_by_name,
    "finetune_mae": decayed_without_tokens,
    "finetune_cmae": decayed_but_named,
    "all": lambda params: jax.tree.map(lambda p: True, params),
}


# --- Transformations --------------------------------------------------------------------------------------------


def frozen_mask(params: Any, frozen: tuple[tuple[str, ...], ...]) -> Any:
    """True for the parameters whose path begins with one of `frozen`."""
    return map_with_names(params, lambda path, _: any(path[: len(prefix)] == prefix for prefix in frozen))


def layer_scales(params: Any, decay: float) -> Any:
    """Layer-wise learning rate decay: the factor decay^(depth + 1 - layer) of each parameter.

    Layer 0 has cls token, positions and patch embedding, layer i + 1 block i, layer depth + 1 everything after the
    blocks, with factor 1. A ResNet's stem and stages 1 to 4 are its layers (our choice).

    Args:
        params: Parameters {encoder, head, ...}; `fc_norm` and what else is outside the encoder comes last.
        decay: Factor per layer.

    Source: facebookresearch/mae `util/lr_decay.py`.
    """
    layers = {name: layer_number(name) for name in params["encoder"]}
    last = 1 + max(index for index in layers.values() if index is not None)

    def scale(path: tuple[str, ...], _: jax.Array) -> float:
        index = layers[path[1]] if path[0] == "encoder" else None
        return decay ** (last - (last if index is None else index))

    return map_with_names(params, scale)


def layer_number(name: str) -> int | None:
    """The layer of an encoder's part: `blocks_3` -> 4, `layer2_0` -> 2; None for what follows the last block."""
    if name in ("cls_token", "pos_embed", "patch_embed", "conv1", "bn1"):
        return 0
    kind, _, number = name.partition("_")
    if kind == "blocks":
        return int(number) + 1
    return int(kind.removeprefix("layer")) if kind.startswith("layer") else None


def scale_updates(scales: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Multiplies updates by scales(params), last in a chain: it scales the learning rate, and the decay with it."""
    return optax.stateless(lambda updates, params: jax.tree.map(jnp.multiply, updates, scales(params)))


def lars_mae(
    schedule: optax.Schedule, *, momentum: float, weight_decay: float, mask: Any
) -> optax.GradientTransformation:
    """LARS that applies momentum first, then the learning rate.

    optax.lars, as SimCLR's, multiplies by the learning rate first: another rule as soon as that changes.

    Args:
        schedule: Learning rate.
        momentum: Of the accumulated updates.
        weight_decay: Of the parameters of `mask`,
        mask: which are also the ones that the trust ratio scales.

    Source: facebookresearch/mae `util/lars.py`, facebookresearch/moco-v3 `moco/optimizer.py`.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=mask),
        optax.masked(optax.scale_by_trust_ratio(trust_coefficient=0.001), mask),
        optax.trace(decay=momentum),
        optax.scale_by_learning_rate(schedule),
    )


def create(
    config: Any, schedule: optax.Schedule, *, frozen: tuple[tuple[str, ...], ...] = ()
) -> optax.GradientTransformation:
    """The optax chain of `config.optimizer`.

    Args:
        config: Reads `optimizer`: name ("adamw" | "sgd" | "lars" | "lars_mae"), b1, b2, eps, mu_dtype (AdamW), momentum
            (SGD, LARS), weight_decay, decay_on (a key of DECAY_RULES), clip_norm (0: none), and in fine-tuning
            layer_decay (see `layer_scales`). LARS scales the parameters that decay, no others.
        schedule: Learning rate.
        frozen: Path prefixes of parameters that never change, not by weight decay either.

    Raises:
        UserError: The name or the decay rule is unknown.
    """
    o = config.optimizer
    if o.decay_on not in DECAY_RULES:
        raise UserError(f"optimizer.decay_on={o.decay_on!r} is unknown: use one of {', '.join(DECAY_RULES)}")
    mask = DECAY_RULES[o.decay_on]
    if o.name == "adamw":
        update = optax.adamw(
            schedule, b1=o.b1, b2=o.b2, eps=o.eps, mu_dtype=o.mu_dtype, weight_decay=o.weight_decay, mask=mask
        )
    elif o.name == "sgd":
        update = optax.chain(
            optax.add_decayed_weights(o.weight_decay, mask=mask), optax.sgd(schedule, momentum=o.momentum)
        )
    elif o.name == "lars":
        update = optax.lars(
            schedule,
            weight_decay=o.weight_decay,
            weight_decay_mask=mask,
            trust_coefficient=0.001,
            trust_ratio_mask=mask,
            momentum=o.momentum,
        )
    elif o.name == "lars_mae":
        update = lars_mae(schedule, momentum=o.momentum, weight_decay=o.weight_decay, mask=mask)
    else:
        raise UserError(f"optimizer.name={o.name!r} is unknown: use adamw, sgd, lars or lars_mae")
    if o.clip_norm:
        update = optax.chain(optax.clip_by_global_norm(o.clip_norm), update)
    if getattr(o, "layer_decay", 1.0) != 1.0:
        update = optax.chain(update, scale_updates(lambda params: layer_scales(params, o.layer_decay)))
    if frozen:
        update = optax.chain(update, optax.masked(optax.set_to_zero(), lambda params: frozen_mask(params, frozen)))
    return update
