"""A step of a method without a training loop."""

import jax

from maskcl_jax.methods import StepContext


def context_of(method, params, state, progress=0.0, seed=0):
    """What a loss is given at a step, the target a copy of the online networks."""
    return StepContext(method.target_params(params), state, jax.random.key(seed), progress)


def metrics_of(method, params, state, batch):
    """What a step logs of a batch: no backward pass."""
    context = context_of(method, params, state)
    return jax.jit(lambda params: method.loss(params, batch, context).metrics)(params)


def loss_and_grads(method, params, state, batch):
    """(loss, LossOutput, gradients) of a batch."""

    def loss(params):
        out = method.loss(params, batch, context)
        return out.loss, out

    context = context_of(method, params, state)
    (value, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return value, out, grads
