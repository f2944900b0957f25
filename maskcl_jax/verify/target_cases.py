"""The cases of methods with an EMA target: a step with its keys, gradients, and the target and statistics after it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskcl_jax.interchange import convert, layouts
from maskcl_jax.methods import StepContext, contrast
from maskcl_jax.methods.cmae import CMAE
from maskcl_jax.methods.mocov3 import MoCoV3
from maskcl_jax.ops import masking
from maskcl_jax.training import optimizer, train_state
from maskcl_jax.verify.cases import EXACT, Case, channels_last, encoder_config, reconstruction, with_prefixes
from maskcl_jax.views.patch_mask import PatchMask


def stats(x: Any) -> np.ndarray:
    """(19,): sum, L2 norm, sum of absolute values, the first 16 elements (zeros where there are fewer)."""
    x = np.asarray(x, np.float64).ravel()
    first = np.zeros(16)
    first[: min(16, x.size)] = x[:16]
    return np.concatenate([[x.sum(), np.sqrt((x**2).sum()), np.abs(x).sum()], first])


def decoder_fields(name: str, c: dict, depth: str) -> dict:
    """The fields of one of CMAE's decoders."""
    sizes = {"width": "decoder_embed_dim", "depth": depth, "heads": "decoder_num_heads"}
    sizes["mlp_ratio"] = "decoder_mlp_ratio"
    return {f"{name}.{field}": c[theirs] for field, theirs in sizes.items()}


def cmae(c: dict, weights: dict, inputs: dict) -> dict:
    """ZhichengHuang/CMAE: one step, and the EMA of the target after a known change of the online weights."""
    fields = decoder_fields("decoder", c, "pixel_decoder_depth")
    fields |= decoder_fields("feature_decoder", c, "feature_decoder_depth")
    fields |= {"projector.hidden": c["projector_hidden"], "projector.out": c["projector_out"]}
    fields |= {"predictor.hidden": c["predictor_hidden"], "contrast_weight": c["ct_weight"], "pixel_shift": 0}
    fields |= {"mask_block": c["block"]} | {name: c[name] for name in ("mask_ratio", "temperature", "momentum")}
    config = encoder_config("cmae", c, **fields)
    method = CMAE(config)
    rows = layouts.cmae(c["depth"], c["pixel_decoder_depth"], c["feature_decoder_depth"])
    widths = {"encoder": method.encoder.width}
    widths |= {"decoder": c["decoder_embed_dim"], "feature_decoder": c["decoder_embed_dim"]}
    shape = convert.Shape(method.patch, c["in_chans"], method.encoder.grid, widths, order="mocov3")
    tree = convert.from_torch(weights, rows, shape)
    _, state = jax.eval_shape(method.init, jax.random.key(0))
    state = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), state)  # no output depends on them
    context = StepContext(tree["target_params"], state, jax.random.key(0))
    images = [channels_last(inputs[name]) for name in ("img_online", "img_target")]
    visible, masked = block_masks(inputs["noise"], method.views[0].find(PatchMask))

    def loss(params):
        out = method.forward(params, context, *images, visible, masked)
        return out["loss"], out | reconstruction(method, params, out["latent"], visible, masked)

    (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(tree["params"])
    out["feature_pred"] = masking.take(out["feature_pred"], out["ids_restore"])
    names = ("mask", "online_pooled", "target_pooled", "projection", "prediction", "target_projection", "feature_pred")
    outputs = {name: out[name] for name in names}
    # The order of the visible tokens is the authors' sort's: latents are put into theirs by `by_patch`.
    outputs |= {"pixel_pred": out["pred"], "loss_rc": out["loss_rec"], "loss_ct": out["loss_contrast"]}
    outputs |= {"loss_total": out["loss"], "by_patch": (visible, out["latent"])}
    moved = jax.tree.map(lambda p: p + c["online_weight_change"], tree["params"])
    target = train_state.ema(tree["target_params"], method.target_params(moved), method.momentum(0.0))
    of_target = [row for row in rows if row.theirs.startswith("target_")]
    for key, value in convert.to_torch({"target_params": target}, of_target, shape).items():
        outputs |= {f"ema/{key}": value, f"ema_stats/{key}": stats(value)}
    return with_prefixes(outputs, convert.gradients_to_torch(grads, rows, shape))


def block_masks(noise: np.ndarray, mask: Any) -> tuple[jax.Array, jax.Array]:
    """(visible, masked): the blocks of smallest noise stay."""
    order = np.argsort(noise, axis=1, kind="stable")
    count = order.shape[1]
    number = np.arange(mask.num_patches).reshape(mask.grid)
    b = mask.block
    of_block = number.reshape(mask.grid[0] // b, b, mask.grid[1] // b, b).transpose(0, 2, 1, 3).reshape(count, b * b)
    patches = of_block[order].reshape(len(noise), -1)
    return jnp.asarray(patches[:, : mask.num_visible]), jnp.asarray(patches[:, mask.num_visible :])


def cmae_in_their_order(computed: dict, arrays: dict) -> dict:
    """Fills `ids_keep`, `ids_restore` and `visible_latent` from ours, row by row in the order that the file states."""
    visible, latent = (np.asarray(x) for x in computed.pop("outputs/by_patch"))
    theirs = arrays["outputs/ids_keep"]
    place = np.argsort(visible, axis=1)
    rank = np.argsort(np.argsort(theirs, axis=1), axis=1)
    order = np.take_along_axis(place, rank, axis=1)
    ours = np.take_along_axis(visible, order, axis=1)
    tokens = np.take_along_axis(latent[:, 1:], order[:, :, None], axis=1)
    # Visible tokens first, in the order kept; the masked ones in the order that the file states.
    restore = np.where(np.asarray(computed["outputs/mask"]) == 0, 0, arrays["outputs/ids_restore"])
    np.put_along_axis(restore, ours, np.tile(np.arange(ours.shape[1]), (len(ours), 1)), axis=1)
    return computed | {
        "outputs/ids_keep": ours,
        "outputs/ids_restore": restore,
        "outputs/visible_latent": np.concatenate([latent[:, :1], tokens], axis=1),
    }


def mocov3(c: dict, weights: dict, inputs: dict) -> dict:
    """facebookresearch/moco-v3: one step with the EMA that comes before the keys, and all that it leaves behind."""
    fields = {"projector.hidden": c["mlp_dim"], "projector.out": c["dim"], "predictor.hidden": c["mlp_dim"]}
    fields |= {"temperature": c["temperature"], "momentum": c["momentum"], "momentum_schedule": "fixed"}
    fields |= {"freeze_patch_embed": c["stop_grad_conv1"]}
    config = encoder_config("mocov3", c | {"in_chans": inputs["view1"].shape[1]}, **fields)
    method = MoCoV3(config)
    rows = layouts.mocov3(c["depth"])
    shape = convert.Shape(
        c["patch_size"], method.encoder.channels, method.encoder.grid, {"encoder": c["embed_dim"]}, order="mocov3"
    )
    tree = convert.from_torch(weights, rows, shape)
    target = train_state.ema(tree["target_params"], method.target_params(tree["params"]), method.momentum(0.0))
    state = {name: tree[name] for name in ("batch_stats", "target_batch_stats")}
    context = StepContext(target, state, jax.random.key(0))
    views = [channels_last(inputs[name]) for name in ("view1", "view2")]

    def loss(params):
        out = method.forward(params, context, *views)
        return out["loss"], out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(tree["params"])
    names = ("cls1", "cls2", "z1", "z2", "q1", "q2", "k1", "k2", "loss", "loss_q1k2", "loss_q2k1")
    after = {"target_params": target, **out["model_state"]}
    left = [row for row in rows if row.ours.startswith(tuple(after)) or row.theirs.startswith("momentum_encoder.")]
    outputs = {name: out[name] for name in names}
    outputs |= {f"state_after/{key}": value for key, value in convert.to_torch(after, left, shape).items()}
    return with_prefixes(outputs, convert.gradients_to_torch(grads, rows, shape))


def mocov3_sched(c: dict, weights: dict, inputs: dict) -> dict:
    """MoCo v3's learning rate and momentum, by fractional epochs."""
    epochs = inputs["epochs"]
    rate = optimizer.warmup_cosine(epochs, peak=c["lr"], warmup=c["warmup_epochs"], total=c["epochs"])
    momentum = contrast.momentum_at(c["moco_m"], "cosine", epochs / c["epochs"])
    return with_prefixes({"lr": rate, "momentum": momentum}, {})


CASES = {
    "cmae": Case(
        cmae,
        (
            *EXACT,
            # Zero in exact arithmetic: BatchNorm takes any constant away.
            ("grads/feature_decoder.ln1.bias", "absolute", 1e-5),
            ("grads/feature_decoder.decoder_pred.bias", "absolute", 1e-5),
            ("grads/projector.fc0.bias", "absolute", 1e-5),
            ("grads/head.predictor.fc0.bias", "absolute", 1e-5),
            ("grads/", "relative", 3e-4),
            ("ema_stats/", "stats", 5e-5),
            ("outputs/loss", "relative", 1e-5),
            ("", "relative", 5e-5),
        ),
        finish=cmae_in_their_order,
    ),
    "mocov3": Case(
        mocov3,
        (
            *EXACT,
            ("grads/base_encoder.norm.bias", "absolute", 1e-5),
            ("grads/", "relative", 5e-4),
            ("state_after/", "relative", 1e-5),
            ("outputs/loss", "relative", 1e-5),
            ("", "relative", 2e-4),
        ),
    ),
    "mocov3_sched": Case(mocov3_sched, (("", "of peak", 1e-6),)),
}
