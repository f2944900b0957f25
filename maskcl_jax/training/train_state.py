"""Everything that training changes, in one pytree."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from maskcl_jax.methods import Method, interface


@flax.struct.dataclass
class TrainState:
    """Networks, the method's own state, optimizer, step.

    Attributes:
        step: () int32, steps done.
        params: Online parameters, float32.
        target_params: Parameters of the EMA target; None without one.
        model_state: What else the method keeps, under names of its own: BatchNorm statistics, a queue.
        opt_state: Of the optimizer.
    """

    step: jax.Array
    params: Any
    target_params: Any
    model_state: dict[str, Any]
    opt_state: Any


def create(method: Method, optimizer: optax.GradientTransformation, rng: jax.Array) -> TrainState:
    """Returns the state at step 0. To be called under jit with `out_shardings`, so that it is born in its place."""
    initial = method.init(rng)
    interface.check_initial(method, initial)
    params, model_state = initial
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # Copies: arrays that share their initial values must not share buffers, for the state is donated.
        target_params=jax.tree.map(jnp.copy, method.target_params(params)),
        model_state=jax.tree.map(jnp.copy, model_state),
        opt_state=optimizer.init(params),
    )


def ema(target: Any, online: Any, momentum: jax.Array | float) -> Any:
    """Returns momentum * target + (1 - momentum) * online, leaf by leaf."""
    return jax.tree.map(lambda t, o: momentum * t + (1.0 - momentum) * o, target, online)
