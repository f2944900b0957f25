"""The formats: the file of each, the texts beside it, the lines that load it, and what it cannot hold.

`load`, `preprocess` and `feature` are Python: an export's README shows them, and `check` runs them. Lines that end in a
`state` instead of a `model` are for code bases that cannot be installed with pip.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from maskcl_jax.interchange import detectron2_format, files, hf_format, pickles, timm_format, torchvision_format
from maskcl_jax.interchange.product import Product


def torch_bytes(wrapper: str, prefix: str = "") -> Callable[[dict[str, np.ndarray]], bytes]:
    """`encode` of a `.pth` with the state dict under `wrapper`, each key after `prefix`."""
    return lambda state: pickles.torch_file({f"{prefix}{key}": value for key, value in state.items()}, wrapper)


def load_torch(wrapper: str) -> Callable[[Product, str], str]:
    """`load` of such a file."""

    def load(p: Product, folder: str) -> str:
        path = files.quoted(f"{folder}/checkpoint.pth")
        return f'import torch\nstate = torch.load({path}, weights_only=True)["{wrapper}"]'

    return load


@dataclasses.dataclass(frozen=True)
class Format:
    """One way to write a product.

    Attributes:
        file: The name of the weights.
        encode: State dict -> the content of that file.
        load: (product, folder) -> Python that makes `model` or `state`.
        preprocess: (product, folder) -> Python that makes normalized `images` (1, C, H, W) of a PIL `image`; "" where
            the format has no preprocessing, or cannot express the run's.
        feature: Product -> Python for the run's feature of normalized `images` (B, C, H, W).
        texts: Product -> {file name: content} beside the weights.
        notes: (product, folder) -> what else a user must know, Markdown.
        lacks: Product -> why the format cannot hold it, or "".
    """

    file: str
    encode: Callable[[dict[str, np.ndarray]], bytes]
    load: Callable[[Product, str], str]
    preprocess: Callable[[Product, str], str] = lambda p, folder: ""
    feature: Callable[[Product], str] = lambda p: ""
    texts: Callable[[Product], dict[str, str]] = lambda p: {}
    notes: Callable[[Product, str], str] = lambda p, folder: ""
    lacks: Callable[[Product], str] = lambda p: ""


def needs_norm(name: str) -> Callable[[Product], str]:
    """`lacks` of formats whose ViT always has a final norm."""
    return lambda p: "" if p.depths.final_norm else f"{name} has a final norm, which this target encoder does not have"


def whole_only(p: Product) -> str:
    """`lacks` of formats that hold a whole pre-training model only."""
    return "" if p.kind == "full" else "it is for whole models: add --full, or use --format=timm for the encoder alone"


def scripts(repository: str, *options: str) -> Callable[[Product, str], str]:
    """`notes` of authors' formats: the options of their scripts that take the file."""

    def notes(p: Product, folder: str) -> str:
        if p.kind == "full":
            return f"For continued training in {repository}: `model.load_state_dict(state)`.\n"
        accepted = " or ".join(f"`{option}{folder}/checkpoint.pth`" for option in options)
        return f"In {repository}: {accepted}.\n"

    return notes


def mm_stem(p: Product) -> str:
    """The class of mmpretrain and mmdet for a ResNet."""
    return "ResNet_CIFAR" if p.encoder.stem == "small" else "ResNet"


def mm_notes(p: Product, folder: str) -> str:
    """`notes` of OpenMMLab's formats: the `backbone` of a config."""
    init = f"init_cfg=dict(type='Pretrained', checkpoint='{folder}/checkpoint.pth')"
    if not p.is_vit:
        fields = f"type='{mm_stem(p)}', depth={p.encoder.size.depth}, in_channels={p.channels}, style='pytorch'"
        return f"In the config:\n\n```text\nbackbone=dict({fields}, {init})\n```\n"
    e = p.encoder
    arch = f"embed_dims={e.width}, num_layers={e.depth}, num_heads={e.heads}"
    arch = f"dict({arch}, feedforward_channels={int(e.width * e.mlp_ratio)})"
    size = f"img_size={p.size}, patch_size={e.patch_size}, in_channels={p.channels}"
    norm = "" if p.depths.final_norm else ", final_norm=False"
    fields = f"type='VisionTransformer', arch={arch}, {size}{norm}, out_type='raw'"
    return (
        f"In the config:\n\n```text\nbackbone=dict({fields}, {init})\n```\n\n"
        "`out_type='raw'` gives all tokens, cls first: `avg_featmap` would add a norm of its own.\n"
    )


def mm_lacks(p: Product) -> str:
    """`lacks` of OpenMMLab's formats: stock ResNets only."""
    if p.is_vit:
        return ""
    if p.format == "mmdet" and p.encoder.stem == "small":
        return "mmdet has no ResNet with the small stem"
    if not torchvision_format.is_stock(p):
        return f"{p.format} has no {p.encoder.size.name}"
    return torchvision_format.not_in_torchvision(p)


SAFE = ("model.safetensors", files.write_safetensors)
MM = Format("checkpoint.pth", torch_bytes("state_dict"), load_torch("state_dict"), notes=mm_notes, lacks=mm_lacks)
MAE, MOCO_V3, CCMIM = "facebookresearch/mae", "facebookresearch/moco-v3", "Sherrylone/ccMIM"

FORMATS = {
    "timm": Format(
        *SAFE,
        load=timm_format.load,
        preprocess=timm_format.preprocess,
        feature=lambda p: "model(images)",
        texts=timm_format.texts,
        notes=timm_format.notes,
        lacks=timm_format.lacks,
    ),
    "hf": Format(
        *SAFE,
        load=hf_format.load,
        preprocess=hf_format.preprocess,
        feature=hf_format.feature,
        texts=hf_format.texts,
        notes=hf_format.notes,
        lacks=hf_format.lacks,
    ),
    "mae": Format(
        "checkpoint.pth",
        torch_bytes("model"),
        load_torch("model"),
        notes=scripts(MAE, "main_finetune.py --finetune ", "main_linprobe.py --finetune "),
        lacks=needs_norm(MAE),
    ),
    "ccmim": Format(
        "checkpoint.pth", torch_bytes("model"), load_torch("model"), notes=scripts(CCMIM), lacks=whole_only
    ),
    "cmae": Format(
        "checkpoint.pth",
        torch_bytes("state_dict"),
        load_torch("state_dict"),
        notes=scripts("ZhichengHuang/CMAE", "model.backbone.init_cfg.checkpoint="),
    ),
    # These authors' scripts look for the prefix that DistributedDataParallel gives.
    "mocov3": Format(
        "checkpoint.pth",
        torch_bytes("state_dict", "module."),
        load_torch("state_dict"),
        notes=scripts(MOCO_V3),
        lacks=whole_only,
    ),
    "moco_v2": Format(
        "checkpoint.pth",
        torch_bytes("state_dict", "module."),
        load_torch("state_dict"),
        notes=scripts("facebookresearch/moco"),
        lacks=whole_only,
    ),
    "torchvision": Format(*SAFE, load=torchvision_format.load, feature=lambda p: "model(images)"),
    "detectron2": Format(
        "model.pkl",
        pickles.detectron2_file,
        load=detectron2_format.load,
        texts=detectron2_format.texts,
        notes=detectron2_format.notes,
        lacks=detectron2_format.lacks,
    ),
    "mmpretrain": MM,
    "mmdet": MM,
}
