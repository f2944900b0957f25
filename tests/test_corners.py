"""Every corner of every method's fields that the checks let pass takes a step."""

import functools
import math

import jax
import numpy as np
import pytest
from helpers.tiny import CONFIGS, colourless, tiny
from helpers.views import batch_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maskcl_jax import config as config_lib
from maskcl_jax.config import ranges
from maskcl_jax.errors import UserError
from maskcl_jax.methods import StepContext, create

EDGE = 1e-3  # how far inside of a limit that is not allowed itself


@functools.cache
def base(name):
    """A tiny config as a flat dict."""
    return config_lib.flat(tiny(name, **colourless(name)))


def corners_of(field, value):
    """The values of a field that lie at the ends of its range, of its own type, the default among them."""
    if isinstance(value, bool):
        return [True, False]
    if isinstance(value, list) and len(value) == 2:
        allowed = ranges.range_of(field)
        ends = [end for end in ends_of(allowed, value[0]) if end is not None]
        return [value, *([low, high] for low in ends for high in ends if low <= high)]
    if isinstance(value, int | float):
        return [value, *(end for end in ends_of(ranges.range_of(field), value) if end is not None)]
    return [value]


def ends_of(allowed, value):
    """(lowest, highest) number of a range, None where it is open or larger than a test can afford."""
    kind = type(value)
    low = allowed.low + (EDGE if allowed.above and kind is float else allowed.above)
    high = allowed.high - (EDGE if allowed.below and kind is float else allowed.below)
    return (kind(low) if math.isfinite(low) else None, kind(high) if math.isfinite(high) and high <= 224 else None)


def fields(name):
    """{field: its corners} of the numbers and switches of a method."""
    return {
        field: corners_of(field, value)
        for field, value in base(name).items()
        if field.startswith("method.") and isinstance(value, bool | int | float | list)
    }


@st.composite
def configs(draw):
    """A method with some of its fields moved to corners."""
    name = draw(st.sampled_from(sorted(CONFIGS)))
    chosen = draw(st.lists(st.sampled_from(sorted(fields(name))), min_size=1, max_size=3, unique=True))
    moved = {field: draw(st.sampled_from(fields(name)[field])) for field in chosen}
    return name, moved


def step(name, moved):
    """Traces one step, with its gradient; False where the checks refuse the config."""
    c = config_lib.unflat(base(name) | moved)
    try:
        config_lib.check(c)
        method = create(c)
    except UserError as error:
        assert "\n" not in str(error)
        return False

    def loss(params, model_state, batch):
        context = StepContext(method.target_params(params), model_state, jax.random.key(0), 0.5)
        out = method.loss(params, batch, context)
        return out.loss, out.metrics

    params, model_state = jax.eval_shape(method.init, jax.random.key(0))
    (value, _), _ = jax.eval_shape(jax.value_and_grad(loss, has_aux=True), params, model_state, batch_of(method))
    assert value.shape == ()
    return True


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(configs())
def test_a_corner_that_the_checks_let_pass_takes_a_step(moved):
    step(*moved)


@pytest.mark.parametrize(
    "moved",
    [
        {"method.mask_ratio_key": 0.0, "method.lambda_key": 0.0},
        {"method.mask_ratio_key": 0.0, "method.lambda_key": 0.0, "method.swap_roles": True},
        {"method.mask_ratio_key": 0.0, "method.loss_on": "all"},
    ],
)
def test_macrl_without_a_mask_on_its_key(moved):
    assert step("macrl", moved)


def test_what_is_refused_and_what_passes():
    assert step("mae", {"method.mask_ratio": 0.5})
    assert not step("mae", {"method.mask_ratio": 0.999})
    assert np.isfinite(corners_of("method.mask_ratio", 0.75)).all()
