"""What a method is: views, networks, a loss, and what others may see of it."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from maskcl_jax.errors import UserError
from maskcl_jax.models.kernels import resolve
from maskcl_jax.models.resnet import RESNET_DEPTHS, STEMS, ResNet
from maskcl_jax.models.vit import ViT
from maskcl_jax.ops import color, masking
from maskcl_jax.views import IMAGE, Color, PatchMask, RandomResizedCrop, View
from maskcl_jax.views.color import APPLIED_ON

ATTENTIONS = ("xla", "cudnn")


class Carried(NamedTuple):
    """What a step finds besides the parameters, and no gradient reaches.

    BatchNorm statistics of the online network, the EMA target's parameters and statistics, the queue; None or {}
    where a method has none. progress: the share of the run that is done, 0..1.
    """

    model_state: Any
    target_params: Any = None
    target_state: Any = None
    queue: Any = None
    progress: Any = 0.0


class Aux(NamedTuple):
    """What a loss returns besides its value: scalars to log, and what the step leaves to the next."""

    metrics: dict[str, Any]
    model_state: Any
    target_state: Any = None
    queue: Any = None


class Method:
    """The whole interface. A method is made from a config, holds no arrays, and all its functions are pure.

    views: the views of an image that its batches hold. picture_names: the columns of `pictures`, in order.
    feature_kinds: what `features` can be asked for.
    ema_first: whether the target moves before it makes its keys (MoCo) or after the optimiser's step (CMAE).
    frozen: paths of parameters that keep their first values.
    works_in_chunks: whether `image_chunks` may be more than 1: a decoder makes a reconstruction and nothing else.
    """

    views: tuple[View, ...] = ()
    picture_names: tuple[str, ...] = ()
    feature_kinds: tuple[str, ...] = ("mean", "cls")
    ema_first: bool = False
    frozen: tuple[tuple[str, ...], ...] = ()
    works_in_chunks: bool = False

    def init(self, rng):
        """(params, model_state): new parameters, float32, and BatchNorm statistics ({} without BatchNorm)."""
        raise NotImplementedError

    def target_of(self, params):
        """The part of the parameters that an EMA target mirrors; None, as here, without a target."""

    def target_state_of(self, model_state):
        """The part of the BatchNorm statistics that the target starts with; it then keeps its own."""

    def new_queue(self, rng):
        """The queue at step 0; None, as here, without one."""

    def momentum(self, progress):
        """The target's momentum, at the share `progress` (0..1) of the run."""
        raise NotImplementedError

    def loss(self, params, carried: Carried, batch, rng):
        """(loss () float32, Aux) of a batch as `views` describes it."""
        raise NotImplementedError

    def features(self, params, model_state, images, *, kind: str):
        """(B, D) float32 of unmasked images (B, H, W, C) uint8; kind "mean" (of patch tokens, or of a map) or "cls"."""
        raise NotImplementedError

    def pictures(self, params, model_state, batch):
        """{column: (B, H, W, C) float32 in 0..1} of a batch as `views` describes it."""
        raise NotImplementedError


def view_of(config, *, name: str = IMAGE, ingredients=(), **crop) -> View:
    """A view cropped as `config.augment` says, but for the fields `crop`, with the ingredients that are not None."""
    a = config.augment
    described = {
        "size": tuple(config.data.image_size),
        "scale": tuple(a.crop_scale),
        "ratio": tuple(a.crop_ratio),
        "interpolation": a.interpolation,
        "flip": a.flip,
    }
    check_choice("augment.interpolation", a.interpolation, ("bicubic", "bilinear"))
    return View(
        name=name,
        crop=RandomResizedCrop(**(described | crop)),
        ingredients=tuple(i for i in ingredients if i is not None),
    )


def color_of(config, field: str) -> Color | None:
    """The color augmentation of the config field `method.FIELD`, None where it changes nothing.

    Raises UserError where one of its fields is out of range.
    """
    c, applied_on = config.method[field], config.augment.photometric
    check_choice("augment.photometric", applied_on, APPLIED_ON)
    values = {name: c[name] for name in Color.__dataclass_fields__ if name != "applied_on"}
    low, high = values["blur_sigma"] = tuple(values["blur_sigma"])
    for name in ("jitter_p", "grey_p", "blur_p", "solarize_p", "brightness", "contrast", "saturation"):
        check_range(f"method.{field}.{name}", values[name], 0.0, 1.0)
    check_range(f"method.{field}.hue", values["hue"], 0.0, 0.5)
    if not 0 < low <= high <= color.BLUR_RADIUS / 3:
        raise UserError(
            f"method.{field}.blur_sigma={(low, high)} is out of range: 0 < low <= high <= {color.BLUR_RADIUS / 3}"
        )
    changes = any(values[n] for n in ("jitter_p", "grey_p", "blur_p", "solarize_p"))
    return Color(**values, applied_on=applied_on) if changes else None


def picture_of(batch, view: View, *, clean: bool = False):
    """One view of a batch as float32 in 0..1, its color augmentation applied where that is left to the device.

    clean: without it.
    """
    images, augmentation = batch[view.name].astype(jnp.float32) / 255.0, view.find(Color)
    if augmentation is None or augmentation.applied_on == "host" or clean:
        return images
    return color.apply(images, batch[view.key("color")], blur=augmentation.blur_p > 0)


def standardize(images, mean, std):
    """Images in 0..1 -> (x - mean) / std."""
    return (images - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def normalize(images, mean, std):
    """uint8 (B, H, W, C) -> float32, (x / 255 - mean) / std. On the device: uint8 is a quarter of the transfer."""
    return standardize(images.astype(jnp.float32) / 255.0, mean, std)


def denormalize(images, mean, std):
    """The inverse of `normalize`, in 0..1 and clipped to it."""
    return jnp.clip(images * jnp.asarray(std, jnp.float32) + jnp.asarray(mean, jnp.float32), 0.0, 1.0)


def encoder_of(config, **fields) -> ViT:
    """The encoder of `config.model`. Raises UserError where it does not fit the images.

    `config.model.positions`, which only the runs of imported weights have, wins over the method's position table.
    """
    check_encoder(config)
    m = config.model
    fields["positions"] = getattr(m, "positions", fields["positions"])
    return ViT(
        image_size=tuple(config.data.image_size),
        channels=config.data.channels,
        patch_size=m.patch_size,
        width=m.width,
        depth=m.depth,
        heads=m.heads,
        mlp_ratio=m.mlp_ratio,
        dtype=jnp.dtype(config.dtype),
        **compiled_as(config),
        **fields,
    )


def compiled_as(config) -> dict:
    """The switches of a transformer that change time and memory alone."""
    kernels = resolve(getattr(config, "kernels", "auto"))
    return {"remat": config.remat, "scan": config.scan, "attention": attention_of(config), "kernels": kernels}


def attention_of(config) -> str:
    """`config.model.attention`; runs of earlier versions do not have it."""
    return getattr(config.model, "attention", ATTENTIONS[0])


def resnet_of(config, **fields) -> ResNet:
    """The ResNet of `config.model`. Raises UserError where that is none, or too deep for the images."""
    m = config.model
    if not hasattr(m, "stem"):
        raise UserError(f"method {config.method.name!r} needs a ResNet: write for instance variant=R50 or R18/small")
    if m.depth not in RESNET_DEPTHS:
        raise UserError(f"model.depth={m.depth} is unknown: use one of {', '.join(map(str, RESNET_DEPTHS))}")
    if m.width < 1:
        raise UserError(f"model.width={m.width} is out of range: use 1 or more")
    check_choice("model.stem", m.stem, STEMS)
    if config.scan:
        raise UserError("scan=True is for the blocks of a ViT, which are alike; a ResNet's are not: set it to False")
    size = {"depth": m.depth, "width": m.width, "stem": m.stem}
    return ResNet(**size, dtype=jnp.dtype(config.dtype), remat=config.remat, **fields)


def pooled(tokens, kind: str):
    """(B, 1 + n, D), cls first -> (B, D) float32: the mean of the patch tokens, or the cls token."""
    tokens = tokens.astype(jnp.float32)
    return tokens[:, 1:].mean(axis=1) if kind == "mean" else tokens[:, 0]


def patch_mask(config, grid: tuple[int, int], *, field: str, kind: str = "random", block: int = 1) -> PatchMask:
    """The mask that the ratio `config.method.FIELD` asks for. Raises UserError where nothing is visible or masked."""
    ratio = getattr(config.method, field)
    count = grid[0] * grid[1]
    if block < 1 or grid[0] % block or grid[1] % block:
        raise UserError(
            f"method.mask_block={block} does not divide the {grid[0]}x{grid[1]} grid of patches: use 1, or change "
            "model.patch_size or data.image_size"
        )
    visible = masking.num_visible(count // block**2, ratio) * block**2
    if not 0 < visible < count:
        raise UserError(
            f"method.{field}={ratio} leaves {visible} of {count} patches visible: some must be visible and some masked"
        )
    return PatchMask(kind=kind, num_patches=count, num_visible=visible, block=block, grid=grid)


def momentum_at(c, progress):
    """The target's momentum at a share of the run: `c.momentum`, or from there to 1 along half a cosine.

    Source of the cosine: facebookresearch/moco-v3 `adjust_moco_momentum`.
    """
    if c.momentum_schedule == "fixed":
        return jnp.asarray(c.momentum, jnp.float32)
    return 1.0 - (1.0 - c.momentum) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


def check_target(c) -> None:
    """Raises UserError where the target's momentum or its schedule is out of range."""
    check_range("method.momentum", c.momentum, 0.0, 1.0)
    check_choice("method.momentum_schedule", c.momentum_schedule, ["fixed", "cosine"])


def contrast_metrics(loss, accuracy, candidates, scale: float = 1.0) -> dict:
    """The contrastive loss and accuracy for the log, each beside its chance level among `candidates` keys."""
    return {
        "contrast_loss": loss,
        "contrast_loss_chance": scale * jnp.log(jnp.asarray(candidates, jnp.float32)),
        "contrast_accuracy": accuracy,
        "contrast_accuracy_chance": 1.0 / jnp.asarray(candidates, jnp.float32),
    }


def check_range(field: str, value: float, low: float, high: float) -> None:
    """Raises UserError where a number lies outside [low, high]."""
    if not low <= value <= high:
        raise UserError(f"{field}={value} is out of range: use {low} to {high}")


def check_choice(field: str, value: str, known) -> None:
    """Raises UserError where a word is not one of those known."""
    if value not in known:
        raise UserError(f"{field}={value!r} is unknown: use one of {', '.join(known)}")


def check_contrast(config) -> None:
    """Raises UserError where temperature, BatchNorm groups or batch leave nothing to contrast."""
    c = config.method
    if c.temperature <= 0:
        raise UserError(f"method.temperature={c.temperature} is out of range: it must be greater than 0")
    group, together = c.bn_group_size, config.batch_size // config.accumulation
    size = f"batch_size={config.batch_size}" + (
        f" / accumulation={config.accumulation}" if config.accumulation > 1 else ""
    )
    if group < 0 or (group and together % group):
        raise UserError(f"method.bn_group_size={group} does not divide {size}")
    if min(together, group or together) < 2:
        raise UserError(f"{size} or method.bn_group_size={group} leaves nothing to contrast with: use at least 2")


def check_encoder(config) -> None:
    """Raises UserError where an encoder of `config.model` cannot take images of `config.data.image_size`."""
    m, (height, width) = config.model, config.data.image_size
    if not hasattr(m, "patch_size"):
        raise UserError(f"method {config.method.name!r} needs a ViT: write for instance variant=S/16")
    if min(m.width, m.depth, m.heads, m.patch_size) < 1:
        raise UserError(
            f"model width={m.width}, depth={m.depth}, heads={m.heads}, patch_size={m.patch_size}: none may be below 1"
        )
    if height % m.patch_size or width % m.patch_size:
        raise UserError(
            f"model.patch_size={m.patch_size} does not divide data.image_size={height}x{width}: change one of them"
        )
    check_transformer("model", m)
    check_attention(config, "model", m)


def check_transformer(field: str, m) -> None:
    """Raises UserError where width, heads and the position table do not go together."""
    if m.width % m.heads:
        raise UserError(f"{field}.heads={m.heads} does not divide {field}.width={m.width}: change one of them")
    if m.width % 4:
        raise UserError(f"{field}.width={m.width} is not divisible by 4, which the sine-cosine table needs")


def check_attention(config, field: str, m) -> None:
    """Raises UserError where `config.model.attention` is unknown, or not for a transformer's dtype or heads."""
    chosen = attention_of(config)
    check_choice("model.attention", chosen, ATTENTIONS)
    if chosen != "cudnn":
        return
    if config.dtype == "float32":
        raise UserError(
            "model.attention='cudnn' computes in 16 bits, not in dtype='float32': use dtype=bfloat16 or xla"
        )
    head = m.width // m.heads
    if head % 8 or head > 128:
        raise UserError(
            f"model.attention='cudnn' does not take {field}.width={m.width} in {field}.heads={m.heads}, {head} each: "
            "that must be a multiple of 8, at most 128; change one of them, or use xla"
        )
