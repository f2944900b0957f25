"""CMAE: Contrastive Masked Autoencoders are Stronger Vision Learners (Huang et al., TPAMI 2023, arXiv 2207.13532).

A masked autoencoder with a second, small decoder whose output, averaged over the image, must find the features that an
EMA encoder makes of the same picture, unmasked, shifted by a few pixels and in other colours.

Faithful to the released code, ZhichengHuang/CMAE at e786a52 (outputs, gradients and the EMA of a step: `verify`). Where
paper and code differ, the code's value is the default, for it trained the published checkpoints; see `configs/cmae.py`.
"""

import jax
import jax.numpy as jnp

from maskcl_jax.errors import UserError
from maskcl_jax.methods import base
from maskcl_jax.methods.mae import MAE
from maskcl_jax.models.batch_norm import apply_in_training
from maskcl_jax.models.decoder import Decoder
from maskcl_jax.models.heads import KERNEL_INIT, MLP, init_mlps
from maskcl_jax.models.vit import ViT
from maskcl_jax.ops import chunked, losses

REFERENCE_SIZE = 224  # pixels: what master_size and pixel_shift are written for; other sizes scale them


class CMAE(MAE):
    """Fields of `config.method` beyond MAE's, with the source of each value ([C] released code, [P] paper):

    mask_ratio 0.65 of mask_block 2 x 2 patches [C]; [P] follows MAE: 0.75, mask_block 1.
    feature_decoder: kind "own" [C] | "shared" (the pixel decoder's tokens, through one more layer: our reading of the
      paper's ablation) | "none" (the visible tokens themselves); width, depth 2 [C], heads, mlp_ratio.
    projector, predictor: hidden 1536, out 256 [C].
    contrast "infonce" [C] | "byol" [P, ablated]; temperature 0.07 [C]; contrast_scale "2tau" [C] | "plain" [P];
    contrast_weight 1 [C]. momentum 0.996, momentum_schedule "fixed" [C, P] | "cosine" (to 1).
    master_size 256, pixel_shift 31 [C]: the crop, and how far the target's view moves in it, for 224-pixel views.
    target_augment: colours of the target's view [C]. bn_group_size: 0, the whole batch [C, SyncBN].
    """

    positions = "mocov3"
    picture_names = ("query", "masked", "reconstruction", "key", "shared_area")

    def __init__(self, config):
        c = config.method
        base.check_contrast(config)
        base.check_target(c)
        base.check_choice("method.contrast", c.contrast, ["infonce", "byol"])
        base.check_choice("method.contrast_scale", c.contrast_scale, ["2tau", "plain"])
        base.check_choice("method.feature_decoder.kind", c.feature_decoder.kind, ["own", "shared", "none"])
        super().__init__(config)
        self.works_in_chunks = c.feature_decoder.kind != "shared"  # there the decoder's tokens are features too
        self.feature_decoder = None
        if c.feature_decoder.kind == "own":
            self.feature_decoder = self.new_decoder("method.feature_decoder", c.feature_decoder, out=self.encoder.width)
        head = {"norms": ("affine", "none"), "biases": (0,), "bn_eps": 1e-6, "dtype": self.dtype}
        head["bn_group_size"] = c.bn_group_size
        self.projector = MLP(sizes=(c.projector.hidden, c.projector.out), **head)
        self.predictor = MLP(sizes=(c.predictor.hidden, c.projector.out), **head)

    def new_views(self):
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
        mask = base.patch_mask(self.config, self.encoder.grid, field="mask_ratio", block=c.mask_block)
        augmentation = base.color_of(self.config, "target_augment")
        shared = {"shared": "master", "master": master}
        return (
            base.view_of(self.config, name="query", ingredients=(mask,), **shared),
            base.view_of(self.config, name="key", shift=shift, ingredients=(augmentation,), **shared),
        )

    def init(self, rng):
        """(params {encoder, decoder, feature_decoder, projector, predictor}, {batch_stats: {projector, predictor}})."""
        to_mae, to_features, to_heads = jax.random.split(rng, 3)
        params, _ = super().init(to_mae)
        width, c = self.encoder.width, self.config.method
        if self.feature_decoder is not None:
            params["feature_decoder"] = self.init_decoder(self.feature_decoder, to_features)
        elif c.feature_decoder.kind == "shared":
            kernel = KERNEL_INIT["xavier"](to_features, (c.decoder.width, width), jnp.float32)
            params["feature_layer"] = {"kernel": kernel, "bias": jnp.zeros((width,), jnp.float32)}
        heads = {"projector": (self.projector, width), "predictor": (self.predictor, c.projector.out)}
        head_params, state = init_mlps(heads, to_heads)
        return {**params, **head_params}, state

    def target_of(self, params):
        """The encoder without its final norm, and the projector."""
        encoder = {name: value for name, value in params["encoder"].items() if name != "norm"}
        return {"encoder": encoder, "projector": params["projector"]}

    def target_state_of(self, model_state):
        """The projector's statistics."""
        return {"batch_stats": {"projector": model_state["batch_stats"]["projector"]}}

    def momentum(self, progress):
        """`momentum`, or from there to 1 along half a cosine."""
        return base.momentum_at(self.config.method, progress)

    def online_features(self, params, *seen):
        """{feature_pred, online_pooled}: what stands for the whole picture, seen through the visible patches.

        seen: latent, visible, masked. feature_pred is in the order of the sequence, visible patches first.
        """
        kind = self.config.method.feature_decoder.kind
        if kind == "none":
            return {"online_pooled": base.pooled(seen[0], "mean")}
        if kind == "own":
            pred = self.feature_decoder.apply({"params": params["feature_decoder"]}, *seen)
        else:
            tokens = self.decode(params, *seen, method=Decoder.tokens)
            layer = jax.tree.map(lambda p: p.astype(tokens.dtype), params["feature_layer"])
            pred = tokens @ layer["kernel"] + layer["bias"]
        return {"feature_pred": pred, "online_pooled": pred.astype(jnp.float32).mean(axis=1)}

    def target_features(self, target, images):
        """(B, D): the mean of the EMA encoder's patch tokens, before any final norm."""

        def of_images(images):
            tokens = self.encode(target, ViT.embed, images)
            return base.pooled(self.encode(target, ViT.encode, tokens, final_norm=False), "mean")

        return chunked.mapped(of_images, self.image_chunks, images)

    def step(self, params, carried, query, key, visible, masked):
        """Every intermediate of one step, by name; query, key: normalised images."""
        c = self.config.method
        state, target_state = carried.model_state, carried.target_state
        # 1. The visible patches of the online view are encoded, and decoded to pixels: MAE.
        out = self.forward(params, query, visible, masked)
        out["loss_rec"] = out["loss"]
        # 2. A second decoder with a mask token of its own gives features for every patch; their mean is the picture's.
        out |= self.online_features(params, out["latent"], visible, masked)
        projection, state = apply_in_training(self.projector, params, state, "projector", out["online_pooled"])
        prediction, state = apply_in_training(self.predictor, params, state, "predictor", projection)
        # 3. The target: the EMA encoder on the whole other view, and its projector with statistics of its own batch.
        target = jax.lax.stop_gradient(carried.target_params)
        out["target_pooled"] = self.target_features(target, key)
        target_projection, target_state = apply_in_training(
            self.projector, target, target_state, "projector", out["target_pooled"]
        )
        target_projection = jax.lax.stop_gradient(target_projection)
        # 4. One direction: each prediction finds its own target among those of the whole batch.
        cross_entropy, accuracy = losses.info_nce(prediction, target_projection, c.temperature)
        distance = losses.byol(prediction, target_projection) if c.contrast == "byol" else cross_entropy
        scale = 2 * c.temperature if c.contrast_scale == "2tau" and c.contrast == "infonce" else 1.0
        out["loss_contrast"] = c.contrast_weight * scale * distance
        return {
            **out,
            "projection": projection,
            "prediction": prediction,
            "target_projection": target_projection,
            "accuracy": accuracy,
            "contrast": scale * cross_entropy,
            "scale": scale,
            "loss": out["loss_rec"] + out["loss_contrast"],
            "model_state": jax.lax.stop_gradient(state),
            "target_state": jax.lax.stop_gradient(target_state),
        }

    def loss(self, params, carried, batch, rng):
        """Reconstruction plus contrast."""
        query, key = (self.view_images(batch, view) for view in self.views)
        out = self.step(params, carried, query, key, batch["query_visible"], batch["query_masked"])
        metrics = {
            "loss": out["loss"],
            "loss_rec": out["loss_rec"],
            "loss_contrast": out["loss_contrast"],
            **base.contrast_metrics(out["contrast"], out["accuracy"], query.shape[0], out["scale"]),
            **losses.spread(out["online_pooled"]),
        }
        return out["loss"], base.Aux(metrics, out["model_state"], out["target_state"])

    def view_images(self, batch, view):
        """One view of a batch as the networks take it."""
        return base.standardize(base.picture_of(batch, view), self.config.data.mean, self.config.data.std)

    def pictures(self, params, model_state, batch):
        """The online view, its mask and reconstruction, the target's view, and the part of the online view in it."""
        query, key = self.views
        drawn = self.drawn(params, self.view_images(batch, query), batch["query_visible"], batch["query_masked"])
        picture = base.picture_of(batch, query)
        down, across = jnp.arange(picture.shape[1])[:, None], jnp.arange(picture.shape[2])
        shift = batch["key_shift"] if key.crop.shift else jnp.zeros((picture.shape[0], 2), jnp.int32)
        seen = (down >= shift[:, 0, None, None]) & (across >= shift[:, 1, None, None])
        return {
            "query": drawn["input"],
            "masked": drawn["masked"],
            "reconstruction": drawn["reconstruction"],
            "key": base.picture_of(batch, key),
            "shared_area": jnp.where(seen[..., None], picture, 0.3 * picture),
        }
