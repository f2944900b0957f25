"""Pickles of arrays, written opcode by opcode: without torch, and with module names that old versions know.

`torch_file` makes what `torch.save` makes of a dict of tensors; `detectron2_file` what `pickle.dump` makes of numpy
arrays, with the module names of numpy 1, which numpy 2 reads too (its own names do not exist in numpy 1).
"""

import collections
import io
import pickle
import struct
import zipfile
from typing import Any, ClassVar

import numpy as np

NUMPY_MODULES = ("numpy.core", "numpy._core")  # of numpy 1 and 2
STORAGES = {"float32": "FloatStorage", "int64": "LongStorage"}


def text(value: str) -> bytes:
    """A str."""
    encoded = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def integer(value: int) -> bytes:
    """An int of at most 32 bits with its sign, or a long of at most 8 bytes."""
    if -(2**31) <= value < 2**31:
        return pickle.BININT + struct.pack("<i", value)
    return pickle.LONG1 + b"\x08" + struct.pack("<q", value)


def sequence(*items: bytes) -> bytes:
    """A tuple."""
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def name(module: str, attribute: str) -> bytes:
    """A function or class that the reader imports."""
    return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()


def call(function: bytes, *arguments: bytes) -> bytes:
    """What a function returns."""
    return function + sequence(*arguments) + pickle.REDUCE


def dictionary(items: dict[str, bytes]) -> bytes:
    """A dict with str keys."""
    return pickle.EMPTY_DICT + pickle.MARK + b"".join(text(k) + v for k, v in items.items()) + pickle.SETITEMS


def program(value: bytes, *, protocol: int) -> bytes:
    """A whole pickle. torch reads protocol 2; bytes have an opcode since 3."""
    return pickle.PROTO + bytes([protocol]) + value + pickle.STOP


def tensor(array: np.ndarray, number: int) -> bytes:
    """A torch tensor over storage `number` of the file."""
    kind = name("torch", STORAGES[array.dtype.name])
    storage = sequence(text("storage"), kind, text(str(number)), text("cpu"), integer(array.size)) + pickle.BINPERSID
    strides = np.cumprod([1, *array.shape[:0:-1]])[::-1] if array.ndim else []
    return call(
        name("torch._utils", "_rebuild_tensor_v2"),
        storage,
        integer(0),
        sequence(*map(integer, array.shape)),
        sequence(*(integer(int(s)) for s in strides)),
        pickle.NEWFALSE,
        call(name("collections", "OrderedDict")),
    )


def torch_file(state: dict[str, np.ndarray], wrapper: str) -> bytes:
    """A file that `torch.load(..., weights_only=True)` reads as {wrapper: {key: tensor}}.

    state: float32 and int64 arrays, little-endian.
    """
    arrays = {key: np.ascontiguousarray(value) for key, value in state.items()}
    tensors = {key: tensor(value.reshape(state[key].shape), i) for i, (key, value) in enumerate(arrays.items())}
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", program(dictionary({wrapper: dictionary(tensors)}), protocol=2))
        archive.writestr("archive/byteorder", "little")
        for i, value in enumerate(arrays.values()):
            archive.writestr(f"archive/data/{i}", value.tobytes())
        archive.writestr("archive/version", "3\n")
    return written.getvalue()


def array(value: np.ndarray) -> bytes:
    """A numpy array."""
    kind = call(name("numpy", "dtype"), text(value.dtype.str[1:]), pickle.NEWFALSE, pickle.NEWTRUE)
    order = sequence(integer(3), text("<"), *[pickle.NONE] * 3, integer(-1), integer(-1), integer(0))
    empty = call(
        name("numpy.core.multiarray", "_reconstruct"),
        name("numpy", "ndarray"),
        sequence(integer(0)),
        pickle.SHORT_BINBYTES + b"\x01b",
    )
    content = value.tobytes()
    # Bytes longer than 4 GB would need protocol 4; no tensor of ours is that large.
    content = pickle.BINBYTES + struct.pack("<I", len(content)) + content
    shape = sequence(*map(integer, value.shape))
    return empty + sequence(integer(1), shape, kind + order + pickle.BUILD, pickle.NEWFALSE, content) + pickle.BUILD


def detectron2_file(state: dict[str, np.ndarray]) -> bytes:
    """A `.pkl` for detectron2's DetectionCheckpointer, which needs `__author__` beside `model`."""
    parts = {
        "model": dictionary({key: array(value) for key, value in state.items()}),
        "__author__": text("maskcl_jax"),
        "matching_heuristics": pickle.NEWTRUE,
    }
    return program(dictionary(parts), protocol=3)


def decode_latin1(text: str, encoding: str) -> bytes:
    """What `_codecs.encode` does where protocol 2 of Python 3 uses it: for bytes."""
    return text.encode("latin1")


class ArraysOnly(pickle.Unpickler):
    """Reads pickles of numpy arrays and scalars, and refuses to import anything else.

    Raises:
        pickle.UnpicklingError: whose text is the name that was refused.
    """

    ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("_codecs", "encode"): decode_latin1,
        **{
            (f"{module}.multiarray", name): function
            for module in NUMPY_MODULES
            for name, function in (
                ("_reconstruct", np.zeros(0).__reduce__()[0]),
                ("scalar", np.float64().__reduce__()[0]),
            )
        },
        **{(f"{module}.numeric", "_frombuffer"): np.zeros(0).__reduce_ex__(5)[0] for module in NUMPY_MODULES},
    }

    def find_class(self, module: str, name: str) -> Any:
        """Called for every name in the file."""
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return self.ALLOWED[module, name]
