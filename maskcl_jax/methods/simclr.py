"""SimCLR: A Simple Framework for Contrastive Learning of Visual Representations (Chen et al., ICML 2020, 2002.05709).

Two views of an image, one network; each view must find the other among all others of the batch. The numbers are those
of the released code, google-research/simclr at 1e7f15d (tf2), of which there are no reference values: the loss is
checked against its formula in the tests.
"""

import jax
import jax.numpy as jnp

from maskcl_jax.errors import UserError
from maskcl_jax.methods import base
from maskcl_jax.models.batch_norm import apply_in_training
from maskcl_jax.models.heads import MLP, init_mlps
from maskcl_jax.models.resnet import average_pool
from maskcl_jax.models.vit import ViT
from maskcl_jax.ops import losses


class SimCLR(base.Method):
    """Fields of `config.method`, with the source of each value ([C] the released code, [P] the paper):

    temperature 0.1 [C]. projector: layers 3 [C], 2 [P], each as wide as the features but for the last, out 128 [C]; a
      BatchNorm after each, ReLU between them [C]. (The last one's has a bias here, which the code's lacks: our choice.)
    augment: colours of both views [C]. bn_group_size 0: statistics of the whole batch, both views together [C].
    The encoder is a ResNet [C] or, by `config.model`, a ViT, whose cls token is contrasted (our choice, after MoCo v3's
    comparison).
    """

    picture_names = ("first", "second")

    def __init__(self, config):
        c = config.method
        base.check_contrast(config)
        if c.projector.layers < 1:
            raise UserError(f"method.projector.layers={c.projector.layers} is out of range: use 1 or more")
        self.config = config
        self.on_vit = hasattr(config.model, "patch_size")
        if self.on_vit:
            self.encoder = base.encoder_of(config, positions="mocov3", init_rule="mocov3")
            self.width = self.encoder.width
        else:
            self.encoder = base.resnet_of(config, bn_group_size=c.bn_group_size)
            self.width, self.feature_kinds = self.encoder.out_width, ("mean",)
        layers = c.projector.layers
        self.projector = MLP(
            sizes=(self.width,) * (layers - 1) + (c.projector.out,),
            norms=("affine",) * layers,
            bn_group_size=c.bn_group_size,
            dtype=jnp.dtype(config.dtype),
        )
        self.views = self.new_views()

    def new_views(self):
        """Two crops in colours of the same kind."""
        augmentation = base.color_of(self.config, "augment")
        return tuple(base.view_of(self.config, name=name, ingredients=(augmentation,)) for name in self.picture_names)

    def init(self, rng):
        """(params {encoder, projector}, {batch_stats: {projector, and the ResNet's encoder}})."""
        to_encoder, to_heads = jax.random.split(rng)
        images = jnp.zeros((2, *self.config.data.image_size, self.config.data.channels))
        options = {} if self.on_vit else {"train": True}
        encoder = self.encoder.init(to_encoder, images, **options)
        params, state = init_mlps({"projector": (self.projector, self.width)}, to_heads)
        if not self.on_vit:
            state = {"batch_stats": {**state["batch_stats"], "encoder": encoder["batch_stats"]}}
        return {"encoder": encoder["params"], **params}, state

    def embed(self, params, state, images):
        """(features (B, D), new state) of normalised images in training."""
        if self.on_vit:
            return base.pooled(self.encoder.apply({"params": params["encoder"]}, images), "cls"), state
        feature_map, state = apply_in_training(self.encoder, params, state, "encoder", images)
        return average_pool(feature_map), state

    def embed_and_project(self, params, state, images):
        """(features (B, D), projections (B, out), new state) of normalised images in training."""
        features, state = self.embed(params, state, images)
        z, state = apply_in_training(self.projector, params, state, "projector", features)
        return features, z, state

    def images_of(self, batch):
        """The two views, normalised."""
        mean, std = self.config.data.mean, self.config.data.std
        return [base.standardize(base.picture_of(batch, view), mean, std) for view in self.views]

    def step(self, params, carried, views):
        """Every intermediate of one step, by name; views: two batches of normalised images."""
        # 1. Both views in one batch: BatchNorm sees them together.
        features, z, state = self.embed_and_project(params, carried.model_state, jnp.concatenate(views))
        # 2. Each finds its other view among the 2 B - 1 others.
        loss, accuracy = losses.nt_xent(*jnp.split(z, 2), self.config.method.temperature)
        return {"pooled": features, "z": z, "loss": loss, "accuracy": accuracy, "model_state": state}

    def loss(self, params, carried, batch, rng):
        """The contrast of a batch."""
        out = self.step(params, carried, self.images_of(batch))
        metrics = {
            "loss": out["loss"],
            **base.contrast_metrics(out["loss"], out["accuracy"], out["z"].shape[0] - 1),
            **losses.spread(out["pooled"]),
        }
        return out["loss"], base.Aux(metrics, jax.lax.stop_gradient(out["model_state"]))

    def features(self, params, model_state, images, *, kind: str):
        """A ResNet's last map averaged over positions; a ViT's cls token or mean of the patch tokens."""
        images = base.normalize(images, self.config.data.mean, self.config.data.std)
        if self.on_vit:
            return base.pooled(self.encoder.apply({"params": params["encoder"]}, images, method=ViT.__call__), kind)
        variables = {"params": params["encoder"], "batch_stats": model_state["batch_stats"]["encoder"]}
        return average_pool(self.encoder.apply(variables, images, train=False))

    def pictures(self, params, model_state, batch):
        """Both views."""
        return {view.name: base.picture_of(batch, view) for view in self.views}
