"""ccMIM: Contextual Image Masking Modeling via Synergized Contrasting without View Augmentation (ICLR 2023).

A masked autoencoder that hides what its own cls token attends to, and aligns the cls tokens of the visible and of the
masked patches of an image against those of the other images. Shaofeng Zhang, Feng Zhu, Rui Zhao, Junchi Yan.

Faithful to the released code, Sherrylone/ccMIM at fdc9096 (outputs, gradients and BatchNorm statistics: `verify`).
The paper's equations and tables could not be read: a switch without an option in the code is called our choice.
"""

from typing import Any

import jax
import jax.numpy as jnp

from maskcl_jax.errors import UserError, check_choice
from maskcl_jax.methods import contrast
from maskcl_jax.methods.base import Arrays, LossOutput, StepContext
from maskcl_jax.methods.mae import MAE
from maskcl_jax.models.heads import MLP
from maskcl_jax.models.vit import ViT
from maskcl_jax.ops import chunked, losses, masking


class CCMIM(MAE):
    """ccMIM; `configs/ccmim.py` explains its fields of `config.method`."""

    picture_names = ("input", "importance", "masked", "reconstruction")

    def __init__(self, config: Any, *, bn_eps: float = 1e-5, bn_momentum: float = 0.1):
        """bn_eps, bn_momentum: of the projector's BatchNorm, in torch's sense; torch's defaults, as in the code."""
        c = config.method
        super().__init__(config)
        check(config)
        self.projector = MLP(
            sizes=(config.model.width, c.projector_out),
            norms=("affine", "plain"),
            init_rule="xavier",
            bn_group_size=c.bn_group_size,
            bn_eps=bn_eps,
            bn_momentum=bn_momentum,
            dtype=self.dtype,
        )

    def mask_kind(self) -> str:
        """Noise, unless the masks are random: attention chooses the patches on the device."""
        return "random" if self.config.method.masking == "random" else "noise"

    # --- State ------------------------------------------------------------------------------------------------
    def init(self, rng: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """params: encoder, decoder, projector; state: batch_stats, the projector's."""
        to_networks, _ = jax.random.split(rng)
        params, stats = self.init_networks(to_networks)
        return params, {"batch_stats": stats}

    def init_networks(self, rng: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """MAE's networks, and the projector if there is one; the statistics are the projector's."""
        to_mae, to_projector = jax.random.split(rng)
        params, _ = super().init_networks(to_mae)
        if not self.config.method.projector:
            return params, {}
        variables = self.projector.init(to_projector, jnp.zeros((2, self.encoder.width)), train=True)
        return {**params, "projector": variables["params"]}, variables["batch_stats"]

    # --- Loss -------------------------------------------------------------------------------------------------
    def loss(self, params: dict[str, Any], batch: Arrays, context: StepContext) -> LossOutput:
        """Reconstruction plus align_weight times alignment."""
        images = self.preprocess(batch["image"])
        out = self.forward(params, context.model_state["batch_stats"], images, batch)
        c = self.config.method
        metrics = {
            "loss": out["loss"],
            "loss_rec": out["loss_rec"],
            "loss_align": out["loss_align"],
            # The alignment loss at chance: all images look alike.
            "align_chance": jnp.asarray(2 * c.temperature * jnp.log(float(images.shape[0]))),
            "align_accuracy": out["align_accuracy"],
            **losses.spread(out["cls_v"]),
        }
        if "attention" in out:
            metrics |= attention_metrics(out["attention_per_layer"], out["attention"], out["visible"], out["masked"])
        return LossOutput(out["loss"], metrics, {"batch_stats": out["batch_stats"]})

    def forward(
        self, params: dict[str, Any], stats: dict[str, Any], images: jax.Array, batch: Arrays
    ) -> dict[str, Any]:
        """All intermediates of one step, by name. images: preprocessed; stats: of the projector's BatchNorm."""
        c = self.config.method
        # 1. The importance A of a patch: how much the cls token attends to it, over all heads and blocks, when it sees
        #    the whole image. Up to noise, the less important are visible, the more important masked.
        chosen = self.choose(params, images, batch)
        # 2. The visible patches are encoded and decoded: MAE.
        out = self.reconstruct(params, images, chosen["visible"], chosen["masked"])
        # 3. The masked patches are encoded by the same encoder in a pass of their own, with the cls token. Stopping the
        #    gradient at the parameters spares the residuals of this pass.
        stop = jax.lax.stop_gradient if c.align_grad == "stop" else lambda x: x

        def encode_masked(images, masked):
            return self.encode(stop(params), ViT.encode_cls, self.encode(stop(params), ViT.embed, images, masked))

        cls_m = chunked.mapped(encode_masked, self.image_chunks, images, chosen["masked"])
        cls_v = out["latent"][:, 0]
        # 4. Both cls tokens are projected, the visible ones first: BatchNorm's running statistics move twice.
        proj_v, stats = self.project(params, stats, cls_v)
        proj_m, stats = self.project(stop(params), stats, cls_m)
        # 5. Each visible half is contrasted with the masked halves of the whole batch; one direction only.
        cross_entropy, accuracy = losses.info_nce(proj_v, stop(proj_m), c.temperature)
        loss_align = 2 * c.temperature * cross_entropy
        # 6. L = L_rec + align_weight L_align.
        return {
            **out,
            **chosen,
            "cls_v": cls_v,
            "cls_m": cls_m,
            "proj_v": proj_v,
            "proj_m": proj_m,
            "align_accuracy": accuracy,
            "loss_rec": out["loss"],
            "loss_align": loss_align,
            "loss": out["loss"] + c.align_weight * loss_align,
            "batch_stats": stats,
        }

    def choose(self, params: dict[str, Any], images: jax.Array, batch: Arrays) -> dict[str, jax.Array]:
        """{visible, masked} and, if attention chose them, {attention_per_layer, attention}."""
        if self.config.method.masking == "random":
            return {"visible": batch["visible"], "masked": batch["masked"]}
        per_layer = self.attention(params, images)
        attention = per_layer.sum(axis=0)
        score = masking.SCORES[self.config.method.masking](attention, batch["mask_noise"])
        visible, masked = masking.split_by_score(score, self.num_visible)
        chosen = {"visible": visible, "masked": masked}
        return chosen | {"attention_per_layer": per_layer, "attention": attention}

    def attention(self, params: dict[str, Any], images: jax.Array) -> jax.Array:
        """(blocks, B, N) float32: what the cls token attends to on the whole image; no gradient."""
        params, layers = jax.lax.stop_gradient(params), tuple(self.config.method.importance_layers)

        def attend(images):
            tokens = self.encode(params, ViT.embed, images)
            return jnp.moveaxis(self.encode(params, ViT.cls_attention, tokens, layers), 0, 1)

        per_image = chunked.mapped(attend, self.image_chunks, images)
        return jax.lax.stop_gradient(jnp.moveaxis(per_image, 1, 0))

    def project(
        self, params: dict[str, Any], stats: dict[str, Any], cls: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        """(projected cls tokens, updated statistics); normalizes with the statistics of the batch."""
        if not self.config.method.projector:
            return cls, stats
        variables = {"params": params["projector"], "batch_stats": stats}
        out, updated = self.projector.apply(variables, cls, train=True, mutable=["batch_stats"])
        return out, updated["batch_stats"]

    # --- Pictures ---------------------------------------------------------------------------------------------
    def pictures(self, params: dict[str, Any], model_state: dict[str, Any], batch: Arrays) -> dict[str, jax.Array]:
        """MAE's pictures and, before the mask, the importance of the patches (also if masks are random)."""
        images = self.preprocess(batch["image"])
        chosen = self.choose(params, images, batch)
        drawn = self.draw(params, images, chosen["visible"], chosen["masked"])
        attention = chosen["attention"] if "attention" in chosen else self.attention(params, images).sum(axis=0)
        low, high = attention.min(axis=1, keepdims=True), attention.max(axis=1, keepdims=True)
        level = ((attention - low) / jnp.maximum(high - low, 1e-12))[:, :, None]
        patches = jnp.broadcast_to(level, (*attention.shape, self.patch**2))
        heat = masking.unpatchify(patches, self.patch, self.image_size)
        return {**drawn, "importance": heat}


def check(config: Any) -> None:
    """Raises UserError for fields out of their range."""
    c, depth = config.method, config.model.depth
    check_choice("method.masking", c.masking, ["random", *masking.SCORES])
    check_choice("method.align_grad", c.align_grad, ["stop", "both"])
    if not all(-depth <= layer < depth for layer in c.importance_layers):
        raise UserError(
            f"method.importance_layers={tuple(c.importance_layers)} names a block that is not there: "
            f"model.depth is {depth}, so use 0 to {depth - 1}, or -1 for the last"
        )
    contrast.check_contrast(config)


def attention_metrics(
    per_layer: jax.Array, attention: jax.Array, visible: jax.Array, masked: jax.Array
) -> dict[str, jax.Array]:
    """How peaked the importance is, and how much of it the mask hides."""
    fraction = per_layer / per_layer.sum(axis=-1, keepdims=True)
    entropy = -jnp.sum(fraction * jnp.log(fraction + 1e-12), axis=-1).mean() / jnp.log(fraction.shape[-1])
    return {
        "attention_entropy": entropy,  # 1: uniform
        "attention_masked": jnp.take_along_axis(attention, masked, axis=1).mean(),
        "attention_visible": jnp.take_along_axis(attention, visible, axis=1).mean(),
    }
