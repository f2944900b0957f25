"""The cases of saliency-guided masking and of image operations."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskcl_jax.data import decode
from maskcl_jax.ops import cells, color, fills, losses, normalization
from maskcl_jax.verify.cases import Case, with_prefixes


def saliency_loss(c: dict, weights: dict, inputs: dict) -> dict:
    """MoCo's logits with hard negatives of each sample, the queue they leave, and the gradient of the query."""
    q_raw, k_raw, hard = (jnp.asarray(inputs[name]) for name in ("q_raw", "k_raw", "k_neg_raw"))
    queue = {"keys": jnp.asarray(inputs["queue"].T), "pointer": jnp.asarray(inputs["queue_ptr"], jnp.int32)}

    def logits_of(q):
        return losses.queue_logits(q, k_raw, queue["keys"], c["T"], hard=hard, hard_weight=c["rho"])

    logits = logits_of(q_raw)
    loss, to_logits = jax.value_and_grad(lambda x: losses.nce_from_logits(x)[0])(logits)
    q, k, k_neg = (losses.l2_normalize(x) for x in (q_raw, k_raw, hard))
    # The last step to the normalised query by hand: `queue_logits` takes vectors before they are normalised.
    ways = [to_logits[:, :1] * k, to_logits[:, 1 : 1 + c["K"]] @ queue["keys"]]
    ways.append(c["rho"] * jnp.einsum("bn,bnd->bd", to_logits[:, 1 + c["K"] :], k_neg))
    after = losses.enqueue(queue, k_raw)
    outputs = {
        "q": q,
        "k": k,
        "k_neg": k_neg,
        "logits": logits,
        "labels": np.zeros(c["batch"]),
        "loss": loss,
        "loss_per_sample": jax.vmap(lambda row: losses.nce_from_logits(row[None])[0])(logits),
        "queue_after": after["keys"].T,
        "queue_ptr_after": after["pointer"][None],
    }
    grads = {
        "q_raw": jax.grad(lambda q: losses.nce_from_logits(logits_of(q))[0])(q_raw),
        "q": sum(ways) / c["T"],
    }
    return with_prefixes(outputs, grads)


def saliency_masks(c: dict, weights: dict, inputs: dict) -> dict:
    """The rule, the counts and what fills masked cells."""
    maps, total = jnp.asarray(inputs["maps"]), c["grid"] ** 2
    fg = cells.foreground(maps, c["k_std"])
    found = fg.sum(axis=(1, 2))[:, None]

    def count(ratios, **options):
        return cells.counts(found, jnp.asarray(ratios)[None], total, **options)

    salient, other = count(inputs["ratio_pos"], background=True, cap=None)
    whole = jnp.broadcast_to(jnp.floor(jnp.asarray(inputs["ratio_pos"]) * total), salient.shape)
    outputs = {
        "fg": fg,
        "threshold": cells.threshold(maps, c["k_std"]),
        "num_fg": found[:, 0],
        "gamma": found[:, 0] / total,
        "pos_counts": jnp.stack([whole, salient, other], axis=-1),
        "neg_fg_count": count(inputs["ratio_neg"], background=False, cap=None)[0],
        "neg_fg_count_hp": count(inputs["ratio_neg"], background=False, cap=(c["cap_threshold"], c["cap_value"]))[0],
    }
    blur, high_pass = (jax.jit(f, static_argnums=(1, 2)) for f in (fills.blur, fills.high_pass))
    crops = {"center": slice(96, 128), "corner": slice(0, 32)}
    for side in (64, 224):
        photo = normalization.normalize(jnp.asarray(inputs[f"photo{side}"])[None], c["mean"], c["std"])
        made = {
            "normalized": photo,
            "hp": high_pass(photo, c["hp_sigma"], c["hp_kernel"]),
            "blur": blur(photo, c["blur_sigma"], c["blur_kernel"]),
        }
        outputs[f"mean_photo{side}"] = fills.mean(photo)[0, 0, 0]
        outputs |= {f"{name}{side}": image[0] for name, image in made.items()}
        outputs |= {f"{n}{side}_{at}": x[0, s, s] for n, x in made.items() for at, s in crops.items()}
    outputs["hp224_std"] = jnp.concatenate([made["hp"].std()[None], made["hp"].std(axis=(0, 1, 2))])
    hidden = cells.to_pixels(jnp.asarray(inputs["cells"], bool)[None, :, :, None], (224, 224))
    for name, filling in {"blur": made["blur"], "mean": fills.mean(photo)}.items():
        filled = jnp.where(hidden, filling, photo).reshape(c["grid"], c["cell"], c["grid"], c["cell"], 3)
        outputs[f"filled_{name}_cell_means"] = filled.mean(axis=(1, 3))
        outputs[f"filled_{name}_cell_std"] = filled.std(axis=(1, 3))
    return with_prefixes(outputs, {})


def image_of_planes(planes: tuple) -> jax.Array:
    """The planes of one image -> (H, W, C)."""
    return color.images_of(planes)[0]


def augment(c: dict, weights: dict, inputs: dict) -> dict:
    """torchvision's operations: colors on the device in float, crops and mirroring on the host in uint8."""
    photo = inputs["image"]
    image = jnp.asarray(photo, jnp.float32)[None] / 255.0
    planes = color.planes_of(image)
    one = {
        "brightness": color.adjust_brightness,
        "contrast": color.adjust_contrast,
        "saturation": color.adjust_saturation,
        "hue": color.adjust_hue,
    }
    made = {f"{name}_{by}": image_of_planes(f(planes, jnp.full(1, by))) for name, f in one.items() for by in c[name]}
    jitter = jax.jit(color.apply)
    for name, order in {"bcsh": (0, 1, 2, 3), "hscb": (3, 2, 1, 0)}.items():
        row = np.array([*order, *c["jitter"], *color.IDENTITY[8:]], np.float32)
        made[f"jitter_{name}"] = jitter(image, jnp.asarray(row)[None])[0]
    blur = jax.jit(color.gaussian_blur, static_argnames="radius")
    for sigma in c["blur_sigma"]:
        blurred = blur(planes, jnp.full(1, sigma), radius=c["blur_kernel"] // 2)
        made[f"tv_blur{c['blur_kernel']}_{sigma}"] = image_of_planes(blurred)
    made["grayscale"] = image_of_planes((color.grayscale_of(planes),))
    floats = made | {"normalize": normalization.normalize(jnp.asarray(photo)[None], c["mean"], c["std"])[0]}
    outputs: dict[str, Any] = {f"float/{name}": x[: c["float_crop"], : c["float_crop"]] for name, x in floats.items()}
    made[f"solarize_{c['solarize']}"] = image_of_planes(color.solarize(planes, jnp.ones(1), c["solarize"] / 256))
    # As torchvision makes levels of floats: cut off, not rounded. A rounding error must not cost a whole level.
    levels = {name: np.floor(np.asarray(x, np.float64) * 255 + 1e-3) for name, x in made.items()}
    outputs |= {f"{family}/{name}": x for name, x in levels.items() for family in ("pil", "u8")}
    whole = {"size": photo.shape[:2], "interpolation": "bilinear"}
    outputs["pil/hflip"] = decode.crop_and_resize(photo, [0, 0, *photo.shape[:2]], flip=True, **whole)
    for i, box in enumerate(c["crops"]):
        for mode in ("bilinear", "bicubic"):
            size = (c["crop_size"],) * 2
            crop = decode.crop_and_resize(photo, box, size=size, interpolation=mode, flip=False)
            outputs[f"pil/resized_crop{i}_{mode}"] = crop
    return with_prefixes(outputs, {})


CASES = {
    "saliency_loss": Case(
        saliency_loss, (("labels", "exact", 0.0), ("queue_ptr_after", "exact", 0.0), ("", "relative", 2e-5))
    ),
    "saliency_masks": Case(
        saliency_masks,
        (
            *((f"outputs/{name}", "exact", 0.0) for name in ("fg", "num_fg", "pos_counts", "neg_fg_count")),
            ("outputs/gamma", "absolute", 1e-6),
            ("outputs/threshold", "relative", 1e-5),
            ("", "absolute", 1e-5),
        ),
    ),
    "augment": Case(
        augment,
        (
            ("float/", "absolute", 1e-5),
            ("hflip", "exact", 0.0),
            ("pil/hue", "absolute", 5.0),
            ("jitter", "absolute", 5.0),
            ("", "absolute", 1.0),
        ),
        # Pillow's blur is three box blurs, ours a Gaussian; views are resized by Pillow, not as tensors.
        absent=("pil_blur", "u8/resized_crop", "float/resized_crop"),
    ),
}
