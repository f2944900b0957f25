"""Weights on disk: read without running anything that lies in the file, written whole or not at all."""

import argparse
import contextlib
import io
import json
import os
import pathlib
import pickle
import re
import shutil

import jax.numpy as jnp
import numpy as np

from maskcl_jax.errors import UserError
from maskcl_jax.interchange import pickles

RECORD = "export.json"  # what our exports say of themselves
WEIGHTS = ("model.safetensors", "pytorch_model.bin", "checkpoint.pth", "model.pkl")
WRAPPERS = ("state_dict", "model")


@contextlib.contextmanager
def new_folder(path: str):
    """A folder beside `path` to fill, which becomes `path` where the block ends well and vanishes where it does not.

    Raises UserError where `path` exists or cannot be written.
    """
    place = pathlib.Path(path)
    if place.exists():
        raise UserError(f"--out={path} exists: give another, or remove it")
    beside = place.absolute().with_name(f".{place.name}.{os.getpid()}")
    above = [parent for parent in beside.parents if not parent.exists()]
    try:
        beside.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--out={path} is not writable ({error.strerror}): give another") from None
    try:
        yield beside
        os.rename(beside, place)
    except BaseException:
        shutil.rmtree(beside)
        for parent in above:
            with contextlib.suppress(OSError):  # another export may have come to live there
                parent.rmdir()
        raise


def quoted(path: str) -> str:
    """A path in double quotes, as Python and YAML read it."""
    return json.dumps(path, ensure_ascii=False)


def write_safetensors(state: dict[str, np.ndarray]) -> bytes:
    """A safetensors file; `format` is what transformers asks for."""
    from safetensors.numpy import save

    return save({k: np.ascontiguousarray(v).reshape(v.shape) for k, v in state.items()}, metadata={"format": "pt"})


def read_state(path: str) -> tuple[dict[str, np.ndarray], dict[str, dict]]:
    """(state dict, {name: content} of the JSON files beside it) of a file or of a folder that holds one.

    Floating point numbers become float32. Raises UserError where nothing can be read, or where reading would mean
    running code.
    """
    place = pathlib.Path(path)
    if not place.exists():
        raise UserError(f"{path} does not exist: give a file of weights, or the folder of one")
    texts = {}
    if place.is_dir():
        found = [place / name for name in WEIGHTS if (place / name).is_file()]
        if not found:
            raise UserError(f"{path} holds none of {', '.join(WEIGHTS)}: give the file itself")
        texts = {file.name: read_json(file) for file in sorted(place.glob("*.json"))}
        place = found[0]
    readers = {".safetensors": read_safetensors, ".pkl": read_pickle}
    try:
        content = readers.get(place.suffix, read_torch)(place)
    except UserError:
        raise
    except Exception as error:  # truncated or of another kind: the readers raise a dozen types
        raise UserError(f"{place} cannot be read ({type(error).__name__}: {first_line(error)}): is it whole?") from None
    return arrays_of(content, place), texts


def first_line(error: Exception) -> str:
    """The first line of an exception's text, not too long."""
    return (str(error).splitlines() or [""])[0][:200]


def read_json(path: pathlib.Path) -> dict:
    """A JSON object. Raises UserError where it is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)})") from None
    return content if isinstance(content, dict) else {}


def read_safetensors(path: pathlib.Path) -> dict:
    """The tensors of a safetensors file."""
    from safetensors.numpy import load_file

    return load_file(path)


def read_pickle(path: pathlib.Path) -> dict:
    """A pickle of numpy arrays, as detectron2 reads them."""
    try:
        return pickles.ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except UserError as error:
        raise UserError(refusal(path, str(error))) from None


def read_torch(path: pathlib.Path) -> dict:
    """What `torch.save` wrote, tensors as numpy arrays. An argparse.Namespace, which many keep, is harmless."""
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path} is a PyTorch file: pip install torch to read it, or convert it to safetensors"
        ) from None
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(refusal(path, f"it wants to run {found[1]}")) from None
        raise UserError(
            f"{path} is refused: it is no PyTorch file, or one that cannot be read without running what lies in it; "
            "save its state dict alone with torch.save"
        ) from None
    return tensors_to_numpy(content, torch)


def refusal(path, reason: str) -> str:
    """What is said of a file that is more than data."""
    return (
        f"{path} is refused: {reason}, which can do anything on this machine. Where you trust it, load it yourself and "
        "save its state dict alone"
    )


def tensors_to_numpy(content, torch):
    """Nested dicts of tensors -> of arrays."""
    if isinstance(content, dict):
        return {key: tensors_to_numpy(value, torch) for key, value in content.items()}
    if isinstance(content, torch.Tensor):
        content = content.detach()
        return (content.float() if content.is_floating_point() else content).numpy()
    return content


def arrays_of(content, path) -> dict[str, np.ndarray]:
    """The state dict in a file: without wrapper, and without the prefixes of DDP and torch.compile."""
    for name in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    arrays = {k: v for k, v in content.items() if isinstance(v, np.ndarray)} if isinstance(content, dict) else {}
    if not arrays:
        raise UserError(f"{path} holds no tensors: give a state dict, bare or under {' or '.join(WRAPPERS)}")
    for prefix in ("module.", "_orig_mod."):
        if all(key.startswith(prefix) for key in arrays):
            arrays = {key.removeprefix(prefix): value for key, value in arrays.items()}
    # What transformers 5 calls the decoder's blocks when it saves a ViTMAEForPreTraining.
    arrays = {k.replace("decoder.decoder_encoder.layer.", "decoder.decoder_layers."): v for k, v in arrays.items()}
    return {key: v.astype(np.float32) if jnp.issubdtype(v.dtype, jnp.floating) else v for key, v in arrays.items()}
