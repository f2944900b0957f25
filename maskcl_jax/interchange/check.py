"""Loads an export the way a user would, and compares what it computes on photographs with the run. Needs PyTorch."""

import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskcl_jax import errors, methods
from maskcl_jax.data.decode import to_channels
from maskcl_jax.errors import UserError, first_line
from maskcl_jax.interchange import convert, files, hf_format, timm_format, torchvision_format
from maskcl_jax.interchange.catalog import LAYOUTS
from maskcl_jax.interchange.formats import FORMATS
from maskcl_jax.interchange.preprocessing import compare_preprocessing, example_images
from maskcl_jax.interchange.product import Product, shape_of
from maskcl_jax.methods import encoders
from maskcl_jax.models.vit import ViT
from maskcl_jax.ops import masking

LIMIT = 1e-4
# What builds the network of a format, and the names that it must provide.
LIBRARIES = {
    "timm": ("timm", "create_model", "data.create_transform", "models.vision_transformer.VisionTransformer"),
    "hf": ("transformers", "AutoModel", "ViTModel", "ViTMAEForPreTraining", "ResNetModel", "AutoImageProcessor"),
    "torchvision": ("torchvision.models.resnet", "ResNet"),
}


def library_of(p: Product) -> str:
    """The key of `LIBRARIES`; for code bases that pip cannot install, timm for a ViT and torchvision for a ResNet."""
    return p.format if p.format in LIBRARIES else "timm" if p.is_vit else "torchvision"


def import_problem(p: Product) -> str:
    """What this check needs and cannot import, with the reason; "" if nothing."""
    for module, *names in (("torch", "nn.Module"), ("safetensors.torch", "load_file"), LIBRARIES[library_of(p)]):
        if reason := errors.import_problem(module, *names):
            return reason
    return ""


def check(p: Product, folder: str) -> str:
    """Compares the export in `folder` with the run.

    Args:
        p: The export.
        folder: Where it was written.

    Returns:
        What was compared, in words.

    Raises:
        UserError: Where a feature differs by more than `LIMIT`, a tensor is not what was written, or the format's
            preprocessing is not the run's.
    """
    import torch

    written, _ = files.read_state(folder)
    if any(not np.array_equal(written[key], value) for key, value in p.state.items()) or len(written) != len(p.state):
        raise UserError(f"--format={p.format}: the file does not hold the tensors that were written to it")
    form, library = FORMATS[p.format], library_of(p)
    pixels = photos(p.size, p.channels)
    images = normalized(p, pixels)
    noise = np.random.default_rng(0).random((len(images), num_patches(p)), np.float32)
    whole = p.format == "hf" and p.kind == "full"
    ours = our_prediction(p, images, noise) if whole else our_feature(p, pixels)
    namespace: dict[str, Any] = {}
    try:
        exec(form.load(p, folder), namespace)
        namespace |= {"images": torch.tensor(images).permute(0, 3, 1, 2), "noise": torch.tensor(noise)}
        if "model" not in namespace:
            namespace["model"] = model_of_snippet(
                p, {key: np.asarray(value) for key, value in namespace["state"].items()}
            )
        with torch.no_grad():
            theirs = eval(form.feature(p) or "model(images)", namespace).float().numpy()
    except Exception as error:  # of another library: it raises anything
        raise UserError(
            f"--format={p.format}: {library} cannot load or run the export ({type(error).__name__}: "
            f"{first_line(error, 200)}); write --nocheck to export it all the same"
        ) from error
    if theirs.shape != ours.shape:
        raise UserError(f"--format={p.format}: their feature is of shape {theirs.shape}, ours of {ours.shape}")
    difference, scale = float(np.max(np.abs(theirs - ours))), float(np.max(np.abs(ours)))
    words = f"largest difference {difference:.1e}, scale {scale:.1f}"
    if not difference <= LIMIT:
        raise UserError(f"--format={p.format}: their feature is not ours: {words}; the limit is {LIMIT:.0e}")
    package = LIBRARIES[library][0].partition(".")[0]
    version = importlib.import_module(package).__version__
    lines = form.preprocess(p, folder)
    return (
        f"{'prediction' if whole else 'feature'} on {len(images)} photographs, float32: {words}, with {package} "
        f"{version}; all {len(p.state)} tensors as written; "
        + (compare_preprocessing(p, lines, namespace) if lines else "no preprocessing comes with the format")
    )


def num_patches(p: Product) -> int:
    """Patches of an image; 0 for a ResNet."""
    return p.encoder.grid[0] * p.encoder.grid[1] if p.is_vit else 0


def photos(size: tuple[int, int], channels: int) -> np.ndarray:
    """(n, H, W, channels) uint8: photographs that come with scikit-image, resized."""
    height, width = size
    resized = [np.asarray(image.resize((width, height))) for image in example_images(3)]
    return to_channels(np.stack(resized), channels)


def normalized(p: Product, images: np.ndarray) -> np.ndarray:
    """(x / 255 - mean) / std in numpy, for their network."""
    mean, std = (np.asarray(values, np.float32) for values in p.moments)
    return (images.astype(np.float32) / 255 - mean) / std


def our_method(p: Product) -> methods.Method:
    """The run's method, computing in float32 whatever the run computed in."""
    config = p.config.copy_and_resolve_references()
    config.dtype = "float32"
    return methods.create(config)


def our_feature(p: Product, pixels: np.ndarray) -> np.ndarray:
    """The run's own feature of uint8 images, unmasked."""
    method, kind = our_method(p), p.config.eval.feature
    params, state = p.tree["params"], {"batch_stats": p.tree.get("batch_stats", {})}
    if p.depths.final_norm:
        return run_in_float32(lambda x: method.features(params, state, x, kind=kind), pixels)

    def before_the_norm(images):
        variables = {"params": params["encoder"]}
        tokens = method.encoder.apply(variables, images, method=ViT.embed)
        return encoders.pooled(method.encoder.apply(variables, tokens, method=ViT.layers)[-1], kind)

    return run_in_float32(before_the_norm, normalized(p, pixels))


def our_prediction(p: Product, images: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """(n, N, pixels of a patch): what the decoder predicts where the patches of least noise (n, N) are visible."""
    method, params = our_method(p), p.tree["params"]
    order, count = np.argsort(noise, axis=1), hf_format.num_visible(p)
    visible, masked = jnp.asarray(order[:, :count]), jnp.asarray(order[:, count:])

    def predict(images: jax.Array) -> jax.Array:
        encoder = {"params": params["encoder"]}
        tokens = method.encoder.apply(encoder, images, visible, method=ViT.embed)
        latent = method.encoder.apply(encoder, tokens, method=ViT.encode)
        patches = method.decoders["decoder"].apply({"params": params["decoder"]}, latent, visible, masked)
        return masking.take(patches, masking.restore_ids(visible, masked))

    return run_in_float32(predict, images)


def run_in_float32(function: Callable[[Any], jax.Array], images: np.ndarray) -> np.ndarray:
    """function(images), compiled, in full float32 on any device."""
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(function)(images), np.float32)


def model_of_snippet(p: Product, state: dict[str, np.ndarray]) -> Any:
    """A model of timm or torchvision with the encoder of a format's state dict, loaded strictly."""
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
