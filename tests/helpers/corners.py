"""Corners: the values at the ends of the ranges of a method's fields, and a training step there."""

import functools
import math

import jax
import jax.numpy as jnp

from helpers.tiny import CONFIGS, colourless, filled, tiny
from helpers.views import batch_of
from maskcl_jax import config as config_lib
from maskcl_jax.config import ranges
from maskcl_jax.errors import UserError
from maskcl_jax.methods import StepContext, create

EDGE = 1e-3  # how far inside of a limit that is not allowed itself
LARGEST = 224  # of an end that a test can afford


@functools.cache
def base(name: str) -> dict:
    """A tiny config as a flat dict; a ResNet has two stages, which compile in half the time of four."""
    config = tiny(name, **colourless(name))
    if "stem" in config.model:
        config.model.stages = (1, 1)
    return config_lib.flat(config)


def ends_of(allowed: ranges.Range, kind: type) -> list:
    """The lowest and the highest number of a range, but none where it is open, or larger than a test can afford."""
    low = allowed.low + (EDGE if allowed.above and kind is float else allowed.above)
    high = allowed.high - (EDGE if allowed.below and kind is float else allowed.below)
    return [kind(end) for end in (low, high) if math.isfinite(end) and end <= LARGEST]


def corners_of(field: str, value) -> list:
    """The values at the ends of a field's range, of its own type; the other one of a switch. Not the value itself."""
    if isinstance(value, bool):
        return [not value]
    allowed = ranges.range_of(field)
    if isinstance(value, list):
        ends = ends_of(allowed, type(value[0]) if value else int)
        found = (
            [[low, high] for low in ends for high in ends if low <= high] if allowed.ordered else [[e] for e in ends]
        )
    else:
        found = ends_of(allowed, type(value))
    return [corner for corner in found if corner != value]


def singles(name: str) -> list[tuple[str, object]]:
    """(field, corner) of every number and switch of a method."""
    return [
        (field, corner)
        for field, value in base(name).items()
        if field.startswith("method.") and isinstance(value, bool | int | float | list)
        for corner in corners_of(field, value)
    ]


def every_single() -> list[tuple[str, str, object]]:
    """(config, field, corner) of every method."""
    return [(name, field, corner) for name in sorted(CONFIGS) for field, corner in singles(name)]


def refusal(name: str, moved: dict) -> str:
    """What the checks say of a config with some fields moved; "" where they let it pass."""
    try:
        method_of(name, moved)
    except UserError as error:
        return str(error)
    return ""


def method_of(name: str, moved: dict):
    """The method of a config with some fields moved."""
    config = config_lib.unflat(base(name) | moved)
    config_lib.check(config)
    return create(config)


def problem_of_step(name: str, moved: dict, *, compiled: bool = True) -> str:
    """What is not finite after a forward and a backward pass of a batch of four; "" if nothing.

    compiled: Faster for a few configs. Without, operations are compiled one by one, and used again by the next config.
    """
    method = method_of(name, moved)
    params, state = filled(method)

    def step(params, state, batch):
        def loss(params):
            context = StepContext(method.target_params(params), state, jax.random.key(0), 0.5)
            out = method.loss(params, batch, context)
            return out.loss, out

        (_, out), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return {"the loss": out.loss, "a metric": out.metrics, "the state": out.model_state, "the gradient": gradient}

    made = (jax.jit(step) if compiled else step)(params, state, batch_of(method, 4))
    made |= {} if method.target_params(params) is None else {"the momentum": jnp.asarray(method.momentum(0.5))}
    return ", ".join(what for what, tree in made.items() if not finite(tree))


def finite(tree) -> bool:
    """Whether every number of a tree of arrays is finite."""
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))
