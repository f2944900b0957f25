"""SimCLR: A Simple Framework for Contrastive Learning of Visual Representations (Chen et al., ICML 2020, 2002.05709).

Two views of an image, one network; each view must find the other among all others of the batch. The numbers are those
of the released code, google-research/simclr at 1e7f15d (tf2), of which there are no reference values: the loss is
checked against its formula in the tests.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from maskcl_jax.config import is_vit
from maskcl_jax.errors import UserError
from maskcl_jax.methods import contrast, encoders, options
from maskcl_jax.methods.base import Arrays, LossOutput, Method, StepContext
from maskcl_jax.methods.encoders import apply_in_training, init_heads
from maskcl_jax.models.heads import MLP
from maskcl_jax.models.resnet import average_pool
from maskcl_jax.ops import losses, normalization
from maskcl_jax.views.base import View


class SimCLR(Method):
    """SimCLR; `configs/simclr.py` and `configs/simclr_vit.py` explain its fields of `config.method`."""

    picture_names: tuple[str, ...] = ("first", "second")

    def __init__(self, config: Any):
        c = config.method
        contrast.check_contrast(config)
        if c.projector.layers < 1:
            raise UserError(f"method.projector.layers={c.projector.layers} is out of range: use 1 or more")
        self.config = config
        self.on_vit = is_vit(config.model)
        if self.on_vit:
            self.encoder = encoders.vit(config, positions="mocov3", init_rule="mocov3")
            self.width = self.encoder.width
        else:
            self.encoder = encoders.resnet(config, bn_group_size=c.bn_group_size)
            self.width, self.feature_kinds = self.encoder.out_width, ("mean",)
        layers = c.projector.layers
        self.projector = MLP(
            sizes=(self.width,) * (layers - 1) + (c.projector.out,),
            norms=("affine",) * layers,
            bn_group_size=c.bn_group_size,
            dtype=jnp.dtype(config.dtype),
        )
        self.views = self.new_views()

    def new_views(self) -> tuple[View, ...]:
        """Two crops with color augmentation of the same kind."""
        color = options.color(self.config, "augment")
        return tuple(options.view(self.config, name=name, ingredients=(color,)) for name in self.picture_names)

    # --- State ------------------------------------------------------------------------------------------------
    def init(self, rng: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """params: encoder, projector; state: batch_stats."""
        to_networks, _ = jax.random.split(rng)
        to_encoder, to_heads = jax.random.split(to_networks)
        images = jnp.zeros((2, *self.config.data.image_size, self.config.data.channels))
        encoder = self.encoder.init(to_encoder, images, **({} if self.on_vit else {"train": True}))
        params, stats = init_heads({"projector": (self.projector, self.width)}, to_heads)
        if not self.on_vit:
            stats = {**stats, "encoder": encoder["batch_stats"]}
        return {"encoder": encoder["params"], **params}, {"batch_stats": stats}

    # --- Loss -------------------------------------------------------------------------------------------------
    def preprocess(self, images: jax.Array) -> jax.Array:
        """(x / 255 - mean) / std."""
        return normalization.normalize(images, self.config.data.mean, self.config.data.std)

    def loss(self, params: dict[str, Any], batch: Arrays, context: StepContext) -> LossOutput:
        """The contrast of a batch."""
        out = self.forward(params, context, self.images_of(batch))
        return self.output(out, candidates=out["z"].shape[0] - 1)

    def forward(self, params: dict[str, Any], context: StepContext, views: Sequence[Any]) -> dict[str, Any]:
        """Every intermediate of one step, by name; views: the two views, preprocessed."""
        # 1. h = f(x) and z = g(h) of both views in one batch: BatchNorm sees them together.
        h, z, stats = self.embed_and_project(params, context.model_state["batch_stats"], jnp.concatenate(views))
        # 2. Each z finds its other view among the 2 N - 1 others: NT-Xent.
        first, second = jnp.split(z, 2)
        loss, accuracy = losses.nt_xent(first, second, self.config.method.temperature)
        return {"pooled": h, "z": z, "loss": loss, "accuracy": accuracy, "model_state": {"batch_stats": stats}}

    def embed_and_project(
        self, params: dict[str, Any], stats: dict[str, Any], images: jax.Array
    ) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
        """(features (B, D), projections (B, out), statistics after them) of preprocessed images in training."""
        h, stats = self.embed(params, stats, images)
        z, stats = apply_in_training(self.projector, "projector", params, stats, h)
        return h, z, stats

    def embed(
        self, params: dict[str, Any], stats: dict[str, Any], images: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        """(features (B, D), statistics after them) of preprocessed images in training."""
        if self.on_vit:
            return encoders.pooled(self.encoder.apply({"params": params["encoder"]}, images), "cls"), stats
        feature_map, stats = apply_in_training(self.encoder, "encoder", params, stats, images)
        return average_pool(feature_map), stats

    def images_of(self, batch: Arrays) -> list[jax.Array]:
        """The two views, preprocessed."""
        return [options.network_images(self.config, batch, view) for view in self.views]

    def output(self, out: dict[str, Any], *, candidates: int) -> LossOutput:
        """What `loss` returns of the intermediates; candidates: keys that a row chooses from."""
        metrics = contrast.metrics(out["loss"], out["accuracy"], out["pooled"], candidates=candidates)
        return LossOutput(out["loss"], {"loss": out["loss"], **metrics}, out["model_state"])

    # --- Evaluation -------------------------------------------------------------------------------------------
    def encoder_variables(
        self, params: dict[str, Any], model_state: dict[str, Any], *, target: bool = False
    ) -> dict[str, Any]:
        """A ResNet has running statistics too."""
        variables = {"params": params["encoder"]}
        return variables if self.on_vit else variables | {"batch_stats": model_state["batch_stats"]["encoder"]}

    def pictures(self, params: dict[str, Any], model_state: dict[str, Any], batch: Arrays) -> dict[str, jax.Array]:
        """Both views."""
        return {view.name: options.float_images(batch, view) for view in self.views}
