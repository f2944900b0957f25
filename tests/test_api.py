"""`import maskcl_jax as mc`: the same values as the commands, all kinds of images, one line for every slip."""

import doctest
import io
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.processes import environment
from helpers.untrained import made, save_run, write_run
from PIL import Image

import maskcl_jax as mc
from maskcl_jax import interchange
from maskcl_jax.data.sources import open_source

ROOM = pathlib.Path(interchange.__file__).parents[1] / "api"
NOISE = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), np.uint8)


CLOSE: dict[str, float] = {"rtol": 0, "atol": 3e-6}  # features of size 1; measured: 4e-7


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with runs/example, a tiny MAE that was never trained."""
    folder = tmp_path_factory.mktemp("place")
    write_run(folder / "runs" / "example", "mae")
    (folder / "broken.py").write_text("")
    return folder


@pytest.fixture(scope="module")
def encoder(place):
    return mc.load(place / "runs" / "example")


def test_importing_the_package_imports_no_library():
    code = "import sys, time; t = time.time(); import maskcl_jax as mc; mc.UserError; assert 'Encoder' in dir(mc)"
    code += "; assert not {'jax', 'numpy', 'flax', 'absl'} & set(sys.modules); assert time.time() - t < 1"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment(1))


def test_every_name_is_there_and_the_functions_stay_what_they_are():
    import maskcl_jax.evaluate.knn
    import maskcl_jax.export  # noqa: F401

    assert {name for name in mc.__all__ if getattr(mc, name).__module__.split(".")[0] != "maskcl_jax"} == set()
    assert mc.__all__ == sorted(mc.__all__)
    assert mc.evaluate.__name__ == "evaluate" and mc.export.__name__ == "export"
    with pytest.raises(AttributeError, match="no attribute 'pretrian'"):
        mc.pretrian  # noqa: B018


class OutputIfAny(doctest.OutputChecker):
    """An example without an expected output may print what it likes: runs report their progress."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


@pytest.mark.parametrize("name", mc.__all__)
def test_every_name_has_an_example_that_works(name, place, monkeypatch):
    monkeypatch.chdir(place)
    runner = doctest.DocTestRunner(OutputIfAny(), verbose=False)
    tests = doctest.DocTestFinder().find(getattr(mc, name), name, globs={})
    assert any(test.name == name and test.examples for test in tests), f"the docstring of {name} has no example"
    for test in tests:
        report = io.StringIO()
        assert runner.run(test, out=report.write).failed == 0, report.getvalue()


def test_features_are_those_of_the_command(place, encoder, tmp_path):
    run = place / "runs" / "example"
    mc.evaluate(run, protocol="features", out=str(tmp_path / "embeddings"), pictures=0)
    saved = np.load(tmp_path / "embeddings.npz")
    images = open_source(encoder.config.data).split("test").images
    np.testing.assert_allclose(encoder(images[saved["index"]]), saved["features"], **CLOSE)


def test_a_result_names_the_files_that_hold_the_embeddings(place, encoder, tmp_path):
    result = mc.evaluate(place / "runs" / "example", protocol="features", folder=tmp_path, pictures=2)
    assert [file.suffix for file in result.files] == [".npz", ".png", ".png"]
    assert set(result.files) == {f for f in (tmp_path / "evaluate").iterdir() if f.suffix != ".lock"}
    assert repr(result) == "\n".join(["wrote", *map(str, result.files)])
    exported = mc.export(encoder, "timm", tmp_path / "timm", check=False)
    images = {"train_images": NOISE, "test_images": NOISE}
    unkept = mc.evaluate(exported, images, "features", pictures=0)
    assert unkept.files == () and repr(unkept) == "nothing measured, and no file kept"


def test_an_export_that_cannot_be_checked_says_why(encoder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)  # cannot be imported
    folder = mc.export(encoder, "timm", tmp_path / "timm")
    assert capsys.readouterr().out.startswith(f"{folder}: not checked: torch is not installed")
    mc.export(encoder, "timm", tmp_path / "other", check=False)
    assert capsys.readouterr().out == ""


def test_weights_have_no_step(encoder, tmp_path):
    folder = mc.export(encoder, "timm", tmp_path / "timm", check=False)
    assert repr(encoder).endswith(f"online network, step 7 of {encoder.run.workdir})")
    assert repr(mc.load(folder)).endswith(f"feature mean, weights of {folder})")


def test_features_are_those_of_timm(place, encoder, tmp_path):
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    folder = mc.export(encoder, "timm", tmp_path / "timm", check=False)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    inputs = np.asarray(encoder.preprocess(NOISE)).transpose(0, 3, 1, 2)
    with torch.no_grad():
        theirs = model(torch.tensor(inputs)).numpy()
    np.testing.assert_allclose(encoder(NOISE), theirs, **CLOSE)
    again = mc.load(folder)
    np.testing.assert_allclose(encoder(NOISE), again(NOISE), **CLOSE)
    assert again.feature == encoder.feature


# What `load` assumes of a bare file is the preset imagenet, but for the encoder.
BARE = {"model.width": 192, "model.heads": 3, "dtype": "bfloat16", "data.eval_resize": 256 / 224}


def test_a_file_that_pytorch_wrote_gives_the_same_features(tmp_path):
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    save_run(tmp_path / "run", made("mae", **BARE))
    encoder = mc.load(tmp_path / "run")
    folder = mc.export(encoder, "timm", tmp_path / "timm", check=False)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    loaded = mc.load(tmp_path / "weights.pth", layout="timm")
    np.testing.assert_allclose(loaded(NOISE), encoder(NOISE), **CLOSE)
    inputs = np.array(loaded.preprocess(NOISE)).transpose(0, 3, 1, 2)
    with torch.no_grad():
        theirs = model(torch.tensor(inputs)).numpy()
    np.testing.assert_allclose(loaded(NOISE), theirs, rtol=0, atol=0.02)  # float32 there


def test_a_bare_file_needs_the_name_of_its_layout(encoder, tmp_path):
    folder = mc.export(encoder, "timm", tmp_path / "timm", check=False)
    file = (folder / "model.safetensors").rename(tmp_path / "weights.safetensors")
    with pytest.raises(mc.UserError, match=r"are called as timm, mae, ccmim, mocov3 name them: say which with layout="):
        mc.load(file)
    with pytest.raises(mc.UserError, match=r"how many heads a ViT of width 32 has.*import_torch --config=FILE"):
        mc.load(file, layout="mae")


def test_a_target_network_and_another_image_size(tmp_path):
    save_run(tmp_path / "run", made("cmae"))
    online, target = (mc.load(tmp_path / "run", network=network) for network in ("online", "target"))
    assert np.abs(online(NOISE) - target(NOISE)).max() > 1e-3
    again = mc.load(mc.export(target, "timm", tmp_path / "out", check=False))
    np.testing.assert_allclose(again(NOISE), target(NOISE), **CLOSE)
    larger = mc.load(tmp_path / "run", image_size=64)
    assert larger.feature_map(NOISE).shape == (10, 8, 8, 32)
    with pytest.raises(mc.UserError, match="is not as it was trained"):
        mc.export(larger, "timm", tmp_path / "other")


def test_a_resnet(tmp_path):
    save_run(tmp_path / "run", made("moco_v2", **{"model.stages": (1, 1)}))
    encoder = mc.load(tmp_path / "run")
    maps = encoder.feature_map(NOISE)
    np.testing.assert_allclose(encoder(NOISE), maps.mean(axis=(1, 2)), **CLOSE)
    np.testing.assert_allclose(encoder.tokens(NOISE).reshape(maps.shape), maps, **CLOSE)
    with pytest.raises(mc.UserError, match="attention is that of a ViT"):
        encoder.attention(NOISE)


def test_an_encoder_is_made_of_a_run_or_its_folder(place, encoder):
    for run in (mc.Run(place / "runs" / "example"), str(place / "runs" / "example"), encoder.run):
        np.testing.assert_allclose(mc.Encoder(run, batch_size=16)(NOISE), encoder(NOISE), **CLOSE)


def test_kinds_of_images_give_the_same_features(encoder, tmp_path):
    expected = encoder(NOISE)
    assert expected.shape == (10, 32) and expected.dtype == np.float32
    files = [tmp_path / f"{i}.png" for i in range(10)]
    for file, pixels in zip(files, NOISE, strict=True):
        Image.fromarray(pixels).save(file)
    pictures = [Image.fromarray(pixels) for pixels in NOISE]
    gone_through_float = NOISE.astype(np.float64) / 255
    as_paths = (files, list(map(str, files)), tmp_path, str(tmp_path))
    for batch in (*as_paths, pictures, list(NOISE), gone_through_float, jnp.asarray(NOISE)):
        np.testing.assert_array_equal(encoder(batch), expected)
    np.testing.assert_array_equal(encoder([files[0], pictures[1], NOISE[2]]), encoder(NOISE[:3]))
    for one in (files[0], str(files[0]), files[0].read_bytes(), pictures[0], NOISE[0]):
        np.testing.assert_allclose(encoder(one), expected[0], **CLOSE)


def test_large_photographs_are_cropped_as_evaluations_do(place, tmp_path):
    """Shown is the center that remains of the image at 256/224 of the size, by Pillow's filter."""
    save_run(tmp_path / "run", made("mae", **{"data.eval_resize": 256 / 224}))
    image = np.random.default_rng(0).integers(0, 256, (70, 140, 3), np.uint8)
    shown = Image.fromarray(image[4:65, 39:100]).resize((32, 32), Image.Resampling.BICUBIC)  # 70 * 224/256 = 61.25
    difference = np.abs(mc.load(tmp_path / "run").read(image).astype(int) - np.asarray(shown)).mean()
    assert difference < 0.5  # levels; a box of another size or place differs by 10 and more


def test_batches_of_one_shape_are_compiled_once_and_padded(place, encoder, monkeypatch):
    small, expected, traced = mc.load(place / "runs" / "example", batch_size=4), encoder(NOISE), []
    features = type(small._encoder).features
    monkeypatch.setattr(
        type(small._encoder), "features", lambda *a, **k: traced.append(a[2].shape) or features(*a, **k)
    )
    np.testing.assert_allclose(small(NOISE), expected, **CLOSE)
    small(NOISE[:7])
    assert traced == [(4, 32, 32, 3)]


def test_eight_devices_compute_the_same(place, encoder, tmp_path):
    np.save(tmp_path / "images.npy", NOISE)
    code = f"""
import numpy as np, maskcl_jax as mc
encoder = mc.load("runs/example", batch_size=4)
np.save({str(tmp_path / "features.npy")!r}, encoder(np.load({str(tmp_path / "images.npy")!r})))
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=environment(8), cwd=place)
    np.testing.assert_allclose(np.load(tmp_path / "features.npy"), encoder(NOISE), **CLOSE)


def test_module_and_variables_serve_a_training_loop(encoder):
    """`preprocess` can be traced, and the module takes what it returns."""

    @jax.jit
    def tokens(variables, images):
        return encoder.module.apply(variables, encoder.preprocess(images))

    given = jnp.asarray(NOISE)
    np.testing.assert_allclose(tokens(encoder.variables, given), encoder.tokens(NOISE), **CLOSE)
    pooled = encoder.tokens(NOISE)[:, 1:].mean(axis=1)
    np.testing.assert_allclose(encoder(NOISE), pooled, **CLOSE)
    assert encoder.attention(NOISE).shape == (10, 1, 4, 4)


def test_weights_are_evaluated_on_arrays(place, encoder, tmp_path):
    """Eight images of four classes, each the other's nearest neighbor; the same figure for the run and its export."""
    patterns = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), np.uint8)
    data = {
        "train_images": patterns,
        "train_labels": np.arange(4),
        "test_images": patterns,
        "test_labels": np.arange(4),
    }
    exported = mc.export(encoder, "timm", tmp_path / "timm", check=False)
    before = sorted(exported.iterdir())
    for model in (place / "runs" / "example", encoder, exported):
        result = mc.evaluate(model, data, "knn", k=1)
        assert result.accuracy == 1.0 and "100.00 %" in repr(result)
    assert sorted(exported.iterdir()) == before
    kept = mc.evaluate(exported, data, "knn", k=(1, 2), folder=tmp_path)
    assert len(kept.entries) == 2 and json.loads(next((tmp_path / "evaluate").glob("knn*.json")).read_text())
    with pytest.raises(mc.UserError, match="2 accuracies were measured"):
        kept.accuracy  # noqa: B018


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mc.load("nothing/here"), r"^nothing/here does not exist: give the folder of a run"),
        (lambda: mc.load("."), r"^\. holds neither a run \(config\.json, checkpoints\) nor weights"),
        (lambda: mc.Encoder("runs/example", network="target"), r"^network='target': mae trains no EMA target"),
        (lambda: mc.Encoder("nothing/here"), r"^nothing/here does not exist"),
        (lambda: mc.Encoder(3), r"^run is of type int: give a run, or its folder"),
        (lambda: mc.load("runs/example", step=3), r"no checkpoint of step 3: there are 7"),
        (lambda: mc.load("runs/example", network="target"), r"^network='target': mae trains no EMA target"),
        (lambda: mc.load("runs/example", feature="pool"), r"^feature='pool' is unknown: use one of cls"),
        (lambda: mc.Run("runs"), r"is this the folder of a run\?"),
        (lambda: mc.pretrain("nothing"), r"^method=nothing is neither a file nor the name of a config"),
        (lambda: mc.pretrain("no.such:It"), r"^method=no\.such:It is neither a file"),
        (lambda: mc.pretrain("broken.py"), r"^method=broken\.py has no get_config function"),
        (lambda: mc.pretrain("mae", "synthetic", **{"method.name": "no.such:It"}), r"importing no\.such failed"),
        (lambda: mc.pretrain(dict), r"^method is <class 'dict'>: give the name of a config"),
        (lambda: mc.pretrain("mae", "photos"), r"^data: preset 'photos' is unknown.*or give a folder that exists"),
        (lambda: mc.pretrain("mae", pathlib.Path("photos")), r"^data='photos' does not exist"),
        (lambda: mc.pretrain("mae", 3), r"^data is of type int"),
        (lambda: mc.pretrain("mae", NOISE / 255.0), r"^data: train_images is float64 \(10, 32, 32, 3\): give uint8"),
        (lambda: mc.pretrain("mae", {"images": NOISE}), r"^data has 'images', which no data set has: use train_images"),
        (lambda: mc.pretrain("mae", "synthetic", epoch=1), r"^epoch=1: 'epoch' is not a field.*did you mean 'epochs'"),
        (lambda: mc.pretrain("mae", "synthetic", epochs="many"), r"^epochs='many' does not fit: epochs is a whole"),
        (lambda: mc.export("runs/example", "tim", "out"), r"^format='tim' is unknown: use one of timm"),
        (lambda: mc.export("runs/example", "timm", "runs"), r"^out=runs exists: give another"),
        (lambda: mc.evaluate("runs/example", "no_data"), r"^data=no_data is unknown"),
        (lambda: mc.evaluate("runs/example", protocol="nn"), r"^protocol=nn is unknown, did you mean 'knn'"),
        (lambda: mc.evaluate("runs/example", kk=3), r"^kk is not a field of knn"),
    ],
)
def test_slips_are_one_line(call, words, place, monkeypatch):
    monkeypatch.chdir(place)
    with pytest.raises(mc.UserError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (NOISE[..., :1], r"images of shape \(10, 32, 32, 1\) have not 3 channels.*: give 3"),
        (NOISE.transpose(0, 3, 1, 2), r"the channels are the last dimension: transpose \(0, 2, 3, 1\)"),
        (NOISE.astype(np.float32), r"floating point images lie in 0\.\.255: they must lie in 0\.\.1"),
        (NOISE / -255.0, r"lie in -1\.\.-?0: they must lie in 0\.\.1"),
        (np.full((1, 32, 32, 3), np.nan), r"lie in nan\.\.nan"),
        (NOISE.astype(np.int64), r"images are int64: give uint8, or floating point"),
        ([], r"images is an empty list"),
        (NOISE[:0], r"give at least one image"),
        (3, r"images are of type int: give paths"),
        ([NOISE[0], 3], r"image 1 cannot be read \(it is of type int"),
        ([NOISE[0], NOISE[1, :, :, :2]], r"image 1 cannot be read \(images of shape \(1, 32, 32, 2\) have not 3"),
        ("nowhere.jpg", r"image nowhere\.jpg cannot be read \(FileNotFoundError"),
        (str(ROOM), r"^folder .*api has no images \(\.jpg"),
        (b"no image", r"image 0 cannot be read \(not an image of a format that Pillow knows\)"),
    ],
)
def test_images_that_cannot_be_used_are_named(images, words, encoder):
    with pytest.raises(mc.UserError, match=words):
        encoder(images)
