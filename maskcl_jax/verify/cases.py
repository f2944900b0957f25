"""The cases: how each kind of reference file is rebuilt, and how far each kind of array may be off.

A case computes {"outputs/NAME": array, "grads/KEY": array} from the file's config, weights and inputs. Limits: float32
noise of another framework, about ten times what the authors' code itself shows in float32.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskcl_jax.config import Config, load, set_field
from maskcl_jax.interchange import convert, layouts
from maskcl_jax.methods.ccmim import CCMIM
from maskcl_jax.methods.mae import MAE
from maskcl_jax.models.kernels import resolve
from maskcl_jax.models.transformer import layer_norm
from maskcl_jax.models.vit import ViT, resize_position_table, sincos_table
from maskcl_jax.ops import losses, masking
from maskcl_jax.training import optimizer


@dataclasses.dataclass(frozen=True)
class Case:
    """compute(config, weights, inputs) -> arrays; limits: (part of a key, kind, limit), the first that matches.

    finish(computed, arrays of the file) -> arrays: for what is compared in the order that the file states. absent:
    parts of the keys of arrays that this library has no counterpart of.
    """

    compute: Callable
    limits: tuple[tuple[str, str, float], ...]
    finish: Callable = lambda computed, arrays: computed
    absent: tuple[str, ...] = ()

    def limit(self, key: str) -> tuple[str, float]:
        """(kind, limit) for one array."""
        return next((kind, limit) for part, kind, limit in self.limits if part in key)


def size_of(c: dict) -> tuple[int, int]:
    """(height, width) of `img_size`, a number or a pair."""
    size = c["img_size"]
    return tuple(size) if isinstance(size, list) else (size, size)


def method_config(name: str, c: dict[str, Any], **method: Any) -> Config:
    """`configs/NAME.py` for a masked autoencoder of a reference file, with the method's fields that the file states."""
    decoder = {"width": "decoder_embed_dim", "depth": "decoder_depth", "heads": "decoder_num_heads"}
    fields = {f"decoder.{field}": c[theirs] for field, theirs in decoder.items()}
    fields |= {"decoder.mlp_ratio": c["mlp_ratio"], "mask_ratio": c["mask_ratio"], "norm_pix": c["norm_pix_loss"]}
    return encoder_config(name, c, **fields, **method)


def encoder_config(name: str, c: dict[str, Any], **method: Any) -> Config:
    """`configs/NAME.py` with the ViT and the data of a reference file, and fields of the method."""
    encoder = {"width": "embed_dim", "depth": "depth", "heads": "num_heads", "mlp_ratio": "mlp_ratio"}
    encoder["patch_size"] = "patch_size"
    fields = {f"model.{field}": c[theirs] for field, theirs in encoder.items()}
    fields |= {"data.image_size": size_of(c), "data.channels": c["in_chans"], "kernels": c.get("kernels", "auto")}
    return config_of(name, c, fields, **method)


def config_of(name: str, c: dict[str, Any], fields: dict[str, Any], **method: Any) -> Config:
    """`configs/NAME.py` in float32, of one chunk, for images that are not normalized."""
    fields = fields | {f"method.{field}": value for field, value in method.items()}
    fields |= {"batch_size": c["batch"], "image_chunks": 1, "data.mean": (0.0,), "data.std": (1.0,)}
    config = load(name, "synthetic")
    for path, value in fields.items():
        set_field(config, path, value, written=f"{path}={value!r} of the reference file")
    return config


def shape_of(method: MAE) -> convert.Shape:
    """What the weight tables must know of a masked autoencoder."""
    widths = {"encoder": method.encoder.width, "decoder": method.decoder.width}
    return convert.Shape(method.patch, method.encoder.channels, method.encoder.grid, widths)


def channels_last(images: Any) -> jax.Array:
    """(B, C, H, W) -> (B, H, W, C)."""
    return jnp.asarray(np.asarray(images).transpose(0, 2, 3, 1))


def random_masks(noise: np.ndarray, visible: int) -> tuple[jax.Array, jax.Array]:
    """(visible, masked): the patches of smallest noise stay, as facebookresearch/mae ranks them."""
    order = np.argsort(noise, axis=1, kind="stable")
    return jnp.asarray(order[:, :visible]), jnp.asarray(order[:, visible:])


def with_prefixes(outputs: dict, grads: dict) -> dict:
    """Keys as the file has them."""
    return {f"outputs/{k}": v for k, v in outputs.items()} | {f"grads/{k}": v for k, v in grads.items()}


def mae(c: dict, weights: dict, inputs: dict) -> dict:
    """facebookresearch/mae: one forward and backward."""
    method = MAE(method_config("mae", c))
    rows, shape = layouts.mae(c["depth"], c["decoder_depth"]), shape_of(method)
    params = convert.from_torch(weights, rows, shape)["params"]
    images = channels_last(inputs["images"])
    visible, masked = random_masks(inputs["noise"], method.num_visible)

    def loss(params):
        out = method.reconstruct(params, images, visible, masked)
        return out["loss"], out | reconstruction(method, params, out["latent"], visible, masked)

    (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    patches = masking.patchify(images, method.patch)
    target = losses.normalize_patches(patches) if c["norm_pix_loss"] else patches
    hidden = [masking.take(x, masked) for x in (out["pred"], target, patches)]
    alone = [losses.patch_mse(hidden[0][i], hidden[1][i]) for i in range(c["batch"])]
    outputs = {
        **out,
        "ids_keep": visible,
        "loss_per_image": jnp.stack(alone),
        "loss_without_norm_pix": losses.patch_mse(hidden[0], hidden[2]),
        "patchify_image0": patches[0],
    }
    return with_prefixes(outputs, convert.gradients_to_torch(grads, rows, shape))


def reconstruction(
    method: MAE, params: dict[str, Any], latent: jax.Array, visible: jax.Array, masked: jax.Array
) -> dict:
    """{mask, ids_restore, pred}: what the authors' forward pass returns of every patch, and ours need not make."""
    return {
        "mask": masking.mask_of(visible, method.num_patches),
        "ids_restore": masking.restore_ids(visible, masked),
        "pred": method.predict(params, latent, visible, masked),
    }


def ccmim(c: dict, weights: dict, inputs: dict) -> dict:
    """Sherrylone/ccMIM: one step, and the BatchNorm statistics after it."""
    method = CCMIM(
        method_config(
            "ccmim",
            c,
            masking=c["masking"],
            align_weight=c["align_weight"],
            temperature=c["temperature"],
            projector_out=c["projector_dim"],
        ),
        bn_eps=c["batch_norm_eps"],
        bn_momentum=c["batch_norm_momentum"],
    )
    rows, shape = layouts.ccmim(c["depth"], c["decoder_depth"]), shape_of(method)
    tree = convert.from_torch(weights, rows, shape)
    images = channels_last(inputs["images"])
    visible, masked = random_masks(inputs["noise"], method.num_visible)
    batch = {"mask_noise": jnp.asarray(inputs["noise"]), "visible": visible, "masked": masked}

    def loss(params):
        out = method.forward(params, tree["batch_stats"], images, batch)
        return out["loss"], out | reconstruction(method, params, out["latent"], out["visible"], out["masked"])

    (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(tree["params"])
    q, k = losses.l2_normalize(out["proj_v"]), losses.l2_normalize(out["proj_m"])
    names = ("ids_restore", "mask", "cls_v", "cls_m", "proj_v", "proj_m", "pred", "loss_rec", "loss_align", "loss")
    outputs = {
        **{name: out[name] for name in names},
        "ids_visible": out["visible"],
        "ids_masked": out["masked"],
        "latent_visible": out["latent"],
        "q": q,
        "k": k,
        "logits": q @ k.T / c["temperature"],
    }
    if "attention" in out:
        outputs |= {"A": out["attention"], "A_per_layer": out["attention_per_layer"].transpose(1, 0, 2)}
    after = convert.to_torch({"params": tree["params"], "batch_stats": out["batch_stats"]}, rows, shape)
    buffers = [row.theirs for row in rows if row.ours.startswith("batch_stats/")]
    outputs |= {f"buffers_after/{key}": after[key] for key in buffers}
    return with_prefixes(outputs, convert.gradients_to_torch(grads, rows, shape))


def vit_forward(c: dict, weights: dict, inputs: dict) -> dict:
    """timm's VisionTransformer: cls pooling with `norm`, average pooling with `fc_norm`."""
    height, width = size_of(c)
    model = ViT(
        image_size=(height, width),
        channels=c["in_chans"],
        patch_size=c["patch_size"],
        width=c["embed_dim"],
        depth=c["depth"],
        heads=c["num_heads"],
        mlp_ratio=c["mlp_ratio"],
        positions="learned",
        kernels=resolve(c.get("kernels", "auto")),
    )
    others = {key: weights[key] for key in weights if key.startswith(("fc_norm.", "head."))}
    shape = convert.Shape(c["patch_size"], c["in_chans"], model.grid, learned=True)
    encoder = {key: value for key, value in weights.items() if key not in others}
    params = convert.from_torch(encoder, layouts.timm_vit(c["depth"]), shape)["params"]["encoder"]
    images = channels_last(inputs["images"])

    def apply(function, *arguments):
        return model.apply({"params": params}, *arguments, method=function)

    layers = apply(ViT.layers, apply(ViT.embed, images))
    features = apply(ViT.__call__, images)
    fc_norm = {"scale": others["fc_norm.weight"], "bias": others["fc_norm.bias"]}
    mean = layer_norm(jnp.float32, kernels=model.kernels).apply({"params": fc_norm}, layers[-1][:, 1:].mean(axis=1))
    pooled = {"token": (features, features[:, 0]), "avg": (layers[-1], mean)}
    outputs = {f"blocks/{i}": layer for i, layer in enumerate(layers)}
    for name, (tokens, vector) in pooled.items():
        logits = vector @ others["head.weight"].T + others["head.bias"]
        outputs |= {f"{name}/features": tokens, f"{name}/pooled": vector, f"{name}/logits": logits}
    return with_prefixes(outputs, {})


def mae_posembed(c: dict, weights: dict, inputs: dict) -> dict:
    """The position tables of both families, and MAE's resizing of one."""
    outputs = {}
    for size in c["sizes"]:
        width, grid = size["dim"], size["grid"]
        for order in ("mae", "mocov3"):
            table = sincos_table(width, (grid, grid), order=order)
            outputs[f"{order}/d{width}_g{grid}"] = np.concatenate([np.zeros((1, width)), table])
    for job in c["interpolation"]:
        name = f"d{job['dim']}_g{job['grid_from']}_to_g{job['grid_to']}"
        old, new = (job["grid_from"],) * 2, (job["grid_to"],) * 2
        outputs[f"mae_interpolated/{name}"] = resize_position_table(inputs[f"interpolate/{name}"][0], old, new)[None]
    return with_prefixes(outputs, {})


def mae_lr_sched(c: dict, weights: dict, inputs: dict) -> dict:
    """MAE's schedule, by fractional epochs, and the rates that layer-wise scales make of it."""
    schedule = {"peak": c["lr"], "warmup": c["warmup_epochs"], "total": c["epochs"], "minimum": c["min_lr"]}
    rate = np.asarray(optimizer.warmup_cosine(inputs["epochs"], **schedule), np.float64)
    scales = np.array([1.0 if scale is None else scale for scale in c["lr_scales"]])
    return with_prefixes({"lr": rate, "group_lr": rate[:, None] * scales}, {})


EXACT = (("ids_", "exact", 0.0), ("outputs/mask", "exact", 0.0), ("num_batches_tracked", "exact", 0.0))

CASES = {
    "mae": Case(mae, (*EXACT, ("grads/", "relative", 1e-4), ("loss", "relative", 1e-5), ("", "relative", 2e-5))),
    "ccmim": Case(
        ccmim,
        (
            *EXACT,
            ("grads/", "relative", 8e-4),
            ("buffers_after/", "relative", 1e-5),
            ("loss", "relative", 1e-5),
            ("", "relative", 2e-4),
        ),
    ),
    "vit_forward": Case(vit_forward, (("", "relative", 2e-5),)),
    "mae_posembed": Case(mae_posembed, (("interpolated", "absolute", 1e-5), ("", "absolute", 2e-6))),
    "mae_lr_sched": Case(mae_lr_sched, (("", "of peak", 1e-6),)),
}
CASES["ccmim_random"] = CASES["ccmim"]
