"""Damaged exports and files of weights, and files that want to run code.

    python tests/campaigns/exports.py [--seed=0] [--count=100] [--start=0]
    python tests/campaigns/exports.py --seed=0 --only=13

A run is exported in every kind of file (safetensors, .pth, .pkl, with the JSON files beside it); one file is damaged,
or replaced by a pickle that makes a marker file when its code runs. Importing must refuse it in one line and leave
nothing, or read it (a turned bit of a weight is another weight: these files have no checksums). No marker may appear,
and nothing may be written but the new run.
"""

import functools
import io
import json
import os
import pathlib
import pickle
import shutil
import struct
import sys
import tempfile
import zipfile

import common
import numpy as np

sys.path.insert(0, str(common.ROOT / "tests"))

# (method, format, whole model), and the layout as which it is imported.
EXPORTS = (
    ("mae", "timm", False),
    ("mae", "hf", True),
    ("mae", "mae", True),
    ("mae", "mae", False),
    ("cmae", "cmae", True),
    ("moco_v2", "moco_v2", True),
    ("moco_v2", "detectron2", False),
    ("moco_v2", "torchvision", False),
    ("ccmim", "ccmim", True),
)
CONTENT = (common.cut, common.emptied, common.bits, common.noise, common.zeros, common.longer, common.exchanged)
KINDS = ("weights", "weights' head", "JSON", "tensors", "code")


@functools.cache
def whole_exports(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folders of all exports."""
    from helpers.untrained import made

    from maskcl_jax.interchange.exporting import export_run

    above, out = pathlib.Path(tempfile.mkdtemp(prefix="whole_", dir=folder)), []
    stock = {"model.stem": "imagenet", "model.width": 64, "model.depth": 18}  # a ResNet that other libraries have
    for method, name, full in EXPORTS:
        out.append(above / f"{method}_{name}_{full}")
        fields = stock if name in ("detectron2", "torchvision") else {}
        export_run(made(method, **fields), name, str(out[-1]), full=full, check=False)
    return out


def weights_of(folder: pathlib.Path) -> pathlib.Path:
    """The file of weights in an export."""
    return max((path for path in folder.iterdir() if path.suffix != ".json"), key=lambda path: path.stat().st_size)


class Calls:
    """Pickled, a call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def programs(marker: str) -> list[bytes]:
    """Pickles that make a file, in several ways."""
    import subprocess

    touch, python = f"touch {marker}", f"open({marker!r}, 'w').close()"
    calls = [
        Calls(os.system, touch),
        Calls(eval, python.replace(".close()", "")),
        Calls(exec, python),
        Calls(subprocess.call, ["touch", marker]),
        Calls(pathlib.Path(marker).touch),
        Calls(getattr, Calls(__import__, "os"), "system"),
        Calls(map, os.system, [touch]),
    ]
    pickles = [
        pickle.dumps(content, protocol) for call in calls for protocol in (2, 4) for content in [{"model": call}]
    ]
    word = touch.encode()
    pickles += [
        b"cposix\nsystem\n(V" + word + b"\ntR.",  # GLOBAL, REDUCE
        b"(V" + word + b"\niposix\nsystem\n.",  # INST
        b"(cposix\nsystem\nV" + word + b"\no.",  # OBJ
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93(V" + word + b"\ntR.",  # STACK_GLOBAL
        b"cnumpy\nload\n(V" + marker.encode() + b"\ntR.",
        b"ctorch.hub\nload\n(V/x\nVy\ntR.",
        b"cargparse\nFileType\n(Vw\ntR(V" + marker.encode() + b"\ntR.",
        b"cpathlib\nPosixPath\n(V" + marker.encode() + b"\ntR(V" + marker.encode() + b"\nb.",
        b"ccollections\nOrderedDict\n)R}(Vx\ncposix\nsystem\n(V" + word + b"\ntRsb.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cposix\nsystem\n(I0\ntVb\ntR.",
        b"c_codecs\nencode\n(V" + word + b"\nVrot13\ntR.",
        b"\x80\x05\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a frame of 2^63 bytes
        b"\x80\x02B\xff\xff\xff\x7fabc.",  # bytes of 2 GB that are not there
        b"(" * 5000 + b"t" * 5000 + b".",
        b"]" * 100000 + b".",
        b"I1\n" * 2000 + b".",
        b"\x80\x02}q\x00(X\x05\x00\x00\x00modelq\x01h\x01h\x63u.",
    ]
    return pickles


def tensors(data: bytes, suffix: str, rng: np.random.Generator) -> bytes:
    """Weights whose file is whole, but whose tensors are others: shapes, kinds, names, numbers that are not finite."""
    from maskcl_jax.interchange import files, pickles

    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(data)
        file.flush()
        state, _ = files.read_state(file.name)
    names = [str(name) for name in rng.choice(sorted(state), 3, replace=False)]
    change = int(rng.integers(8))
    for name in names:
        value = state[name]
        others = [
            value.reshape(-1),
            value[..., None],
            np.zeros((0,), np.float32),
            np.full(value.shape, np.nan, np.float32),
            value.astype(np.int64),
            np.zeros((), np.float32),
            np.concatenate([value.reshape(-1)] * 2).astype(np.float32),
        ]
        if change < len(others):
            state[name] = others[change]
        else:
            state[f"{name}.é\n"] = state.pop(name)
    if suffix == ".pkl":
        return pickles.detectron2_file(state)
    return pickles.torch_file(state, "model") if suffix == ".pth" else files.write_safetensors(state)


def head(data: bytes, rng: np.random.Generator) -> bytes:
    """The head of a safetensors file becomes another; of the others, some bytes of the first or last 200."""
    changed = bytearray(data)
    if data[8:9] != b"{":
        for _ in range(8):
            changed[int(rng.integers(-200, 200))] = int(rng.integers(256))
        return bytes(changed)
    length = struct.unpack("<Q", data[:8])[0]
    if rng.random() < 0.3:
        return struct.pack("<Q", int(rng.choice([0, 1, length + 1, 2**40, 2**64 - 1]))) + data[8:]
    names = json.loads(data[8 : 8 + length])
    name = str(rng.choice(sorted(set(names) - {"__metadata__"})))
    field = str(rng.choice(["shape", "dtype", "data_offsets"]))
    names[name][field] = [
        *([-1, 3], [2**40, 2**40], "F32", "F8_E4M3", "BF16", "C64", None, [0, 2**62], [[1]], 3.5),
    ][int(rng.integers(10))]
    text = json.dumps(names).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def json_file(data: bytes, rng: np.random.Generator) -> bytes:
    """A JSON file that is no JSON, or in which some values are others."""
    if rng.random() < 0.4:
        return bytes(CONTENT[int(rng.integers(len(CONTENT)))](bytearray(data), rng))
    content = json.loads(data)

    def places(value, path=()):
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, part in inner:
            yield (*path, key)
            yield from places(part, (*path, key))

    found = list(places(content))
    others = [None, -1, 0, 1e300, "", "x", [], {}, [1, "a"], True, 2**70, "../../x", {"a": {"b": []}}]
    for _ in range(int(rng.integers(1, 3))):
        *parents, last = found[int(rng.integers(len(found)))]
        place = content
        try:
            for key in parents:
                place = place[key]
            place[last] = others[int(rng.integers(len(others)))]
        except (TypeError, KeyError, IndexError):
            continue
    return json.dumps(content).encode()


def with_code(path: pathlib.Path, marker: pathlib.Path, rng: np.random.Generator) -> pathlib.Path:
    """A file of weights is replaced by one that wants to run code; returns it, perhaps with another ending."""
    ways = programs(str(marker))
    program = ways[int(rng.integers(len(ways)))]
    named = path.with_suffix(str(rng.choice([".pth", ".pkl", ".bin", path.suffix])))
    path.unlink()
    if named.suffix == ".pth" and rng.random() < 0.6:
        written = io.BytesIO()
        with zipfile.ZipFile(written, "w") as archive:
            archive.writestr("archive/data.pkl", program)
            archive.writestr("archive/version", "3\n")
            if rng.random() < 0.3:
                archive.writestr("../../escaped", "x")
        program = written.getvalue()
    named.write_bytes(program)
    return named


def attempt(seed: int, index: int, folder: pathlib.Path) -> common.Outcome:
    """One damaged export."""
    from maskcl_jax.errors import UserError
    from maskcl_jax.interchange.importing import import_run

    rng = np.random.default_rng([seed, index])
    which = index % len(EXPORTS)
    kind = KINDS[index // len(EXPORTS) % len(KINDS)]
    (folder / "here").mkdir()
    os.chdir(folder / "here")
    source, out, marker = folder / "export", folder / "out", folder / "marker"
    shutil.copytree(whole_exports(folder.parent)[which], source)
    weights, given = weights_of(source), source
    if kind == "weights":
        change = CONTENT[int(rng.integers(len(CONTENT)))]
        weights.write_bytes(change(bytearray(weights.read_bytes()), rng))
    elif kind == "weights' head":
        weights.write_bytes(head(weights.read_bytes(), rng))
    elif kind == "JSON":
        texts = sorted(source.glob("*.json"))
        text = texts[int(rng.integers(len(texts)))]
        text.write_bytes(json_file(text.read_bytes(), rng))
    elif kind == "tensors":
        weights.write_bytes(tensors(weights.read_bytes(), weights.suffix, rng))
    else:
        given = with_code(weights, marker, rng)
    if kind != "code" and rng.random() < 0.3:
        given = weights
    outcome, refusal, log = common.Outcome(kind, "read"), "", folder / "log"
    with common.captured(log):
        try:
            import_run(str(given), EXPORTS[which][1], str(out))
        except UserError as error:
            refusal, outcome.result = str(error), "refused"
    printed = log.read_text(errors="replace")
    log.unlink()
    names = {path.name for path in folder.iterdir()}
    if marker.exists():
        outcome.failure = f"code ran: {given}"
    elif kind == "code" and not refusal:
        outcome.failure = f"read {given}"
    elif len(refusal) > 900:
        outcome.failure = f"too long: {refusal}"
    elif refusal and not any(word in refusal for word in (str(source), ".json", "--config")):
        outcome.failure = f"names no file: {refusal}"
    elif "Traceback" in printed:
        outcome.failure = f"printed {printed[-1500:]}"
    elif names != {"here", "export"} | ({"out"} if not refusal else set()) or list((folder / "here").iterdir()):
        outcome.failure = f"left {names}, {list((folder / 'here').iterdir())}"
    shutil.rmtree(source)
    return outcome


if __name__ == "__main__":
    common.run(attempt, __doc__, count=100)
