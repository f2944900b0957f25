"""The FLOPs of a program, as JAX traces it, against closed forms."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen

from maskcl_jax.performance import flops


def test_flops_of_products_loops_and_branches():
    def program(x, w):
        y, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)
        return jax.lax.cond(y.sum() > 0, lambda y: y @ w[0], lambda y: y, y)

    shapes = jax.ShapeDtypeStruct((3, 5), jnp.float32), jax.ShapeDtypeStruct((7, 5, 5), jnp.float32)
    one = 2 * 3 * 5 * 5
    assert flops.matrix_flops(jax.make_jaxpr(jax.jit(program))(*shapes)) == 8 * one


def test_flops_of_a_resnets_convolution_are_those_of_the_closed_form():
    """A 3 x 3 convolution of stride 1: 2 B H W 9 C_in C_out, padding counted; both gradients take as many."""
    batch, side, channels, features = 2, 14, 8, 16
    conv = linen.Conv(features, (3, 3), use_bias=False)
    shapes = jax.eval_shape(conv.init, jax.random.key(0), jnp.zeros((batch, side, side, channels)))

    def loss(variables, images):
        return conv.apply(variables, images).sum()

    images = jax.ShapeDtypeStruct((batch, side, side, channels), jnp.float32)
    forward = 2 * batch * side**2 * 9 * channels * features
    assert flops.matrix_flops(jax.make_jaxpr(loss)(shapes, images)) == forward
    both = flops.matrix_flops(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(shapes, images))
    assert both == 3 * forward


def test_flops_of_a_convolution_and_its_gradients():
    """Without padding every product is real, and both gradients take as many as the forward pass."""

    def loss(x, kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "VALID", dimension_numbers=dimensions, feature_group_count=2
        ).sum()

    x, kernel = jax.ShapeDtypeStruct((2, 8, 8, 6), jnp.float32), jax.ShapeDtypeStruct((2, 2, 3, 4), jnp.float32)
    forward = 2 * (2 * 4 * 4 * 4) * (2 * 2 * 3)
    assert flops.matrix_flops(jax.make_jaxpr(loss)(x, kernel)) == forward
    assert flops.matrix_flops(jax.make_jaxpr(jax.grad(loss, argnums=1))(x, kernel)) == 2 * forward
    # The gradient of x is a convolution of the kernel turned round, over its zero-padded and dilated result.
    both = flops.matrix_flops(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(x, kernel))
    assert both == pytest.approx(3 * forward)
