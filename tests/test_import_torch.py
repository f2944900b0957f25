"""Imports: bit for bit what was exported, complete or refused, and ready to train."""

import pathlib
import re

import jax
import numpy as np
import pytest
from helpers.tiny import tiny
from helpers.untrained import arrays, made, write_run
from helpers.weights import STOCK as WIDE
from helpers.weights import assert_encoder, mae_encoder, saved

from maskcl_jax import config
from maskcl_jax.errors import UserError
from maskcl_jax.interchange import convert, facts, files, importing
from maskcl_jax.interchange.catalog import LAYOUTS, Depths, depths_of
from maskcl_jax.interchange.exporting import export, export_run
from maskcl_jax.interchange.importing import build_run, import_run
from maskcl_jax.methods import create
from maskcl_jax.models.vit import resize_position_table
from maskcl_jax.training import checkpoint, loop, run_folder
from maskcl_jax.training import run as run_lib

STOCK = WIDE | {"model.depth": 18}
ROUNDS = [
    *[(method, format, {}) for method in ("mae", "ccmim", "cmae", "macrl", "mocov3") for format in ("timm", "hf")],
    *[("mae", format, {"data.image_size": (32, 48), "data.channels": 1}) for format in ("mae", "cmae", "mmpretrain")],
    ("cmae", "hf", {"data.image_size": (24, 40), "eval.feature": "cls"}),
    *[(method, "torchvision", {}) for method in ("moco_v2", "simclr", "maskco", "saliency_masking")],
    *[("moco_v2", format, STOCK) for format in ("timm", "hf", "detectron2", "mmpretrain", "mmdet")],
    ("moco_v2", "torchvision", {"model.depth": 14, "model.stages": (2, 1)}),
    ("moco_v2", "hf", {**WIDE, "model.depth": 10, "model.stages": (1, 2, 1, 1)}),
]
WHOLE = [
    *[(name, name, {}) for name in ("mae", "ccmim", "cmae", "mocov3", "moco_v2")],
    *[(name, "hf", {}) for name in ("mae", "cmae")],
    ("macrl", "mae", {}),
    ("moco_v2", "moco_v2", {"method.projector.layers": 1}),
]


def everything(state) -> dict[str, np.ndarray]:
    """All arrays of a run but the optimiser's."""
    slots = ("params", "target_params", "model_state")
    return arrays({slot: getattr(state, slot) for slot in slots if getattr(state, slot) is not None})


def round_trip(name, format, fields, tmp_path, **options):
    """(arrays before, arrays after, what the import said) of a run that went out and came back."""
    run = made(name, **fields)
    export_run(run, format, str(tmp_path / "out"), check=False, **options)
    back = build_run(str(tmp_path / "out"), format)
    assert config.flat(back.config) == config.flat(run.config)
    assert int(back.state.step) == 0
    return everything(run.state), everything(back.state), back.notes


@pytest.mark.parametrize(("name", "format", "fields"), ROUNDS)
def test_an_encoder_comes_back_bit_for_bit(name, format, fields, tmp_path, without_compiling):
    before, after, told = round_trip(name, format, fields, tmp_path)
    mine = [path for path in before if path.startswith(("params/encoder/", "model_state/batch_stats/encoder/"))]
    assert len(mine) > 15
    for path in mine:
        np.testing.assert_array_equal(after[path], before[path], err_msg=path)
    assert after.keys() == before.keys()
    for path in [path for path in before if path.startswith("target_params/encoder/")]:
        np.testing.assert_array_equal(after[path], before[path.removeprefix("target_")], err_msg=path)
    assert "projector" in told[-1] or "new: decoder" in told[-1]


def test_a_folder_comes_back_as_a_run(tmp_path):
    write_run(tmp_path / "run", "ccmim")
    export(str(tmp_path / "run"), "ccmim", str(tmp_path / "out"), check=False, full=True)
    import_run(str(tmp_path / "out"), "ccmim", str(tmp_path / "back"))
    run, back = (run_lib.restore_run(str(tmp_path / folder)) for folder in ("run", "back"))
    assert config.flat(back.config) == config.flat(run.config)
    assert (run.step, back.step) == (7, 0)
    jax.tree.map(np.testing.assert_array_equal, everything(back.state), everything(run.state))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "out", "run"]


@pytest.mark.parametrize(("name", "format", "fields"), WHOLE)
def test_a_whole_model_comes_back_bit_for_bit(name, format, fields, tmp_path, without_compiling):
    before, after, told = round_trip(name, format, fields, tmp_path, full=True)
    mine = list(before)
    if name != format:
        mine = [path for path in before if path.startswith(("params/encoder/", "params/decoder/"))]
    for path in mine:
        np.testing.assert_array_equal(after[path], before[path], err_msg=path)
    assert ("nothing is new" in told[-1]) == (name in (format, "mae"))


def test_the_target_comes_back_as_an_encoder(tmp_path, without_compiling):
    before, after, told = round_trip("cmae", "timm", {}, tmp_path, network="target")
    for path in [path for path in before if path.startswith("target_params/encoder/")]:
        np.testing.assert_array_equal(after[path.removeprefix("target_")], before[path], err_msg=path)
    assert "new: decoder, encoder/norm, feature_decoder, predictor, projector, the target (a copy)" in told[-1]


def cmae_keys() -> dict[str, tuple[int, ...]]:
    """The state dict of the released CMAE ViT-B/16 in pre-training: key -> shape."""
    lines = pathlib.Path(__file__).with_name("cmae_keys.txt").read_text().splitlines()
    pairs = (line.split(" ", 1) for line in lines)
    return {key: tuple(int(n) for n in re.findall(r"\d+", shape)) for key, shape in pairs}


def cmae_state() -> dict[str, np.ndarray]:
    """Tensors of those names and shapes that take no memory; the position tables are real."""
    state = {key: np.broadcast_to(np.float32(0.5), shape) for key, shape in cmae_keys().items()}
    for key in state:
        if key.endswith("pos_embed"):
            state[key] = convert.fixed_table(state[key].shape[-1], (14, 14), "mocov3")
    return state


def test_the_official_cmae_keys_import_and_export(monkeypatch):
    state = cmae_state()
    assert len(state) == 458
    monkeypatch.setattr(files, "read_state", lambda path: (dict(state), {}))
    weights = importing.read_weights("cmae.pth", "cmae")
    c = importing.config_for(weights, "cmae", None)
    assert (c.model.width, c.model.heads, c.model.patch_size, tuple(c.data.image_size)) == (768, 12, 16, (224, 224))
    tree, told = importing.place_tables(weights.tree, weights.tables, weights.facts, c)
    assert told == []
    method = create(c)
    expected = run_lib.abstract_state(c, method)
    wanted = {
        "params": expected.params,
        "target_params": expected.target_params,
        **expected.model_state,
    }
    assert {path: np.shape(leaf) for path, leaf in convert.paths_of(tree).items()} == checkpoint.shapes(wanted)
    layout = LAYOUTS["cmae"]["full"]
    depths = depths_of(list(state), layout)
    assert depths == Depths(12, 8, 2)
    shape = convert.Shape(16, 3, (14, 14), {"encoder": 768, "decoder": 512, "feature_decoder": 512}, "mocov3")
    back = convert.to_torch(tree, layout.rows(depths), shape)
    assert {key: value.shape for key, value in back.items()} == cmae_keys()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_are_stripped(prefix, tmp_path, without_compiling):
    state = mae_encoder(tmp_path)
    path = saved(tmp_path, {f"{prefix}{key}": value for key, value in state.items()}, "weights.pth")
    assert_encoder(build_run(path, "mae", tiny("mae")), made("mae"))


@pytest.mark.parametrize(
    ("source", "prefix", "others"),
    [("cmae", "backbone.", ["head.fc.weight"]), ("hf", "vit.", ["classifier.weight"]), ("timm", "", ["head.bias"])],
)
def test_classifiers_are_left_out_and_named(source, prefix, others, tmp_path, without_compiling):
    export_run(made("mae"), source, str(tmp_path / "out"), check=False)
    state = {f"{prefix}{key}": value for key, value in files.read_state(str(tmp_path / "out"))[0].items()}
    path = saved(tmp_path, state | {key: np.zeros(3, np.float32) for key in others})
    run = build_run(path, source, tiny("mae"))
    assert f"left out: {', '.join(others)}" in run.notes
    assert_encoder(run, made("mae"))


def test_moco_v2_files_of_every_kind(tmp_path, without_compiling):
    export_run(made("moco_v2"), "moco_v2", str(tmp_path / "out"), check=False, full=True)
    state = files.read_state(str(tmp_path / "out"))[0]
    query = {f"module.{key}": value for key, value in state.items() if key.startswith("encoder_q.")}
    bare = {key: value for key, value in query.items() if not key.endswith("num_batches_tracked")}
    for i, (tensors, source) in enumerate([(state, "torchvision"), (query, "moco_v2"), (bare, "torchvision")]):
        path = saved(tmp_path, tensors, f"{i}.pth")
        run = build_run(path, source, tiny("moco_v2"))
        assert run.notes[1].startswith("left out: encoder_k.bn1.bias" if i == 0 else "left out: fc.0.bias, fc.0.weight")
        assert_encoder(run, made("moco_v2"))
    stats = run.state.model_state["batch_stats"]["encoder"]
    assert int(stats["bn1"]["count"]) == 0  # files of old do not say


@pytest.mark.parametrize("fields", [{"model.depth": 14, "model.stages": (2, 1)}, {"model.stages": (1, 1, 1)}])
def test_a_resnet_of_any_stages_is_known_by_its_keys(fields, tmp_path, without_compiling):
    run = made("moco_v2", **fields)
    export_run(run, "torchvision", str(tmp_path / "out"), check=False)
    path = saved(tmp_path, files.read_state(str(tmp_path / "out"))[0])
    back = build_run(path, "torchvision")
    assert back.config.model.stages == fields["model.stages"]
    assert create(back.config).encoder.size == run.method.encoder.size
    assert back.config.model.width == 4
    assert_encoder(back, run)
    with pytest.raises(UserError, match=r"ResNet-\d+ of [\d-]+ blocks in the weights, ResNet-10 in the config"):
        build_run(path, "torchvision", tiny("moco_v2"))


def test_stages_may_be_given_where_the_depth_says_the_same(tmp_path, without_compiling):
    export_run(made("moco_v2"), "torchvision", str(tmp_path / "out"), check=False)
    path = saved(tmp_path, files.read_state(str(tmp_path / "out"))[0])
    assert_encoder(build_run(path, "torchvision", tiny("moco_v2", **{"model.stages": (1, 1, 1, 1)})), made("moco_v2"))


def test_the_decoder_of_transformers_5_is_known(tmp_path, without_compiling):
    export_run(made("mae"), "hf", str(tmp_path / "out"), check=False, full=True)
    state = files.read_state(str(tmp_path / "out"))[0]
    renamed = {k.replace("decoder.decoder_layers.", "decoder.decoder_encoder.layer."): v for k, v in state.items()}
    assert renamed.keys() != state.keys()
    assert build_run(saved(tmp_path, renamed), "hf", tiny("mae")).initialized == []


def test_a_position_table_of_another_size_is_resized(tmp_path, without_compiling):
    path = saved(tmp_path, mae_encoder(tmp_path))
    run = build_run(path, "mae", tiny("mae", **{"data.image_size": (48, 24)}))
    assert "positions: resized from 4x4 to 6x3, now a parameter" in run.notes
    table = run.state.params["encoder"]["pos_embed"]
    old = convert.fixed_table(32, (4, 4), "mae")[0]
    np.testing.assert_array_equal(table[0], resize_position_table(old, (4, 4), (6, 3)))
    # And a run with such a table goes out and comes back.
    learned = run_lib.Run(run.config, create(run.config), run.state, "runs/learned")
    export_run(learned, "mae", str(tmp_path / "again"), check=False)
    assert_encoder(build_run(str(tmp_path / "again"), "mae"), learned)


def test_an_imported_run_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(loop.Monitor, "evaluate", lambda self, state: ({}, {}))
    fields = {"data.image_size": (24, 24), "total_steps": 2}
    import_run(saved(tmp_path, mae_encoder(tmp_path)), "timm", str(tmp_path / "run"), tiny("mae", **fields))
    before = run_lib.restore_run(str(tmp_path / "run"))
    assert before.config.model.positions == "learned"
    (tmp_path / "run" / "config.json").unlink()  # the checkpoint has it, too
    assert run_folder.read_config(tmp_path / "run") == config.flat(before.config)
    loop.train(config.unflat(run_folder.read_config(str(tmp_path / "run"))), str(tmp_path / "run"))
    after = run_lib.restore_run(str(tmp_path / "run"))
    assert (before.step, after.step) == (0, 2)
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), before.state.params, after.state.params)
    assert moved["encoder"]["pos_embed"] > 0


@pytest.mark.parametrize("name", ["vit_small_patch16_224", "vit_tiny_patch16_224"])
def test_a_folder_of_timm_gives_timms_feature(name, tmp_path, without_compiling):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[torch]'")
    timm = pytest.importorskip("timm", reason="timm is not installed: pip install -e '.[torch]'")
    small = name.startswith("vit_small")  # one has learned positions and a mean, the other a cls token
    options = {"img_size": (32, 48), "depth": 1, "num_classes": 5} if small else {"img_size": 32, "depth": 1}
    options |= {"global_pool": "avg", "fc_norm": False} if small else {"num_classes": 0}
    model = timm.create_model(name, **options).eval()
    torch.nn.init.normal_(model.pos_embed)
    timm.models.save_for_hf(model, str(tmp_path / "hub"), model_args=options | {"embed_dim": model.embed_dim})
    run = build_run(str(tmp_path / "hub"), "timm")
    assert "positions: kept as a parameter" in run.notes
    assert ("left out: head.bias, head.weight" in run.notes) == small
    assert run.config.model.heads == (6 if small else 3)
    assert run.config.eval.feature == ("mean" if small else "cls")
    run.config.dtype = "float32"
    images = np.random.default_rng(0).integers(0, 256, (2, *run.config.data.image_size, 3), dtype=np.uint8)
    ours = create(run.config).features(run.state.params, {}, images, kind=run.config.eval.feature)
    mean, std = (np.asarray(values, np.float32) for values in (run.config.data.mean, run.config.data.std))
    assert tuple(mean) == (0.5, 0.5, 0.5)  # timm's own for this model
    with torch.no_grad():
        pixels = torch.tensor((images / np.float32(255) - mean) / std).permute(0, 3, 1, 2)
        theirs = model.forward_head(model.forward_features(pixels), pre_logits=True).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_heads_follow_from_the_width_where_nothing_states_them():
    small = facts.Facts({"width": 384}, 3)
    assert [facts.heads_of(small, name) for name in ("mae", "mocov3")] == [6, 12]
    assert facts.heads_of(small._replace(model={"width": 384, "heads": 4}), "mae") == 4
    with pytest.raises(UserError, match="how many heads a ViT of width 32 has"):
        facts.heads_of(small._replace(model={"width": 32}), "mae")
