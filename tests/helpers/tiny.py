"""Tiny runs of every method on synthetic images."""

import json
import pathlib
import runpy

import jax
import numpy as np

from maskcl_jax.training.run import restore_run

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = {path.stem: path for path in (ROOT / "configs").glob("*.py")}


TINY = {
    "model.width": 32,
    "model.depth": 1,
    "model.heads": 2,
    "model.patch_size": 8,
    "method.decoder.width": 16,
    "method.decoder.depth": 1,
    "method.decoder.heads": 2,
    "method.feature_decoder.width": 16,
    "method.feature_decoder.depth": 1,
    "method.feature_decoder.heads": 2,
    "method.projector.hidden": 16,
    "method.predictor.hidden": 16,
    "method.queue_size": 16,
    "data.num_examples": 64,
    "batch_size": 8,
    "eval.batch_size": 16,
    "total_steps": 6,
    "checkpoint.every_epochs": 3 / 8,
    "eval.every_epochs": 0.0,
    "eval.pictures": 2,
    "log.every_steps": 1,
    "log.report": False,
}


TINY_RESNET = TINY | {"model.depth": 10, "model.width": 4, "method.bn_group_size": 4, "method.projector.out": 16}
# At its temperature of 0.1 the tiny loss is nearly 0, and bfloat16's rounding of a cosine a large share of it.
TINY_OF = {"maskco": {"method.mask_head.blocks": 1, "method.temperature": 1.0}}


def tiny(name: str, **overrides):
    """A method of the package on synthetic images, small enough for a test."""
    c = runpy.run_path(str(CONFIGS[name]))["get_config"]("synthetic")
    c.update_from_flattened_dict({**fields_of(name), **overrides})
    return c


def fields_of(name: str) -> dict:
    """What makes a method tiny: those fields of TINY that it has."""
    c = runpy.run_path(str(CONFIGS[name]))["get_config"]("synthetic")
    tiny_fields = (TINY_RESNET if "stem" in c.model else TINY) | TINY_OF.get(name, {})
    return {k: v for k, v in tiny_fields.items() if has(c, k)}


def colourless(name: str) -> dict:
    """What leaves colours as they are: they have tests of their own, and take long to compile."""
    c = runpy.run_path(str(CONFIGS[name]))["get_config"]("synthetic")
    views = ("augment", "query_augment", "key_augment", "target_augment")
    fields = [f"method.{view}.{p}" for view in views for p in ("jitter_p", "grey_p", "blur_p", "solarize_p")]
    return {field: 0.0 for field in fields if has(c, field)}


def quick(name: str, **overrides):
    """A tiny method that compiles in half the time: one method alone has colours, and a ResNet has two stages."""
    fields = {} if name == "mocov3" else colourless(name)
    config = tiny(name, **fields, **overrides)
    if "stem" in config.model:
        config.model.stages = (1, 1)
    return config


def filled(method):
    """(params, state) of a method, of noise: no compilation, and no term that is zero by chance of its first value."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        name = path[-1].key
        centre = 1.0 if name in ("scale", "var") else 0.0
        values = centre + 0.1 * rng.standard_normal(leaf.shape)
        return jax.numpy.asarray(abs(values) if name == "var" else values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(method.init, jax.random.key(0)))


def has(c, path: str) -> bool:
    """Whether a config has the field `a.b`."""
    for name in path.split("."):
        if not hasattr(c, "keys") or name not in c:
            return False
        c = c[name]
    return True


def saved_state(workdir):
    """Everything the newest checkpoint of a run holds."""
    return restore_run(str(workdir)).state


def rows(workdir):
    return [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]


SPEED = ("images_per_second", "images_per_second_per_device", "cpu_seconds_per_image", "data_wait", "mfu")


def rows_without_speed(workdir) -> list[dict]:
    """The rows of metrics.jsonl that two runs have in common if they learn the same."""
    return [{k: v for k, v in row.items() if k not in SPEED} for row in rows(workdir)]


def of_device(name):
    """A tiny method whose views a device can make."""
    c = tiny(name, **{"data.on_device": True})
    if name in ("saliency_masking",):
        c.method.provider = "center"
    return c
