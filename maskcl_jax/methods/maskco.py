"""MaskCo: Self-Supervised Visual Representations Learning by Contrastive Mask Prediction (Zhao, Wang, Luo, Zeng, Zha,
ICCV 2021, arXiv 2108.07954).

A region is masked in the query view and left in the key view; a mask prediction head predicts the feature of the masked
region, which must find the key's feature of the same region among those of other images. No code was published, and of
the paper only its abstract, the start of its introduction and the caption of its figure 3 were at hand: they give the
order of the parts and the positive and negative keys. Every number, and what the parts are made of, is our choice.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from maskcl_jax.errors import UserError, check_choice, check_range
from maskcl_jax.methods import options
from maskcl_jax.methods.base import Arrays, LossOutput, StepContext
from maskcl_jax.methods.encoders import apply_in_training
from maskcl_jax.methods.mocov2 import MoCoV2
from maskcl_jax.models.heads import MaskHead
from maskcl_jax.models.resnet import average_pool
from maskcl_jax.ops import losses, normalization, regions
from maskcl_jax.ops.regions import roi_mean
from maskcl_jax.views.base import View
from maskcl_jax.views.boxes import Boxes
from maskcl_jax.views.crop import Overlap, RandomResizedCrop

BRANCHES = ("query", "both", "none")
FILLS = ("zero", "noise", "mean")


class MaskCo(MoCoV2):
    """MaskCo on MoCo v2, its baseline; `configs/maskco.py` explains its fields of `config.method`."""

    picture_names = ("query", "query_masked", "key_boxes")

    def __init__(self, config: Any):
        check_regions(config.method)
        super().__init__(config)
        c = config.method
        norms = {"bn_group_size": c.bn_group_size, "dtype": jnp.dtype(config.dtype)}
        self.mask_head = None if c.mask_head.branch == "none" else MaskHead(blocks=c.mask_head.blocks, **norms)

    @property
    def keys_per_step(self) -> int:
        """Keys of regions that enter the queue at every step."""
        return super().keys_per_step * self.config.method.regions

    def new_views(self) -> tuple[View, ...]:
        """MoCo's two views, and the boxes they share."""
        c = self.config.method
        query, key = super().new_views()
        shared = {"side": tuple(c.box_side), "ratio": tuple(c.box_ratio)}
        boxes = Boxes(shared_with=query.name, count=c.regions + c.extra_regions, **shared)
        assert isinstance(key.crop, RandomResizedCrop)
        # The key's crop leaves room for the smallest box.
        crop = dataclasses.replace(key.crop, overlap=Overlap(view=query.name, side=c.box_side[0]))
        return query, dataclasses.replace(key, crop=crop, ingredients=(*key.ingredients, boxes))

    # --- State ------------------------------------------------------------------------------------------------
    def init_networks(self, rng: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """MoCo's networks and, if there is one, the mask prediction head."""
        to_moco, to_head = jax.random.split(rng)
        params, stats = super().init_networks(to_moco)
        if self.mask_head is None:
            return params, stats
        head = self.mask_head.init(to_head, jnp.zeros((2, 2, 2, self.encoder.out_width)), train=True)
        return {**params, "mask_head": head["params"]}, {**stats, "mask_head": head["batch_stats"]}

    def key_networks(self, networks: dict[str, Any]) -> dict[str, Any]:
        """Encoder and projector; the mask prediction head only if keys pass it."""
        both = self.config.method.mask_head.branch == "both"
        return {name: tree for name, tree in networks.items() if both or name != "mask_head"}

    # --- Loss -------------------------------------------------------------------------------------------------
    def loss(self, params: dict[str, Any], batch: Arrays, context: StepContext) -> LossOutput:
        """The contrast of a batch."""
        out = self.forward(params, context, self.images_and_boxes(batch))
        candidates = jnp.isfinite(out["logits"]).sum(axis=1).mean()
        return self.output(out, candidates=candidates, masked_share=out["masked_share"])

    def one_way(self, params: dict[str, Any], context: StepContext, views: Sequence[Any]) -> dict[str, Any]:
        """Masked regions of the first view against keys of the second: every intermediate by name.

        views: of each view its images, preprocessed, and its boxes (B, R, 4).
        """
        c, (to_fill, to_keys) = self.config.method, jax.random.split(context.rng)
        (images, boxes), (key_images, key_boxes) = views
        state = context.model_state
        # 1. The query: regions are masked, the encoder sees the rest, the head predicts what they hide.
        masked, mask = self.mask_regions(images, boxes[:, : c.regions], to_fill)
        encoded, stats = super().maps(params, state["batch_stats"], masked)
        predicted, stats = self.predict(params, stats, encoded)
        q = self.project_regions(params, predicted, boxes[:, : c.regions])
        # 2. The key: nothing is masked. Maps are in the batch's order again before regions are read.
        target = jax.lax.stop_gradient(context.target_params)
        key_map, target_stats = self.key_maps(target, state["target_batch_stats"], key_images, to_keys)
        k = jax.lax.stop_gradient(self.project_regions(target, key_map, key_boxes))
        # 3. The same region among those that wait in the queue, and perhaps among others of its own image.
        q_raw, k_raw = (x.reshape(-1, x.shape[-1]) for x in (q, k[:, : c.regions]))
        others = jnp.repeat(k, c.regions, axis=0) if c.same_image_negatives else None
        logits = losses.queue_logits(q_raw, k_raw, state["queue"]["keys"], c.temperature, hard=others)
        if c.same_image_negatives:
            left_out = regions.overlap(boxes[:, : c.regions], boxes) > c.negative_iou
            left_out |= jnp.eye(c.regions, boxes.shape[1], dtype=bool)  # its own key is the positive
            logits = logits.at[:, -boxes.shape[1] :].add(jnp.where(left_out, -jnp.inf, 0.0).reshape(len(q_raw), -1))
        # 4. Cross-entropy.
        loss, accuracy = losses.nce_from_logits(logits)
        return {
            "q_raw": q_raw,
            "k_raw": k_raw,
            "logits": logits,
            "loss": loss,
            "accuracy": accuracy,
            "pooled": average_pool(encoded),
            "masked_share": mask.mean(),
            "model_state": state | {"batch_stats": stats, "target_batch_stats": target_stats},
        }

    def maps(
        self, params: dict[str, Any], stats: dict[str, Any], images: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        """The encoder's last map, through the mask prediction head if `params` have one; statistics after it."""
        feature_map, stats = super().maps(params, stats, images)
        return self.predict(params, stats, feature_map)

    def predict(
        self, params: dict[str, Any], stats: dict[str, Any], feature_map: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        """(what the mask prediction head makes of a map, statistics after it); without a head the map itself."""
        if "mask_head" not in params:
            return feature_map, stats
        return apply_in_training(self.mask_head, "mask_head", params, stats, feature_map)

    def mask_regions(self, images: jax.Array, boxes: jax.Array, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(preprocessed images with something else in the boxes (B, R, 4), mask (B, H, W, 1))."""
        mask = regions.pixels_in(boxes, (images.shape[1], images.shape[2])).any(axis=1)[..., None]
        if self.config.method.fill == "noise":
            fill = jax.random.normal(rng, images.shape)
        elif self.config.method.fill == "mean":
            fill = images.mean(axis=(1, 2), keepdims=True, where=jnp.broadcast_to(~mask, images.shape))
            fill = jnp.where(mask.all(axis=(1, 2), keepdims=True), 0.0, fill)
        else:
            fill = jnp.zeros(())
        return jnp.where(mask, fill, images), mask

    def project_regions(self, params: dict[str, Any], feature_map: jax.Array, boxes: jax.Array) -> jax.Array:
        """A map (B, h, w, C), boxes (B, R, 4) -> (B, R, out)."""
        c = self.config.method
        pooled = roi_mean(feature_map, boxes, scale=1 / self.encoder.stride, size=c.roi_size, samples=c.roi_samples)
        flat = pooled.reshape(-1, 1, 1, pooled.shape[-1])
        return self.project(params, flat).reshape(*pooled.shape[:2], -1)

    def images_and_boxes(self, batch: Arrays) -> list[tuple[jax.Array, jax.Array]]:
        """The two views, preprocessed, each with its boxes."""
        return [(x, batch[view.key("boxes")]) for x, view in zip(self.images_of(batch), self.views, strict=True)]

    # --- Pictures ---------------------------------------------------------------------------------------------
    def pictures(self, params: dict[str, Any], model_state: dict[str, Any], batch: Arrays) -> dict[str, jax.Array]:
        """The query, the query as the encoder sees it, and the key with the regions outlined."""
        (images, boxes), (_, key_boxes) = self.images_and_boxes(batch)
        masked, _ = self.mask_regions(images, boxes[:, : self.config.method.regions], jax.random.key(0))
        query, key = (options.float_images(batch, view) for view in self.views)
        color = jnp.zeros(key.shape[-1]).at[0].set(1.0)  # red, or white in grayscale
        edge = regions.outline(key_boxes, tuple(self.config.data.image_size))[..., None]
        masked = normalization.denormalize(masked, self.config.data.mean, self.config.data.std)
        return {"query": query, "query_masked": masked, "key_boxes": jnp.where(edge, color, key)}


def check_regions(c: Any) -> None:
    """Raises UserError for boxes, fill or head that are out of range or do not go together."""
    for field, value, least in (
        ("regions", c.regions, 1),
        ("extra_regions", c.extra_regions, 0),
        ("roi_size", c.roi_size, 1),
        ("roi_samples", c.roi_samples, 1),
        ("mask_head.blocks", c.mask_head.blocks, 1),
    ):
        if value < least:
            raise UserError(f"method.{field}={value} is out of range: use {least} or more")
    check_choice("method.fill", c.fill, FILLS)
    check_choice("method.mask_head.branch", c.mask_head.branch, BRANCHES)
    check_range("method.negative_iou", c.negative_iou, 0.0, 1.0)
    low, high = c.box_side
    if not 0 < low <= high <= 1:
        raise UserError(
            f"method.box_side={(low, high)} is out of range: fractions of the view, 0 < smallest <= largest <= 1"
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
