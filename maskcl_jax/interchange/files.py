"""Files of weights: read without running code from them, written whole or not at all."""

import argparse
import contextlib
import io
import json
import os
import pathlib
import pickle
import re
import shutil
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from maskcl_jax.errors import UserError, first_line, import_problem
from maskcl_jax.interchange import pickles

RECORD = "export.json"  # how an export of ours was made
WEIGHTS = ("model.safetensors", "pytorch_model.bin", "checkpoint.pth", "model.pkl")
WRAPPERS = ("state_dict", "model")


@contextlib.contextmanager
def new_folder(path: str) -> Iterator[pathlib.Path]:
    """A context in which a folder is filled that becomes `path` in the end; after an error nothing is left.

    Raises:
        UserError: Where `path` exists or cannot be written.
    """
    target = pathlib.Path(path)
    if target.exists():
        raise UserError(f"--out={path} exists: give another, or remove it")
    beside = target.absolute().with_name(f".{target.name}.{os.getpid()}")
    above = [parent for parent in beside.parents if not parent.exists()]
    try:
        beside.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--out={path} is not writable ({error.strerror}): give another") from None
    try:
        yield beside
        os.rename(beside, target)
    except BaseException:
        shutil.rmtree(beside)
        for parent in above:
            with contextlib.suppress(OSError):  # another export may be there by now
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
    """Reads weights. Floating point numbers become float32.

    Args:
        path: A file, or a folder that holds one.

    Returns:
        (state dict, {name: content} of the JSON files beside it).

    Raises:
        UserError: Where nothing can be read, or reading would run code.
    """
    file = pathlib.Path(path)
    if not file.exists():
        raise UserError(f"{path} does not exist: give a file of weights, or the folder of one")
    texts = {}
    if file.is_dir():
        candidates = [file / name for name in WEIGHTS if (file / name).is_file()]
        if not candidates:
            raise UserError(f"{path} holds none of {', '.join(WEIGHTS)}: give the file itself")
        texts = {text.name: read_json(text) for text in sorted(file.glob("*.json"))}
        file = candidates[0]
    if file.stat().st_size == 0:
        raise UserError(f"{file} is empty (0 bytes): copy it again")
    readers = {".safetensors": read_safetensors, ".pkl": read_pickle}
    try:
        content = readers.get(file.suffix, read_torch)(file)
    except UserError:
        raise
    except Exception as error:  # truncated or of another kind: the readers raise a dozen types
        raise UserError(
            f"{file} cannot be read ({type(error).__name__}: {first_line(error, 200)}): is it whole?"
        ) from None
    return arrays_of(content, file), texts


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object, {} of a file that holds something else. Raises UserError where it is not JSON."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error, 200)})") from None
    return content if isinstance(content, dict) else {}


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file."""
    from safetensors.numpy import load_file

    return load_file(path)


def read_pickle(path: pathlib.Path) -> Any:
    """A pickle of numpy arrays, as detectron2 reads them."""
    try:
        return pickles.ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise UserError(refusal(path, str(error))) from None


def harmless_types() -> list[Any]:
    """What checkpoints hold beside tensors and cannot run code: namespaces, paths, numpy's scalars and arrays."""
    numpy_types = [np.ndarray, np.dtype, *(type(np.dtype(code)) for code in np.typecodes["All"] if code != "O")]
    rebuild = [np.zeros(()).__reduce__()[0], np.float64().__reduce__()[0]]  # functions without a public name
    return [argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath, *numpy_types, *rebuild]


def read_torch(path: pathlib.Path) -> Any:
    """What `torch.save` wrote, tensors as numpy arrays."""
    if reason := import_problem("torch", "load", "serialization.safe_globals"):
        raise UserError(f"{path} is a PyTorch file, and {reason}: pip install torch, or convert it to safetensors")
    import torch

    # Under both names of the module that numpy 1 and 2 write.
    renamed = [(f, f"numpy.core.multiarray.{f.__name__}") for f in harmless_types()[-2:]]
    renamed += [(f, f"numpy._core.multiarray.{f.__name__}") for f in harmless_types()[-2:]]
    try:
        with torch.serialization.safe_globals([*harmless_types(), *renamed]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if match := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(refusal(path, match[1])) from None
        raise UserError(
            f"{path} is refused: it is no PyTorch file, or one that cannot be read without running what lies in it; "
            "save its state dict alone with torch.save"
        ) from None
    return tensors_to_numpy(content, torch)


def refusal(path: pathlib.Path, name: str) -> str:
    """What is said of a file that is more than data: `name` is what it refers to."""
    return (
        f"{path} is refused: reading it calls {name}, which is not known to be harmless, and a file can name any "
        "function. If you trust it, load it yourself and save its state dict alone"
    )


def tensors_to_numpy(content: Any, torch: Any) -> Any:
    """Nested dicts of tensors -> of arrays."""
    if isinstance(content, dict):
        return {key: tensors_to_numpy(value, torch) for key, value in content.items()}
    if isinstance(content, torch.Tensor):
        content = content.detach()
        return (content.float() if content.is_floating_point() else content).numpy()
    return content


def arrays_of(content: Any, path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The state dict in the content of a file: without wrapper, and without the prefixes of DDP and torch.compile."""
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
