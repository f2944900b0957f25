"""MoCo v2: Improved Baselines with Momentum Contrastive Learning (Chen, Fan, Girshick, He, 2020, arXiv 2003.04297).

A query must find the key of the other view of its image among the keys of earlier batches; keys come from an EMA of
the encoder and wait in a queue. Faithful to facebookresearch/moco at 78b69ca (outputs, gradients, EMA, queue and
BatchNorm statistics of a step: `verify`).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.shard_alike import shard_alike

from maskcl_jax.errors import UserError
from maskcl_jax.methods import contrast, encoders, options
from maskcl_jax.methods.base import Arrays, LossOutput, Method, StepContext
from maskcl_jax.methods.encoders import apply_in_training, init_heads
from maskcl_jax.models.heads import MLP
from maskcl_jax.models.resnet import average_pool
from maskcl_jax.ops import losses, normalization
from maskcl_jax.views.base import View


class MoCoV2(Method):
    """MoCo v2; `configs/moco_v2.py` explains its fields of `config.method`."""

    picture_names: tuple[str, ...] = ("query", "key")
    feature_kinds = ("mean",)
    ema_first = True

    def __init__(self, config: Any):
        c = config.method
        contrast.check_contrast(config)
        contrast.check_target(config)
        self.config = config
        self.check_queue()
        self.encoder = encoders.resnet(config, bn_group_size=c.bn_group_size)
        self.projector = self.new_projector()
        self.views = self.new_views()

    @property
    def keys_per_step(self) -> int:
        """Keys that enter the queue at every step."""
        return self.config.batch_size * (2 if self.config.method.symmetric else 1)

    def check_queue(self) -> None:
        """Raises UserError if the queue is not a whole number of steps long."""
        size, step, batch = self.config.method.queue_size, self.keys_per_step, self.config.batch_size
        if size < step or size % step:
            raise UserError(
                f"method.queue_size={size} is not a multiple of the {step} keys of a step (batch_size={batch}, "
                f"{step // batch} an image): use for instance {max(1, size // step) * step}"
            )

    def new_projector(self) -> MLP:
        """Linear layers with ReLU between them, without BatchNorm; the hidden ones as wide as the features."""
        c = self.config.method.projector
        if c.layers < 1:
            raise UserError(f"method.projector.layers={c.layers} is out of range: use 1 or more")
        return MLP(
            sizes=(self.encoder.out_width,) * (c.layers - 1) + (c.out,),
            norms=("none",) * c.layers,
            biases=tuple(range(c.layers)),
            dtype=jnp.dtype(self.config.dtype),
        )

    def new_views(self) -> tuple[View, ...]:
        """Two crops, each with its color augmentation."""
        return tuple(
            options.view(self.config, name=name, ingredients=(options.color(self.config, f"{name}_augment"),))
            for name in ("query", "key")
        )

    # --- State ------------------------------------------------------------------------------------------------
    def init(self, rng: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """params: encoder, projector; state: batch_stats, the target's own target_batch_stats, queue."""
        c, (to_networks, to_queue) = self.config.method, jax.random.split(rng)
        params, stats = self.init_networks(to_networks)
        queue = losses.new_queue(to_queue, c.queue_size, c.projector.out)
        return params, {"batch_stats": stats, "target_batch_stats": self.key_networks(stats), "queue": queue}

    def init_networks(self, rng: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns (params, batch_stats), each with one entry per network."""
        to_encoder, to_heads = jax.random.split(rng)
        images = jnp.zeros((2, *self.config.data.image_size, self.config.data.channels))
        encoder = self.encoder.init(to_encoder, images, train=True)
        projector, _ = init_heads({"projector": (self.projector, self.encoder.out_width)}, to_heads)
        return {"encoder": encoder["params"], **projector}, {"encoder": encoder["batch_stats"]}

    def target_params(self, params: dict[str, Any]) -> dict[str, Any]:
        """The parameters of the networks that compute the keys."""
        return self.key_networks(params)

    def key_networks(self, networks: dict[str, Any]) -> dict[str, Any]:
        """Of parameters or statistics, those of the networks that compute the keys; all, unless a subclass differs."""
        return networks

    def momentum(self, progress: jax.Array | float) -> jax.Array:
        """Fixed, or rising to 1 along half a cosine."""
        return contrast.momentum_at(self.config.method.momentum, self.config.method.momentum_schedule, progress)

    # --- Loss -------------------------------------------------------------------------------------------------
    def preprocess(self, images: jax.Array) -> jax.Array:
        """(x / 255 - mean) / std."""
        return normalization.normalize(images, self.config.data.mean, self.config.data.std)

    def loss(self, params: dict[str, Any], batch: Arrays, context: StepContext) -> LossOutput:
        """The contrast of every query with its key and those of the queue."""
        out = self.forward(params, context, self.images_of(batch))
        return self.output(out, candidates=out["logits"].shape[1])

    def forward(self, params: dict[str, Any], context: StepContext, views: Sequence[Any]) -> dict[str, Any]:
        """All intermediates of one step, by name; views: the two views, preprocessed."""
        first_rng, second_rng = jax.random.split(context.rng)
        out = self.one_way(params, context._replace(rng=first_rng), views)
        keys = out["k_raw"]
        if self.config.method.symmetric:
            context = context._replace(model_state=out["model_state"], rng=second_rng)
            other = self.one_way(params, context, views[::-1])
            keys = jnp.concatenate([keys, other["k_raw"]])
            out |= {name: (out[name] + other[name]) / 2 for name in ("loss", "accuracy")}
            out["model_state"] = other["model_state"]
        # 5, after 1 to 4 in `one_way`. The oldest keys leave the queue, these enter.
        state = out["model_state"]
        return out | {"model_state": state | {"queue": losses.enqueue(state["queue"], keys)}}

    def one_way(self, params: dict[str, Any], context: StepContext, views: Sequence[Any]) -> dict[str, Any]:
        """Queries of the first view against keys of the second: all intermediates, by name."""
        c, state = self.config.method, context.model_state
        # 1. Queries q: encoder and projector.
        query_map, stats = self.maps(params, state["batch_stats"], views[0])
        q = self.project(params, query_map)
        # 2. Keys k: the EMA networks, which have already moved in this step.
        target = jax.lax.stop_gradient(context.target_params)
        key_map, target_stats = self.key_maps(target, state["target_batch_stats"], views[1], context.rng)
        k = jax.lax.stop_gradient(self.project(target, key_map))
        # 3. The logits q k / tau: the positive first, then the queue; the keys of this step enter it later.
        logits = losses.queue_logits(q, k, state["queue"]["keys"], c.temperature)
        # 4. Cross-entropy.
        loss, accuracy = losses.nce_from_logits(logits)
        return {
            "q_raw": q,
            "k_raw": k,
            "logits": logits,
            "loss": loss,
            "accuracy": accuracy,
            "pooled": average_pool(query_map),
            "model_state": state | {"batch_stats": stats, "target_batch_stats": target_stats},
        }

    def maps(
        self, params: dict[str, Any], stats: dict[str, Any], images: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        """(the encoder's last feature map, updated statistics), in training mode."""
        return apply_in_training(self.encoder, "encoder", params, stats, images)

    def key_maps(
        self, target: dict[str, Any], target_stats: dict[str, Any], images: jax.Array, rng: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        """`maps` of the EMA encoder, without gradient; with shuffle_bn, on BatchNorm groups of random images."""
        c = self.config.method
        if not (c.shuffle_bn and c.bn_group_size):
            maps, target_stats = self.maps(target, target_stats, images)
            return jax.lax.stop_gradient(maps), target_stats
        order = jax.random.permutation(rng, images.shape[0])
        # Left alone, the partitioner gives every device all shuffled images, and each computes all keys.
        shuffled, _ = shard_alike(images[order], images)
        maps, target_stats = self.maps(target, target_stats, shuffled)
        return jax.lax.stop_gradient(maps[jnp.argsort(order)]), target_stats

    def project(self, params: dict[str, Any], feature_map: jax.Array) -> jax.Array:
        """A map of the encoder (B, h, w, C) -> (B, out)."""
        return self.projector.apply({"params": params["projector"]}, average_pool(feature_map), train=True)

    def images_of(self, batch: Arrays) -> list[jax.Array]:
        """The two views, preprocessed."""
        return [options.network_images(self.config, batch, view) for view in self.views]

    def output(self, out: dict[str, Any], *, candidates: int | jax.Array, **metrics: jax.Array) -> LossOutput:
        """The `LossOutput` of the intermediates; candidates: the number of keys that a query is compared with."""
        metrics |= contrast.metrics(out["loss"], out["accuracy"], out["pooled"], candidates=candidates)
        return LossOutput(out["loss"], {"loss": out["loss"], **metrics}, out["model_state"])

    # --- Evaluation -------------------------------------------------------------------------------------------
    def encoder_variables(
        self, params: dict[str, Any], model_state: dict[str, Any], *, target: bool = False
    ) -> dict[str, Any]:
        """The target's encoder has BatchNorm statistics of its own."""
        stats = model_state["target_batch_stats" if target else "batch_stats"]
        return {"params": params["encoder"], "batch_stats": stats["encoder"]}

    def pictures(self, params: dict[str, Any], model_state: dict[str, Any], batch: Arrays) -> dict[str, jax.Array]:
        """Both views."""
        return {view.name: options.float_images(batch, view) for view in self.views}
