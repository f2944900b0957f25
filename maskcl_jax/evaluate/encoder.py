"""The encoder of a run: which weights, which image size, which features."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maskcl_jax.errors import UserError, check_choice
from maskcl_jax.methods import Method
from maskcl_jax.models.resnet import ResNet, average_pool
from maskcl_jax.models.vit import ViT, resize_position_table, sincos_table
from maskcl_jax.training.run import Run

NETWORKS = ("online", "target", "random")
VIT_FEATURES = ("cls", "mean", "mean+cls", "lastN", "pixels")


class Encoder(NamedTuple):
    """An encoder with its weights.

    Attributes:
        module: For images of one size.
        variables: {"params": ..., "batch_stats": ... (ResNet)}.
        method: Of the run, for its preprocessing.
        network: "online", "target" or "random".
    """

    module: ViT | ResNet
    variables: dict[str, Any]
    method: Method
    network: str

    @property
    def is_vit(self) -> bool:
        """Whether the module is a ViT, not a ResNet."""
        return isinstance(self.module, ViT)

    def preprocess(self, images: jax.Array) -> jax.Array:
        """uint8 (B, H, W, C) -> what the encoder takes: normalized, and high-passed where the method's encoder is."""
        return self.method.preprocess(images)

    def layers(self, variables: dict[str, Any], images: jax.Array) -> list[jax.Array]:
        """uint8 images -> the output of each block (B, 1 + N, D), after the final norm where the network has one."""
        has_norm = "norm" in variables["params"]

        def outputs(module, x):
            layers = module.layers(module.embed(x))
            return [module.norm(layer) if has_norm else layer for layer in layers]

        return self.module.apply(variables, self.preprocess(images), method=outputs)

    def features(self, variables: dict[str, Any], images: jax.Array, kind: str) -> jax.Array:
        """uint8 images (B, H, W, C) -> features (B, D) float32 of a kind that `check_feature` accepts."""
        if kind == "pixels":
            return self.preprocess(images).reshape(len(images), -1)
        if kind == "pool":
            return average_pool(self.module.apply(variables, self.preprocess(images), train=False))
        layers = [layer.astype(jnp.float32) for layer in self.layers(variables, images)]
        if match := re.fullmatch(r"last(\d+)", kind):
            return jnp.concatenate([layer[:, 0] for layer in layers[-int(match[1]) :]], axis=1)
        parts = {"cls": layers[-1][:, 0], "mean": layers[-1][:, 1:].mean(axis=1)}
        return jnp.concatenate([parts[name] for name in kind.split("+")], axis=1)

    def feature_map(self, variables: dict[str, Any], images: jax.Array) -> jax.Array:
        """uint8 images -> (B, h, w, D) float32: the grid of patch tokens, or the last stage of a ResNet."""
        if not self.is_vit:
            return self.module.apply(variables, self.preprocess(images), train=False).astype(jnp.float32)
        tokens = self.layers(variables, images)[-1][:, 1:].astype(jnp.float32)
        return tokens.reshape(len(images), *self.module.grid, -1)

    def cls_attention(self, variables: dict[str, Any], images: jax.Array) -> jax.Array:
        """uint8 images -> (depth, B, h, w) float32: what the cls token attends to in each block, mean over heads."""
        weights = self.module.apply(
            variables, self.preprocess(images), method=lambda module, x: module.cls_attention(module.embed(x))
        )
        return weights.reshape(*weights.shape[:2], *self.module.grid)


def open_encoder(
    run: Run, *, network: str = "online", image_size: tuple[int, int] | None = None, seed: int = 0
) -> Encoder:
    """The encoder of a run.

    Args:
        run: The run.
        network: "online", "target" (the EMA), or "random" (initial values: what training is compared with).
        image_size: (height, width); default: that of training. A ViT's position table is resized as MAE resizes it.
        seed: Of random weights.

    Returns:
        The encoder.

    Raises:
        UserError: For a network that the run does not have, and a size that the encoder cannot take.
    """
    check_choice("network", network, NETWORKS)
    method, state = run.method, run.state
    params, model_state = state.params, state.model_state
    if network == "random":
        params, model_state = jax.jit(method.init)(jax.random.key(seed))
    elif network == "target":
        params = state.target_params
    if not params or "encoder" not in params:
        raise UserError(f"network={network!r}: {run.config.method.name} trains no EMA target; use online")
    trained = tuple(run.config.data.image_size)
    height, width = trained if image_size is None else image_size
    size = (height, width)
    module = method.encoder
    if isinstance(module, ResNet):  # groups of BatchNorm are for the batches of pre-training
        module = module.clone(bn_group_size=0, parent=None)
    variables = method.encoder_variables(params, model_state, target=network == "target")
    if size != trained and isinstance(module, ViT):
        module, params = resized(module, variables["params"], size)
        variables = {"params": params}
    return Encoder(module, variables, method, network)


def resized(module: ViT, params: dict[str, Any], size: tuple[int, int]) -> tuple[ViT, dict[str, Any]]:
    """(module, parameters) for another image size. Raises UserError where the patches do not divide it."""
    if min(size) < 1 or size[0] % module.patch_size or size[1] % module.patch_size:
        raise UserError(
            f"data.image_size={size[0]}x{size[1]} does not fit the encoder: use multiples of its patch size "
            f"{module.patch_size}"
        )
    table = position_table(module, params)[0]
    new = module.clone(image_size=size, positions="learned", parent=None)
    return new, {**params, "pos_embed": resize_position_table(table, module.grid, new.grid)[None]}


def position_table(module: ViT, params: dict[str, Any]) -> np.ndarray:
    """(1, 1 + N, D) float32: the learned table, or the fixed one with zeros for the cls token."""
    if module.positions == "learned":
        return np.asarray(params["pos_embed"])
    table = sincos_table(module.width, module.grid, order=module.positions)
    return np.concatenate([np.zeros((1, module.width), np.float32), table])[None]


def default_feature(run: Run) -> str:
    """The kind of feature that the run's online evaluation uses."""
    return run.config.eval.feature if isinstance(run.method.encoder, ViT) else "pool"


def check_feature(kind: str, module: ViT | ResNet) -> None:
    """Raises UserError for a kind of feature that the encoder does not have."""
    if not isinstance(module, ViT):
        check_choice("feature", kind, ("pool", "pixels"))
        return
    match = re.fullmatch(r"last([1-9]\d*)", kind)
    if match is None:
        check_choice("feature", kind, VIT_FEATURES)
    if kind == "lastN" or (match and int(match[1]) > module.depth):
        raise UserError(f"feature={kind!r} is out of range: write last1 to last{module.depth}")
