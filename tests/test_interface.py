"""What is said of a `method.name` that names no method, and of a class that is not a complete one."""

import jax
import jax.numpy as jnp
import pytest
from helpers.methods import context_of
from helpers.tiny import tiny
from helpers.views import batch_of

from maskcl_jax.errors import UserError
from maskcl_jax.methods import LossOutput, Method, create, interface
from maskcl_jax.methods.mae import MAE


def named(name):
    config = tiny("mae")
    config.method.name = name
    return config


RAISING = """from maskcl_jax.methods.mae import MAE

class Mine(MAE):
    def __init__(self, config):
        super().__init__(config)
        {}["no"]
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mea", r"method\.name='mea' is unknown: use one of mae, .*, or package\.module:Class"),
        ("no_such_package.it:Method", r"importing no_such_package\.it failed with ModuleNotFoundError: No module"),
        (
            "broken_method:Method",
            r"importing broken_method failed with ZeroDivisionError: .* by zero \(.*method.py, line 1",
        ),
        (
            "cut_method:Method",
            r"importing cut_method failed with SyntaxError: .*\(.*cut_method\.py, line 2\); correct the",
        ),
        (
            "raising:Mine",
            r"method\.name='raising:Mine': Mine\(config\) failed with KeyError: 'no' \(.*raising.py, line 6\)",
        ),
        ("json:NoSuchClass", r"method\.name='json:NoSuchClass': .*json.* has no class NoSuchClass"),
        ("json:JSONDecoder", r"method\.name='json:JSONDecoder' is not a subclass of maskcl_jax\.methods\.Method"),
        ("json:", r"method\.name='json:' is unknown"),
    ],
)
def test_a_name_without_a_method_is_one_line(name, words, tmp_path, monkeypatch):
    (tmp_path / "broken_method.py").write_text("1 / 0\n")
    (tmp_path / "cut_method.py").write_text("import os\nclass (\n")
    (tmp_path / "raising.py").write_text(RAISING)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=words):
        create(named(name))


def test_a_class_is_found_in_the_current_directory(tmp_path, monkeypatch):
    (tmp_path / "my_method.py").write_text("from maskcl_jax.methods.mae import MAE\n\n\nclass Mine(MAE):\n    pass\n")
    monkeypatch.setattr("sys.path", [entry for entry in __import__("sys").path if entry])
    monkeypatch.chdir(tmp_path)
    assert type(create(named("my_method:Mine"))).__name__ == "Mine"


def test_missing_members_are_listed_with_their_arguments():
    class Incomplete(Method):
        def init(self, rng):
            return {}, {}

        def loss(self, params, batch, rng):
            return 0.0

        def features(self, params, model_state, images, kind):
            return images

    with pytest.raises(UserError) as error:
        interface.check_class("mine:Incomplete", Incomplete)
    start, _, faults = str(error.value).partition(": ")
    assert start == "method.name='mine:Incomplete' is not a complete method"
    assert faults.split("; ") == [
        "encoder_variables(params, model_state, *, target=False) is missing",
        "pictures(params, model_state, batch) is missing",
        "preprocess(images) is missing",
        "loss(params, batch, rng) should be loss(params, batch, context)",
        "__init__(config) is missing",
    ]


def made(**attributes):
    method = create(tiny("mae"))
    for name, value in attributes.items():
        setattr(method, name, value)
    return method


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"views": []}, r"views=\[\] must be a tuple of at least one View"),
        ({"encoder": None}, r"encoder=None must be a linen module"),
        ({"picture_names": "input"}, r"picture_names='input' must be a tuple of strings"),
        ({"frozen": ("encoder",)}, r"frozen=\('encoder',\) must be a tuple of paths"),
        ({"ema_first": None}, r"ema_first=None must be True or False"),
        ({"views": made().views * 2}, r"views have the names image, image: each must have its own"),
    ],
)
def test_attributes_of_another_form_are_named(attributes, words):
    with pytest.raises(UserError, match=words):
        interface.check_instance("mine", made(**attributes))


@pytest.mark.parametrize(
    ("initial", "words"),
    [
        ({}, r"init must return \(params, model_state\), two dicts"),
        (({"decoder": {}}, {}), r"init must return params\['encoder'\]; it has decoder"),
    ],
)
def test_what_init_returns_is_checked(initial, words):
    with pytest.raises(UserError, match=words):
        interface.check_initial(made(), initial)


@pytest.mark.parametrize(
    ("out", "words"),
    [
        (jnp.zeros(()), r"loss must return a LossOutput, not ArrayImpl"),
        (LossOutput(jnp.zeros(2), {}, {"count": jnp.zeros(())}), r"the loss must be \(\) float32, not \(2,\) float32"),
        (
            LossOutput(jnp.zeros(()), {}, {"count": jnp.zeros(3)}),
            r"\['count'\] \(\) float32 before, \(3,\) float32 aft",
        ),
        (LossOutput(jnp.zeros(()), {}, {}), r"\['count'\] \(\) float32 before, absent after"),
    ],
)
def test_what_a_loss_returns_is_checked(out, words):
    with pytest.raises(UserError, match=words):
        interface.check_output(made(), out, {"count": jnp.zeros(())})


def test_a_target_without_momentum_is_refused():
    class Forgetful(MAE):
        def target_params(self, params):
            return params

    method = Forgetful(tiny("mae"))
    with pytest.raises(UserError, match="Forgetful has an EMA target and must say its momentum"):
        method.momentum(0.0)
    params = jax.eval_shape(method.init, jax.random.key(0))[0]
    assert context_of(method, params, {}).target_params is params
    assert set(batch_of(method)) >= {"image", "visible", "masked"}
