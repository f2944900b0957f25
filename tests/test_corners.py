"""Every corner of every method's fields that the checks let pass takes a step together with others."""

import random

import pytest
from helpers.corners import every_single, problem_of_step, refusal, singles
from helpers.tiny import CONFIGS

from maskcl_jax.ops import losses

TOGETHER = 40  # corners in one step; `tests/campaigns/corners.py` takes a step at each corner alone

# Methods whose corners another one has: the same class or fields with another encoder or framework.
LIKE = ("mscn", "simclr")
# Color augmentation is the same code for all, and takes long to compile: one method is enough.
WITH_COLORS = "simclr_vit"

# The corners that the checks refuse, and why: in every method that has the field, but for LET_PASS.
REFUSED = {
    ("method.decoder.width", 1): "does not divide",
    ("method.feature_decoder.width", 1): "does not divide",
    ("method.decoder.mlp_ratio", 0.001): "leaves its MLP no unit",
    ("method.feature_decoder.mlp_ratio", 0.001): "leaves its MLP no unit",
    ("method.negative_cap", (0.0,)): "is no pair",
    ("method.negative_cap", (1.0,)): "is no pair",
    ("method.mask_ratio", 0.0): "must be visible and some masked|is above method.mask_ratio",
    ("method.mask_ratio", 0.999): "must be visible and some masked",
    ("method.mask_ratio_key", 0.0): "leaves nothing masked to reconstruct",
    ("method.mask_ratio_key", 0.999): "is above method.mask_ratio",
    ("method.master_size", 1): "does not fit method.master_size",
    ("method.box_ratio", (0.001, 0.001)): "is out of range",
    ("method.queue_size", 0): "is not a multiple of the 8 keys of a step",
    ("method.same_image_negatives", True): "leaves no other region",
    ("method.symmetric", True): "which view is masked is method.masked's",
}
# The methods that take a corner which others refuse.
LET_PASS = {
    ("method.queue_size", 0): ("macrl",),
    ("method.symmetric", True): ("maskco", "moco_v2"),
}


def written(value):
    """A corner as `REFUSED` has it."""
    return tuple(value) if isinstance(value, list) else value


def why_refused(name, field, corner) -> str:
    """What REFUSED says of a corner of a method; "" where the checks must let it pass."""
    key = field, written(corner)
    return "" if name in LET_PASS.get(key, ()) else REFUSED.get(key, "")


def passing(name) -> list:
    """The corners of a method that the checks let pass alone."""
    found = []
    for field, corner in singles(name):
        why, said = why_refused(name, field, corner), refusal(name, {field: corner})
        assert bool(said) == bool(why), (field, corner, said)
        assert "\n" not in said
        assert any(part in said for part in why.split("|")), (field, said)
        if not said:
            found.append((field, corner))
    return found


def groups(corners) -> list:
    """The corners in groups of at most TOGETHER, each of different fields; zero weights among themselves."""
    off = [c for c in corners if c[1] == 0 and ("weight" in c[0] or "lambda" in c[0])]
    found = []
    for part in (off, [c for c in corners if c not in off]):
        random.Random(0).shuffle(part)
        mine: list[dict] = []
        for field, corner in part:
            fitting = next((g for g in mine if len(g) < TOGETHER and field not in g), None)
            if fitting is None:
                mine.append(fitting := {})
            fitting[field] = corner
        found += mine
    return found


def failures(name, moved) -> list[str]:
    """The corners whose step fails, each alone where it does so alone; what the checks refuse together is split up."""
    refused = refusal(name, moved)
    problem = "" if refused else problem_of_step(name, moved)
    if not refused and not problem:
        return []
    halves = [dict(list(moved.items())[i::2]) for i in (0, 1)] if len(moved) > 1 else []
    return [f for half in halves for f in failures(name, half)] or ([f"{name} {moved}: {problem}"] if problem else [])


@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - set(LIKE)))
def test_every_corner_that_the_checks_let_pass_takes_a_step(name):
    corners = [c for c in passing(name) if "augment." not in c[0] or name == WITH_COLORS]
    assert len(corners) >= 2
    assert [f for moved in groups(corners) for f in failures(name, moved)] == []


@pytest.mark.parametrize("name", LIKE)
def test_corners_are_refused_for_a_reason(name):
    assert len(passing(name)) > 10


def test_every_refusal_of_the_table_is_met():
    met = {(field, written(corner)) for name, field, corner in every_single() if why_refused(name, field, corner)}
    assert met == REFUSED.keys()


@pytest.mark.parametrize(
    "moved",
    [
        {"method.mask_ratio_key": 0.0, "method.lambda_query": 0.0, "method.swap_roles": True},
        {"method.mask_ratio_key": 0.0, "method.loss_on": "all"},
    ],
)
def test_macrl_without_a_mask_on_its_key(moved):
    assert problem_of_step("macrl", moved) == ""


@pytest.mark.parametrize("mode", ["shared", "ema_full"])
def test_macrl_without_a_mask_on_its_key_in_chunks_of_images(mode):
    moved = {"method.mask_ratio_key": 0.0, "method.lambda_key": 0.0, "method.mode": mode, "image_chunks": 2}
    assert problem_of_step("macrl", moved) == ""


@pytest.mark.parametrize(("swapped", "kept"), [(False, "lambda_key"), (True, "lambda_query")])
def test_macrl_has_something_to_reconstruct(swapped, kept):
    moved = {"method.mask_ratio_key": 0.0, "method.swap_roles": swapped, "method.lambda_key": 0.0}
    assert f"set method.{kept}=0" in refusal("macrl", moved | {"method.lambda_query": 0.0, f"method.{kept}": 1.0})


def test_a_step_that_is_not_finite_is_seen(monkeypatch):
    monkeypatch.setattr(losses, "patch_mse", lambda *a: float("nan") * a[0].sum())
    assert failures("mae", {"method.norm_pix": False}) == [
        "mae {'method.norm_pix': False}: a metric, the gradient, the loss"
    ]
