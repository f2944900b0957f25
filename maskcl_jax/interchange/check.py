"""Loads an export the way a user would, and compares its outputs on photographs with ours. Needs PyTorch."""

import importlib
from typing import Any

import jax
import numpy as np
from PIL import Image

from maskcl_jax import methods
from maskcl_jax.data.pixels import crop_and_resize, to_channels
from maskcl_jax.data.sources.embedded import photographs
from maskcl_jax.errors import UserError
from maskcl_jax.interchange import convert, files, timm_format, torchvision_format
from maskcl_jax.interchange.catalog import LAYOUTS
from maskcl_jax.interchange.formats import FORMATS
from maskcl_jax.interchange.product import Product, shape_of
from maskcl_jax.methods import base
from maskcl_jax.models.vit import ViT

LIMIT = 1e-4
# What loads a format, where its own code base cannot be installed with pip: timm for a ViT, torchvision for a ResNet.
LOADERS = {"timm": "timm", "hf": "transformers", "torchvision": "torchvision"}


def missing(p: Product) -> str:
    """What this check needs and cannot import, with the reason; "" if nothing."""
    for name in ("torch", "safetensors.torch", loader(p)):
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken installation raises anything
            return f"{name} cannot be imported ({files.first_line(error)})"
    return ""


def loader(p: Product) -> str:
    """The library that builds the network."""
    return LOADERS.get(p.format, "timm" if p.is_vit else "torchvision")


def check(p: Product, folder: str) -> str:
    """Compares the export in `folder` with the run and says what was found.

    Raises UserError where a difference is larger than `LIMIT`, or a tensor is not what was written.
    """
    import torch

    written, _ = files.read_state(folder)
    if any(not np.array_equal(written[key], value) for key, value in p.state.items()) or len(written) != len(p.state):
        raise UserError(f"--format={p.format}: the file does not hold the tensors that were written to it")
    pixels = photos(p.size, p.channels)
    images = normalized(p, pixels)
    noise = np.random.default_rng(0).random((len(images), num_patches(p)), np.float32)
    whole = p.format == "hf" and p.kind == "full"
    ours = our_prediction(p, images, noise) if whole else our_feature(p, pixels)
    namespace: dict[str, Any] = {}
    exec(FORMATS[p.format].load(p, folder), namespace)
    namespace |= {"images": torch.tensor(images).permute(0, 3, 1, 2), "noise": torch.tensor(noise)}
    if "model" not in namespace:
        namespace["model"] = rebuilt(p, {key: np.asarray(value) for key, value in namespace["state"].items()})
    with torch.no_grad():
        theirs = eval(FORMATS[p.format].feature(p) or "model(images)", namespace).float().numpy()
    if theirs.shape != ours.shape:
        raise UserError(f"--format={p.format}: their feature is of shape {theirs.shape}, ours of {ours.shape}")
    difference, scale = float(np.max(np.abs(theirs - ours))), float(np.max(np.abs(ours)))
    found = f"largest difference {difference:.1e}, scale {scale:.1f}"
    if not difference <= LIMIT:
        raise UserError(f"--format={p.format}: their feature is not ours: {found}; the limit is {LIMIT:.0e}")
    library = importlib.import_module(loader(p))
    return (
        f"{'prediction' if whole else 'feature'} on {len(images)} photographs, float32: {found}, with {loader(p)} "
        f"{library.__version__}; all {len(p.state)} tensors as written"
    )


def num_patches(p: Product) -> int:
    """Of an image; 0 for a ResNet."""
    return p.encoder.grid[0] * p.encoder.grid[1] if p.is_vit else 0


def photos(size: tuple[int, int], channels: int, count: int = 4) -> np.ndarray:
    """(count, H, W, channels) uint8: photographs that come with scikit-image."""
    pictures = []
    for file in photographs()[:count]:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB"))
        box = np.array([0, 0, *pixels.shape[:2]])
        pictures.append(crop_and_resize(pixels, box, size=size, interpolation="bicubic", flip=False))
    return to_channels(np.stack(pictures), channels)


def normalized(p: Product, images: np.ndarray) -> np.ndarray:
    """(x / 255 - mean) / std in numpy, for their network."""
    mean, std = (np.asarray(values, np.float32) for values in p.moments)
    return (images.astype(np.float32) / 255 - mean) / std


def our_method(p: Product):
    """The run's method, computing in float32 whatever the run computed in."""
    config = p.config.copy_and_resolve_references()
    config.dtype = "float32"
    return methods.create(config)


def our_feature(p: Product, pixels: np.ndarray) -> np.ndarray:
    """The run's own feature of uint8 images, unmasked."""
    method, kind = our_method(p), p.config.eval.feature
    params, stats = p.tree["params"], {"batch_stats": p.tree.get("batch_stats", {})}
    if p.depths.final_norm:
        return computed(lambda x: method.features(params, stats, x, kind=kind), pixels)

    def before_the_norm(images):
        variables = {"params": params["encoder"]}
        tokens = method.encoder.apply(variables, images, method=ViT.embed)
        return base.pooled(method.encoder.apply(variables, tokens, method=ViT.layers)[-1], kind)

    return computed(before_the_norm, normalized(p, pixels))


def our_prediction(p: Product, images: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """What the decoder makes of the patches of least noise."""
    method = our_method(p)
    order = np.argsort(noise, axis=1)
    visible, masked = order[:, : method.num_visible], order[:, method.num_visible :]
    params = p.tree["params"]
    return computed(lambda x: method.predict(params, method.latent(params, x, visible), visible, masked), images)


def computed(function, images: np.ndarray) -> np.ndarray:
    """function(images) in full float32 on any device."""
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(function)(images), np.float32)


def rebuilt(p: Product, state: dict[str, np.ndarray]):
    """A model of timm or torchvision with the encoder of a state dict, loaded strictly."""
    import torch

    state = files.arrays_of(state, p.format)
    tree = convert.from_torch(state, LAYOUTS[p.format][p.kind].rows(p.depths), shape_of(p.run))
    plain = LAYOUTS["timm"]["vit" if p.is_vit else "resnet"]
    values = convert.to_torch(tree, plain.rows(p.depths), shape_of(p.run))
    if p.is_vit:
        from timm.models.vision_transformer import VisionTransformer

        model = VisionTransformer(num_classes=0, **timm_format.vit_arguments(p))
    else:
        namespace: dict[str, Any] = {}
        exec(torchvision_format.build(p), namespace)
        model = namespace["model"]
    model.load_state_dict({key: torch.tensor(value) for key, value in values.items()})
    return model.eval()
