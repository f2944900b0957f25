"""MACRL: Masked Contrastive Representation Learning (Yao, Desai, Palaniswami, 2022, arXiv 2211.06012).

Reconstructed from the abstract: the paper's body was not available to us and no code was published. Stated there: two
branches, each an encoder and a decoder; one with a higher mask ratio and stronger augmentation; contrast of the
encoders' features; an L1 loss on the decoders' outputs. A third-party summary adds a projector and a memory bank.
Every number, and everything else in this file, is our choice.
"""

import jax
import jax.numpy as jnp

from maskcl_jax.errors import UserError
from maskcl_jax.methods import base
from maskcl_jax.methods.mae import MAE
from maskcl_jax.models.batch_norm import apply_in_training
from maskcl_jax.models.heads import MLP, init_mlps
from maskcl_jax.ops import chunked, losses
from maskcl_jax.views import PatchMask

MODES = ("shared", "ema_keys", "ema_full")


class MACRL(MAE):
    """Fields of `config.method` beyond MAE's (all of them our choice, reconstructed from the abstract):

    mode: of the second branch. "ema_keys": an EMA encoder and projector make the keys, the online networks reconstruct
      the second view too. "shared": one set of weights does all; stop_grad_key says whether the keys carry gradient.
      "ema_full": the EMA networks do everything for the second view; its reconstruction is logged only.
    mask_ratio (of the query, the stronger), mask_ratio_key. query_augment, key_augment, query_crop_scale,
      key_crop_scale; key_as_query: the key's view is cropped and coloured like the query's. swap_roles: the query takes
      the weaker ratio and augmentation, the key the stronger.
    reconstruction "l1" | "l2", loss_on "masked" | "all", recon_target "view" | "clean" (the same crop in its own
      colours), lambda_query, lambda_key: weights of the two reconstructions. contrast_weight, temperature.
    queue_size: keys in the memory bank, 0 for none; in_batch_negatives: the batch's other keys count too.
    pool "mean" | "cls". projector: hidden, out, norm "affine" | "none". momentum, momentum_schedule. bn_group_size.
    """

    picture_names = ("query", "query_masked", "query_reconstruction", "key", "key_masked", "key_reconstruction")
    ema_first = True

    def __init__(self, config):
        c = config.method
        base.check_contrast(config)
        base.check_target(c)
        base.check_choice("method.mode", c.mode, MODES)
        base.check_choice("method.reconstruction", c.reconstruction, ["l1", "l2"])
        base.check_choice("method.loss_on", c.loss_on, ["masked", "all"])
        base.check_choice("method.recon_target", c.recon_target, ["view", "clean"])
        if c.recon_target == "clean" and getattr(config.augment, "photometric", "") == "host":
            raise UserError(
                "method.recon_target='clean' needs the view before its colours change: set augment.photometric='device'"
            )
        base.check_choice("method.pool", c.pool, ["mean", "cls"])
        base.check_choice("method.projector.norm", c.projector.norm, ["affine", "none"])
        self.check_numbers(config)
        super().__init__(config)
        self.error, self.counted = losses.patch_l1 if c.reconstruction == "l1" else losses.patch_mse, c.loss_on
        self.projector = MLP(
            sizes=(c.projector.hidden, c.projector.out),
            norms=(c.projector.norm, "none"),
            biases=(0, 1),
            bn_group_size=c.bn_group_size,
            dtype=self.dtype,
        )

    def check_numbers(self, config) -> None:
        """Raises UserError where bank, ratios and weights do not go together."""
        c = config.method
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
        if c.mask_ratio_key == 0 and c.lambda_key and c.loss_on == "masked":
            raise UserError(
                f"method.mask_ratio_key={c.mask_ratio_key} leaves nothing masked to reconstruct: set "
                "method.lambda_key=0 or method.loss_on=all"
            )

    def new_views(self):
        """The strong and the weak view, each a crop of its own."""
        c, views = self.config.method, {}
        for name, field in (("query", "mask_ratio"), ("key", "mask_ratio_key")):
            like = "query" if c.key_as_query else name
            mask = base.patch_mask(self.config, self.encoder.grid, field=field) if c[field] else None
            augmentation = base.color_of(self.config, f"{like}_augment")
            views[name] = {"ingredients": (mask, augmentation), "scale": tuple(c[f"{like}_crop_scale"])}
        if c.swap_roles:
            views = {"query": views["key"], "key": views["query"]}
        return tuple(base.view_of(self.config, name=name, **fields) for name, fields in views.items())

    @property
    def num_visible(self):
        """Patches of the query that the encoder sees."""
        mask = self.views[0].find(PatchMask)
        return self.num_patches if mask is None else mask.num_visible

    def init(self, rng):
        """(params {encoder, decoder, projector}, {batch_stats: {projector}}, or {} for a projector without)."""
        to_mae, to_projector = jax.random.split(rng)
        params, _ = super().init(to_mae)
        projector, state = init_mlps({"projector": (self.projector, self.encoder.width)}, to_projector)
        return {**params, **projector}, state

    def target_of(self, params):
        """Encoder and projector, with `ema_full` the decoder too; nothing where the weights are shared."""
        parts = {"shared": (), "ema_keys": ("encoder", "projector"), "ema_full": ("encoder", "projector", "decoder")}
        return {part: params[part] for part in parts[self.config.method.mode]} or None

    def target_state_of(self, model_state):
        """The projector's statistics; nothing where the weights are shared."""
        return None if self.config.method.mode == "shared" else model_state

    def new_queue(self, rng):
        """The memory bank, random unit vectors."""
        c = self.config.method
        return losses.new_queue(rng, c.queue_size, c.projector.out) if c.queue_size else None

    def momentum(self, progress):
        """`momentum`, or from there to 1 along half a cosine."""
        return base.momentum_at(self.config.method, progress)

    def masks_of_view(self, batch, view):
        """(visible, masked) patch numbers of one view; all visible where it has no mask."""
        if view.find(PatchMask) is not None:
            return batch[view.key("visible")], batch[view.key("masked")]
        count = batch[view.name].shape[0]
        everything = jnp.tile(jnp.arange(self.num_patches), (count, 1))
        return everything, everything[:, :0]

    def images_of(self, batch, view):
        """(what the encoder sees, what the decoder shall paint), normalised."""
        mean, std = self.config.data.mean, self.config.data.std
        seen = base.standardize(base.picture_of(batch, view), mean, std)
        if self.config.method.recon_target == "view":
            return seen, seen
        return seen, base.standardize(base.picture_of(batch, view, clean=True), mean, std)

    def branch(self, params, batch, view):
        """Encoder and decoder on one view: MAE's intermediates, and the pooled feature of its visible patches."""
        out = self.reconstruct(params, *self.images_of(batch, view), *self.masks_of_view(batch, view))
        return {**out, "pooled": base.pooled(out["latent"], self.config.method.pool)}

    def keys(self, params, batch, view):
        """The pooled feature of one view alone, without its decoder."""

        def of_images(images, visible):
            return base.pooled(self.latent(params, images, visible), self.config.method.pool)

        seen = self.images_of(batch, view)[0], self.masks_of_view(batch, view)[0]
        return chunked.mapped(of_images, self.image_chunks, *seen)

    def step(self, params, carried, batch):
        """Every intermediate of one step, by name."""
        c, (query_view, key_view) = self.config.method, self.views
        state, target_state = carried.model_state, carried.target_state
        # 1. The query: the stronger corruption, encoded, decoded, projected.
        query = self.branch(params, batch, query_view)
        z_query, state = apply_in_training(self.projector, params, state, "projector", query["pooled"])
        # 2. The key: the weaker corruption. Which weights encode and decode it is the mode's matter.
        if c.mode == "shared":
            key = self.branch(params, batch, key_view)
            z_key, state = apply_in_training(self.projector, params, state, "projector", key["pooled"])
            z_key = jax.lax.stop_gradient(z_key) if c.stop_grad_key else z_key
        else:
            target = jax.lax.stop_gradient(carried.target_params)
            key = self.branch(target if c.mode == "ema_full" else params, batch, key_view)
            pooled = key["pooled"] if c.mode == "ema_full" else self.keys(target, batch, key_view)
            z_key, target_state = apply_in_training(self.projector, target, target_state, "projector", pooled)
            z_key = jax.lax.stop_gradient(z_key)
        # 3. The query finds its key among the batch's and the bank's.
        rows = carried.queue["keys"] if c.queue_size else jnp.zeros((0, c.projector.out))
        cross_entropy, accuracy = losses.queue_nce(z_query, z_key, rows, c.temperature, in_batch=c.in_batch_negatives)
        # 4. Both decoders repair their own view.
        loss_key = jax.lax.stop_gradient(key["loss"]) if c.mode == "ema_full" else key["loss"]
        reconstruction = c.lambda_query * query["loss"]
        if c.lambda_key:  # where nothing is masked, a loss over the masked patches has no value
            reconstruction += c.lambda_key * loss_key
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
            "model_state": jax.lax.stop_gradient(state),
            "target_state": jax.lax.stop_gradient(target_state),
            # 5. The oldest keys leave the bank, these enter.
            "queue": losses.enqueue(carried.queue, z_key) if c.queue_size else None,
        }

    def loss(self, params, carried, batch, rng):
        """Contrast plus the two reconstructions."""
        out, c = self.step(params, carried, batch), self.config.method
        own = batch["query"].shape[0] if c.in_batch_negatives else 1
        metrics = {
            "loss": out["loss"],
            "loss_rec_query": out["loss_rec_query"],
            **({"loss_rec_key": out["loss_rec_key"]} if c.mask_ratio_key or c.loss_on == "all" else {}),
            **base.contrast_metrics(out["loss_contrast"], out["accuracy"], own + c.queue_size),
            **losses.spread(out["query"]["pooled"]),
        }
        return out["loss"], base.Aux(metrics, out["model_state"], out["target_state"], out["queue"])

    def pictures(self, params, model_state, batch):
        """Both views, their masks and what the online decoder makes of them."""
        drawn = {}
        for view in self.views:
            seen, painted = self.images_of(batch, view)
            columns = self.drawn(params, seen, *self.masks_of_view(batch, view), painted)
            drawn |= {view.name: columns["input"], f"{view.name}_masked": columns["masked"]}
            drawn[f"{view.name}_reconstruction"] = columns["reconstruction"]
        return drawn
