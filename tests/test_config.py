"""Configs: presets, the argument after the colon, overrides, refusals."""

import pytest
from helpers.configs import CONFIGS, PRESETS

from maskcl_jax import config
from maskcl_jax.config import load
from maskcl_jax.errors import UserError
from maskcl_jax.methods import create

EVERYWHERE = ("", "synthetic", "fashion_mnist", "cifar10", "cifar100", "folder", "imagenet")


def test_every_config_has_the_common_presets():
    assert {(path, preset) for path in CONFIGS for preset in EVERYWHERE} <= set(PRESETS)


@pytest.mark.parametrize(("path", "preset"), PRESETS, ids=lambda value: getattr(value, "stem", value))
def test_every_preset_of_every_config_passes_the_checks(path, preset):
    c = load(path, preset)
    config.check(c)
    assert c.method.name == {"simclr_vit": "simclr", "mscn": "saliency_masking"}.get(path.stem, path.stem)
    assert c.preset == (preset or "embedded")
    assert create(c).views


def test_imagenet_is_the_published_recipe():
    c = load(CONFIGS[0].with_name("ccmim.py"), "imagenet")
    assert (c.model.width, c.model.depth, c.model.heads, c.model.patch_size) == (768, 12, 12, 16)
    assert (c.epochs, c.batch_size, c.optimizer.warmup_epochs) == (800, 4096, 40)
    assert c.optimizer.base_lr * c.batch_size / 256 == pytest.approx(2.4e-3)
    assert (c.optimizer.b1, c.optimizer.b2, c.optimizer.weight_decay) == (0.9, 0.95, 0.05)
    assert (c.method.mask_ratio, c.method.temperature, c.method.align_weight) == (0.75, 0.5, 0.1)
    assert (c.method.decoder.width, c.method.decoder.depth, c.method.decoder.heads) == (512, 8, 16)


def test_the_argument_sets_fields():
    c = load(CONFIGS[0], "imagenet,variant=L/16,epochs=300,image_size=224x192,base_lr=1e-3,data_dir=/data/tfds")
    assert (c.model.width, c.model.depth, c.epochs) == (1024, 24, 300)
    assert c.data.image_size == (224, 192)
    assert c.optimizer.base_lr == 1e-3
    assert c.data.data_dir == "/data/tfds"
    assert load(CONFIGS[0], "epochs=3").epochs == 3


def test_a_named_piece_that_two_fields_share_is_not_one_group():
    c = load("moco_v2", "imagenet,method.query_augment.blur_p=0")
    assert (c.method.query_augment.blur_p, c.method.key_augment.blur_p, config.COLOR["blur_p"]) == (0.0, 0.5, 0.5)


def test_another_encoder_replaces_the_preset_s():
    c = load("mae", "variant=S/8,model.heads=12")
    assert (c.model.width, c.model.heads, c.model.patch_size, c.method.decoder.width) == (384, 12, 8, 64)
    assert c.origins["model.width"] == c.origins["model.heads"] == "argument"
    assert "patch_size" not in load("simclr", "imagenet,variant=R50x2").model


def test_every_value_knows_its_layer():
    c = load("mscn", "fashion_mnist,epochs=3,variant=R18")
    expected = {
        "seed": "default",
        "data.threads": "default",
        "data.image_size": "data",
        "method.grid": "preset",
        "method.spread": "method",
        "method.masked": "method",
        "batch_size": "preset",
        "model.width": "argument",
        "epochs": "argument",
    }
    assert {field: c.origins[field] for field in expected} == expected
    assert c.origins.keys() == config.flat(c).keys()


@pytest.mark.parametrize(
    ("text", "old", "value"),
    [
        ("1e3", 1, 1000),
        ("-1", 1, -1),
        ("9007199254740993", 0, 9007199254740993),
        ("3", 0.5, 3.0),
        ("1e-3", 0.5, 1e-3),
        ("TRUE", False, True),
        ("0", True, False),
        ("64x32", (1, 1), (64, 32)),
        ("(0.2, 1)", (0.5, 0.5), (0.2, 1.0)),
        ("0.2,1.0", (0.5, 0.5), (0.2, 1.0)),
        ("(2,)", (), (2,)),
        ("()", (1,), ()),
        ("3", "", "3"),
    ],
)
def test_text_is_read_as_the_type_of_the_field(text, old, value):
    got = config.read_value(text, old)
    assert (got, type(got)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "old"),
    [
        ("3.5", 1),
        ("nan", 1),
        ("many", 0.5),
        ("yes", True),
        ("", 1),
        ("a,b", (1, 1)),
        ("x", (1, 1)),
        ("64x", (1, 1)),
        ("1,,2", (1, 1)),
        ("1.5x2", (1, 1)),
    ],
)
def test_text_of_another_type_is_refused(text, old):
    with pytest.raises(ValueError):
        config.read_value(text, old)


def test_a_preset_that_sets_an_unknown_field_or_another_type_is_named():
    method = {"name": "mae"}
    with pytest.raises(UserError, match=r"preset 'a'.*bse_lr.*did you mean 'optimizer\.base_lr'"):
        config.build(None, method=method, presets={"a": {"optimizer.bse_lr": 1.0}})
    with pytest.raises(UserError, match=r"preset 'a'.*epochs is a whole number"):
        config.build(None, method=method, presets={"a": {"epochs": 2.5}})


@pytest.mark.parametrize(
    ("arg", "words"),
    [
        ("imagnet", "did you mean 'imagenet'"),
        ("imagenet,variant=Q/16", "Q/16"),
        ("imagenet,epoch=3", "did you mean 'epochs'"),
        ("imagenet,epochs=many", "epochs=many"),
        ("imagenet,epochs=2.5", "epochs=2.5"),
        ("imagenet,epochs", "'epochs' is not understood"),
        ("imagenet,method=3", "group, set for instance method.align_grad"),
    ],
)
def test_wrong_arguments_are_named(arg, words):
    with pytest.raises(UserError, match=words):
        load(CONFIGS[0], arg)


@pytest.mark.parametrize("variant", ["R", "R51", "R50x0", "R50/big", "R50x", "Q/16", "B", "B/", "B/x", "B/0"])
def test_unknown_encoders_are_named(variant):
    with pytest.raises(UserError, match=variant):
        config.encoder_size(variant)


@pytest.mark.parametrize(
    ("name", "stem"), [("ccmim", "ccmim"), ("ccmim.py", "ccmim"), ("configs/mae", "mae"), ("configs/mae.py", "mae")]
)
def test_configs_are_found_by_name_anywhere(name, stem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.find_file(name).samefile(CONFIGS[0].with_name(f"{stem}.py"))


def test_a_file_goes_before_the_config_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "import ml_collections\ndef get_config(argument): return ml_collections.ConfigDict({'a': argument})"
    (tmp_path / "ccmim").write_text(text)
    assert config.load("ccmim", "a,b=c").a == "a,b=c"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "has no get_config function"),
        ("def get_config(argument):\n    return 1 / 0", r"fails \(line 2\): ZeroDivisionError: division by zero"),
        ("def get_config(", "fails: SyntaxError"),
        ("raise SystemExit(3)", r"fails \(line 1\): SystemExit: 3"),
        ("def get_config(argument):\n    return {'seed': 1}", "get_config returns dict, not a config: return build"),
    ],
)
def test_a_config_file_that_fails_is_one_line(text, words, tmp_path):
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(UserError, match=words):
        load(tmp_path / "own.py")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("method.new", object(), r"method\.new=<object .*> is neither a number nor text"),
        ("method.mask_ratio", None, r"method\.mask_ratio=None is neither a number nor text"),
        ("method.name", 7, r"method\.name=7 does not fit: it must be a str"),
        ("data.image_size", 32, r"data\.image_size=32 does not fit: it must be a list, as \[32, 32\]"),
        ("epochs", 10**400, r"epochs=1000+ is out of range: use at least 0"),
        ("data.mean", ("a", 0.5, 0.5), r"data\.mean=\['a', 0\.5, 0\.5\] does not fit: it must be a list"),
        ("epochs", True, r"epochs=True does not fit: it must be a int, as 100"),
    ],
)
def test_a_value_that_no_field_can_have_is_one_line(field, value, words):
    c = config.load("mae", "synthetic")
    *parents, name = field.split(".")
    group = c[parents[0]] if parents else c
    with group.ignore_type(), group.unlocked():
        group[name] = value
    with pytest.raises(UserError, match=words):
        config.check(c)


def test_a_config_without_some_fields_is_one_line():
    c = config.load("mae", "synthetic")
    with c.unlocked():
        del c.checkpoint
    with pytest.raises(UserError, match=r"lacks checkpoint\.every_epochs, checkpoint\.keep_last.* and \d more|make it"):
        config.check(c)
