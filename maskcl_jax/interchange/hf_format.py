"""transformers: a folder for `from_pretrained`, with the names on disk that versions 4 and 5 both read."""

import json
from typing import Any

from maskcl_jax.interchange.files import quoted
from maskcl_jax.interchange.preprocessing import turning_lines
from maskcl_jax.interchange.product import Product
from maskcl_jax.models.transformer import LAYER_NORM_EPS
from maskcl_jax.ops import masking
from maskcl_jax.views.patch_mask import PatchMask


def lacks(p: Product) -> str:
    """Why transformers' classes cannot be configured to a product; "" where they can."""
    if not p.is_vit:
        return "transformers has no ResNet with the small stem" if p.encoder.stem == "small" else ""
    if p.kind == "full" and p.size[0] != p.size[1]:
        return f"transformers' ViTMAE takes square images, not {p.size[0]}x{p.size[1]}"
    return "" if p.depths.final_norm else "transformers' ViT has a final norm, which this target encoder does not have"


def load(p: Product, folder: str) -> str:
    """The lines that load it. A ViT's pooler is a supervised model's; this one has none."""
    if p.kind == "full":
        name, options = "ViTMAEForPreTraining", ""
    else:
        name, options = "AutoModel", ", add_pooling_layer=False" if p.is_vit else ""
    return f"from transformers import {name}\nmodel = {name}.from_pretrained({quoted(folder)}{options}).eval()"


def preprocess(p: Product, folder: str) -> str:
    """The lines that make normalized `images` of a PIL `image`; "" where no image processor does what the run did."""
    if not preprocessor(p):
        return ""
    return (
        f"{turning_lines(p)}"
        "from transformers import AutoImageProcessor\n"
        f"processor = AutoImageProcessor.from_pretrained({quoted(folder)})\n"
        'images = processor(images=image, return_tensors="pt")["pixel_values"]'
    )


def feature(p: Product) -> str:
    """The expression of the run's feature; of a whole model, of its prediction under given noise."""
    if p.kind == "full":
        return "model(images, noise=noise).logits"
    if not p.is_vit:
        return "model(images).pooler_output.flatten(1)"
    row = "[:, 0]" if p.config.eval.feature == "cls" else "[:, 1:].mean(1)"
    return f"model(images).last_hidden_state{row}"


def texts(p: Product) -> dict[str, str]:
    """config.json, and preprocessor_config.json where there is one."""
    contents = {"config.json": vit_config(p) if p.is_vit else resnet_config(p)}
    if config := preprocessor(p):
        contents["preprocessor_config.json"] = config
    return {name: json.dumps(content, indent=1) for name, content in contents.items()}


def notes(p: Product, folder: str) -> str:
    """What is said where there is no image processor."""
    if preprocessor(p):
        return ""
    return "No image processor of transformers does this run's preprocessing: do what the table below says.\n"


def resnet_config(p: Product) -> dict[str, Any]:
    """The config of ResNetModel: any width, any stages."""
    e = p.encoder
    return {
        "architectures": ["ResNetModel"],
        "model_type": "resnet",
        "num_channels": p.channels,
        "embedding_size": e.width,
        "hidden_sizes": [e.width * 2**i * (4 if p.bottleneck else 1) for i in range(len(p.blocks))],
        "depths": p.blocks,
        "layer_type": "bottleneck" if p.bottleneck else "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    }


def vit_config(p: Product) -> dict[str, Any]:
    """The config of ViTModel, or of ViTMAEForPreTraining."""
    e = p.encoder
    config = {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "hidden_size": e.width,
        "num_hidden_layers": e.depth,
        "num_attention_heads": e.heads,
        "intermediate_size": int(e.width * e.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": LAYER_NORM_EPS,  # theirs is 1e-12
        "image_size": p.size[0] if p.size[0] == p.size[1] else list(p.size),
        "patch_size": e.patch_size,
        "num_channels": p.channels,
        "qkv_bias": True,
    }
    if p.kind != "full":
        return config
    d, ratio = p.config.method.decoder, p.config.method.mask_ratio
    count, visible = e.grid[0] * e.grid[1], num_visible(p)
    if masking.num_visible(count, ratio) != visible:  # masked in blocks of patches, unlike theirs
        ratio = 1 - (visible + 0.5) / count
    return config | {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "decoder_num_attention_heads": d.heads,
        "decoder_hidden_size": d.width,
        "decoder_num_hidden_layers": d.depth,
        "decoder_intermediate_size": int(d.width * d.get("mlp_ratio", 4.0)),
        "mask_ratio": ratio,
        "norm_pix_loss": p.config.method.norm_pix,
    }


def num_visible(p: Product) -> int:
    """How many patches the encoder sees in pre-training; all of them where the method does not mask on the host."""
    mask = p.run.method.views[0].find(PatchMask)
    return p.encoder.grid[0] * p.encoder.grid[1] if mask is None else mask.num_visible


def preprocessor(p: Product) -> dict[str, Any]:
    """The config of an image processor that does what evaluation does to an image.

    Returns:
        The config; {} where none does: a size that is not square is not covered by resizing the shorter side, and
        processors know one or three channels.
    """
    height, width = p.size
    resize, (mean, std) = p.config.data.eval_resize, p.moments
    if p.channels not in (1, 3) or (resize != 1.0 and height != width):
        return {}
    shared = {
        "do_resize": True,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
        "do_convert_rgb": p.channels == 3,
    }
    if resize == 1.0:
        return shared | {"image_processor_type": "ViTImageProcessor", "size": {"height": height, "width": width}}
    # The processor crops at whole pixels: the same parity keeps the crop in the center.
    shorter = height + 2 * round((resize - 1) * height / 2)
    return shared | {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": shorter},
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
    }
