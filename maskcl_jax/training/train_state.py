"""Everything that training changes, in one pytree."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class TrainState:
    """Online and target networks, BatchNorm statistics, queue, optimiser, step.

    Slots that a method does not use are None: they hold no arrays and are saved as nothing.
    """

    step: jax.Array  # () int32, steps done
    params: Any  # online parameters, float32
    target_params: Any  # the EMA target's parameters
    model_state: Any  # BatchNorm statistics of the online network
    target_state: Any  # BatchNorm statistics of the target network
    queue: Any  # keys of earlier batches
    opt_state: Any


def create(method, optimizer, rng: jax.Array) -> TrainState:
    """The state at step 0. Call it under jit with `out_shardings`, so that it is born where it shall lie."""
    to_networks, to_queue = jax.random.split(rng)
    params, model_state = method.init(to_networks)
    target, target_state = method.target_of(params), method.target_state_of(model_state)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # A copy: the two share their first values but, once the state is donated, not their buffers.
        target_params=jax.tree.map(jnp.copy, target),
        model_state=model_state,
        target_state=jax.tree.map(jnp.copy, target_state),
        queue=method.new_queue(to_queue),
        opt_state=optimizer.init(params),
    )


def ema(target, online, momentum):
    """momentum * target + (1 - momentum) * online, leaf by leaf."""
    return jax.tree.map(lambda t, o: momentum * t + (1.0 - momentum) * o, target, online)
