"""Imports: what is refused, what is said of it, and what is harmless."""

import argparse
import json
import pathlib
import pickle
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
from helpers.processes import environment
from helpers.tiny import CONFIGS, ROOT, fields_of, tiny
from helpers.untrained import made
from helpers.weights import assert_encoder, mae_encoder, saved

from maskcl_jax.errors import UserError, first_line
from maskcl_jax.interchange import convert, files, layouts
from maskcl_jax.interchange.exporting import export_run
from maskcl_jax.interchange.importing import build_run, import_run
from maskcl_jax.training import run as run_lib


class RunsCode:
    def __reduce__(self):
        return (exec, ("raise SystemExit('it ran')",))


@pytest.mark.parametrize("name", ["weights.pth", "model.pkl", "legacy.pth"])
def test_a_file_that_wants_to_run_code_is_refused(name, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[torch]'")
    content = {"model": {"cls_token": RunsCode()}}
    if name == "weights.pth":
        torch.save(content, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(UserError, match=r"is refused: reading it calls .*exec, which is not known") as caught:
        import_run(str(tmp_path / name), "timm", str(tmp_path / "run"))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("module", ["numpy._core", "numpy.core"])
def test_what_checkpoints_hold_beside_weights_is_harmless(module, tmp_path, without_compiling):
    """A namespace, a path, and numpy's scalars and arrays, as numpy 1 and numpy 2 name them."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[torch]'")
    state = {key: torch.tensor(value) for key, value in mae_encoder(tmp_path).items()}
    scalars = {"loss": np.float32(0.5), "best": np.float64(0.7), "epoch": np.int64(3), "done": np.bool_(True)}
    beside = scalars | {"args": argparse.Namespace(lr=1.0, out=pathlib.Path("runs")), "curve": np.arange(3.0)}
    torch.save({"model": state} | beside, tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "weights.pth", "w") as renamed:
        for name in new.namelist():
            renamed.writestr(name, new.read(name).replace(b"numpy._core.multiarray", f"{module}.multiarray".encode()))
    assert_encoder(build_run(str(tmp_path / "weights.pth"), "mae", tiny("mae")), made("mae"))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_with_numpys_scalars_are_harmless(protocol, tmp_path):
    content = {"model": {"w": np.arange(3, dtype=np.float32)}, "lr": np.float64(0.1), "seen": np.arange(2)}
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    state, _ = files.read_state(str(tmp_path / "weights.pkl"))
    np.testing.assert_array_equal(state["w"], [0, 1, 2])


def test_an_array_of_objects_is_not_harmless(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[torch]'")
    objects = np.empty(1, object)
    objects[0] = RunsCode()
    torch.save({"model": {"x": torch.ones(1)}, "more": objects}, tmp_path / "weights.pth")
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps({"model": {"x": np.ones(1)}, "more": objects}))
    for file in ("weights.pth", "weights.pkl"):
        with pytest.raises(UserError, match="is refused"):
            files.read_state(str(tmp_path / file))


def test_reasons_have_no_addresses_and_are_one_line():
    reason = first_line(ValueError("cannot identify <_io.BytesIO object at 0x7f12ab>\nsecond line"))
    assert reason == "cannot identify <_io.BytesIO object>"
    assert first_line(ValueError()) == "ValueError"


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision_becomes_float32(half, tmp_path, without_compiling):
    state = {key: value.astype(jax.numpy.dtype(half)) for key, value in mae_encoder(tmp_path).items()}
    run = build_run(saved(tmp_path, state), "mae", tiny("mae"))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(run.state.params)} == {"float32"}
    kept = np.asarray(made("mae").state.params["encoder"]["cls_token"]).astype(state["cls_token"].dtype)
    np.testing.assert_array_equal(run.state.params["encoder"]["cls_token"], kept.astype(np.float32))


def test_a_record_of_another_version_is_said(tmp_path):
    export_run(made("mae"), "mae", str(tmp_path / "out"), check=False)
    (tmp_path / "out" / files.RECORD).write_text('{"config": {"model.width": 3}}')
    with pytest.raises(UserError, match=r"export\.json is damaged, or of another version"):
        import_run(str(tmp_path / "out"), "mae", str(tmp_path / "run"))
    (tmp_path / "out" / files.RECORD).write_text("{")
    with pytest.raises(UserError, match=r"export\.json cannot be read"):
        import_run(str(tmp_path / "out"), "mae", str(tmp_path / "run"))


def broken(kind: str, state: dict) -> dict:
    """A state dict with one thing wrong."""
    if kind == "left over":
        state["head.0.weight"] = state["gamma"] = np.zeros(2, np.float32)
    elif kind == "missing":
        del state["norm.bias"], state["blocks.0.attn.qkv.weight"]
    elif kind == "no positions":
        del state["pos_embed"]
    elif kind == "no match":
        state = {f"trunk.{key}": value for key, value in state.items()}
    elif kind == "shape":
        state["blocks.0.mlp.fc2.bias"] = np.zeros(31, np.float32)
    elif kind == "odd table":
        state["pos_embed"] = np.zeros((1, 8, 32), np.float32)
    return state


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("left over", {}, r"does not fit mae.*missing nothing; left over gamma"),
        ("missing", {}, r"missing blocks\.0\.attn\.qkv\.weight, norm\.bias; left over nothing"),
        ("no positions", {}, r"missing pos_embed"),
        ("no match", {}, r"has no key of mae, such as decoder_embed\.weight or cls_token; it has trunk\.blocks"),
        ("shape", {}, r"params/encoder/blocks_0/mlp/fc2/bias is \(31,\) in the weights, \(32,\) in the config"),
        ("odd table", {}, r"pos_embed has 7 patches, which is no square, and not the 4x4"),
        ("", {"model.width": 64}, r"model\.width is 32 in the weights, 64 in the config"),
        ("", {"model.depth": 2, "data.channels": 1}, r"model\.depth is 1 .*; data\.channels is 3 in the weights, 1"),
        ("", {"model.patch_size": 4}, r"model\.patch_size is 8 in the weights, 4 in the config"),
    ],
)
def test_weights_that_do_not_fit_are_listed(kind, fields, words, tmp_path, without_compiling):
    path = saved(tmp_path, broken(kind, mae_encoder(tmp_path)))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=words) as caught:
        import_run(path, "mae", str(tmp_path / "a/b"), tiny("mae", **fields))
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_wrong_heads_are_an_error_where_a_file_states_them(tmp_path, without_compiling):
    for format in ("timm", "hf"):
        export_run(made("mae"), format, str(tmp_path / format), check=False)
        (tmp_path / format / files.RECORD).unlink()
        with pytest.raises(UserError, match=r"model\.heads is 2 in the weights, 4 in the config"):
            build_run(str(tmp_path / format), format, tiny("mae", **{"model.heads": 4}))


def test_files_that_are_none_are_said(tmp_path):
    path = pathlib.Path(saved(tmp_path, mae_encoder(tmp_path)))
    torch_file = pathlib.Path(saved(tmp_path, {"x": np.zeros(99, np.float32)}, "x.pth"))
    cases = {}
    for file in (path, torch_file):
        cut = file.with_name(f"cut{file.suffix}")
        cut.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        cases[cut] = "cannot be read"
    empty = tmp_path / "nothing.pth"
    empty.write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.safetensors").write_text("no weights at all")
    (tmp_path / "numbers.pkl").write_bytes(pickle.dumps({"lr": 3}))
    (tmp_path / "bare.pth").write_bytes(pickle.dumps({"lr": 3}, protocol=4))
    cases |= {
        empty: r"nothing\.pth is empty \(0 bytes\)",
        tmp_path / "folder": "holds none of",
        tmp_path / "gone": "does not exist",
    }
    cases |= {tmp_path / "text.safetensors": "cannot be read", tmp_path / "numbers.pkl": "holds no tensors"}
    cases |= {tmp_path / "bare.pth": "is refused: it is no PyTorch file"}
    for file, words in cases.items():
        with pytest.raises(UserError, match=words) as caught:
            import_run(str(file), "mae", str(tmp_path / "run"))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"--out=.*folder exists"):
        import_run(str(path), "mae", str(tmp_path / "folder"))
    assert not (tmp_path / "run").exists()


def test_the_command_line(tmp_path):
    path = saved(tmp_path, mae_encoder(tmp_path))
    overrides = [f"--config.{field}={value}" for field, value in fields_of("mae").items()]
    line = [sys.executable, "-m", "maskcl_jax.import_torch", path, "--method=mae", f"--out={tmp_path / 'run'}"]
    line += [f"--config={CONFIGS['mae']}:synthetic", *overrides]
    done = subprocess.run(line, env=environment(1), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "18 tensors, mae, ViT encoder" in done.stdout
    assert "new: decoder" in done.stdout
    assert f"go on: python -m maskcl_jax.main --workdir={tmp_path / 'run'}" in done.stdout
    assert_encoder(run_lib.restore_run(str(tmp_path / "run")), made("mae"))
    del line[3]
    failed = subprocess.run(line, env=environment(1), cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr == "error: FILE|DIR is missing: write it before the flags\n"


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (
            "patch_embed.proj.weight",
            lambda x: x.reshape(-1),
            r"patch_embed\.proj\.weight has the shape \(\d+,\)",
        ),
        ("blocks.0.mlp.fc1.bias", lambda x: x[0], r"blocks\.0\.mlp\.fc1\.bias has the shape \(\): it must be a vector"),
        ("blocks.0.mlp.fc1.bias", lambda x: x[:, None], r"fc1\.bias has the shape \(\d+, 1\): it must be a vector"),
        ("pos_embed", lambda x: x.reshape(-1), r"pos_embed has the shape \(\d+,\), which no position table has"),
        ("pos_embed", lambda x: x[:, :0], r"pos_embed has the shape \(1, 0, \d+\), which no position table has"),
    ],
)
def test_a_tensor_of_a_shape_that_cannot_be_is_named(name, change, words, tmp_path):
    state = mae_encoder(tmp_path)
    state[name] = change(state[name])
    with pytest.raises(UserError, match=words):
        build_run(saved(tmp_path, state), "mae", tiny("mae"))
    assert "\n" not in words


def test_parts_of_one_array_must_be_alike():
    rows = [layouts.Row("params/encoder/qkv/bias", f"q{part}", part=part) for part in range(3)]
    for shapes in ([(4,), (4,), (5,)], [(4,), (4, 1), (4,)], [(), (), ()]):
        state = {row.theirs: np.zeros(shape) for row, shape in zip(rows, shapes, strict=True)}
        with pytest.raises(UserError, match=r"the parts of params/encoder/qkv/bias have the shapes"):
            convert.from_torch(state, rows, convert.Shape())


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        (
            "augment.crop_scale",
            [],
            r"export\.json is damaged, .* \(augment\.crop_scale=\(\) is out of range",
        ),
        ("optimizer.name", True, r"export\.json is damaged, or of another version \(optimizer\.name=True does not fit"),
        ("model.width", None, r"export\.json is damaged, or of another version \(model\.width=None is neither"),
    ],
)
def test_a_damaged_record_of_an_export_is_named(field, value, words, tmp_path):
    mae_encoder(tmp_path)
    file = tmp_path / "mae" / files.RECORD
    record = json.loads(file.read_text())
    record["config"][field] = value
    file.write_text(json.dumps(record))
    with pytest.raises(UserError, match=words):
        build_run(str(tmp_path / "mae"), "mae")
