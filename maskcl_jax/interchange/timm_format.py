"""timm: a folder for `timm.create_model("local-dir:...", pretrained=True)`, which includes its preprocessing."""

import json
from typing import Any

from maskcl_jax.interchange import torchvision_format
from maskcl_jax.interchange.files import quoted
from maskcl_jax.interchange.preprocessing import turning_lines
from maskcl_jax.interchange.product import Product

# timm's name for a width; every argument is written out beside it.
ARCHITECTURES = {192: "tiny_patch16", 384: "small_patch16", 768: "base_patch16", 1024: "large_patch16"}


def lacks(p: Product) -> str:
    """Why timm has no such network (it has any ViT, and stock ResNets); "" where it has."""
    if p.is_vit:
        return ""
    return (
        "timm has no ResNet with the small stem"
        if p.encoder.stem == "small"
        else torchvision_format.not_in_torchvision(p)
    )


def load(p: Product, folder: str) -> str:
    """The line that loads it."""
    return f"import timm\nmodel = timm.create_model({quoted(f'local-dir:{folder}')}, pretrained=True).eval()"


def preprocess(p: Product, folder: str) -> str:
    """The lines that make normalized `images` of a PIL `image`."""
    if p.channels not in (1, 3):
        return ""
    return (
        f"{turning_lines(p)}"
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n"
        "images = transform(image)[None]"
    )


def notes(p: Product, folder: str) -> str:
    """What else a user may want."""
    return "`num_classes=10` adds a new head.\n"


def pooling(p: Product) -> str:
    """timm's `global_pool` for the run's feature."""
    return "token" if p.config.eval.feature == "cls" else "avg"


def vit_arguments(p: Product) -> dict[str, Any]:
    """Arguments of timm's VisionTransformer. fc_norm=False is our order: norm, then the mean."""
    e = p.encoder
    return {
        "img_size": list(p.size),
        "patch_size": e.patch_size,
        "in_chans": p.channels,
        "embed_dim": e.width,
        "depth": e.depth,
        "num_heads": e.heads,
        "mlp_ratio": e.mlp_ratio,
        "global_pool": pooling(p),
        "fc_norm": False,
        "final_norm": p.depths.final_norm,
    }


def texts(p: Product) -> dict[str, str]:
    """config.json, the only text."""
    if p.is_vit:
        architecture = f"vit_{ARCHITECTURES.get(p.encoder.width, 'base_patch16')}_224"
        arguments, width = vit_arguments(p), p.encoder.width
        first, classifier = "patch_embed.proj", "head"
    else:
        stock = torchvision_format.is_stock(p)
        architecture = f"resnet{p.encoder.size.depth}" if stock else "resnet50" if p.bottleneck else "resnet18"
        arguments, width = {"layers": p.blocks, "in_chans": p.channels}, p.encoder.out_width
        first, classifier = "conv1", "fc"
    mean, std = p.moments
    resize = p.config.data.eval_resize
    pretrained = {
        "tag": f"maskcl_{p.config.method.name}",
        "input_size": [p.channels, *p.size],
        "fixed_input_size": p.is_vit,
        "interpolation": "bicubic",
        "crop_pct": 1 / resize,
        "crop_mode": "squash" if resize == 1.0 else "center",
        "mean": mean,
        "std": std,
        "num_classes": 0,
        "pool_size": None,
        "first_conv": first,
        "classifier": classifier,
    }
    config = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": width,
        "global_pool": pooling(p),
        "model_args": arguments,
        "pretrained_cfg": pretrained,
    }
    return {"config.json": json.dumps(config, indent=1)}
