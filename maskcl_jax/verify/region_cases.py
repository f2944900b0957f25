"""The cases of boxes: where they lie in two views, and what RoIAlign reads in them."""

import jax
import jax.numpy as jnp
import numpy as np

from maskcl_jax.ops import regions
from maskcl_jax.ops.roi_align import roi_align, roi_mean
from maskcl_jax.verify.cases import Case, channels_last
from maskcl_jax.views import boxes


def roi(c: dict, weights: dict, inputs: dict) -> dict:
    """RoIAlign at every size of the file, and its gradient. Each box has a map of its own: they name their image."""
    image, rois = inputs["rois"][:, 0].astype(int), jnp.asarray(inputs["rois"][:, None, 1:])
    options = {"scale": c["spatial_scale"], "samples": c["sampling_ratio"]}
    features, out = channels_last(inputs["features"]), {}

    def read(features, size):
        return jnp.moveaxis(roi_align(features[image], rois, size=size, **options)[:, 0], -1, 1)

    for size in c["output_sizes"]:
        found, backward = jax.vjp(lambda x, size=size: read(x, size), features)
        (gradient,) = backward(jnp.asarray(inputs[f"cotangent_{size}x{size}"]))
        out |= {f"outputs/roi_{size}x{size}": found, f"grads/features_{size}x{size}": jnp.moveaxis(gradient, -1, 1)}
    return out | {"outputs/roi_mean_7x7": roi_mean(features[image], rois, size=7, **options)[:, 0]}


def shared_boxes(c: dict, weights: dict, inputs: dict) -> dict:
    """Boxes of an image in the pixels of two views, and the pixels that a mask covers there."""
    size, out, shown = (c["view_size"],) * 2, {}, {}
    for name in ("query", "key"):
        shown[name] = np.concatenate([inputs[f"{name}_crop"], inputs[f"{name}_flip"][:, None]], axis=1)
        found = boxes.in_view(inputs["boxes"][:, None].astype(np.float64), shown[name], size)
        covered = regions.pixels_in(jnp.asarray(found[:, 0], jnp.float32), size)
        out |= {f"{name}_boxes": found[:, 0], f"{name}_mask_area": covered.sum(axis=(1, 2))}
    out["intersection"] = boxes.intersection(shown["query"], shown["key"])
    return {f"outputs/{name}": value for name, value in out.items()}


CASES = {
    "roi_align": Case(roi, (("", "absolute", 1e-5),)),
    "boxes": Case(shared_boxes, (("mask_area", "exact", 0.0), ("", "absolute", 1e-3))),
}
