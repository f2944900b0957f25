"""What need not see the whole batch at once, done for one chunk of images after the other."""

import functools

import jax
import jax.numpy as jnp

ROWS = 1500  # of a chunk, at least: with fewer a CPU's products of matrices become slower


def chunks_for(config, mesh, *, length: int) -> int:
    """How many chunks a step on a mesh is fastest in, for sequences of `length`.

    A CPU takes fresh memory from the system in every step, which costs more than the loop does. An accelerator's stays.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return 1
    share = config.batch_size // (mesh.size * config.accumulation)
    return max((n for n in range(1, share + 1) if share % n == 0 and share // n * length >= ROWS), default=1)


def mean_loss(loss, chunks: int, params, x, given):
    """loss(params, x, given): a mean over images, float32; its gradient in the memory of one of `chunks` chunks.

    Where the gradient is wanted it is made with the loss, for one chunk after the other: the activations of none are
    kept, nor made again. x, given: trees of (B, ...), of which given gets no gradient. Chunk i has the rows i,
    i + chunks, ...: of every device's share as many, so that no image moves; `chunks` divides each share.
    """
    return loss(params, x, given) if chunks == 1 else in_chunks(loss, chunks, params, x, given)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def in_chunks(loss, chunks: int, params, x, given):
    """The loss, where nobody wants its gradient."""
    return jax.lax.map(lambda chunk: loss(params, *chunk), split((x, given), chunks)).mean()


def with_gradient(loss, chunks: int, params, x, given):
    """The loss, and its gradients of params and x."""

    def add(so_far, chunk):
        value, (of_params, of_x) = jax.value_and_grad(loss, argnums=(0, 1))(params, *chunk)
        return jax.tree.map(jnp.add, so_far, (value, of_params)), of_x

    begin = jnp.float32(0.0), jax.tree.map(jnp.zeros_like, params)
    (value, of_params), of_x = jax.lax.scan(add, begin, split((x, given), chunks))
    return value / chunks, (of_params, joined(of_x))


def scaled(loss, chunks: int, gradients, factor):
    """The gradients of the mean of all chunks, times what the loss counts for."""
    return *jax.tree.map(lambda g: g * (factor / chunks).astype(g.dtype), gradients), None


in_chunks.defvjp(with_gradient, scaled)


def mapped(function, chunks: int, *rows):
    """function(*rows), of images that do not see one another, for one of `chunks` chunks after the other."""
    return function(*rows) if chunks == 1 else joined(jax.lax.map(lambda chunk: function(*chunk), split(rows, chunks)))


def split(tree, chunks: int):
    """(B, ...) -> (chunks, B / chunks, ...): chunk i has the rows i, i + chunks, ..."""
    return jax.tree.map(lambda rows: jnp.moveaxis(rows.reshape(-1, chunks, *rows.shape[1:]), 1, 0), tree)


def joined(tree):
    """The inverse of `split`."""
    return jax.tree.map(lambda rows: jnp.moveaxis(rows, 0, 1).reshape(-1, *rows.shape[2:]), tree)
