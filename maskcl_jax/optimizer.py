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
    """Steps of warm-up: `warmup_epochs`, but never more than half the run (our choice, for very short runs)."""
    return min(round(config.optimizer.warmup_epochs * steps_per_epoch), total_steps // 2)


def learning_rate(config, *, total_steps: int, steps_per_epoch: int):
    """The schedule step -> learning rate; its peak is base_lr * batch_size / 256 (the linear scaling rule).

    With `per_epoch` the rate of an epoch's first step holds to its end (facebookresearch/moco `adjust_learning_rate`).
    """
    o = config.optimizer
    warmup = warmup_steps(config, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    peak = o.base_lr * config.batch_size / 256

    def schedule(step):
        if o.per_epoch:
            step = step // steps_per_epoch * steps_per_epoch
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


DECAY_RULES = {
    "matrices": decayed,
    "kernels": decayed_by_name,
    "all": lambda params: jax.tree.map(lambda p: True, params),
}


def frozen_mask(params, frozen):
    """True for parameters whose path begins with one of `frozen`."""

    def is_frozen(path, _):
        names = tuple(key.key for key in path)
        return any(names[: len(prefix)] == prefix for prefix in frozen)

    return jax.tree_util.tree_map_with_path(is_frozen, params)


def create(config, schedule, *, frozen: tuple[tuple[str, ...], ...] = ()) -> optax.GradientTransformation:
    """The optax chain of `config.optimizer`.

    Fields: name ("adamw" | "sgd" | "lars"), b1, b2, eps, mu_dtype (AdamW), momentum (SGD, LARS), weight_decay, decay_on
    ("matrices" | "kernels" | "all"), clip_norm (0 = none). LARS scales the parameters that decay, no others. frozen:
    paths of parameters that never change, by decay neither.
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
    else:
        raise UserError(f"optimizer.name={o.name!r} is unknown: use adamw, sgd or lars")
    if o.clip_norm:
        update = optax.chain(optax.clip_by_global_norm(o.clip_norm), update)
    if frozen:
        update = optax.chain(update, optax.masked(optax.set_to_zero(), lambda params: frozen_mask(params, frozen)))
    return update
