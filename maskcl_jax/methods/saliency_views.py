"""The fields of saliency masking: their checks, and the views with cell masks that they describe."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from maskcl_jax.errors import UserError, check_choice, check_range
from maskcl_jax.methods import encoders
from maskcl_jax.ops import fills
from maskcl_jax.views.base import View
from maskcl_jax.views.cell_mask import SALIENCY, CellMask, CellRule

STRATEGIES = ("high_pass", "blur", "mean")
MASKED = {"query": (0,), "key": (1,), "both": (0, 1), "none": ()}
PROVIDERS = (*SALIENCY, "ema")


def masked_views(config: Any, views: tuple[View, ...]) -> tuple[View, ...]:
    """Returns a framework's two views with the cell masks on them: its own, and of hard negatives made of it."""
    c = config.method
    rules: list[list[CellRule]] = [[], []]
    for i in MASKED[c.masked]:
        rules[i].append(_rule(config, views[i].name, c.ratio, c.focal_window))
    for of_view, names in zip(rules, hard_negatives(config)[::-1], strict=True):
        of_view += [_rule(config, name, c.negative_ratio, c.negative_window, negative=True) for name in names]
    return tuple(_with_rules(config, view, tuple(of_view)) for view, of_view in zip(views, rules, strict=True))


def hard_negatives(config: Any) -> tuple[list[str], list[str]]:
    """Their names: of the first view's anchors, made of the second view, and the other way round."""
    c = config.method
    names = ["negative" if i == 0 else f"negative{i + 1}" for i in range(c.num_hard)]
    both = c.framework == "simclr" and c.hard_both
    return names, [f"{name}_back" for name in names] if both else []


def rules_of(view: View) -> tuple[CellRule, ...]:
    """The cell masks of a view."""
    masks = view.find(CellMask)
    return masks.rules if masks else ()


def picture_names(views: Iterable[View]) -> tuple[str, ...]:
    """Each view, its saliency, and what is masked of it."""
    names: list[str] = []
    for view in views:
        names += [view.name, *([f"{view.name}_saliency"] if rules_of(view) else [])]
        names += [f"{rule.name}_masked" for rule in rules_of(view)]
    return tuple(names)


def _rule(config: Any, name: str, ratio: Any, window: int, *, negative: bool = False) -> CellRule:
    """One mask; focal and channel-wise masks, and the cap, are the high-pass strategy's."""
    c, size = config.method, config.data.image_size
    fields = {"name": name, "ratio": tuple(ratio), "background": not negative, "redraw": c.provider == "ema"}
    if c.strategy == "high_pass":
        fields |= {
            "cap": tuple(c.negative_cap) if negative else None,
            "focal_p": c.focal_p,
            "window": tuple(max(1, round(side * window / fills.FULL_SIZE)) for side in size),
            "keep_window": not negative,
            "channelwise_p": c.channelwise_p,
            "channels": config.data.channels if c.channelwise_p else 1,
        }
    return CellRule(**fields)


def _with_rules(config: Any, view: View, rules: tuple[CellRule, ...]) -> View:
    c = config.method
    if not rules:
        return view
    provider = "boundary" if c.provider == "ema" else c.provider  # it leads in the warm-up
    masks = CellMask(grid=c.grid, provider=provider, spread=c.spread, rules=rules, maps_path=c.maps_path)
    # Before the color augmentation: saliency is that of the view as it was cropped.
    return dataclasses.replace(view, ingredients=(masks, *view.ingredients))


def check(config: Any, *, frameworks: Iterable[str]) -> None:
    """Raises UserError for fields of the masks that are unknown, out of range, or do not fit the images."""
    c, (height, width) = config.method, config.data.image_size
    check_choice("method.framework", c.framework, frameworks)
    encoders.resnet(config)
    check_choice("method.strategy", c.strategy, STRATEGIES)
    check_choice("method.masked", c.masked, MASKED)
    check_choice("method.provider", c.provider, PROVIDERS)
    for field in ("ratio", "negative_ratio"):
        low, high = getattr(c, field)
        if not 0.0 <= low <= high <= 1.0:
            raise UserError(f"method.{field}={(low, high)} is not a range: use 0 <= low <= high <= 1")
    if len(c.negative_cap) != 2:
        raise UserError(f"method.negative_cap={tuple(c.negative_cap)} is no pair: give from where on, and the most")
    for field in ("focal_p", "channelwise_p", "ema_warmup"):
        check_range(f"method.{field}", getattr(c, field), 0.0, 1.0)
    for field in ("focal_window", "negative_window"):
        check_range(f"method.{field}", getattr(c, field), 1, fills.FULL_SIZE)
    for field in ("high_pass", "blur"):
        kernel = getattr(c, field)
        if kernel.sigma <= 0 or kernel.taps < 3 or kernel.taps % 2 == 0:
            raise UserError(
                f"method.{field}: sigma={kernel.sigma}, taps={kernel.taps} is no kernel: use a sigma above 0 and "
                "an odd number of taps from 3 on"
            )
    if c.num_hard < 0:
        raise UserError(f"method.num_hard={c.num_hard} is out of range: use 0 for no hard negative, or more")
    if c.grid < 2 or height % c.grid or width % c.grid:
        raise UserError(
            f"method.grid={c.grid} does not divide data.image_size={height}x{width} into 2 or more cells a side: use "
            "for instance 7 for 28 or 224 pixels, 8 for 32 or 64"
        )
    if c.provider == "maps" and (config.data.source != "folder" or not c.maps_path):
        raise UserError(
            f"method.provider='maps' with data.source={config.data.source!r} and method.maps_path={c.maps_path!r}: it "
            "needs a folder of images, and in maps_path a folder with a map for each of them"
        )
    if c.provider == "ema" and c.framework == "simclr":
        raise UserError("method.provider='ema' with method.framework='simclr': it has no EMA encoder, use another")
    if c.framework == "moco_v2" and c.symmetric:
        raise UserError(f"method.symmetric={c.symmetric}: which view is masked is method.masked's, so set it to False")
