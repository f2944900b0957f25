"""CMAE: Contrastive Masked Autoencoders are Stronger Vision Learners (Huang et al., TPAMI 2023, arXiv 2207.13532).

A masked autoencoder with a second, small decoder whose output, averaged over the image, must find the features that an
EMA encoder makes of the same image, unmasked, shifted by a few pixels and with other colors.

Faithful to the released code, ZhichengHuang/CMAE at e786a52 (outputs, gradients and the EMA of a step: `verify`). Where
paper and code differ, the code's value is the default, for it trained the published checkpoints; see `configs/cmae.py`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from maskcl_jax.errors import UserError, check_choice
from maskcl_jax.methods import contrast, encoders, options
from maskcl_jax.methods.base import Arrays, LossOutput, StepContext
from maskcl_jax.methods.encoders import apply_in_training, init_heads
from maskcl_jax.methods.mae import MAE
from maskcl_jax.models.heads import KERNEL_INIT, MLP
from maskcl_jax.models.vit import Decoder, ViT
from maskcl_jax.ops import chunked, losses
from maskcl_jax.views.base import View

REFERENCE_SIZE = 224  # pixels: what master_size and pixel_shift are written for; other sizes scale them


class CMAE(MAE):
    """CMAE; `configs/cmae.py` explains its fields of `config.method`."""

    positions = "mocov3"
    picture_names = ("query", "masked", "reconstruction", "key", "shared_area")

    def __init__(self, config: Any):
        c = config.method
        contrast.check_contrast(config)
        contrast.check_target(config)
        check_choice("method.contrast", c.contrast, ["infonce", "byol"])
        check_choice("method.contrast_scale", c.contrast_scale, ["2tau", "plain"])
        check_choice("method.feature_decoder.kind", c.feature_decoder.kind, ["own", "shared", "none"])
        super().__init__(config)
        # With "shared" the tokens of the pixel decoder are features too: they are needed for the whole batch at once.
        self.supports_image_chunks = c.feature_decoder.kind != "shared"
        if c.feature_decoder.kind == "own":
            self.feature_decoder = self.new_decoder("feature_decoder", out=self.encoder.width)
            self.decoders = {**self.decoders, "feature_decoder": self.feature_decoder}
        head = {"norms": ("affine", "none"), "biases": (0,), "bn_eps": 1e-6, "dtype": self.dtype}
        head["bn_group_size"] = c.bn_group_size
        self.projector = MLP(sizes=(c.projector.hidden, c.projector.out), **head)
        self.predictor = MLP(sizes=(c.predictor.hidden, c.projector.out), **head)

    def new_views(self) -> tuple[View, ...]:
        """One crop, the master; the online view is its corner, the target's lies somewhere in it."""
        c, size = self.config.method, self.image_size
        master = tuple(round(c.master_size * side / REFERENCE_SIZE) for side in size)
        shift = c.pixel_shift * min(size) // REFERENCE_SIZE
        room = min(m - s for m, s in zip(master, size, strict=True))
        if not 0 <= shift <= room:
            raise UserError(
                f"method.pixel_shift={c.pixel_shift} does not fit method.master_size={c.master_size}: for views of "
                f"{size[0]}x{size[1]} it is {shift} pixels in a crop of {master[0]}x{master[1]}, which leaves {room}; "
                f"use 0 to {max(0, c.master_size - REFERENCE_SIZE)}"
            )
        mask = options.patch_mask(self.config, self.encoder.grid, block=c.mask_block)
        color = options.color(self.config, "target_augment")
        shared = {"shared": "master", "master": master}
        return (
            options.view(self.config, name="query", ingredients=(mask,), **shared),
            options.view(self.config, name="key", shift=shift, ingredients=(color,), **shared),
        )

    # --- State ------------------------------------------------------------------------------------------------
    def init(self, rng: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """params: MAE's, feature_decoder, projector, predictor; state: batch_stats, target_batch_stats."""
        to_networks, _ = jax.random.split(rng)
        params, stats = self.init_networks(to_networks)
        return params, {"batch_stats": stats, "target_batch_stats": {"projector": stats["projector"]}}

    def init_networks(self, rng: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """MAE's networks, the feature decoder and the heads."""
        to_mae, to_features, to_heads = jax.random.split(rng, 3)
        params, _ = super().init_networks(to_mae)
        width, c = self.encoder.width, self.config.method
        if c.feature_decoder.kind == "own":
            params["feature_decoder"] = self.init_decoder(self.feature_decoder, to_features)
        elif c.feature_decoder.kind == "shared":
            kernel = KERNEL_INIT["xavier"](to_features, (c.decoder.width, width), jnp.float32)
            params["feature_layer"] = {"kernel": kernel, "bias": jnp.zeros((width,), jnp.float32)}
        heads = {"projector": (self.projector, width), "predictor": (self.predictor, c.projector.out)}
        head_params, stats = init_heads(heads, to_heads)
        return {**params, **head_params}, stats

    def target_params(self, params: dict[str, Any]) -> dict[str, Any]:
        """The encoder without its final norm, and the projector."""
        encoder = {name: value for name, value in params["encoder"].items() if name != "norm"}
        return {"encoder": encoder, "projector": params["projector"]}

    def momentum(self, progress: jax.Array | float) -> jax.Array:
        """Fixed, or rising to 1."""
        return contrast.momentum_at(self.config.method.momentum, self.config.method.momentum_schedule, progress)

    # --- Loss -------------------------------------------------------------------------------------------------
    def loss(self, params: dict[str, Any], batch: Arrays, context: StepContext) -> LossOutput:
        """Reconstruction plus contrast."""
        query, key = (options.network_images(self.config, batch, view) for view in self.views)
        out = self.forward(params, context, query, key, batch["query_visible"], batch["query_masked"])
        metrics = {
            "loss": out["loss"],
            "loss_rec": out["loss_rec"],
            "loss_contrast": out["loss_contrast"],
            **contrast.metrics(
                out["contrast"],
                out["accuracy"],
                out["online_pooled"],
                candidates=query.shape[0],
                scale=out["scale"],
            ),
        }
        return LossOutput(out["loss"], metrics, out["model_state"])

    def forward(
        self,
        params: dict[str, Any],
        context: StepContext,
        query: jax.Array,
        key: jax.Array,
        visible: jax.Array,
        masked: jax.Array,
    ) -> dict[str, Any]:
        """Every intermediate of one step, by name; query, key: the two views, preprocessed."""
        c = self.config.method
        stats, target_stats = context.model_state["batch_stats"], context.model_state["target_batch_stats"]
        # 1. The visible patches of the online view are encoded, and decoded to pixels: MAE.
        out = self.reconstruct(params, query, visible, masked)
        out["loss_rec"] = out["loss"]
        # 2. A second decoder with a mask token of its own gives features for every patch; their mean is the image's.
        out |= self.online_features(params, out["latent"], visible, masked)
        projection, stats = apply_in_training(self.projector, "projector", params, stats, out["online_pooled"])
        prediction, stats = apply_in_training(self.predictor, "predictor", params, stats, projection)
        # 3. The target: the EMA encoder on the whole other view, and its projector with statistics of its own batch.
        target = jax.lax.stop_gradient(context.target_params)
        out["target_pooled"] = self.target_features(target, key)
        target_projection, target_stats = apply_in_training(
            self.projector, "projector", target, target_stats, out["target_pooled"]
        )
        target_projection = jax.lax.stop_gradient(target_projection)
        # 4. One direction: each prediction finds its own target among those of the whole batch.
        cross_entropy, accuracy = losses.info_nce(prediction, target_projection, c.temperature)
        distance = losses.byol(prediction, target_projection) if c.contrast == "byol" else cross_entropy
        scale = 2 * c.temperature if c.contrast_scale == "2tau" and c.contrast == "infonce" else 1.0
        out["loss_contrast"] = c.contrast_weight * scale * distance
        # 5. L = L_r + lambda_c L_c.
        return {
            **out,
            "projection": projection,
            "prediction": prediction,
            "target_projection": target_projection,
            "accuracy": accuracy,
            "contrast": scale * cross_entropy,
            "scale": scale,
            "loss": out["loss_rec"] + out["loss_contrast"],
            "model_state": {"batch_stats": stats, "target_batch_stats": target_stats},
        }

    def online_features(
        self, params: dict[str, Any], latent: jax.Array, visible: jax.Array, masked: jax.Array
    ) -> dict[str, jax.Array]:
        """{feature_pred, online_pooled}: what stands for the whole image, seen through the visible patches.

        feature_pred is in the order of the sequence, visible patches first; kind "none" has none.
        """
        kind = self.config.method.feature_decoder.kind
        if kind == "none":
            return {"online_pooled": encoders.pooled(latent, "mean")}
        if kind == "own":
            decoder = {"params": params["feature_decoder"]}
            prediction = self.feature_decoder.apply(decoder, latent, visible, masked)
        else:
            tokens = self.decode(params, latent, visible, masked, method=Decoder.tokens)
            layer = jax.tree.map(lambda p: p.astype(tokens.dtype), params["feature_layer"])
            prediction = tokens @ layer["kernel"] + layer["bias"]
        return {"feature_pred": prediction, "online_pooled": prediction.astype(jnp.float32).mean(axis=1)}

    def target_features(self, target: dict[str, Any], images: jax.Array) -> jax.Array:
        """(B, D): the mean of the EMA encoder's patch tokens, before any final norm."""

        def encode(images):
            tokens = self.encode(target, ViT.embed, images)
            return encoders.pooled(self.encode(target, ViT.encode, tokens, final_norm=False), "mean")

        return chunked.mapped(encode, self.image_chunks, images)

    # --- Pictures ---------------------------------------------------------------------------------------------
    def pictures(self, params: dict[str, Any], model_state: dict[str, Any], batch: Arrays) -> dict[str, jax.Array]:
        """The online view, its mask and reconstruction, the target's view, and the part of the online view in it."""
        query, key = self.views
        shown = options.network_images(self.config, batch, query)
        drawn = self.draw(params, shown, batch["query_visible"], batch["query_masked"])
        images = options.float_images(batch, query)
        down, across = jnp.arange(images.shape[1])[:, None], jnp.arange(images.shape[2])
        shift = batch["key_shift"] if key.crop.shift else jnp.zeros((images.shape[0], 2), jnp.int32)
        shared = (down >= shift[:, 0, None, None]) & (across >= shift[:, 1, None, None])
        return {
            "query": drawn["input"],
            "masked": drawn["masked"],
            "reconstruction": drawn["reconstruction"],
            "key": options.float_images(batch, key),
            "shared_area": jnp.where(shared[..., None], images, 0.3 * images),
        }
