"""Functions of a batch whose images do not see each other, computed for one chunk of images after another."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

MIN_ROWS = 1500  # tokens per chunk: with fewer a CPU's matrix products become slower

Loss = Callable[[Any, Any, Any], jax.Array]  # (params, x, given) -> () float32, a mean over images


def chunks_for(config: Any, mesh: jax.sharding.Mesh, *, length: int) -> int:
    """Returns in how many chunks a step is fastest.

    A CPU takes fresh memory from the system in every step, which costs more than the loop does. An accelerator keeps
    its memory.

    Args:
        config: The run's.
        mesh: Its devices.
        length: Tokens per image.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return 1
    images = config.batch_size // (mesh.size * config.accumulation)
    return max((n for n in range(1, images + 1) if images % n == 0 and images // n * length >= MIN_ROWS), default=1)


def mean_loss(loss: Loss, chunks: int, params: Any, x: Any, given: Any) -> jax.Array:
    """Returns loss(params, x, given), whose gradient takes the memory of one chunk.

    The gradient is computed together with the loss, for one chunk after another: no activations are kept, and none are
    computed again.

    Args:
        loss: A mean over images, () float32.
        chunks: Divides the images of every device. Chunk i has the rows i, i + chunks, ...: of every device as many,
            so that no image moves.
        params: What is differentiated by.
        x: A tree of (B, ...) arrays, differentiated by too.
        given: A tree of (B, ...) arrays that get no gradient.
    """
    return loss(params, x, given) if chunks == 1 else _in_chunks(loss, chunks, params, x, given)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _in_chunks(loss: Loss, chunks: int, params: Any, x: Any, given: Any) -> jax.Array:
    """The loss without a gradient."""
    return jax.lax.map(lambda chunk: loss(params, *chunk), split_rows((x, given), chunks)).mean()


def _forward(loss: Loss, chunks: int, params: Any, x: Any, given: Any) -> tuple[jax.Array, tuple[Any, Any]]:
    """The loss, and its gradients by params and x as residuals."""

    def add(carry, chunk):
        value, (params_grad, x_grad) = jax.value_and_grad(loss, argnums=(0, 1))(params, *chunk)
        return jax.tree.map(jnp.add, carry, (value, params_grad)), x_grad

    start = jnp.float32(0.0), jax.tree.map(jnp.zeros_like, params)
    (value, params_grad), x_grad = jax.lax.scan(add, start, split_rows((x, given), chunks))
    return value / chunks, (params_grad, join_rows(x_grad))


def _backward(loss: Loss, chunks: int, gradients: tuple[Any, Any], cotangent: jax.Array) -> tuple[Any, Any, None]:
    """The gradients of the mean of all chunks, times the cotangent of the loss."""
    params_grad, x_grad = jax.tree.map(lambda g: g * (cotangent / chunks).astype(g.dtype), gradients)
    return params_grad, x_grad, None


_in_chunks.defvjp(_forward, _backward)


def mapped(function: Callable[..., Any], chunks: int, *rows: Any) -> Any:
    """Returns function(*rows), computed for one of `chunks` chunks of rows after another."""
    if chunks == 1:
        return function(*rows)
    return join_rows(jax.lax.map(lambda chunk: function(*chunk), split_rows(rows, chunks)))


def split_rows(tree: Any, chunks: int) -> Any:
    """(B, ...) -> (chunks, B / chunks, ...): chunk i has the rows i, i + chunks, ..., of every device equally many."""
    return jax.tree.map(lambda rows: jnp.moveaxis(rows.reshape(-1, chunks, *rows.shape[1:]), 1, 0), tree)


def join_rows(tree: Any) -> Any:
    """The inverse of `split_rows`."""
    return jax.tree.map(lambda rows: jnp.moveaxis(rows, 0, 1).reshape(-1, *rows.shape[2:]), tree)
