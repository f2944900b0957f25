"""The ranges of numbers: each has one, its ends are allowed, what is outside is one line."""

import contextlib
import fnmatch
import math
import re

import pytest
from helpers.configs import CONFIGS, PRESETS

from maskcl_jax import config
from maskcl_jax.config import load, ranges
from maskcl_jax.errors import UserError
from maskcl_jax.evaluate import settings
from maskcl_jax.evaluate.recipes import PROTOCOLS

RECIPES = [f"{protocol}:{recipe}".removesuffix(":") for protocol, recipes in PROTOCOLS.items() for recipe in recipes]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("epochs", 0),
        ("dtype", "float16"),
        ("data.image_size", (32,)),
        ("data.image_size", (32, 0)),
        ("data.mean", (0.5, 0.5)),
        ("data.mean", (123.7, 116.3, 103.5)),
        ("eval.k", 0),
        ("optimizer.base_lr", -1.0),
        ("optimizer.base_lr", float("nan")),
        ("optimizer.warmup_epochs", float("inf")),
        ("augment.crop_scale", (1.0, 0.2)),
        ("augment.crop_ratio", (0.0, 1.0)),
        ("augment.interpolation", "cubic"),
    ],
)
def test_values_out_of_range_are_named(field, value):
    c = load(CONFIGS[0])
    c.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=field.replace(".", r"\.")):
        config.check(c)


def every_field() -> dict[str, object]:
    """The fields of all configs and of all evaluations, with one of their values each."""
    training = {name: value for path, preset in PRESETS for name, value in config.flat(load(path, preset)).items()}
    run = load(CONFIGS[0])
    evaluations = (s for protocol in RECIPES for s in settings.create(protocol, run))
    return training | {name: value for s in evaluations for name, value in config.flat(s).items()}


def numbers() -> list[str]:
    """The fields of training and of evaluations that hold numbers."""
    fields = every_field()
    texts = {
        name for name, value in fields.items() if isinstance(value, list) and any(isinstance(x, str) for x in value)
    }
    return [name for name, value in fields.items() if not isinstance(value, bool | str) and name not in texts]


def patterns(field: str) -> list[str]:
    return [pattern for pattern in ranges.RANGES if fnmatch.fnmatchcase(field, pattern)]


def test_every_number_has_one_range():
    fields = numbers()
    assert {field: patterns(field) for field in fields if len(patterns(field)) != 1} == {}
    assert len(fields) > 130


def test_every_range_and_choice_is_of_a_field():
    fields = every_field().keys()
    assert {pattern for field in fields for pattern in patterns(field)} == ranges.RANGES.keys()
    assert fields >= ranges.CHOICES.keys()


def test_numbers_outside_their_range_are_refused_and_its_ends_are_not():
    for pattern, allowed in ranges.RANGES.items():
        for end, step, out in ((allowed.low, -1e-6, allowed.above), (allowed.high, 1e-6, allowed.below)):
            if math.isinf(end):
                continue
            for number, wrong in ((end, out), (end + step * max(1, abs(end)), True)):
                value = [number, number] if allowed.ordered else number
                with pytest.raises(UserError, match="is out of range") if wrong else contextlib.nullcontext():
                    ranges.check_numbers(pattern, value)


@pytest.mark.parametrize(
    ("recipe", "field", "value"),
    [
        ("linear:mae", "optimizer.base_lr", "-1"),
        ("linear:mae", "optimizer.base_lr", "nan"),
        ("linear:mae", "optimizer.weight_decay", "-5"),
        ("linear:sweep", "optimizer.momentum", "2"),
        ("linear:sweep", "optimizer.warmup_epochs", "-3"),
        ("linear:sweep", "factors", "nan"),
        ("linear:sweep", "factors", "()"),
        ("linear:mocov2", "augment.crop_scale", "(2,1)"),
        ("linear:mocov2", "augment.interpolation", "cubic"),
        ("linear:mocov2", "optimizer.milestones", "(-1,60)"),
        ("linear", "eval_batch_size", "0"),
        ("finetune:mae_b", "optimizer.layer_decay", "-1"),
        ("finetune:mae_b", "randaugment.probability", "7"),
        ("finetune:mae_b", "label_smoothing", "1"),
        ("finetune:mae_b", "drop_path", "1"),
        ("finetune:mae_b", "ema", "1"),
        ("finetune", "optimizer.name", "adam"),
        ("segment", "width", "0"),
        ("segment", "crop_scale", "(0,1)"),
        ("knn", "batch_size", "0"),
        ("knn", "seed", "-1"),
        ("knn", "k", "()"),
        ("knn", "data.threads", "-3"),
        ("knn", "data.workers", "1025"),
        ("knn", "data.std", "(0,1,1)"),
        ("logistic", "C", "inf"),
        ("features", "pictures", "-1"),
    ],
)
def test_evaluations_refuse_what_no_number_can_be(recipe, field, value):
    with pytest.raises(UserError) as error:
        settings.create(recipe, load(CONFIGS[0]), overrides=(f"{field}={value}",))
    assert re.match(rf"{field}=\S.* (is|are) .*(use|give) \S", str(error.value))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "right"), [("auto", True), ("0", True), ("1024", True), ("1025", False), ("-1", False)]
)
def test_the_number_of_workers_has_a_range(text, right):
    c = load(CONFIGS[0])
    c.data.workers = text
    with (
        contextlib.nullcontext() if right else pytest.raises(UserError, match=f"data.workers='{text}' is not a number")
    ):
        config.check(c)


@pytest.mark.parametrize(
    ("allowed", "words"),
    [
        (ranges.AT_LEAST_1, "at least 1"),
        (ranges.FRACTION_NOT_1, "at least 0.0, below 1.0"),
        (ranges.FRACTIONS_NOT_0, "two numbers, the smaller first, each above 0.0, at most 1.0"),
        (ranges.Range(), "a finite number"),
    ],
)
def test_a_range_in_words(allowed, words):
    assert str(allowed) == words


def test_numbers_of_a_method_from_elsewhere_need_only_be_finite():
    ranges.check_numbers("method.gamma_of_mine", -3.0)
    with pytest.raises(UserError, match=r"method\.gamma_of_mine=inf is out of range: use a finite number"):
        ranges.check_numbers("method.gamma_of_mine", math.inf)
