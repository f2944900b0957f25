"""MoCo v2: Improved Baselines with Momentum Contrastive Learning (Chen, Fan, Girshick, He, 2020, arXiv 2003.04297).

A query must find the key of the other view of its image among the keys of earlier batches; keys come from an EMA of
the encoder and wait in a queue. Faithful to facebookresearch/moco at 78b69ca (outputs, gradients, EMA, queue and
BatchNorm statistics of a step: `verify`).
"""

import jax
import jax.numpy as jnp

from maskcl_jax.errors import UserError
from maskcl_jax.methods import base
from maskcl_jax.models.batch_norm import apply_in_training
from maskcl_jax.models.heads import MLP, init_mlps
from maskcl_jax.models.resnet import average_pool
from maskcl_jax.ops import losses


class MoCoV2(base.Method):
    """Fields of `config.method`, with the source of each value ([C] the released code, [D] its demo for CIFAR-10):

    temperature 0.2 [C], 0.1 [D]. momentum 0.999 [C], 0.99 [D]; fixed [C], or momentum_schedule "cosine" (our choice).
    queue_size 65536 [C], 4096 [D]: keys.
    projector: layers 2 (the hidden one as wide as the features), out 128 [C]; 1 [D]. No BatchNorm in it [C].
    bn_group_size: images that share BatchNorm statistics, 32 [C, D]; 0: all of the batch, which lets the network
      recognise its own batch. shuffle_bn: keys are encoded in a random order, so that a query and its key do not share
      their statistics [C]; here on any number of devices.
    symmetric: each view is query and key in turn [D, off].
    query_augment, key_augment: colours of the two views, alike in [C].
    """

    picture_names = ("query", "key")
    feature_kinds = ("mean",)
    ema_first = True

    def __init__(self, config):
        c = config.method
        base.check_contrast(config)
        base.check_target(c)
        self.config = config
        self.check_queue()
        self.encoder = base.resnet_of(config, bn_group_size=c.bn_group_size)
        self.projector = self.new_projector()
        self.views = self.new_views()

    @property
    def keys_per_step(self) -> int:
        """Keys that enter the queue at every step."""
        return self.config.batch_size * (2 if self.config.method.symmetric else 1)

    def check_queue(self) -> None:
        """Raises UserError where the queue is not a whole number of steps long."""
        size, step, batch = self.config.method.queue_size, self.keys_per_step, self.config.batch_size
        if size < step or size % step:
            raise UserError(
                f"method.queue_size={size} is not a multiple of the {step} keys of a step (batch_size={batch}, "
                f"{step // batch} an image): use for instance {max(1, size // step) * step}"
            )

    def new_projector(self) -> MLP:
        """Linear layers with ReLU between them."""
        c = self.config.method.projector
        if c.layers < 1:
            raise UserError(f"method.projector.layers={c.layers} is out of range: use 1 or more")
        return MLP(
            sizes=(self.encoder.out_width,) * (c.layers - 1) + (c.out,),
            norms=("none",) * c.layers,
            biases=tuple(range(c.layers)),
            dtype=jnp.dtype(self.config.dtype),
        )

    def new_views(self):
        """Two crops, each with its color augmentation."""
        return tuple(
            base.view_of(self.config, name=name, ingredients=(base.color_of(self.config, f"{name}_augment"),))
            for name in ("query", "key")
        )

    def init(self, rng):
        """(params {encoder, projector}, {batch_stats: {encoder}})."""
        to_encoder, to_heads = jax.random.split(rng)
        images = jnp.zeros((2, *self.config.data.image_size, self.config.data.channels))
        encoder = self.encoder.init(to_encoder, images, train=True)
        heads, _ = init_mlps(self.heads(), to_heads)
        return {"encoder": encoder["params"], **heads}, {"batch_stats": {"encoder": encoder["batch_stats"]}}

    def heads(self) -> dict:
        """name -> (head, width of its input)."""
        return {"projector": (self.projector, self.encoder.out_width)}

    def target_of(self, params):
        """Everything."""
        return params

    def target_state_of(self, model_state):
        """Everything: the key encoder gathers statistics of its own."""
        return model_state

    def new_queue(self, rng):
        """Random unit vectors."""
        return losses.new_queue(rng, self.config.method.queue_size, self.config.method.projector.out)

    def momentum(self, progress):
        """Fixed, or from `momentum` to 1 along half a cosine."""
        return base.momentum_at(self.config.method, progress)

    def project(self, params, feature_map):
        """A map of the encoder (B, h, w, C) -> (B, out)."""
        return self.projector.apply({"params": params["projector"]}, average_pool(feature_map), train=True)

    def maps(self, params, state, images):
        """(the encoder's last map, new state) in training."""
        return apply_in_training(self.encoder, params, state, "encoder", images)

    def key_maps(self, target, target_state, images, rng):
        """`maps` of the EMA encoder, without gradient, its BatchNorm groups made of images in random order."""
        c = self.config.method
        if not (c.shuffle_bn and c.bn_group_size):
            found, target_state = self.maps(target, target_state, images)
            return jax.lax.stop_gradient(found), target_state
        order = jax.random.permutation(rng, images.shape[0])
        found, target_state = self.maps(target, target_state, images[order])
        return jax.lax.stop_gradient(found[jnp.argsort(order)]), target_state

    def one_way(self, params, state, target, target_state, queue, views, rng):
        """Queries of the first view against keys of the second: every intermediate by name."""
        # 1. Queries.
        query_map, state = self.maps(params, state, views[0])
        # 2. Keys: the EMA network, which has already moved in this step.
        key_map, target_state = self.key_maps(target, target_state, views[1], rng)
        q_raw, k_raw = self.project(params, query_map), jax.lax.stop_gradient(self.project(target, key_map))
        # 3. The key among those that wait; this step's own enter later.
        logits = losses.queue_logits(q_raw, k_raw, queue["keys"], self.config.method.temperature)
        loss, accuracy = losses.first_of(logits)
        found = {"q_raw": q_raw, "k_raw": k_raw, "logits": logits, "loss": loss, "accuracy": accuracy}
        return found | {"pooled": average_pool(query_map)}, state, target_state

    def step(self, params, carried, views, rng):
        """Every intermediate of one step, by name; views: two batches of normalised images."""
        target = jax.lax.stop_gradient(carried.target_params)
        there, back = jax.random.split(rng)
        out, state, target_state = self.one_way(
            params, carried.model_state, target, carried.target_state, carried.queue, views, there
        )
        keys = out["k_raw"]
        if self.config.method.symmetric:
            other, state, target_state = self.one_way(
                params, state, target, target_state, carried.queue, views[::-1], back
            )
            keys = jnp.concatenate([keys, other["k_raw"]])
            out |= {name: (out[name] + other[name]) / 2 for name in ("loss", "accuracy")}
        # 4. The oldest keys leave the queue, these enter.
        left = {"model_state": state, "target_state": target_state, "queue": losses.enqueue(carried.queue, keys)}
        return out | jax.lax.stop_gradient(left)

    def images_of(self, batch):
        """The two views, normalised."""
        mean, std = self.config.data.mean, self.config.data.std
        return [base.standardize(base.picture_of(batch, view), mean, std) for view in self.views]

    def loss(self, params, carried, batch, rng):
        """The contrast of a batch."""
        out = self.step(params, carried, self.images_of(batch), rng)
        return self.reported(out, candidates=out["logits"].shape[1])

    def reported(self, out, *, candidates):
        """(loss, Aux) of a step's intermediates. candidates: keys that a query chooses from."""
        metrics = {
            "loss": out["loss"],
            **base.contrast_metrics(out["loss"], out["accuracy"], candidates),
            **losses.spread(out["pooled"]),
        }
        return out["loss"], base.Aux(metrics, out["model_state"], out["target_state"], out["queue"])

    def features(self, params, model_state, images, *, kind: str):
        """The last map's mean over positions, (B, out_width), with the running statistics."""
        variables = {"params": params["encoder"], "batch_stats": model_state["batch_stats"]["encoder"]}
        images = base.normalize(images, self.config.data.mean, self.config.data.std)
        return average_pool(self.encoder.apply(variables, images, train=False))

    def pictures(self, params, model_state, batch):
        """Both views."""
        return {view.name: base.picture_of(batch, view) for view in self.views}
