"""MaskCo: Self-Supervised Visual Representations Learning by Contrastive Mask Prediction (Zhao, Wang, Luo, Zeng, Zha,
ICCV 2021, arXiv 2108.07954).

A region is masked in the query view and left in the key view; a mask prediction head predicts the feature of the masked
region, which must find the key's feature of the same region among those of other images. No code was published, and of
the paper only its abstract, the start of its introduction and the caption of its figure 3 were at hand: they give the
order of the parts and the positive and negative keys. Every number, and what the parts are made of, is our choice.
"""

import dataclasses

import jax
import jax.numpy as jnp

from maskcl_jax.errors import UserError
from maskcl_jax.methods import base
from maskcl_jax.methods.mocov2 import MoCoV2
from maskcl_jax.models.batch_norm import apply_in_training
from maskcl_jax.models.heads import MaskHead
from maskcl_jax.models.resnet import average_pool
from maskcl_jax.ops import losses, regions
from maskcl_jax.ops.roi_align import roi_mean
from maskcl_jax.views import Boxes, Overlap

BRANCHES = ("query", "both", "none")
FILLS = ("zero", "noise", "mean")


class MaskCo(MoCoV2):
    """Fields of `config.method`: those of `MoCoV2`, the paper's baseline, queue_size being keys of regions; and, all of
    them our choice:

    regions 1: masked regions of a query. extra_regions 0: more of them, not masked, for same_image_negatives.
    box_side (2/7, 1/2), box_ratio (1/2, 2): sides of a region as shares of the query's shorter one, 64 to 112 of 224
      pixels, and its width / height. The key is cropped anew until both views have room for one.
    fill "zero": what a masked pixel becomes, after normalisation: "zero" (the data's mean colour), "noise" (normal) or
      "mean" (of the image's other pixels).
    mask_head: branch "query"; "both" (keys pass its EMA copy; figure 3 can be read either way); "none" (the paper's
      ablation: the head is what makes the method work). blocks 2: residual bottlenecks.
    roi_size 7, roi_samples 2: bins of RoIAlign, and points a bin, along each side; their mean is projected.
    same_image_negatives False: the key's other regions of the same image are negatives too (figure 3: they could be);
      those that overlap the query's by more than negative_iou 0.3 are left out.
    symmetric: here a region is masked in each view in turn.
    """

    picture_names = ("query", "query_masked", "key_boxes")

    def __init__(self, config):
        self.check_regions(config.method)
        super().__init__(config)
        c = config.method
        options = {"bn_group_size": c.bn_group_size, "dtype": jnp.dtype(config.dtype)}
        self.mask_head = None if c.mask_head.branch == "none" else MaskHead(blocks=c.mask_head.blocks, **options)

    def check_regions(self, c) -> None:
        """Raises UserError where boxes, fill or head cannot be as they are described."""
        for field, value, least in (
            ("regions", c.regions, 1),
            ("extra_regions", c.extra_regions, 0),
            ("roi_size", c.roi_size, 1),
            ("roi_samples", c.roi_samples, 1),
            ("mask_head.blocks", c.mask_head.blocks, 1),
        ):
            if value < least:
                raise UserError(f"method.{field}={value} is out of range: use {least} or more")
        base.check_choice("method.fill", c.fill, FILLS)
        base.check_choice("method.mask_head.branch", c.mask_head.branch, BRANCHES)
        base.check_range("method.negative_iou", c.negative_iou, 0.0, 1.0)
        low, high = c.box_side
        if not 0 < low <= high <= 1:
            raise UserError(
                f"method.box_side={(low, high)} is out of range: shares of the view, 0 < smallest <= largest <= 1"
            )
        low, high = c.box_ratio
        if not 0 < low <= 1 <= high:
            raise UserError(f"method.box_ratio={(low, high)} is out of range: width / height, 0 < low <= 1 <= high")
        if c.same_image_negatives and c.regions + c.extra_regions < 2:
            raise UserError(
                "method.same_image_negatives=True with one region an image leaves no other region: set "
                "method.extra_regions=1 or more"
            )
        if c.extra_regions and not c.same_image_negatives:
            raise UserError(
                f"method.extra_regions={c.extra_regions} without method.same_image_negatives=True serves nothing: set "
                "one of them"
            )

    @property
    def keys_per_step(self) -> int:
        """Keys of regions that enter the queue at every step."""
        return super().keys_per_step * self.config.method.regions

    def new_views(self):
        """MoCo's two views, and the boxes they share."""
        c = self.config.method
        query, key = super().new_views()
        shared = {"side": tuple(c.box_side), "ratio": tuple(c.box_ratio)}
        boxes = Boxes(shared_with=query.name, count=c.regions + c.extra_regions, **shared)
        # The key's crop leaves room for the smallest box.
        crop = dataclasses.replace(key.crop, overlap=Overlap(view=query.name, side=c.box_side[0]))
        return query, dataclasses.replace(key, crop=crop, ingredients=(*key.ingredients, boxes))

    def init(self, rng):
        """(params {encoder, projector, mask_head}, {batch_stats: {encoder, mask_head}})."""
        to_moco, to_head = jax.random.split(rng)
        params, state = super().init(to_moco)
        if self.mask_head is None:
            return params, state
        head = self.mask_head.init(to_head, jnp.zeros((2, 2, 2, self.encoder.out_width)), train=True)
        stats = {**state["batch_stats"], "mask_head": head["batch_stats"]}
        return {**params, "mask_head": head["params"]}, {"batch_stats": stats}

    def target_of(self, params):
        """Encoder and projector; the mask prediction head only where keys pass it."""
        return self.without_head(params)

    def target_state_of(self, model_state):
        """The statistics of the same networks."""
        return {"batch_stats": self.without_head(model_state["batch_stats"])}

    def without_head(self, networks: dict) -> dict:
        """The networks of the key branch."""
        both = self.config.method.mask_head.branch == "both"
        return {name: tree for name, tree in networks.items() if both or name != "mask_head"}

    def maps(self, params, state, images):
        """(the encoder's last map, through the mask prediction head where `params` have one; new state)."""
        return self.predicted(params, *super().maps(params, state, images))

    def predicted(self, params, feature_map, state):
        """(what the mask prediction head makes of a map; new state)."""
        if "mask_head" not in params:
            return feature_map, state
        return apply_in_training(self.mask_head, params, state, "mask_head", feature_map)

    def filled(self, images, boxes, rng):
        """(normalised images with something else in the boxes (B, R, 4), mask (B, H, W, 1))."""
        mask = regions.pixels_in(boxes, images.shape[1:3]).any(axis=1)[..., None]
        if self.config.method.fill == "noise":
            fill = jax.random.normal(rng, images.shape)
        elif self.config.method.fill == "mean":
            fill = images.mean(axis=(1, 2), keepdims=True, where=jnp.broadcast_to(~mask, images.shape))
            fill = jnp.where(mask.all(axis=(1, 2), keepdims=True), 0.0, fill)
        else:
            fill = 0.0
        return jnp.where(mask, fill, images), mask

    def project_regions(self, params, feature_map, boxes):
        """A map (B, h, w, C), boxes (B, R, 4) -> (B, R, out)."""
        c = self.config.method
        found = roi_mean(feature_map, boxes, scale=1 / self.encoder.stride, size=c.roi_size, samples=c.roi_samples)
        flat = found.reshape(-1, 1, 1, found.shape[-1])
        return self.project(params, flat).reshape(*found.shape[:2], -1)

    def one_way(self, params, state, target, target_state, queue, views, rng):
        """Masked regions of the first view against keys of the second: every intermediate by name."""
        c, (to_fill, to_keys) = self.config.method, jax.random.split(rng)
        (images, boxes), (key_images, key_boxes) = views
        # 1. The query: regions are masked, the encoder sees the rest, the head predicts what they hide.
        masked, mask = self.filled(images, boxes[:, : c.regions], to_fill)
        encoded, state = super().maps(params, state, masked)
        predicted, state = self.predicted(params, encoded, state)
        q = self.project_regions(params, predicted, boxes[:, : c.regions])
        # 2. The key: nothing is masked. Maps are in the batch's order again before regions are read.
        key_map, target_state = self.key_maps(target, target_state, key_images, to_keys)
        k = jax.lax.stop_gradient(self.project_regions(target, key_map, key_boxes))
        # 3. The same region among those that wait, and perhaps among others of its own image.
        q_raw, k_raw = (x.reshape(-1, x.shape[-1]) for x in (q, k[:, : c.regions]))
        others = jnp.repeat(k, c.regions, axis=0) if c.same_image_negatives else None
        logits = losses.queue_logits(q_raw, k_raw, queue["keys"], c.temperature, hard=others)
        if c.same_image_negatives:
            left_out = regions.overlap(boxes[:, : c.regions], boxes) > c.negative_iou
            left_out |= jnp.eye(c.regions, boxes.shape[1], dtype=bool)  # its own key is the positive
            logits = logits.at[:, -boxes.shape[1] :].add(jnp.where(left_out, -jnp.inf, 0.0).reshape(len(q_raw), -1))
        loss, accuracy = losses.first_of(logits)
        out = {"q_raw": q_raw, "k_raw": k_raw, "logits": logits, "loss": loss, "accuracy": accuracy}
        out |= {"pooled": average_pool(encoded), "masked_share": mask.mean()}
        return out, state, target_state

    def images_of(self, batch):
        """The two views, normalised, each with its boxes."""
        return [(x, batch[view.key("boxes")]) for x, view in zip(super().images_of(batch), self.views, strict=True)]

    def loss(self, params, carried, batch, rng):
        """The contrast of a batch."""
        out = self.step(params, carried, self.images_of(batch), rng)
        candidates = jnp.isfinite(out["logits"]).sum(axis=1).mean()
        loss, aux = self.reported(out, candidates=candidates)
        return loss, aux._replace(metrics={**aux.metrics, "masked_share": out["masked_share"]})

    def pictures(self, params, model_state, batch):
        """The query, the query as the encoder sees it, and the key with the regions outlined."""
        (images, boxes), (_, key_boxes) = self.images_of(batch)
        masked, _ = self.filled(images, boxes[:, : self.config.method.regions], jax.random.key(0))
        query, key = (base.picture_of(batch, view) for view in self.views)
        colour = jnp.zeros(key.shape[-1]).at[0].set(1.0)  # red, or white in grey
        edge = regions.outline(key_boxes, key.shape[1:3])[..., None]
        seen = base.denormalize(masked, self.config.data.mean, self.config.data.std)
        return {"query": query, "query_masked": seen, "key_boxes": jnp.where(edge, colour, key)}
