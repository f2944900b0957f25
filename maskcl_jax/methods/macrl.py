"""MACRL: Masked Contrastive Representation Learning (Yao, Desai, Palaniswami, 2022, arXiv 2211.06012).

Reconstructed from the abstract: the paper's body was not available to us and no code was published. Stated there: two
branches, each an encoder and a decoder; one with a higher mask ratio and stronger augmentation; contrast of the
encoders' features; an L1 loss on the decoders' outputs. A third-party summary adds a projector and a memory bank.
Every number, and everything else in this file, is our choice.
"""

from typing import Any

import jax
import jax.numpy as jnp

from maskcl_jax.errors import UserError, check_choice
from maskcl_jax.methods import contrast, encoders, options
from maskcl_jax.methods.base import Arrays, LossOutput, StepContext
from maskcl_jax.methods.encoders import apply_in_training, init_heads
from maskcl_jax.methods.mae import MAE
from maskcl_jax.models.heads import MLP
from maskcl_jax.ops import chunked, losses
from maskcl_jax.views.base import View
from maskcl_jax.views.patch_mask import PatchMask

# What the EMA target mirrors, by mode.
TARGETS = {"shared": (), "ema_keys": ("encoder", "projector"), "ema_full": ("encoder", "projector", "decoder")}


class MACRL(MAE):
    """MACRL; `configs/macrl.py` explains its fields of `config.method`."""

    picture_names = ("query", "query_masked", "query_reconstruction", "key", "key_masked", "key_reconstruction")
    ema_first = True

    def __init__(self, config: Any):
        check(config)
        super().__init__(config)
        c = config.method
        self.projector = MLP(
            sizes=(c.projector.hidden, c.projector.out),
            norms=(c.projector.norm, "none"),
            biases=(0, 1),
            bn_group_size=c.bn_group_size,
            dtype=self.dtype,
        )

    def new_views(self) -> tuple[View, ...]:
        """The strong and the weak view, each a crop of its own."""
        c, views = self.config.method, {}
        for name, field in (("query", "mask_ratio"), ("key", "mask_ratio_key")):
            like = "query" if c.key_as_query else name
            mask = options.patch_mask(self.config, self.encoder.grid, field=field) if getattr(c, field) else None
            color = options.color(self.config, f"{like}_augment")
            views[name] = {"ingredients": (mask, color), "scale": tuple(getattr(c, f"{like}_crop_scale"))}
        if c.swap_roles:
            views = {"query": views["key"], "key": views["query"]}
        return tuple(options.view(self.config, name=name, **fields) for name, fields in views.items())

    @property
    def num_visible(self) -> int:
        """Patches of the query that the encoder sees."""
        mask = self.views[0].find(PatchMask)
        return self.num_patches if mask is None else mask.num_visible

    # --- State ------------------------------------------------------------------------------------------------
    def init(self, rng: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """params: encoder, decoder, projector; state: batch_stats and, as configured, target_batch_stats, queue."""
        c, (to_networks, to_queue) = self.config.method, jax.random.split(rng)
        params, stats = self.init_networks(to_networks)
        state: dict[str, Any] = {"batch_stats": stats}
        if c.mode != "shared":
            state["target_batch_stats"] = stats
        if c.queue_size:
            state["queue"] = losses.new_queue(to_queue, c.queue_size, c.projector.out)
        return params, state

    def init_networks(self, rng: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """MAE's networks and the projector."""
        to_mae, to_projector = jax.random.split(rng)
        params, _ = super().init_networks(to_mae)
        projector, stats = init_heads({"projector": (self.projector, self.encoder.width)}, to_projector)
        return {**params, **projector}, stats

    def target_params(self, params: dict[str, Any]) -> dict[str, Any] | None:
        """Encoder and projector, with `ema_full` the decoder too; None if the weights are shared."""
        return {part: params[part] for part in TARGETS[self.config.method.mode]} or None

    def momentum(self, progress: jax.Array | float) -> jax.Array:
        """Fixed, or rising to 1."""
        return contrast.momentum_at(self.config.method.momentum, self.config.method.momentum_schedule, progress)

    # --- Loss -------------------------------------------------------------------------------------------------
    def loss(self, params: dict[str, Any], batch: Arrays, context: StepContext) -> LossOutput:
        """Contrast plus the two reconstructions."""
        out, c = self.forward(params, context, batch), self.config.method
        in_batch = batch["query"].shape[0] if c.in_batch_negatives else 1
        metrics = {
            "loss": out["loss"],
            **{f"loss_rec_{view.name}": out[f"loss_rec_{view.name}"] for view in self.views if self.reconstructs(view)},
            **contrast.metrics(
                out["loss_contrast"], out["accuracy"], out["query"]["pooled"], candidates=in_batch + c.queue_size
            ),
        }
        return LossOutput(out["loss"], metrics, out["model_state"])

    def forward(self, params: dict[str, Any], context: StepContext, batch: Arrays) -> dict[str, Any]:
        """Every intermediate of one step, by name."""
        c, (query_view, key_view) = self.config.method, self.views
        state = dict(context.model_state)
        # 1. The query: the stronger corruption, encoded, decoded, projected.
        query = self.branch(params, batch, query_view)
        z_query, state["batch_stats"] = self.project(params, state["batch_stats"], query["pooled"])
        # 2. The key: the weaker corruption. The mode decides which weights encode and decode it.
        if c.mode == "shared":
            key = self.branch(params, batch, key_view)
            z_key, state["batch_stats"] = self.project(params, state["batch_stats"], key["pooled"])
            z_key = jax.lax.stop_gradient(z_key) if c.stop_grad_key else z_key
        else:
            target = jax.lax.stop_gradient(context.target_params)
            key = self.branch(target if c.mode == "ema_full" else params, batch, key_view)
            pooled = key["pooled"] if c.mode == "ema_full" else self.key_features(target, batch, key_view)
            z_key, state["target_batch_stats"] = self.project(target, state["target_batch_stats"], pooled)
            z_key = jax.lax.stop_gradient(z_key)
        # 3. The query finds its key among the batch's and the memory bank's.
        bank = state["queue"]["keys"] if c.queue_size else jnp.zeros((0, c.projector.out))
        cross_entropy, accuracy = losses.queue_nce(z_query, z_key, bank, c.temperature, in_batch=c.in_batch_negatives)
        # 4. Both decoders reconstruct their own view.
        loss_key = jax.lax.stop_gradient(key["loss"]) if c.mode == "ema_full" else key["loss"]
        weighted = ((c.lambda_query, query["loss"]), (c.lambda_key, loss_key))
        reconstruction = sum(weight * loss for weight, loss in weighted if weight)
        # 5. The oldest keys leave the bank, these enter.
        if c.queue_size:
            state["queue"] = losses.enqueue(state["queue"], z_key)
        return {
            "query": query,
            "key": key,
            "z_query": z_query,
            "z_key": z_key,
            "loss_contrast": cross_entropy,
            "accuracy": accuracy,
            "loss_rec_query": query["loss"],
            "loss_rec_key": loss_key,
            "loss": c.contrast_weight * cross_entropy + reconstruction,
            "model_state": state,
        }

    def reconstructs(self, view: View) -> bool:
        """Whether there are patches of a view that the loss looks at."""
        return view.find(PatchMask) is not None or self.config.method.loss_on == "all"

    def branch(self, params: dict[str, Any], batch: Arrays, view: View) -> dict[str, jax.Array]:
        """Encoder and decoder on one view: {latent, loss, pooled}; of a view that is whole the encoder, and 0."""
        (images, targets), (visible, masked) = self.images_of(batch, view), self.masks_of_view(batch, view)
        if self.reconstructs(view):
            out = self.reconstruct(params, images, visible, masked, targets=targets)
        else:
            out = {"latent": self.latent(params, images, visible), "loss": jnp.float32(0.0)}
        return {**out, "pooled": encoders.pooled(out["latent"], self.config.method.pool)}

    def key_features(self, params: dict[str, Any], batch: Arrays, view: View) -> jax.Array:
        """The pooled feature of one view, without its decoder."""

        def encode(images, visible):
            return encoders.pooled(self.latent(params, images, visible), self.config.method.pool)

        images, visible = self.images_of(batch, view)[0], self.masks_of_view(batch, view)[0]
        return chunked.mapped(encode, self.image_chunks, images, visible)

    def project(
        self, params: dict[str, Any], stats: dict[str, Any], pooled: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        """(projection, statistics after it)."""
        return apply_in_training(self.projector, "projector", params, stats, pooled)

    def decoder_loss(
        self, decoder_params: dict[str, Any], latent: jax.Array, given: tuple[jax.Array, ...]
    ) -> jax.Array:
        """The error of the masked patches, or of all."""
        if self.config.method.loss_on == "masked":
            return super().decoder_loss(decoder_params, latent, given)
        targets, visible, masked = given
        prediction = self.decode({"decoder": decoder_params}, latent, visible, masked)
        return self.error(prediction, self.target_patches(targets, jnp.concatenate([visible, masked], axis=1)))

    def error(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        """Mean absolute or squared error."""
        return (losses.patch_l1 if self.config.method.reconstruction == "l1" else losses.patch_mse)(prediction, target)

    def masks_of_view(self, batch: Arrays, view: View) -> tuple[jax.Array, jax.Array]:
        """(visible, masked) patch indices of one view; all visible if it has no mask."""
        if view.find(PatchMask) is not None:
            return batch[view.key("visible")], batch[view.key("masked")]
        count = batch[view.name].shape[0]
        everything = jnp.tile(jnp.arange(self.num_patches), (count, 1))
        return everything, everything[:, :0]

    def images_of(self, batch: Arrays, view: View) -> tuple[jax.Array, jax.Array]:
        """(what the encoder sees, what the decoder reconstructs), preprocessed."""
        images = options.network_images(self.config, batch, view)
        if self.config.method.recon_target == "view":
            return images, images
        return images, options.network_images(self.config, batch, view, augment_color=False)

    # --- Pictures ---------------------------------------------------------------------------------------------
    def pictures(self, params: dict[str, Any], model_state: dict[str, Any], batch: Arrays) -> dict[str, jax.Array]:
        """Both views, their masks and what the online decoder makes of them."""
        drawn = {}
        for view in self.views:
            images, targets = self.images_of(batch, view)
            columns = self.draw(params, images, *self.masks_of_view(batch, view), targets=targets)
            drawn |= {view.name: columns["input"], f"{view.name}_masked": columns["masked"]}
            drawn[f"{view.name}_reconstruction"] = columns["reconstruction"]
        return drawn


def check(config: Any) -> None:
    """Raises UserError for fields that are unknown, out of range, or do not go together."""
    c = config.method
    contrast.check_contrast(config)
    contrast.check_target(config)
    check_choice("method.mode", c.mode, TARGETS)
    check_choice("method.reconstruction", c.reconstruction, ["l1", "l2"])
    check_choice("method.loss_on", c.loss_on, ["masked", "all"])
    check_choice("method.recon_target", c.recon_target, ["view", "clean"])
    if c.recon_target == "clean" and getattr(config.augment, "photometric", "") == "host":
        raise UserError(
            "method.recon_target='clean' needs the view before its colors change: set augment.photometric='device'"
        )
    check_choice("method.pool", c.pool, ["mean", "cls"])
    check_choice("method.projector.norm", c.projector.norm, ["affine", "none"])
    if c.queue_size < 0 or c.queue_size % config.batch_size:
        raise UserError(
            f"method.queue_size={c.queue_size} is not a multiple of batch_size={config.batch_size}: use for "
            f"instance {max(1, c.queue_size // config.batch_size) * config.batch_size}, or 0 for no bank"
        )
    if not c.queue_size and not c.in_batch_negatives:
        raise UserError("method.queue_size=0 with method.in_batch_negatives=False leaves nothing to contrast with")
    if c.mask_ratio_key > c.mask_ratio:
        raise UserError(
            f"method.mask_ratio_key={c.mask_ratio_key} is above method.mask_ratio={c.mask_ratio}: the query has "
            "the higher ratio; method.swap_roles=True exchanges the two"
        )
    weight = "lambda_query" if c.swap_roles else "lambda_key"  # of the view that has the ratio mask_ratio_key
    if c.mask_ratio_key == 0 and getattr(c, weight) and c.loss_on == "masked":
        raise UserError(
            f"method.mask_ratio_key={c.mask_ratio_key} with method.swap_roles={c.swap_roles} leaves nothing masked to "
            f"reconstruct: set method.{weight}=0 or method.loss_on=all"
        )
