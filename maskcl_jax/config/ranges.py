"""What the values of a config may be: the range of every number, the words of every choice, and their check."""

import dataclasses
import fnmatch
import math
import re
from typing import Any

import ml_collections

from maskcl_jax.config.defaults import DEFAULTS
from maskcl_jax.config.fields import flat, suggestion
from maskcl_jax.errors import UserError

LARGEST = 2**63 - 1  # of a 64-bit integer
MOST_THREADS = 1024  # and processes of the input pipeline (our choice)


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, both included unless `above` or `below` says otherwise.

    Attributes:
        ordered: The field is a pair, the smaller number first.
        filled: The field is a list that must not be empty.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    ordered: bool = False
    filled: bool = False

    def holds(self, number: float) -> bool:
        """Whether a number is inside; one that is not finite, or no 64-bit integer, never is."""
        if isinstance(number, int) and abs(number) > LARGEST:
            return False
        over_low = number > self.low if self.above else number >= self.low
        under_high = number < self.high if self.below else number <= self.high
        return over_low and under_high and math.isfinite(number)

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.low}" if math.isfinite(self.low) else ""
        high = f"{'below' if self.below else 'at most'} {self.high}" if math.isfinite(self.high) else ""
        limits = ", ".join(filter(None, (low, high))) or "a finite number"
        return f"two numbers, the smaller first, each {limits}" if self.ordered else limits


TAPS = Range(3, 2 * 224 - 1)  # of a kernel: images of 224 pixels are reflected at their borders
AT_LEAST_1, AT_LEAST_0, POSITIVE, NOT_NEGATIVE = Range(1), Range(0), Range(0.0, above=True), Range(0.0)
FRACTION, FRACTION_NOT_0, FRACTION_NOT_1 = Range(0.0, 1.0), Range(0.0, 1.0, above=True), Range(0.0, 1.0, below=True)
FRACTIONS = Range(0.0, 1.0, ordered=True)
FRACTIONS_NOT_0 = Range(0.0, 1.0, above=True, ordered=True)
RATIOS = Range(0.0, above=True, ordered=True)

# Of training and of evaluations, by name; * stands for anything. A method may check more, above all what goes together.
RANGES = {
    "seed": Range(0, LARGEST),
    "epochs": AT_LEAST_0,
    "total_steps": AT_LEAST_0,
    "batch_size": AT_LEAST_1,
    "mesh.*": Range(-1),
    "accumulation": AT_LEAST_1,
    "image_chunks": AT_LEAST_0,
    "data.image_size": AT_LEAST_1,
    "data.channels": AT_LEAST_1,
    "data.mean": FRACTION,  # of the largest pixel value
    "data.std": FRACTION_NOT_0,
    "data.eval_resize": Range(1.0),
    "data.num_examples": AT_LEAST_1,
    "data.num_classes": AT_LEAST_1,
    "data.cache_mb": AT_LEAST_0,
    "data.threads": Range(0, MOST_THREADS),
    "data.workers": Range(0, MOST_THREADS),  # where it is a number
    "augment.crop_scale": FRACTIONS_NOT_0,
    "augment.crop_ratio": RATIOS,
    "optimizer.base_lr": NOT_NEGATIVE,
    "optimizer.min_lr": NOT_NEGATIVE,
    "optimizer.warmup_epochs": NOT_NEGATIVE,
    "optimizer.weight_decay": FRACTION,
    "optimizer.b1": FRACTION_NOT_1,
    "optimizer.b2": FRACTION_NOT_1,
    "optimizer.eps": POSITIVE,
    "optimizer.momentum": FRACTION_NOT_1,
    "optimizer.clip_norm": NOT_NEGATIVE,
    "eval.every_epochs": NOT_NEGATIVE,
    "eval.k": AT_LEAST_1,
    "eval.temperature": POSITIVE,
    "eval.batch_size": AT_LEAST_1,
    "eval.train_examples": AT_LEAST_0,
    "eval.test_examples": AT_LEAST_0,
    "eval.pictures": AT_LEAST_0,
    "checkpoint.every_epochs": NOT_NEGATIVE,
    "checkpoint.keep_last": AT_LEAST_1,
    "checkpoint.keep_every_epochs": NOT_NEGATIVE,
    "log.every_seconds": NOT_NEGATIVE,
    "log.every_steps": AT_LEAST_1,
    # Networks.
    "model.width": AT_LEAST_1,
    "model.depth": AT_LEAST_1,
    "model.stages": AT_LEAST_1,  # blocks of each stage
    "model.heads": AT_LEAST_1,
    "model.patch_size": AT_LEAST_1,
    "model.mlp_ratio": POSITIVE,
    "method.*decoder.width": AT_LEAST_1,
    "method.*decoder.depth": AT_LEAST_1,
    "method.*decoder.heads": AT_LEAST_1,
    "method.*decoder.mlp_ratio": POSITIVE,
    "method.projector.layers": AT_LEAST_1,
    "method.projector.hidden": AT_LEAST_1,
    "method.projector.out": AT_LEAST_1,
    "method.projector_out": AT_LEAST_1,
    "method.predictor.hidden": AT_LEAST_1,
    "method.mask_head.blocks": AT_LEAST_1,
    "method.bn_group_size": AT_LEAST_0,
    # Losses and targets.
    "method.temperature": POSITIVE,
    "method.momentum": FRACTION,
    "method.queue_size": AT_LEAST_0,
    "method.*_weight": NOT_NEGATIVE,
    "method.lambda_*": NOT_NEGATIVE,
    # Views.
    "method.mask_ratio": FRACTION_NOT_1,
    "method.mask_ratio_key": FRACTION_NOT_1,
    "method.mask_block": AT_LEAST_1,
    "method.master_size": AT_LEAST_1,
    "method.pixel_shift": AT_LEAST_0,
    "method.*_crop_scale": FRACTIONS_NOT_0,
    "method.*augment.brightness": FRACTION,
    "method.*augment.contrast": FRACTION,
    "method.*augment.saturation": FRACTION,
    "method.*augment.hue": Range(0.0, 0.5),
    "method.*augment.*_p": FRACTION,
    "method.*augment.solarize_threshold": FRACTION,
    "method.*augment.blur_sigma": Range(0.0, 2.0, above=True, ordered=True),  # pixels; `ops` sums over 6 on each side
    # ccMIM.
    "method.importance_layers": Range(-1),
    # MaskCo.
    "method.regions": AT_LEAST_1,
    "method.extra_regions": AT_LEAST_0,
    "method.box_side": FRACTIONS_NOT_0,
    "method.box_ratio": RATIOS,
    "method.roi_size": AT_LEAST_1,
    "method.roi_samples": AT_LEAST_1,
    "method.negative_iou": FRACTION,
    # Saliency masking.
    "method.ema_warmup": FRACTION,
    "method.spread": Range(),
    "method.grid": Range(2),
    "method.ratio": FRACTIONS,
    "method.num_hard": AT_LEAST_0,
    "method.negative_ratio": FRACTIONS,
    "method.negative_cap": FRACTION,
    "method.focal_p": FRACTION,
    "method.focal_window": Range(1, 224),
    "method.negative_window": Range(1, 224),
    "method.channelwise_p": FRACTION,
    "method.*noise_std": NOT_NEGATIVE,
    "method.high_pass.sigma": POSITIVE,
    "method.high_pass.taps": TAPS,
    "method.blur.sigma": POSITIVE,
    "method.blur.taps": TAPS,
    # Evaluations (`evaluate/recipes.py`), besides the fields that they share with training.
    "step": Range(-1),
    "eval_batch_size": AT_LEAST_1,
    "checkpoint_every_epochs": NOT_NEGATIVE,
    "optimizer.milestones": POSITIVE,
    "optimizer.layer_decay": FRACTION_NOT_0,
    "k": Range(1, filled=True),
    "temperature": POSITIVE,
    "C": POSITIVE,
    "factors": Range(0.0, above=True, filled=True),
    "holdout": FRACTION_NOT_1,
    "drop_path": FRACTION_NOT_1,
    "ema": FRACTION_NOT_1,
    "erase_p": FRACTION,
    "mixup": Range(0.0, 100.0),  # both parameters of a beta distribution
    "cutmix": Range(0.0, 100.0),
    "label_smoothing": FRACTION_NOT_1,
    "randaugment.operations": AT_LEAST_0,
    "randaugment.magnitude": Range(0.0, 10.0),
    "randaugment.std": NOT_NEGATIVE,
    "randaugment.probability": FRACTION,
    "width": AT_LEAST_1,
    "classes": AT_LEAST_0,
    "first_label": AT_LEAST_0,
    "ignore": Range(-1),
    "crop_scale": FRACTIONS_NOT_0,
    "pictures": AT_LEAST_0,
    "neighbors": AT_LEAST_0,
}

# Words that more than one method knows; those of a method stand beside what they choose.
CHOICES = {
    "dtype": ("float32", "bfloat16"),
    "remat": ("auto", "none", "cheap", "blocks"),
    "kernels": ("auto", "plain", "fused"),
    "augment.interpolation": ("bicubic", "bilinear"),
    "augment.photometric": ("device", "host"),
    "optimizer.name": ("adamw", "sgd", "lars", "lars_mae"),
    "optimizer.mu_dtype": ("float32", "bfloat16"),
}


def check(config: ml_collections.ConfigDict) -> None:
    """Checks every number and word, before anything is built. Raises UserError that names the first wrong one."""
    wanted = [*flat(DEFAULTS), "preset", "model.width", "method.name"]
    if missing := [field for field in wanted if field not in flat(config)]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(f"the config lacks {', '.join(missing[:3])}{more}: make it by `maskcl_jax.config.build`")
    for field, value in flat(config).items():
        check_type(field, value)
    check_values(config)
    if not config.epochs and not config.total_steps:
        raise UserError("epochs=0 gives no step: set epochs or total_steps to 1 or more")


def check_values(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for the first number or word of a config, or of an evaluation's settings, that cannot be."""
    for field, value in flat(config).items():
        check_numbers(field, value)
        known = CHOICES.get(field)
        if known is not None and value not in known:
            raise UserError(f"{field}={value!r} is unknown{suggestion(value, known)}: use {', '.join(known)}")
    check_workers(config.data.workers)
    if len(config.data.image_size) != 2:
        raise UserError(f"data.image_size={config.data.image_size} is not a size: write HEIGHTxWIDTH, as 64x32")
    for field in ("mean", "std"):
        values = config.data[field]
        if len(values) not in (1, config.data.channels):
            raise UserError(
                f"data.{field}={tuple(values)} has {len(values)} values for data.channels={config.data.channels}: "
                "give one for every channel, or one for all"
            )


def range_of(field: str) -> Range:
    """The range of a field; of one that the table does not have, every finite number."""
    return next((found for pattern, found in RANGES.items() if fnmatch.fnmatchcase(field, pattern)), Range())


def check_type(field: str, value: Any) -> None:
    """Raises UserError for a value that a config file sets to what no field can be, or this one cannot."""
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, bool | int | float | str):
            raise UserError(f"{field}={value!r} is neither a number nor text, true or false, or a tuple of these")
    default = flat(DEFAULTS).get(field, "" if field == "method.name" else value)
    kinds = (int, float) if type(default) is float else type(default)
    fits = isinstance(value, kinds) and isinstance(value, bool) == isinstance(default, bool)
    if fits and isinstance(value, list) and default:
        fits = all(isinstance(item, str) == isinstance(default[0], str) for item in value)
    if not fits:
        raise UserError(f"{field}={value!r} does not fit: it must be a {type(default).__name__}, as {default!r}")


def check_numbers(field: str, value: Any) -> None:
    """Raises UserError where a field, or one number of a list, is out of its range."""
    numbers = value if isinstance(value, list) else [value]
    if any(isinstance(number, bool | str) for number in numbers):
        return
    allowed, written = range_of(field), tuple(value) if isinstance(value, list) else value
    if allowed.filled and numbers == []:
        raise UserError(f"{field}=() is empty: give one number or more, each {allowed}")
    in_order = len(numbers) == 2 and numbers[0] <= numbers[1] if allowed.ordered else True
    if not in_order or not all(map(allowed.holds, numbers)):
        raise UserError(f"{field}={written} is out of range: use {allowed}")


def check_workers(text: str) -> None:
    """Raises UserError where `data.workers`, a text, is neither "auto" nor a number of processes."""
    allowed = range_of("data.workers")
    if text != "auto" and not (re.fullmatch(r"\d{1,9}", text) and allowed.holds(int(text))):
        raise UserError(f"data.workers={text!r} is not a number of processes: use auto, or {allowed}")
