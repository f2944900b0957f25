"""MoCo v3: An Empirical Study of Training Self-Supervised Vision Transformers (Chen, Xie, He, ICCV 2021, 2104.02057).

Two views of an image; each one's query must find the other's key among those of the batch; keys come from an EMA of
the encoder. The patch projection stays random, which keeps a ViT's training stable. Faithful to the released code,
facebookresearch/moco-v3 at c349e6e (outputs, gradients, EMA and BatchNorm statistics of a step: `verify`).
"""

from typing import Any

import jax
import jax.numpy as jnp

from maskcl_jax.methods import contrast, encoders, options
from maskcl_jax.methods.base import Arrays, LossOutput, Method, StepContext
from maskcl_jax.methods.encoders import apply_in_training, init_heads
from maskcl_jax.models.heads import MLP
from maskcl_jax.models.vit import ViT
from maskcl_jax.ops import losses, normalization


class MoCoV3(Method):
    """MoCo v3; `configs/mocov3.py` explains its fields of `config.method`."""

    picture_names = ("query", "key")
    ema_first = True

    def __init__(self, config: Any):
        c = config.method
        contrast.check_contrast(config)
        contrast.check_target(config)
        self.config = config
        self.encoder = encoders.vit(config, positions="mocov3", init_rule="mocov3")
        self.frozen = (("encoder", "patch_embed"),) if c.freeze_patch_embed else ()
        head = {"bn_group_size": c.bn_group_size, "dtype": jnp.dtype(config.dtype)}
        hidden, out = c.projector.hidden, c.projector.out
        self.projector = MLP(sizes=(hidden, hidden, out), norms=("affine", "affine", "plain"), **head)
        self.predictor = MLP(sizes=(c.predictor.hidden, out), norms=("affine", "plain"), **head)
        self.views = tuple(
            options.view(config, name=name, ingredients=(options.color(config, f"{name}_augment"),))
            for name in ("query", "key")
        )

    # --- State ------------------------------------------------------------------------------------------------
    def init(self, rng: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """params: encoder, projector, predictor; state: batch_stats of the heads, target_batch_stats."""
        to_networks, _ = jax.random.split(rng)
        to_encoder, to_heads = jax.random.split(to_networks)
        images = jnp.zeros((2, *self.encoder.image_size, self.encoder.channels))
        heads = {
            "projector": (self.projector, self.encoder.width),
            "predictor": (self.predictor, self.config.method.projector.out),
        }
        params, stats = init_heads(heads, to_heads)
        state = {"batch_stats": stats, "target_batch_stats": {"projector": stats["projector"]}}
        return {"encoder": self.encoder.init(to_encoder, images)["params"], **params}, state

    def target_params(self, params: dict[str, Any]) -> dict[str, Any]:
        """Encoder and projector; the predictor has no counterpart."""
        return {"encoder": params["encoder"], "projector": params["projector"]}

    def momentum(self, progress: jax.Array | float) -> jax.Array:
        """Rising to 1 along half a cosine, or fixed."""
        return contrast.momentum_at(self.config.method.momentum, self.config.method.momentum_schedule, progress)

    # --- Loss -------------------------------------------------------------------------------------------------
    def preprocess(self, images: jax.Array) -> jax.Array:
        """(x / 255 - mean) / std."""
        return normalization.normalize(images, self.config.data.mean, self.config.data.std)

    def loss(self, params: dict[str, Any], batch: Arrays, context: StepContext) -> LossOutput:
        """The two contrasts, added."""
        x1, x2 = (options.network_images(self.config, batch, view) for view in self.views)
        out = self.forward(params, context, x1, x2)
        metrics = contrast.metrics(
            out["loss"],
            out["accuracy"],
            out["cls1"],
            candidates=x1.shape[0],
            scale=4 * self.config.method.temperature,
        )
        return LossOutput(out["loss"], {"loss": out["loss"], **metrics}, out["model_state"])

    def forward(self, params: dict[str, Any], context: StepContext, x1: jax.Array, x2: jax.Array) -> dict[str, Any]:
        """Every intermediate of one step, by name; x1, x2: the two views, preprocessed."""
        c = self.config.method
        stats, target_stats = context.model_state["batch_stats"], context.model_state["target_batch_stats"]
        if c.freeze_patch_embed:
            frozen = jax.lax.stop_gradient(params["encoder"]["patch_embed"])
            params = {**params, "encoder": {**params["encoder"], "patch_embed": frozen}}
        out: dict[str, Any] = {}
        # 1. Queries: encoder, projector, predictor; each view in a call of its own, so BatchNorm sees one at a time.
        for i, x in enumerate((x1, x2), start=1):
            out[f"cls{i}"] = self.cls(params, x)
            out[f"z{i}"], stats = apply_in_training(self.projector, "projector", params, stats, out[f"cls{i}"])
            out[f"q{i}"], stats = apply_in_training(self.predictor, "predictor", params, stats, out[f"z{i}"])
        # 2. Keys: the EMA encoder and projector, already moved towards the online ones in this step.
        target = jax.lax.stop_gradient(context.target_params)
        for i, x in enumerate((x1, x2), start=1):
            key, target_stats = apply_in_training(
                self.projector, "projector", target, target_stats, self.cls(target, x)
            )
            out[f"k{i}"] = jax.lax.stop_gradient(key)
        # 3. Each query finds the key of the other view; 2 tau undoes the temperature's effect on the gradient's size.
        first, first_accuracy = losses.info_nce(out["q1"], out["k2"], c.temperature)
        second, second_accuracy = losses.info_nce(out["q2"], out["k1"], c.temperature)
        out["loss_q1k2"], out["loss_q2k1"] = 2 * c.temperature * first, 2 * c.temperature * second
        out["loss"] = out["loss_q1k2"] + out["loss_q2k1"]
        out["accuracy"] = (first_accuracy + second_accuracy) / 2
        out["model_state"] = {"batch_stats": stats, "target_batch_stats": target_stats}
        return out

    def cls(self, params: dict[str, Any], images: jax.Array) -> jax.Array:
        """The cls token after the final norm, (B, D)."""
        variables = {"params": params["encoder"]}
        tokens = self.encoder.apply(variables, images, method=ViT.embed)
        return self.encoder.apply(variables, tokens, method=ViT.encode_cls)

    # --- Evaluation -------------------------------------------------------------------------------------------
    def encoder_variables(
        self, params: dict[str, Any], model_state: dict[str, Any], *, target: bool = False
    ) -> dict[str, Any]:
        """A ViT has parameters only."""
        return {"params": params["encoder"]}

    def pictures(self, params: dict[str, Any], model_state: dict[str, Any], batch: Arrays) -> dict[str, jax.Array]:
        """The two views as the networks see them."""
        return {view.name: options.float_images(batch, view) for view in self.views}
