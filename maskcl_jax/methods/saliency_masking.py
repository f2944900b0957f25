"""Saliency-guided masking for contrastive ConvNets (Chin et al., WACV 2024, arXiv 2309.12757), and MSCN-style masking.

A contrastive method whose query is masked, the same fraction of its salient and of its other cells, and filled so that
no hard edge appears; a copy of the key with much of its salient cells masked is one more negative. `mscn` is the
baseline (Jing, Zhu, LeCun 2022, arXiv 2206.07700) as Chin et al. draw it, and the same code: both views masked, uniform
cells, no hard negative. MSCN's own numbers were not available to us.

Sources: [C] joycenerd/Saliency-Guided-Masking-for-ConvNets at c6e62b8, [P] the authors' poster; the paper's text was
not available to us. Two slips of [C] are not copied: its salient cells lie right-justified in their rows (see
`ops.cells`), and its hard negative is image 0's for the whole batch; here every image has its own, as [P] says.

The paper finds salient cells with a ResNet-50 trained on ImageNet's labels [C]. Here nothing needs labels, so results
are not the paper's. The host makes its maps before the colours are changed, [C] after: our choice.
"""

import dataclasses

import jax
import jax.numpy as jnp

from maskcl_jax.errors import UserError
from maskcl_jax.methods import base
from maskcl_jax.methods.mocov2 import MoCoV2
from maskcl_jax.methods.simclr import SimCLR
from maskcl_jax.models.resnet import average_pool
from maskcl_jax.ops import cells, fills, losses
from maskcl_jax.views import CellMask, CellRule
from maskcl_jax.views.cell_mask import SALIENCY

STRATEGIES = ("high_pass", "blur", "mean")
MASKED = {"query": (0,), "key": (1,), "both": (0, 1), "none": ()}
PROVIDERS = (*SALIENCY, "ema")
TO_FILL, TO_NEGATIVES = 7_001, 7_002  # far from the numbers by which a framework divides the same key


class Masking:
    """Views with cell masks, and what fills them; the contrastive framework stands beside it as the other parent.

    Fields of `config.method` beyond the framework's:

    framework: "moco_v2" [C] | "simclr" (results, but no code, were published).
    strategy: what fills. "high_pass": all inputs are high-passed, masked cells are noise; "blur": the blurred view;
      "mean": its mean colour [C]. masked: "query" [C] | "key" | "both" | "none" (the poster's comparison).
    grid: cells a side, 7 at 224 pixels [C]; at other sizes our choice. ratio (0.05, 0.25): drawn uniformly [C].
    num_hard 1, negative_ratio (0.4, 0.7) [C]: hard negatives an image, and the share of their salient cells that is
      masked; 0: none. hard_weight 2 [C, README]: times the similarity to a hard negative, inside the exponential.
    provider: who says what is salient, `data.saliency` (default: our choice). maps_path: the folder of "maps". "ema":
      the channel sum of the EMA encoder's last map (SCDA [C], but self-taught: our choice), after "boundary" has led
      for the share `ema_warmup` of the run. spread 0.6: salient is A >= mean - 0.6 std [P].
    blur: sigma 10, 31 taps, at 224 pixels [C].
    Of "high_pass" alone: high_pass: sigma 5, 11 taps, at 224 pixels [C]; negative_cap (0.56, 0.55), see `cells.counts`
      [C]; focal_p 0.2: masks that keep one window (hard negative: hide one), whatever is salient; focal_window 200,
      negative_window 130: its side, in 224ths of the image's [C]; channelwise_p 0.7 of the others: every channel has
      cells of its own [C]; noise_std 0.18, negative_noise_std 0.14 [C]; tile_noise: one patch of noise in all cells of
      a batch [C], or noise anew everywhere (default: our choice).
    """

    def __init__(self, config):
        check(config)
        super().__init__(config)
        # Both views, each with its saliency and what is masked of it.
        self.picture_names = tuple(
            column
            for view in self.views
            for column in (
                view.name,
                *([f"{view.name}_saliency"] if view.find(CellMask) else []),
                *(f"{rule.name}_masked" for rule in rules_of(view)),
            )
        )

    def hard_negatives(self) -> tuple[list[str], list[str]]:
        """Their names: of the first view's anchors, made of the second view, and the other way round."""
        c = self.config.method
        names = ["negative" if i == 0 else f"negative{i + 1}" for i in range(c.num_hard)]
        both = c.framework == "simclr" and c.hard_both
        return names, [f"{name}_back" for name in names] if both else []

    def new_views(self):
        """The framework's two views, with the cell masks of this method on them."""
        c, views = self.config.method, super().new_views()
        rules = [[], []]
        for i in MASKED[c.masked]:
            rules[i].append(self.rule(views[i].name, c.ratio, c.focal_window))
        for of_view, names in zip(rules, self.hard_negatives()[::-1], strict=True):
            of_view += [self.rule(name, c.negative_ratio, c.negative_window, negative=True) for name in names]
        return tuple(self.with_rules(view, tuple(of_view)) for view, of_view in zip(views, rules, strict=True))

    def rule(self, name: str, ratio, window: int, *, negative: bool = False) -> CellRule:
        """One mask; focal and channel-wise masks, and the cap, are the high-pass strategy's."""
        c, size = self.config.method, self.config.data.image_size
        fields = {"name": name, "ratio": tuple(ratio), "background": not negative, "redraw": c.provider == "ema"}
        if c.strategy == "high_pass":
            fields |= {
                "cap": tuple(c.negative_cap) if negative else None,
                "focal_p": c.focal_p,
                "window": tuple(max(1, round(side * window / fills.FULL_SIZE)) for side in size),
                "keep_window": not negative,
                "channelwise_p": c.channelwise_p,
                "channels": self.config.data.channels if c.channelwise_p else 1,
            }
        return CellRule(**fields)

    def with_rules(self, view, rules):
        """A view with its masks, if any."""
        c = self.config.method
        if not rules:
            return view
        provider = "boundary" if c.provider == "ema" else c.provider
        masks = CellMask(grid=c.grid, provider=provider, spread=c.spread, rules=rules, maps_path=c.maps_path)
        # Before the color augmentation: saliency is that of the view as it was cropped.
        return dataclasses.replace(view, ingredients=(masks, *view.ingredients))

    def images_of(self, batch):
        """The two views, normalised and, where that is the strategy, high-passed: before any mask."""
        return [self.filtered(images) for images in super().images_of(batch)]

    def filtered(self, images):
        """Normalised images as all encoders get them."""
        c = self.config.method
        return fills.high_pass(images, *self.kernel(c.high_pass)) if c.strategy == "high_pass" else images

    def kernel(self, c) -> tuple[float, int]:
        """(sigma, taps) at the size of the images."""
        return fills.kernel_at(min(self.config.data.image_size), c.sigma, c.taps)

    def filling(self, images, window, rng, *, negative: bool):
        """What stands in the masked places of images as `images_of` gives them."""
        c = self.config.method
        if c.strategy == "mean":
            return fills.mean(images)
        if c.strategy == "blur":
            return fills.blur(images, *self.kernel(c.blur))
        noise = (c.negative_noise_std if negative else c.noise_std) * jax.random.normal(rng, images.shape)
        if not c.tile_noise:
            return noise
        return jnp.where((window[:, 2] > 0)[:, None, None, None], noise, fills.tiled(noise, c.grid))

    def masked_images(self, images, batch, rng, chosen=None):
        """{view or hard negative: images as the encoders see them}.

        images: of `images_of`. chosen: {name of a rule: its cells}, in place of the batch's.
        """
        found = {view.name: x for view, x in zip(self.views, images, strict=True)}
        for view, clean in zip(self.views, images, strict=True):
            for rule in rules_of(view):
                rng, to_fill = jax.random.split(rng)
                window = batch[f"{rule.name}_window"]
                hidden = (chosen or {}).get(rule.name, batch[f"{rule.name}_cells"])
                hidden = cells.hidden_pixels(hidden, window, view.crop.size, keep_window=rule.keep_window)
                filling = self.filling(clean, window, to_fill, negative=rule.name != view.name)
                found[rule.name] = jnp.where(hidden, filling, clean)
        return found

    def features(self, params, model_state, images, *, kind: str):
        """The last map's mean over positions, (B, out_width); of high-passed images where that is the strategy [C]."""
        variables = {"params": params["encoder"], "batch_stats": model_state["batch_stats"]["encoder"]}
        images = self.filtered(base.normalize(images, self.config.data.mean, self.config.data.std))
        return average_pool(self.encoder.apply(variables, images, train=False))

    def pictures(self, params, model_state, batch):
        """Both views; the host's map of what is salient in them; what the encoders see of them where masked."""
        masked = self.masked_images(self.images_of(batch), batch, jax.random.key(0))
        mean = 0.5 if self.config.method.strategy == "high_pass" else self.config.data.mean
        drawn = {f"{name}_masked": base.denormalize(x, mean, self.config.data.std) for name, x in masked.items()}
        for view in self.views:
            drawn[view.name] = base.picture_of(batch, view)
            if view.find(CellMask):
                drawn[f"{view.name}_saliency"] = heat(batch[view.key("activation")], view.crop.size)
        return {name: drawn[name] for name in self.picture_names}


class MaskedMoCo(Masking, MoCoV2):
    """Saliency-guided masking on MoCo v2: hard negatives are keys of the EMA encoder that nobody else contrasts with.

    Of MoCo v2's fields, symmetric is off.
    """

    def loss(self, params, carried, batch, rng):
        """The contrast of a batch."""
        images = self.images_of(batch)
        chosen = self.chosen_by_the_target(carried, images, batch) if self.config.method.provider == "ema" else None
        seen = self.masked_images(images, batch, jax.random.fold_in(rng, TO_FILL), chosen)
        names = [view.name for view in self.views] + self.hard_negatives()[0]
        out = self.step(params, carried, [seen[name] for name in names], rng)
        return self.reported(out, candidates=out["logits"].shape[1])

    def one_way(self, params, state, target, target_state, queue, views, rng):
        """MoCo v2's, and one more logit for every hard negative of a query: views[2:], each a batch of images."""
        out, state, target_state = super().one_way(params, state, target, target_state, queue, views[:2], rng)
        if len(views) == 2:
            return out, state, target_state
        # Each in a pass of its own, in a random order of its own, so that BatchNorm treats them as keys.
        hard = []
        for i, images in enumerate(views[2:]):
            order = jax.random.fold_in(rng, TO_NEGATIVES + i)
            feature_map, target_state = self.key_maps(target, target_state, images, order)
            hard.append(jax.lax.stop_gradient(self.project(target, feature_map)))
        c = self.config.method
        weighted = {"hard": jnp.stack(hard, axis=1), "hard_weight": c.hard_weight}
        logits = losses.queue_logits(out["q_raw"], out["k_raw"], queue["keys"], c.temperature, **weighted)
        loss, accuracy = losses.first_of(logits)
        out |= {"hard_raw": weighted["hard"], "logits": logits, "loss": loss, "accuracy": accuracy}
        return out, state, target_state

    def chosen_by_the_target(self, carried, images, batch):
        """{rule: cells}: the batch's in the warm-up, afterwards drawn again from what the EMA encoder looks at."""
        c, chosen = self.config.method, {}
        target, state = carried.target_params["encoder"], carried.target_state["batch_stats"]["encoder"]
        for view, clean in zip(self.views, images, strict=True):
            if not rules_of(view):
                continue
            seen = self.encoder.apply({"params": target, "batch_stats": state}, clean, train=False)
            activation = jax.lax.stop_gradient(seen.astype(jnp.float32).sum(axis=-1))
            activation = jax.image.resize(activation, (len(clean), c.grid, c.grid), "linear")
            for rule in rules_of(view):
                noise, ratio = batch[f"{rule.name}_noise"], batch[f"{rule.name}_ratio"]
                redrawn = cells.choose(
                    activation, noise, ratio, spread=c.spread, background=rule.background, cap=rule.cap
                )
                chosen[rule.name] = jnp.where(carried.progress < c.ema_warmup, batch[f"{rule.name}_cells"], redrawn)
        return chosen


class MaskedSimCLR(Masking, SimCLR):
    """Saliency-guided masking on SimCLR; the paper has results of it, no code: all of this is our choice.

    The first view is masked where MoCo v2's query would be. hard_grad: whether gradient reaches the hard negatives,
    off. hard_both: the second view's anchors have hard negatives, too, made of the first view; off. augment: colours.
    """

    def step(self, params, carried, views, hard=((), ())):
        """SimCLR's, and one more logit for every hard negative of an anchor.

        hard: for the first and for the second view's anchors, a batch of images each.
        """
        out, c = super().step(params, carried, views), self.config.method
        if not hard[0]:
            return out

        def project(images):
            # The statistics of masked images are nothing to evaluate with: they are left out of the running ones.
            z = self.embed_and_project(params, carried.model_state, images)[1]
            return z if c.hard_grad else jax.lax.stop_gradient(z)

        rows = [jnp.stack([project(images) for images in of_view], axis=1) for of_view in hard if of_view]
        first, second = jnp.split(out["z"], 2)
        weighted = {"hard": jnp.concatenate(rows), "hard_weight": c.hard_weight}
        loss, accuracy = losses.nt_xent(first, second, c.temperature, **weighted)
        return out | {"loss": loss, "accuracy": accuracy}

    def loss(self, params, carried, batch, rng):
        """The contrast of a batch."""
        seen = self.masked_images(self.images_of(batch), batch, jax.random.fold_in(rng, TO_FILL))
        hard = tuple([seen[name] for name in names] for names in self.hard_negatives())
        out = self.step(params, carried, [seen[view.name] for view in self.views], hard)
        metrics = {
            "loss": out["loss"],
            **base.contrast_metrics(out["loss"], out["accuracy"], out["z"].shape[0] - 1 + len(hard[0])),
            **losses.spread(out["pooled"]),
        }
        return out["loss"], base.Aux(metrics, jax.lax.stop_gradient(out["model_state"]))


FRAMEWORKS = {"moco_v2": MaskedMoCo, "simclr": MaskedSimCLR}


def saliency_masking(config) -> base.Method:
    """The method on the framework that `config.method.framework` names. Raises UserError for an unknown one."""
    base.check_choice("method.framework", config.method.framework, FRAMEWORKS)
    return FRAMEWORKS[config.method.framework](config)


def check(config) -> None:
    """Raises UserError where fields of the masks are unknown, out of range, or do not fit the images."""
    c, (height, width) = config.method, config.data.image_size
    base.resnet_of(config)
    base.check_choice("method.strategy", c.strategy, STRATEGIES)
    base.check_choice("method.masked", c.masked, MASKED)
    base.check_choice("method.provider", c.provider, PROVIDERS)
    for field in ("ratio", "negative_ratio"):
        low, high = getattr(c, field)
        if not 0.0 <= low <= high <= 1.0:
            raise UserError(f"method.{field}={(low, high)} is not a range: use 0 <= low <= high <= 1")
    for field in ("focal_p", "channelwise_p", "ema_warmup"):
        base.check_range(f"method.{field}", getattr(c, field), 0.0, 1.0)
    for field in ("focal_window", "negative_window"):
        base.check_range(f"method.{field}", getattr(c, field), 1, fills.FULL_SIZE)
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


def rules_of(view) -> tuple[CellRule, ...]:
    """The masks of a view."""
    masks = view.find(CellMask)
    return masks.rules if masks else ()


def heat(activation, size: tuple[int, int]):
    """(B, G, G) -> (B, H, W, 3) in 0..1: blue the lowest cell of a map, over white, to red, the highest."""
    low, high = activation.min(axis=(1, 2), keepdims=True), activation.max(axis=(1, 2), keepdims=True)
    level = ((activation - low) / jnp.maximum(high - low, 1e-12))[..., None]
    colours = jnp.concatenate([2 * level, 2 - 2 * jnp.maximum(level, 1 - level), 2 - 2 * level], axis=-1)
    return cells.to_pixels(jnp.clip(colours, 0.0, 1.0), size)
