"""The cases of ConvNets: ResNets on weights given by a formula, RoIAlign, boxes in two views, a step of MoCo v2."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from maskcl_jax.errors import UserError
from maskcl_jax.interchange import convert, facts, layouts
from maskcl_jax.methods import StepContext
from maskcl_jax.methods.mocov2 import MoCoV2
from maskcl_jax.models.kernels import resolve
from maskcl_jax.models.resnet import RESNETS, ResNet, ResNetSize, average_pool
from maskcl_jax.ops import losses, regions
from maskcl_jax.ops.regions import roi_align, roi_mean
from maskcl_jax.training import train_state
from maskcl_jax.verify.cases import Case, channels_last, config_of, with_prefixes
from maskcl_jax.verify.target_cases import stats
from maskcl_jax.views import boxes


def hash_numbers(x: np.ndarray, first: int, second: int, shift: int) -> np.ndarray:
    """A hash of 32-bit numbers: xor with themselves shifted, times a constant, twice."""
    for constant, by in ((first, shift), (second, 13)):
        x = ((x ^ (x >> np.uint64(by))) * np.uint64(constant)) & np.uint64(0xFFFFFFFF)
    return x ^ (x >> np.uint64(16))


def fan_in(shape: tuple[int, ...]) -> int:
    """Inputs of a layer (O, I, ...)."""
    return int(np.prod(shape[1:]))


def timm_weight(key: str, shape: tuple[int, ...], salt: int) -> np.ndarray:
    """A tensor of the `resnet_forward` files."""
    k = np.arange(int(np.prod(shape)), dtype=np.uint64)
    h = (k * np.uint64(2654435761) + np.uint64(zlib.crc32(key.encode()) + salt)) & np.uint64(0xFFFFFFFF)
    r = hash_numbers(h, 2246822507, 3266489909, 16).astype(np.float64) / 2**31 - 1
    if key.endswith("running_mean"):
        value = 0.3 * r
    elif key.endswith("running_var"):
        value = 1 + 0.5 * r
    elif key.endswith("bias"):
        value = 0.2 * r
    else:
        value = 1 + 0.3 * r if len(shape) == 1 else r * np.sqrt(3 / fan_in(shape))
    return value.reshape(shape).astype(np.float32)


def moco_weight(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A parameter of the `mocov2` file."""
    s = np.uint64((zlib.crc32(key.encode()) ^ seed) & 0xFFFFFFFF)
    x = (np.arange(int(np.prod(shape)), dtype=np.uint64) * np.uint64(2654435761) + s) & np.uint64(0xFFFFFFFF)
    u = 2 * ((hash_numbers(x, 0x85EBCA6B, 0xC2B2AE35, 16) >> np.uint64(8)).astype(np.float64) / 2**24) - 1
    if len(shape) == 4:
        std, offset = np.sqrt(2 / fan_in(shape)), 0.0
    elif len(shape) == 2:
        std, offset = np.sqrt(1 / fan_in(shape)), 0.0
    elif ".fc." in key:
        std, offset = 0.1, 0.0
    else:
        std, offset = 0.2, float(key.endswith("weight"))
    return (offset + std * np.sqrt(3) * u).reshape(shape).astype(np.float32)


def channels_first(x: jax.Array) -> jax.Array:
    """(B, H, W, C) -> (B, C, H, W)."""
    return jnp.moveaxis(x, -1, 1)


def size_of(c: dict) -> ResNetSize:
    """What a file's ResNet is built of: `layers` (blocks of each stage) and `block`, or a named `arch`."""
    if "layers" in c:
        return ResNetSize(tuple(c["layers"]), c["block"] == "Bottleneck")
    named = {f"resnet{depth}": size for depth, size in RESNETS.items()}
    if c["arch"] not in named:
        raise UserError(f"arch={c['arch']!r} is unknown: use one of {', '.join(named)}, or state layers and block")
    return named[c["arch"]]


def resnet_forward(c: dict, weights: dict, inputs: dict) -> dict:
    """timm's ResNet in evaluation."""
    size = size_of(c)
    weights = {key: timm_weight(key, tuple(shape), c["salt"]) for key, shape in c["weight_shapes"].items()}
    outputs = {f"check_fill/{key}": value.ravel()[:8] for key, value in weights.items()}
    rows = [row for row in layouts.resnet(size) if not row.theirs.endswith("num_batches_tracked")]
    tree = convert.from_torch({row.theirs: weights[row.theirs] for row in rows}, rows, convert.Shape())
    stats_of = with_counts(tree["batch_stats"]["encoder"])
    variables = {"params": tree["params"]["encoder"], "batch_stats": stats_of}
    small = weights["conv1.weight"].shape[-1] == 3
    model = ResNet(
        **size._asdict(), width=c["stem_width"], stem="small" if small else "imagenet", kernels=resolve(c["kernels"])
    )
    stem, *stages = (
        channels_first(x)
        for x in model.apply(variables, channels_last(inputs["images"]), train=False, method=ResNet.stage_outputs)
    )
    outputs["stem_image0"] = stem[0, :8]
    for i, stage in enumerate(stages, start=1):
        outputs |= {f"layer{i}_spatial_mean": stage.mean(axis=(2, 3)), f"layer{i}_image0_first8": stage[0, :8]}
    pooled = average_pool(jnp.moveaxis(stages[-1], 1, -1))
    logits = pooled @ weights["fc.weight"].T + weights["fc.bias"]
    return with_prefixes(outputs | {"features": stages[-1], "pooled": pooled, "logits": logits}, {})


def with_counts(tree: dict) -> dict:
    """Statistics (nested) with the counter that these files leave out."""
    if "mean" in tree:
        return {**tree, "count": np.zeros((), np.int32)}
    return {key: with_counts(value) for key, value in tree.items()}


def mocov2(c: dict, weights: dict, inputs: dict) -> dict:
    """facebookresearch/moco: one step, and the EMA, queue and BatchNorm statistics that it leaves."""
    stem = "small" if c.get("stem", "7x7").startswith("3x3") else "imagenet"
    model = facts.resnet_fields(size_of(c)) | {"width": c.get("stem_width", 64), "stem": stem}
    model = {f"model.{field}": value for field, value in model.items()} | {"kernels": c["kernels"]}
    fields = {"temperature": c["T"], "momentum": c["m"], "queue_size": c["K"], "bn_group_size": 0, "shuffle_bn": False}
    fields |= {"projector.layers": 2 if c["mlp"] else 1, "projector.out": c["dim"]}
    config = config_of("moco_v2", c, model | {"data.image_size": (c["img_size"],) * 2}, **fields)
    method = MoCoV2(config)
    rows, shape = layouts.mocov2(method.encoder.size, fields["projector.layers"]), convert.Shape()
    params, state = jax.eval_shape(method.init, jax.random.key(0))
    of_params = [row for row in rows if row.ours.startswith(("params/", "target_params/"))]
    empty = jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), params)
    empty = convert.to_torch({"params": empty, "target_params": empty}, of_params, shape)
    filled = {key: moco_weight(key, value.shape, c["weight_seed"]) for key, value in empty.items()}
    tree = convert.from_torch(filled, of_params, shape)
    state = jax.tree_util.tree_map_with_path(
        lambda path, s: (jnp.ones if path[-1].key == "var" else jnp.zeros)(s.shape, s.dtype), state
    )
    queue = {"keys": jnp.asarray(inputs["queue"].T), "pointer": jnp.asarray(inputs["queue_ptr"], jnp.int32)}
    target = train_state.ema(tree["target_params"], method.target_params(tree["params"]), method.momentum(0.0))
    context = StepContext(target, state | {"queue": queue}, jax.random.key(0))
    views = [channels_last(inputs[name]) for name in ("img_q", "img_k")]

    def loss(params, context, views):
        out = method.forward(params, context, views)
        return out["loss"], out

    # All are arguments: what is a constant of a program, XLA computes while it compiles, here all of the keys.
    (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(tree["params"], context, views)
    outputs = {name: out[name] for name in ("q_raw", "k_raw", "logits", "loss")}
    queue_after = out["model_state"].pop("queue")
    outputs |= {"q": losses.l2_normalize(out["q_raw"]), "k": losses.l2_normalize(out["k_raw"])}
    outputs |= {"labels": np.zeros(c["batch"]), "queue_after": queue_after["keys"].T}
    outputs["queue_ptr_after"] = queue_after["pointer"][None]
    after = {"target_params": target, **out["model_state"]}
    left = convert.to_torch(after, [row for row in rows if row.ours.startswith(tuple(after))], shape)
    moved = {row.theirs for row in of_params}
    outputs |= {f"ema_stats/{key}": stats(value) for key, value in left.items() if key in moved}
    outputs |= {f"buffers/{key}": value for key, value in left.items() if key not in moved}
    computed = with_prefixes(outputs, convert.gradients_to_torch(grads, rows, shape))
    for key, value in list(computed.items()):
        if key.startswith("grads/"):
            name = key.removeprefix("grads/")
            computed |= {
                f"grads_stats/{name}": stats(value),
                f"grads_rowsum/{name}": value.reshape(len(value), -1).sum(axis=1),
            }
    return computed | {f"weights_stats/{key}": stats(value) for key, value in filled.items()}


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
        out[f"outputs/roi_mean_{size}x{size}"] = roi_mean(features[image], rois, size=size, **options)[:, 0]
    return out


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


FAIR = (("check_fill", "exact", 0.0), ("", "relative", 5e-5))

CASES = {
    "roi_align": Case(roi, (("", "absolute", 1e-5),)),
    "boxes": Case(shared_boxes, (("mask_area", "exact", 0.0), ("", "absolute", 1e-3))),
    "resnet_forward": Case(resnet_forward, FAIR),
    "resnet_basic_forward": Case(resnet_forward, FAIR),
    "mocov2": Case(
        mocov2,
        (
            ("labels", "exact", 0.0),
            ("queue_ptr_after", "exact", 0.0),
            ("weights_stats/", "stats", 1e-6),
            ("grads_stats/", "stats", 3e-4),
            ("grads", "relative", 3e-4),
            ("ema_stats/", "stats", 5e-5),
            ("buffers/", "relative", 1e-4),
            ("outputs/loss", "relative", 1e-5),
            ("", "relative", 5e-5),
        ),
    ),
}
