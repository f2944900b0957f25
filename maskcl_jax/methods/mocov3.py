"""MoCo v3: An Empirical Study of Training Self-Supervised Vision Transformers (Chen, Xie, He, ICCV 2021, 2104.02057).

Two views of an image; each one's query must find the other's key among those of the batch; keys come from an EMA of
the encoder. The patch projection stays random, which keeps a ViT's training stable. Faithful to the released code,
facebookresearch/moco-v3 at c349e6e (outputs, gradients, EMA and BatchNorm statistics of a step: `verify`).
"""

import jax
import jax.numpy as jnp

from maskcl_jax.methods import base
from maskcl_jax.models.batch_norm import apply_in_training
from maskcl_jax.models.heads import MLP, init_mlps
from maskcl_jax.models.vit import ViT
from maskcl_jax.ops import losses


class MoCoV3(base.Method):
    """Fields of `config.method`, with the source of each value ([C] the released code, for ViT):

    temperature 0.2 [C]. momentum 0.99, momentum_schedule "cosine" to 1 [C] ("fixed": our choice).
    projector: three layers, hidden 4096, out 256 [C]; predictor: two, hidden 4096 [C].
    freeze_patch_embed: the random patch projection [C].
    query_augment, key_augment: colours of the two views; [C] blurs them with probability 1.0 and 0.1, solarises them
      with 0 and 0.2.
    bn_group_size: 0, statistics of the whole batch [C, SyncBN], each view on its own [C].
    """

    picture_names = ("query", "key")
    ema_first = True

    def __init__(self, config):
        c = config.method
        base.check_contrast(config)
        base.check_target(c)
        self.config = config
        self.encoder = base.encoder_of(config, positions="mocov3", init_rule="mocov3")
        self.frozen = (("encoder", "patch_embed"),) if c.freeze_patch_embed else ()
        head = {"bn_group_size": c.bn_group_size, "dtype": jnp.dtype(config.dtype)}
        hidden, out = c.projector.hidden, c.projector.out
        self.projector = MLP(sizes=(hidden, hidden, out), norms=("affine", "affine", "plain"), **head)
        self.predictor = MLP(sizes=(c.predictor.hidden, out), norms=("affine", "plain"), **head)
        self.views = tuple(
            base.view_of(config, name=name, ingredients=(base.color_of(config, f"{name}_augment"),))
            for name in ("query", "key")
        )

    def init(self, rng):
        """(params {encoder, projector, predictor}, {batch_stats: {projector, predictor}})."""
        to_encoder, to_heads = jax.random.split(rng)
        images = jnp.zeros((2, *self.encoder.image_size, self.encoder.channels))
        heads = {
            "projector": (self.projector, self.encoder.width),
            "predictor": (self.predictor, self.config.method.projector.out),
        }
        params, state = init_mlps(heads, to_heads)
        return {"encoder": self.encoder.init(to_encoder, images)["params"], **params}, state

    def target_of(self, params):
        """Encoder and projector; the predictor has no counterpart."""
        return {"encoder": params["encoder"], "projector": params["projector"]}

    def target_state_of(self, model_state):
        """The projector's statistics."""
        return {"batch_stats": {"projector": model_state["batch_stats"]["projector"]}}

    def momentum(self, progress):
        """From `momentum` to 1 along half a cosine, or fixed."""
        return base.momentum_at(self.config.method, progress)

    def cls(self, params, images):
        """The cls token after the final norm, (B, D)."""
        encoder = self.encoder.bind({"params": params["encoder"]})
        return encoder.encode_cls(encoder.embed(images))

    def step(self, params, carried, views):
        """Every intermediate of one step, by name; views: two batches of normalised images."""
        c = self.config.method
        state, target_state = carried.model_state, carried.target_state
        if c.freeze_patch_embed:
            still = jax.lax.stop_gradient(params["encoder"]["patch_embed"])
            params = {**params, "encoder": {**params["encoder"], "patch_embed": still}}
        out = {}
        # 1. Queries: encoder, projector, predictor; each view a call of its own, so BatchNorm sees one view at a time.
        for i, images in enumerate(views, start=1):
            out[f"cls{i}"] = self.cls(params, images)
            out[f"z{i}"], state = apply_in_training(self.projector, params, state, "projector", out[f"cls{i}"])
            out[f"q{i}"], state = apply_in_training(self.predictor, params, state, "predictor", out[f"z{i}"])
        # 2. Keys: the EMA encoder and projector, already moved towards the online ones in this step.
        target = jax.lax.stop_gradient(carried.target_params)
        for i, images in enumerate(views, start=1):
            key, target_state = apply_in_training(
                self.projector, target, target_state, "projector", self.cls(target, images)
            )
            out[f"k{i}"] = jax.lax.stop_gradient(key)
        # 3. Each query finds the key of the other view; 2 T undoes the temperature's effect on the gradient's size.
        first, first_accuracy = losses.info_nce(out["q1"], out["k2"], c.temperature)
        second, second_accuracy = losses.info_nce(out["q2"], out["k1"], c.temperature)
        out["loss_q1k2"], out["loss_q2k1"] = 2 * c.temperature * first, 2 * c.temperature * second
        out["loss"] = out["loss_q1k2"] + out["loss_q2k1"]
        out["accuracy"] = (first_accuracy + second_accuracy) / 2
        out["model_state"], out["target_state"] = jax.lax.stop_gradient((state, target_state))
        return out

    def loss(self, params, carried, batch, rng):
        """The two contrasts, added."""
        pictures = [base.picture_of(batch, view) for view in self.views]
        out = self.step(params, carried, [self.standardized(x) for x in pictures])
        scale = 4 * self.config.method.temperature
        metrics = {
            "loss": out["loss"],
            **base.contrast_metrics(out["loss"], out["accuracy"], pictures[0].shape[0], scale),
            **losses.spread(out["cls1"]),
        }
        return out["loss"], base.Aux(metrics, out["model_state"], out["target_state"])

    def standardized(self, images):
        """Images in 0..1 as the networks take them."""
        return base.standardize(images, self.config.data.mean, self.config.data.std)

    def features(self, params, model_state, images, *, kind: str):
        """The cls token (the paper's), or the mean of the patch tokens, after the final norm."""
        images = self.standardized(images.astype(jnp.float32) / 255.0)
        return base.pooled(self.encoder.apply({"params": params["encoder"]}, images, method=ViT.__call__), kind)

    def pictures(self, params, model_state, batch):
        """The two views as the networks see them."""
        return {view.name: base.picture_of(batch, view) for view in self.views}
