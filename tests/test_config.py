"""Configs: presets, the argument after the colon, overrides, refusals."""

import pathlib
import runpy

import pytest

from maskcl_jax import cli, config
from maskcl_jax.errors import UserError
from maskcl_jax.methods import create

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))


def load(path, arg=None):
    return runpy.run_path(str(path))["get_config"](arg)


def has_preset(path, preset: str) -> bool:
    try:
        load(path, preset)
    except UserError:
        return False
    return True


EVERYWHERE = ("", "synthetic", "fashion_mnist", "cifar10", "cifar100", "folder", "imagenet")
PRESETS = [(path, preset) for path in CONFIGS for preset in ("", *config.DATA) if has_preset(path, preset)]


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


@pytest.mark.parametrize(
    ("arg", "words"),
    [
        ("imagnet", "did you mean 'imagenet'"),
        ("imagenet,variant=Q/16", "Q/16"),
        ("imagenet,epoch=3", "did you mean 'epochs'"),
        ("imagenet,epochs=many", "epochs=many"),
        ("imagenet,epochs", "'epochs' is not understood"),
    ],
)
def test_wrong_arguments_are_named(arg, words):
    with pytest.raises(UserError, match=words):
        load(CONFIGS[0], arg)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("epochs", 0),
        ("dtype", "float16"),
        ("data.image_size", (32,)),
        ("data.mean", (0.5, 0.5)),
        ("eval.k", 0),
    ],
)
def test_values_out_of_range_are_named(field, value):
    c = load(CONFIGS[0])
    c.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=field.replace(".", r"\.")):
        config.check(c)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config={file}", "--config.method.mask_ration=0.5"], "did you mean 'method.mask_ratio'"),
        (["--config={file}", "--config.nothing=1"], "--config.nothing is not a field"),
        (["--config={file}:imagnet"], "did you mean"),
        (["--config=configs/none.py"], "configs/none.py is not a file"),
    ],
)
def test_the_command_line_names_the_culprit(arguments, words):
    with pytest.raises(UserError, match=words):
        cli.check_config_flags(["main", *(a.format(file=CONFIGS[0]) for a in arguments)])
