"""Optimisers from a config: schedule, decay rule, optax chain."""

import jax
import jax.numpy as jnp
import optax

from maskcl_jax.errors import UserError


def warmup_cosine(step, *, peak: float, warmup: float, total: float, minimum: float = 0.0):
    """Linear warm-up from 0 to `peak`, then half a cosine down to `minimum`.

    `step`, `warmup` and `total` share one unit, whichever (steps, or epochs with fractions): the value depends on
    their ratios alone. The first step has value 0. Source: facebookresearch/mae `util/lr_sched.py`.
    """
    step = jnp.asarray(step, jnp.float32)
    rising = peak * step / max(warmup, 1e-9)
    progress = jnp.clip((step - warmup) / max(total - warmup, 1e-9), 0.0, 1.0)
    falling = minimum + (peak - minimum) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return jnp.where(step < warmup, rising, falling)


def warmup_steps(config, *, total_steps: int, steps_per_epoch: int) -> int:
    """Steps of warm-up: `warmup_epochs`, but at most half of the run (our choice, for very short runs)."""
    return min(round(config.optimizer.warmup_epochs * steps_per_epoch), total_steps // 2)


def shortened_warmup(config, *, total_steps: int, steps_per_epoch: int) -> str | None:
    """A warning where `warmup_epochs` is more than half of the run, which `warmup_steps` shortens; None elsewhere."""
    wanted = round(config.optimizer.warmup_epochs * steps_per_epoch)
    used = warmup_steps(config, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    if used == wanted:
        return None
    return (
        f"warning: optimizer.warmup_epochs={config.optimizer.warmup_epochs} is {wanted} steps, more than half of the "
        f"run's {total_steps}: the warm-up has {used} steps"
    )


def learning_rate(config, *, total_steps: int, steps_per_epoch: int):
    """The schedule step -> learning rate; its peak is base_lr * batch_size / 256 (the linear scaling rule).

    With `per_epoch` the rate of an epoch's first step holds to its end (facebookresearch/moco `adjust_learning_rate`);
    a warm-up, which is not in that recipe, rises with every step. With `milestones`, which only evaluations have, the
    rate is a tenth from each of these epochs on, and no cosine.
    """
    o = config.optimizer
    warmup = warmup_steps(config, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    peak = o.base_lr * config.batch_size / 256
    if milestones := getattr(o, "milestones", ()):
        steps = jnp.asarray([epoch * steps_per_epoch for epoch in milestones])
        return lambda step: peak * 0.1 ** jnp.sum(jnp.asarray(step) >= steps)

    def schedule(step):
        if o.per_epoch:
            step = jnp.where(step < warmup, step, jnp.maximum(step // steps_per_epoch * steps_per_epoch, warmup))
        return warmup_cosine(step, peak=peak, warmup=warmup, total=total_steps, minimum=o.min_lr)

    return schedule


def decayed(params):
    """MAE's rule, as a mask for optax: every tensor of more than one dimension decays.

    So biases and norms do not; cls and mask tokens, stored as (1, 1, D), do, as in the released code (timm's
    `add_weight_decay` as facebookresearch/mae calls it).
    """
    return jax.tree.map(lambda p: p.ndim > 1, params)


def decayed_by_name(params):
    """CMAE's rule: kernels and the scales of BatchNorm; neither biases, LayerNorms nor tokens (names without `ln`,
    `bias`, `pos_embed`, `mask_token`, `cls_token` in its configs)."""

    def decays(path, _):
        *_, layer, name = ("", *(key.key for key in path))
        return name == "kernel" or (name == "scale" and layer.startswith("bn"))

    return jax.tree_util.tree_map_with_path(decays, params)


def decayed_without_tokens(params):
    """MAE's rule in fine-tuning: tensors of more than one dimension, but for the cls token and the position table."""
    return where(params, lambda path, leaf: leaf.ndim > 1 and path[-1] not in ("cls_token", "pos_embed"))


def decayed_but_named(params):
    """CMAE's rule in fine-tuning: all but the encoder's norms, biases, cls token and position table; `fc_norm` does."""

    def decays(path, _):
        return path[-1] not in ("bias", "cls_token", "pos_embed") and path[-2] not in ("norm", "norm1", "norm2")

    return where(params, decays)


def where(params, chosen):
    """The tree of chosen(path, leaf), path being a tuple of names."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: chosen(tuple(k.key for k in path), leaf), params)


DECAY_RULES = {
    "matrices": decayed,
    "kernels": decayed_by_name,
    "finetune_mae": decayed_without_tokens,
    "finetune_cmae": decayed_but_named,
    "all": lambda params: jax.tree.map(lambda p: True, params),
}


def frozen_mask(params, frozen):
    """True for parameters whose path begins with one of `frozen`."""

    def is_frozen(path, _):
        names = tuple(key.key for key in path)
        return any(names[: len(prefix)] == prefix for prefix in frozen)

    return jax.tree_util.tree_map_with_path(is_frozen, params)


def layer_scales(params, decay: float):
    """The factor of each parameter's learning rate: decay^(depth + 1 - layer) in a ViT {encoder, fc_norm, head}.

    Layer 0: cls token, positions, patch embedding; i + 1: block i; depth + 1: all after them, of factor 1. Source:
    facebookresearch/mae `util/lr_decay.py`. A ResNet's stem and stages 1 to 4 are its layers (our choice).
    """
    names = {name: layer_number(name) for name in params["encoder"]}
    last = 1 + max(number for number in names.values() if number is not None)

    def scale(path, _):
        number = names[path[1]] if path[0] == "encoder" else None
        return decay ** (last - (last if number is None else number))

    return where(params, scale)


def layer_number(name: str) -> int | None:
    """Which layer an encoder's part belongs to: `blocks_3` -> 4, `layer2_0` -> 2; None: after all blocks."""
    if name in ("cls_token", "pos_embed", "patch_embed", "conv1", "bn1"):
        return 0
    kind, _, number = name.partition("_")
    if kind == "blocks":
        return int(number) + 1
    return int(kind.removeprefix("layer")) if kind.startswith("layer") else None


def scale_updates(scales) -> optax.GradientTransformation:
    """Updates times a tree of factors, last in a chain: the rate, and with it the decay, of each parameter."""
    return optax.stateless(lambda updates, params: jax.tree.map(jnp.multiply, updates, scales(params)))


def lars_mae(schedule, *, momentum: float, weight_decay: float, mask) -> optax.GradientTransformation:
    """LARS as facebookresearch/mae `util/lars.py` and moco-v3 have it: momentum, then the rate.

    optax.lars, as SimCLR's, multiplies by the rate first: another rule as soon as the rate changes.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=mask),
        optax.masked(optax.scale_by_trust_ratio(trust_coefficient=0.001), mask),
        optax.trace(decay=momentum),
        optax.scale_by_learning_rate(schedule),
    )


def create(config, schedule, *, frozen: tuple[tuple[str, ...], ...] = ()) -> optax.GradientTransformation:
    """The optax chain of `config.optimizer`.

    Fields: name ("adamw" | "sgd" | "lars" | "lars_mae"), b1, b2, eps, mu_dtype (AdamW), momentum (SGD, LARS),
    weight_decay, decay_on (of DECAY_RULES), clip_norm (0 = none). LARS scales the parameters that decay, no others.
    layer_decay: see `layer_scales`; only fine-tuning has it. frozen: paths of parameters that never change, by decay
    neither.
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
