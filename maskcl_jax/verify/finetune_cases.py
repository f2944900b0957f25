"""The cases of linear probing and fine-tuning: LARS, and layer-wise learning rates."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maskcl_jax.interchange import layouts
from maskcl_jax.models.classifier import ViTClassifier
from maskcl_jax.models.vit import ViT
from maskcl_jax.training import optimizer
from maskcl_jax.verify.cases import Case, size_of, with_prefixes


def mae_lars(c: dict, weights: dict, inputs: dict) -> dict:
    """Four steps of LARS in each of the file's runs."""
    outputs = {}
    for run, settings in c["runs"].items():
        rates = jnp.asarray(settings["lr"], jnp.float32)
        tx = optimizer.lars_mae(
            lambda step, rates=rates: rates[step],
            momentum=c["momentum"],
            weight_decay=settings["weight_decay"],
            mask=optimizer.decayed_matrices,
        )
        params = {name: inputs[f"w0/{name}"] for name in c["shapes"]}
        state = tx.init(params)
        for step in range(c["steps"]):
            grads = {name: inputs[f"grads/{name}"][step] for name in c["shapes"]}
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            outputs |= {f"{run}/step{step + 1}/{name}": value for name, value in params.items()}
        outputs |= {f"{run}/mu_after/{name}": value for name, value in optax.tree.get(state, "trace").items()}
    return with_prefixes(outputs, {})


def mae_layer_decay(c: dict, weights: dict, inputs: dict) -> dict:
    """[rate factor, weight decay] of every parameter, by its official name, and how many there are."""
    encoder = ViT(
        image_size=size_of(c),
        channels=3,
        patch_size=c["patch_size"],
        width=c["embed_dim"],
        depth=c["depth"],
        heads=c["num_heads"],
        mlp_ratio=c["mlp_ratio"],
        positions="learned",
    )
    outputs = {}
    for head, pool in (("global_pool", "mean"), ("cls_token", "cls")):
        model = ViTClassifier(encoder=encoder, num_classes=c["num_classes"], pool=pool)
        images = jnp.zeros((1, *encoder.image_size, 3))
        params = jax.eval_shape(lambda model=model, x=images: model.init(jax.random.key(0), x, train=False))["params"]
        scales = paths(optimizer.layer_scales(params, c["layer_decay"]))
        decays = paths(optimizer.decayed_without_tokens(params))
        names = official_names(c["depth"])
        for path, scale in scales.items():
            outputs[f"{head}/{names[path]}"] = np.array([scale, c["weight_decay"] * decays[path]])
        outputs[f"{head}/count"] = np.array(len(scales))
    return with_prefixes(outputs, {})


def official_names(depth: int) -> dict[str, str]:
    """Our path -> the name in facebookresearch/mae's `models_vit.VisionTransformer`."""
    rows = layouts.vit(depth, ours="params/encoder")
    names = {row.ours.removeprefix("params/"): row.theirs for row in rows}
    last = {"fc_norm/scale": "fc_norm.weight", "fc_norm/bias": "fc_norm.bias"}
    return names | last | {"head/kernel": "head.weight", "head/bias": "head.bias"}


def paths(tree: Any) -> dict:
    """{"encoder/cls_token": leaf, ...}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}


def read_groups(computed: dict, arrays: dict) -> dict:
    """Writes the file's JSON as the arrays that `mae_layer_decay` computes, in its place."""
    for key in [key for key in arrays if key.endswith("_json")]:
        text = str(arrays.pop(key))
        if key.endswith("param_groups_json"):
            head, groups = key.rpartition("/")[0], json.loads(text)
            for name, group in groups.items():
                arrays[f"{head}/{name}"] = np.array([group["lr_scale"], group["weight_decay"]])
            arrays[f"{head}/count"] = np.array(len(groups))
    return computed


CASES = {
    "mae_lars": Case(mae_lars, (("", "absolute", 2e-6),)),
    "mae_layer_decay": Case(mae_layer_decay, (("count", "exact", 0.0), ("", "relative", 1e-12)), finish=read_groups),
}
