"""What a method is: views, networks, a loss, and what others may see of it."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from maskcl_jax.errors import UserError
from maskcl_jax.views import View


class Aux(NamedTuple):
    """What a loss returns besides its value: scalars to log, and the BatchNorm statistics after the step."""

    metrics: dict[str, Any]
    model_state: Any


class Method:
    """The whole interface. A method is made from a config, holds no arrays, and all its functions are pure.

    views: the views of an image that its batches hold. picture_names: the columns of `pictures`, in order.
    """

    views: tuple[View, ...] = ()
    picture_names: tuple[str, ...] = ()

    def init(self, rng):
        """(params, model_state): new parameters, float32, and BatchNorm statistics ({} without BatchNorm)."""
        raise NotImplementedError

    def target_of(self, params):
        """The part of the parameters that an EMA target mirrors; None, as here, without a target."""

    def momentum(self, step):
        """The target's momentum at `step`."""
        raise NotImplementedError

    def loss(self, params, target_params, model_state, batch, rng):
        """(loss () float32, Aux) of a batch as `views` describes it."""
        raise NotImplementedError

    def features(self, params, model_state, images, *, kind: str):
        """(B, D) float32 of unmasked images (B, H, W, C) uint8; kind "mean" (patch tokens) or "cls"."""
        raise NotImplementedError

    def pictures(self, params, model_state, batch):
        """{column: (B, H, W, C) float32 in 0..1} of a batch as `views` describes it."""
        raise NotImplementedError


def normalize(images, mean, std):
    """uint8 (B, H, W, C) -> float32, (x / 255 - mean) / std. On the device: uint8 is a quarter of the transfer."""
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return (images.astype(jnp.float32) / 255.0 - mean) / std


def denormalize(images, mean, std):
    """The inverse of `normalize`, in 0..1 and clipped to it."""
    return jnp.clip(images * jnp.asarray(std, jnp.float32) + jnp.asarray(mean, jnp.float32), 0.0, 1.0)


def check_encoder(config) -> None:
    """Raises UserError where an encoder of `config.model` cannot take images of `config.data.image_size`."""
    m, (height, width) = config.model, config.data.image_size
    if min(m.width, m.depth, m.heads, m.patch_size) < 1:
        raise UserError(
            f"model width={m.width}, depth={m.depth}, heads={m.heads}, patch_size={m.patch_size}: none may be below 1"
        )
    if height % m.patch_size or width % m.patch_size:
        raise UserError(
            f"model.patch_size={m.patch_size} does not divide data.image_size={height}x{width}: change one of them"
        )
    check_transformer("model", m)


def check_transformer(field: str, m) -> None:
    """Raises UserError where width, heads and the position table do not go together."""
    if m.width % m.heads:
        raise UserError(f"{field}.heads={m.heads} does not divide {field}.width={m.width}: change one of them")
    if m.width % 4:
        raise UserError(f"{field}.width={m.width} is not divisible by 4, which the sine-cosine table needs")
