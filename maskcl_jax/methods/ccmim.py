"""ccMIM: Contextual Image Masking Modeling via Synergized Contrasting without View Augmentation (ICLR 2023).

A masked autoencoder that hides what its own cls token attends to, and aligns the cls tokens of the visible and of the
masked patches of an image against those of the other images. Shaofeng Zhang, Feng Zhu, Rui Zhao, Junchi Yan.

Faithful to the released code, Sherrylone/ccMIM at fdc9096 (outputs, gradients and BatchNorm statistics: `verify`).
The paper's equations and tables could not be read: where the code offers no option, a switch is called our choice.
"""

import jax
import jax.numpy as jnp

from maskcl_jax.errors import UserError
from maskcl_jax.methods import base
from maskcl_jax.methods.mae import MAE
from maskcl_jax.models.heads import MLP
from maskcl_jax.models.vit import ViT
from maskcl_jax.ops import chunked, losses, masking


class CCMIM(MAE):
    """Fields of `config.method` beyond MAE's, with the source of each value:

    masking: "importance" (released code), "random" (its --random), "gumbel", "topk" (both our choice).
    importance_layers: blocks whose attention is summed; () is all (released code), others our choice.
    align_weight: 0.1 (released code; 0.2 before 13 March 2023). temperature: 0.5 (released code).
    align_grad: "stop" (released code: none through the masked branch), "both" (our choice).
    projector: whether the contrasted tokens are projected (released code since 17 March 2023), to projector_out 256.
    bn_group_size: images that share BatchNorm statistics; the code's share a GPU (32); 0, the whole batch: our choice.
    """

    picture_names = ("input", "importance", "masked", "reconstruction")

    def __init__(self, config, *, bn_eps: float = 1e-5, bn_momentum: float = 0.1):
        """bn_eps, bn_momentum: of the projector's BatchNorm, in torch's sense (the released code has torch's own)."""
        c = config.method
        self.mask_kind = "random" if c.masking == "random" else "noise"
        super().__init__(config)
        self.check()
        self.projector = MLP(
            sizes=(config.model.width, c.projector_out),
            norms=("affine", "plain"),
            init_rule="xavier",
            bn_group_size=c.bn_group_size,
            bn_eps=bn_eps,
            bn_momentum=bn_momentum,
            dtype=self.dtype,
        )

    def check(self) -> None:
        """Raises UserError for fields out of their range."""
        c, depth = self.config.method, self.config.model.depth
        base.check_choice("method.masking", c.masking, ["random", *masking.SCORES])
        base.check_choice("method.align_grad", c.align_grad, ["stop", "both"])
        if not all(-depth <= layer < depth for layer in c.importance_layers):
            raise UserError(
                f"method.importance_layers={tuple(c.importance_layers)} names a block that is not there: "
                f"model.depth is {depth}, so use 0 to {depth - 1}, or -1 for the last"
            )
        base.check_contrast(self.config)

    def init(self, rng):
        """(params {encoder, decoder, projector}, {batch_stats: {projector}})."""
        to_mae, to_projector = jax.random.split(rng)
        params, _ = super().init(to_mae)
        if not self.config.method.projector:
            return params, {}
        variables = self.projector.init(to_projector, jnp.zeros((2, self.config.model.width)), train=True)
        return {**params, "projector": variables["params"]}, {"batch_stats": variables["batch_stats"]}

    def project(self, params, model_state, cls):
        """(projected cls tokens, new model_state), with the batch's own statistics."""
        if not self.config.method.projector:
            return cls, model_state
        variables = {"params": params["projector"], **model_state}
        return self.projector.apply(variables, cls, train=True, mutable=["batch_stats"])

    def loss(self, params, carried, batch, rng):
        """Reconstruction plus align_weight times alignment."""
        images = self.normalized(batch["image"])
        out = self.step(params, carried.model_state, images, batch)
        c = self.config.method
        metrics = {
            "loss": out["loss"],
            "loss_rec": out["loss_rec"],
            "loss_align": out["loss_align"],
            # What the alignment costs when it tells no image from another.
            "align_chance": jnp.asarray(2 * c.temperature * jnp.log(float(images.shape[0]))),
            "align_accuracy": out["align_accuracy"],
            **losses.spread(out["cls_v"]),
        }
        if "A" in out:
            metrics |= attention_metrics(out["A_per_layer"], out["A"], out["visible"], out["masked"])
        return out["loss"], base.Aux(metrics, out["model_state"])

    def attention(self, params, images):
        """(blocks, B, N) float32: what the cls token attends to on the whole image; no gradient."""
        params, layers = jax.lax.stop_gradient(params), tuple(self.config.method.importance_layers)

        def of_images(images):
            tokens = self.encode(params, ViT.embed, images)
            return jnp.moveaxis(self.encode(params, ViT.cls_attention, tokens, layers), 0, 1)

        found = chunked.mapped(of_images, self.image_chunks, images)
        return jax.lax.stop_gradient(jnp.moveaxis(found, 1, 0))

    def choose(self, params, images, batch):
        """{visible, masked} and, where attention chose them, {A_per_layer, A}."""
        if self.config.method.masking == "random":
            return {"visible": batch["visible"], "masked": batch["masked"]}
        per_layer = self.attention(params, images)
        attention = per_layer.sum(axis=0)
        score = masking.SCORES[self.config.method.masking](attention, batch["mask_noise"])
        visible, masked = masking.split_by_score(score, self.num_visible)
        return {"visible": visible, "masked": masked, "A_per_layer": per_layer, "A": attention}

    def step(self, params, model_state, images, batch):
        """Every intermediate of one step, by name, for normalised images."""
        c = self.config.method
        # 1. The importance of a patch: how much the cls token attends to it, over all heads and blocks, when it sees
        #    the whole image. The less important, with chance, are visible; the more important are masked.
        chosen = self.choose(params, images, batch)
        # 2. The visible patches are encoded and decoded: MAE.
        out = self.forward(params, images, chosen["visible"], chosen["masked"])
        # 3. The masked patches are encoded by the same encoder, apart, with a cls token of their own. Stopping the
        #    parameters spares the residuals of this pass.
        stop = jax.lax.stop_gradient if c.align_grad == "stop" else lambda x: x

        def of_masked(images, masked):
            return self.encode(stop(params), ViT.encode_cls, self.encode(stop(params), ViT.embed, images, masked))

        cls_m = chunked.mapped(of_masked, self.image_chunks, images, chosen["masked"])
        cls_v = out["latent"][:, 0]
        # 4. Both cls tokens are projected, the visible ones first: BatchNorm's running statistics move twice.
        proj_v, model_state = self.project(params, model_state, cls_v)
        proj_m, model_state = self.project(stop(params), model_state, cls_m)
        # 5. Each visible half finds its masked half among those of the whole batch; one direction only.
        cross_entropy, accuracy = losses.info_nce(proj_v, stop(proj_m), c.temperature)
        loss_align = 2 * c.temperature * cross_entropy
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
            "model_state": jax.lax.stop_gradient(model_state),
        }

    def masks_of(self, params, batch):
        """(visible, masked) patch numbers of a batch."""
        chosen = self.choose(params, self.normalized(batch["image"]), batch)
        return chosen["visible"], chosen["masked"]

    def pictures(self, params, model_state, batch):
        """MAE's pictures and, before the mask, the importance of the patches (also where masks are random)."""
        drawn = super().pictures(params, model_state, batch)
        attention = self.attention(params, self.normalized(batch["image"])).sum(axis=0)
        low, high = attention.min(axis=1, keepdims=True), attention.max(axis=1, keepdims=True)
        level = ((attention - low) / jnp.maximum(high - low, 1e-12))[:, :, None]
        patches = jnp.broadcast_to(level, (*attention.shape, self.patch**2))
        heat = masking.unpatchify(patches, self.patch, self.image_size)
        return {**drawn, "importance": heat}


def attention_metrics(per_layer, attention, visible, masked):
    """How peaked the importance is, and how much of it the mask hides."""
    share = per_layer / per_layer.sum(axis=-1, keepdims=True)
    entropy = -jnp.sum(share * jnp.log(share + 1e-12), axis=-1).mean() / jnp.log(share.shape[-1])
    return {
        "attention_entropy": entropy,  # 1: uniform
        "attention_masked": jnp.take_along_axis(attention, masked, axis=1).mean(),
        "attention_visible": jnp.take_along_axis(attention, visible, axis=1).mean(),
    }
