"""Saliency-guided masking for contrastive ConvNets (Chin et al., WACV 2024, arXiv 2309.12757), and MSCN-style masking.

A contrastive method whose query is masked, the same fraction of its salient and of its other cells, and filled so that
no hard edge appears; a copy of the key with much of its salient cells masked is one more negative. `mscn` is the
baseline (Jing, Zhu, LeCun 2022, arXiv 2206.07700) as Chin et al. draw it, and the same code: both views masked, uniform
cells, no hard negative. MSCN's own numbers were not available to us.

Sources: [C] joycenerd/Saliency-Guided-Masking-for-ConvNets at c6e62b8, [P] the authors' poster; the paper's text was
not available to us. Two slips of [C] are not copied: its salient cells lie right-justified in their rows (see
`ops.cells`), and its hard negative is image 0's for the whole batch; here every image has its own, as [P] says.

The paper finds salient cells with a ResNet-50 trained on ImageNet's labels [C]. Here nothing needs labels, so results
are not the paper's. The host makes its maps before the color augmentation, [C] after: our choice.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from maskcl_jax.methods import options, saliency_views
from maskcl_jax.methods.base import Arrays, LossOutput, Method, StepContext
from maskcl_jax.methods.mocov2 import MoCoV2
from maskcl_jax.methods.saliency_views import rules_of
from maskcl_jax.methods.simclr import SimCLR
from maskcl_jax.ops import cells, fills, losses, normalization

FRAMEWORKS: dict[str, type[MoCoV2] | type[SimCLR]] = {"moco_v2": MoCoV2, "simclr": SimCLR}
FILL_KEY, NEGATIVE_KEY = 7_001, 7_002  # far from the numbers by which a framework divides the same key


class SaliencyMasking(Method):
    """`configs/saliency_masking.py` explains its fields of `config.method`; those of the framework among them.

    The framework, MoCo v2 or SimCLR, has the networks and contrasts the views; this class masks them and adds the hard
    negatives. Of SimCLR the paper has results, but published no code: there all of this is our choice.
    """

    feature_kinds = ("mean",)

    def __init__(self, config: Any):
        saliency_views.check(config, frameworks=FRAMEWORKS)
        self.config = config
        self.framework = FRAMEWORKS[config.method.framework](config)
        self.encoder = self.framework.encoder
        self.ema_first = self.framework.ema_first
        self.hard_negatives = saliency_views.hard_negatives(config)
        self.views = saliency_views.masked_views(config, self.framework.views)
        self.picture_names = saliency_views.picture_names(self.views)

    # --- State: the framework's ---------------------------------------------------------------------------------
    def init(self, rng: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """The framework's parameters and state."""
        return self.framework.init(rng)

    def target_params(self, params: dict[str, Any]) -> dict[str, Any] | None:
        """The parameters that the framework's EMA target follows; None if it has no target."""
        return self.framework.target_params(params)

    def momentum(self, progress: jax.Array | float) -> jax.Array:
        """The momentum of the framework (MoCo v2) at a fraction `progress` of the run; SimCLR has no EMA target."""
        return self.framework.momentum(progress)

    # --- Loss ---------------------------------------------------------------------------------------------------
    def preprocess(self, images: jax.Array) -> jax.Array:
        """(x / 255 - mean) / std and, with strategy "high_pass", filtered: so all encoders get their images [C]."""
        return self.filtered(self.framework.preprocess(images))

    def filtered(self, images: jax.Array) -> jax.Array:
        """Normalized images, high-passed if that is the strategy."""
        c = self.config.method
        return fills.high_pass(images, *self.kernel(c.high_pass)) if c.strategy == "high_pass" else images

    def loss(self, params: dict[str, Any], batch: Arrays, context: StepContext) -> LossOutput:
        """The contrast of a batch of masked views."""
        # 1. Both views, before any mask.
        images = self.images_of(batch)
        # 2. The masked cells: the batch's, or drawn again from what the EMA encoder finds salient.
        chosen = self.cells_by_target(context, images, batch) if self.config.method.provider == "ema" else {}
        # 3. They are filled, in the views and in the hard negatives.
        masked = self.masked_images(images, batch, jax.random.fold_in(context.rng, FILL_KEY), chosen)
        # 4. The framework's contrast, with the hard negatives.
        out = self.forward(params, context, masked)
        if isinstance(self.framework, MoCoV2):
            return self.framework.output(out, candidates=out["logits"].shape[1])
        return self.framework.output(out, candidates=out["z"].shape[0] - 1 + len(self.hard_negatives[0]))

    def forward(self, params: dict[str, Any], context: StepContext, images: Mapping[str, jax.Array]) -> dict[str, Any]:
        """Every intermediate of the contrast, by name; images: of `masked_images`."""
        out = self.framework.forward(params, context, [images[view.name] for view in self.views])
        if not self.hard_negatives[0]:
            return out
        if isinstance(self.framework, MoCoV2):
            return out | self.hard_keys(self.framework, context, out, images)
        return out | self.hard_rows(self.framework, params, context, out, images)

    def hard_keys(
        self, moco: MoCoV2, context: StepContext, out: dict[str, Any], images: Mapping[str, jax.Array]
    ) -> dict[str, Any]:
        """MoCo v2: one more logit for every hard negative of a query, a key of the EMA encoder for that query only."""
        c, state = self.config.method, out["model_state"]
        target, target_stats = jax.lax.stop_gradient(context.target_params), state["target_batch_stats"]
        # Each in a pass of its own, in a random order of its own, so that BatchNorm treats them as keys.
        rng, _ = jax.random.split(context.rng)
        hard = []
        for i, name in enumerate(self.hard_negatives[0]):
            order = jax.random.fold_in(rng, NEGATIVE_KEY + i)
            feature_map, target_stats = moco.key_maps(target, target_stats, images[name], order)
            hard.append(jax.lax.stop_gradient(moco.project(target, feature_map)))
        hard_raw, queue = jnp.stack(hard, axis=1), context.model_state["queue"]["keys"]
        weighted = {"hard": hard_raw, "hard_weight": c.hard_weight}
        logits = losses.queue_logits(out["q_raw"], out["k_raw"], queue, c.temperature, **weighted)
        loss, accuracy = losses.nce_from_logits(logits)
        state = state | {"target_batch_stats": target_stats}
        return {"hard_raw": hard_raw, "logits": logits, "loss": loss, "accuracy": accuracy, "model_state": state}

    def hard_rows(
        self,
        simclr: SimCLR,
        params: dict[str, Any],
        context: StepContext,
        out: dict[str, Any],
        images: Mapping[str, jax.Array],
    ) -> dict[str, Any]:
        """SimCLR: one more logit for every hard negative of an anchor."""
        c, stats = self.config.method, context.model_state["batch_stats"]

        def project(images):
            # The statistics of masked images are nothing to evaluate with: they are left out of the running ones.
            z = simclr.embed_and_project(params, stats, images)[1]
            return z if c.hard_grad else jax.lax.stop_gradient(z)

        rows = [
            jnp.stack([project(images[name]) for name in of_view], axis=1) for of_view in self.hard_negatives if of_view
        ]
        first, second = jnp.split(out["z"], 2)
        weighted = {"hard": jnp.concatenate(rows), "hard_weight": c.hard_weight}
        loss, accuracy = losses.nt_xent(first, second, c.temperature, **weighted)
        return {"loss": loss, "accuracy": accuracy}

    def images_of(self, batch: Arrays) -> list[jax.Array]:
        """The two views, preprocessed, before any mask."""
        return [self.filtered(images) for images in self.framework.images_of(batch)]

    def cells_by_target(self, context: StepContext, images: Sequence[jax.Array], batch: Arrays) -> dict[str, jax.Array]:
        """{rule: cells}: the batch's in the warm-up, then drawn again from what the EMA encoder attends to.

        Source of the map: SCDA [C], the channel sum of the last feature map; of an encoder that teaches itself: our
        choice.
        """
        c, chosen = self.config.method, {}
        variables = self.encoder_variables(context.target_params, context.model_state, target=True)
        for view, clean in zip(self.views, images, strict=True):
            if not rules_of(view):
                continue
            feature_map = self.encoder.apply(variables, clean, train=False)
            activation = jax.lax.stop_gradient(feature_map.astype(jnp.float32).sum(axis=-1))
            activation = jax.image.resize(activation, (len(clean), c.grid, c.grid), "linear")
            for rule in rules_of(view):
                noise, ratio = batch[f"{rule.name}_noise"], batch[f"{rule.name}_ratio"]
                redrawn = cells.choose(
                    activation, noise, ratio, spread=c.spread, background=rule.background, cap=rule.cap
                )
                chosen[rule.name] = jnp.where(context.progress < c.ema_warmup, batch[f"{rule.name}_cells"], redrawn)
        return chosen

    def masked_images(
        self, images: Sequence[jax.Array], batch: Arrays, rng: jax.Array, chosen: Mapping[str, jax.Array] = {}
    ) -> dict[str, jax.Array]:
        """Returns {view or hard negative: images as the encoders see them}.

        Args:
            images: Of `images_of`.
            batch: Holds the cells and windows of every mask.
            rng: For noise.
            chosen: {name of a mask: its cells}, instead of the batch's.
        """
        masked = {view.name: x for view, x in zip(self.views, images, strict=True)}
        for view, clean in zip(self.views, images, strict=True):
            for rule in rules_of(view):
                rng, to_fill = jax.random.split(rng)
                window = batch[f"{rule.name}_window"]
                hidden = chosen.get(rule.name, batch[f"{rule.name}_cells"])
                hidden = cells.hidden_pixels(hidden, window, view.crop.size, keep_window=rule.keep_window)
                filling = self.fill_values(clean, window, to_fill, negative=rule.name != view.name)
                masked[rule.name] = jnp.where(hidden, filling, clean)
        return masked

    def fill_values(self, images: jax.Array, window: jax.Array, rng: jax.Array, *, negative: bool) -> jax.Array:
        """What stands in the masked places of images as `images_of` gives them."""
        c = self.config.method
        if c.strategy == "mean":
            return fills.mean(images)
        if c.strategy == "blur":
            return fills.blur(images, *self.kernel(c.blur))
        noise = (c.negative_noise_std if negative else c.noise_std) * jax.random.normal(rng, images.shape)
        if not c.tile_noise:
            return noise
        return jnp.where((window[:, 2] > 0)[:, None, None, None], noise, fills.tiled(noise, c.grid))

    def kernel(self, c: Any) -> tuple[float, int]:
        """(sigma, taps) at the size of the images."""
        return fills.kernel_at(min(self.config.data.image_size), c.sigma, c.taps)

    # --- Evaluation ---------------------------------------------------------------------------------------------
    def encoder_variables(
        self, params: dict[str, Any], model_state: dict[str, Any], *, target: bool = False
    ) -> dict[str, Any]:
        """The framework's encoder, which has BatchNorm statistics."""
        return self.framework.encoder_variables(params, model_state, target=target)

    def pictures(self, params: dict[str, Any], model_state: dict[str, Any], batch: Arrays) -> dict[str, jax.Array]:
        """Both views; the host's map of what is salient in them; what the encoders see of them if masked."""
        masked = self.masked_images(self.images_of(batch), batch, jax.random.key(0))
        mean = (0.5,) if self.config.method.strategy == "high_pass" else self.config.data.mean
        drawn = {
            f"{name}_masked": normalization.denormalize(x, mean, self.config.data.std) for name, x in masked.items()
        }
        for view in self.views:
            drawn[view.name] = options.float_images(batch, view)
            if rules_of(view):
                drawn[f"{view.name}_saliency"] = cells.heat(batch[view.key("activation")], view.crop.size)
        return {name: drawn[name] for name in self.picture_names}
