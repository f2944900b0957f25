"""SimMIM: A Simple Framework for Masked Image Modeling (Xie et al., CVPR 2022, arXiv 2111.09886), outside the package.

    python -m maskcl_jax.main --config=examples/simmim.py

A method in one file: its class, and a config that names it. Numbers: microsoft/SimMIM at 0e71746, ViT-B for 800 epochs.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from maskcl_jax.config import SMALL_VIT, Config, build
from maskcl_jax.errors import UserError
from maskcl_jax.methods import Arrays, LossOutput, Method, StepContext, encoders, options
from maskcl_jax.models.vit import ViT
from maskcl_jax.ops import masking, normalization


class SimMIM(Method):
    """The encoder sees mask tokens instead of masked patches; one linear layer predicts their pixels."""

    picture_names = ("input", "masked", "prediction")

    def __init__(self, config: Any):
        self.config, self.patch = config, config.model.patch_size
        self.encoder = encoders.vit(config, positions="mae")
        if config.method.mask_patch_size % self.patch:
            raise UserError(
                f"method.mask_patch_size={config.method.mask_patch_size} is not a multiple of model.patch_size="
                f"{self.patch}: change one of them"
            )
        mask = options.patch_mask(config, self.encoder.grid, block=config.method.mask_patch_size // self.patch)
        self.num_patches = mask.num_patches
        self.views = (options.view(config, ingredients=(mask,)),)
        self.head = nn.Dense(self.patch**2 * config.data.channels, dtype=jnp.dtype(config.dtype))

    def init(self, rng: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """params: encoder, mask_token, head; no further state."""
        to_encoder, to_token, to_head = jax.random.split(rng, 3)
        images = jnp.zeros((1, *self.encoder.image_size, self.encoder.channels))
        params = {
            "encoder": self.encoder.init(to_encoder, images)["params"],
            "mask_token": 0.02 * jax.random.truncated_normal(to_token, -1.0, 1.0, (self.encoder.width,)),
            "head": self.head.init(to_head, jnp.zeros((1, self.encoder.width)))["params"],
        }
        return params, {}

    def preprocess(self, images: jax.Array) -> jax.Array:
        """(x / 255 - mean) / std."""
        return normalization.normalize(images, self.config.data.mean, self.config.data.std)

    def loss(self, params: dict[str, Any], batch: Arrays, context: StepContext) -> LossOutput:
        """The L1 distance between prediction and image, over the masked pixels."""
        images, mask = self.preprocess(batch["image"]), masking.mask_of(batch["visible"], self.num_patches)
        x, y = masking.patchify(images, self.patch), self.predict(params, images, mask)
        # 4. L = ||y_M - x_M||_1 / |x_M|.
        error = jnp.abs(y - x).mean(axis=-1)
        loss = jnp.sum(mask * error) / jnp.sum(mask)
        return LossOutput(loss, {"loss": loss}, context.model_state)

    def predict(self, params: dict[str, Any], images: jax.Array, mask: jax.Array) -> jax.Array:
        """Preprocessed images, mask (B, N) with 1 where a patch is masked -> (B, N, pixels of a patch) float32."""
        variables = {"params": params["encoder"]}
        # 1. Every masked patch is replaced by a learned token vector; their positions differ.
        token = {"mask": mask, "mask_token": params["mask_token"]}
        tokens = self.encoder.apply(variables, images, **token, method=ViT.embed)
        # 2. The encoder sees all patches, masked or not.
        z = self.encoder.apply(variables, tokens, method=ViT.encode)[:, 1:]
        # 3. The prediction head: one linear layer.
        return self.head.apply({"params": params["head"]}, z).astype(jnp.float32)

    def encoder_variables(self, params, model_state, *, target: bool = False) -> dict[str, Any]:
        """A ViT has parameters only."""
        return {"params": params["encoder"]}

    def features(self, params, model_state, images, *, kind: str) -> jax.Array:
        """After the final norm of an unmasked pass."""
        variables = self.encoder_variables(params, model_state)
        return encoders.features(self.encoder, variables, self.preprocess(images), kind=kind)

    def pictures(self, params, model_state, batch: Arrays) -> dict[str, jax.Array]:
        """The image, what is left of it, and the prediction in the masked places."""
        images, mask = self.preprocess(batch["image"]), masking.mask_of(batch["visible"], self.num_patches)
        x, hidden = masking.patchify(images, self.patch), mask[:, :, None] == 1
        filled = {"input": x, "masked": jnp.where(hidden, 0.0, x)}
        filled["prediction"] = jnp.where(hidden, self.predict(params, images, mask), x)
        mean, std, size = self.config.data.mean, self.config.data.std, self.encoder.image_size
        return {
            name: normalization.denormalize(masking.unpatchify(patches, self.patch, size), mean, std)
            for name, patches in filled.items()
        }


METHOD = {
    "name": "examples.simmim:SimMIM",
    "mask_ratio": 0.6,
    "mask_patch_size": 32,  # pixels
}
# Our choice for images of 32 pixels.
SMALL = {**SMALL_VIT, "method.mask_patch_size": 8, "optimizer.base_lr": 1e-3, "epochs": 5, "batch_size": 64}
PRESETS: dict[str, dict[str, Any]] = {
    "embedded": SMALL,
    "synthetic": SMALL,
    "imagenet": {  # not run by us; the released schedule has a step after 700 epochs, ours is a cosine
        "variant": "B/16",
        "epochs": 800,
        "batch_size": 2048,
        "dtype": "bfloat16",
        "augment.crop_scale": (0.67, 1.0),
        "optimizer.base_lr": 5e-5,  # per 256 images
        "optimizer.warmup_epochs": 10.0,
    },
}


def get_config(argument: str | None = None) -> Config:
    """The config for `preset,key=value,...`."""
    return build(argument, method=METHOD, presets=PRESETS)
