"""MAE: Masked Autoencoders Are Scalable Vision Learners (He et al., CVPR 2022, arXiv 2111.06377).

The encoder sees a random quarter of the patches; a light decoder gets its output and a mask token for each other
patch, and predicts their pixels. Faithful to facebookresearch/mae at efb2a80 (outputs and gradients: `verify`).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from maskcl_jax.methods import encoders, options
from maskcl_jax.methods.base import Arrays, LossOutput, Method, StepContext
from maskcl_jax.models.vit import Decoder, ViT
from maskcl_jax.ops import chunked, losses, masking, normalization
from maskcl_jax.views.base import View
from maskcl_jax.views.patch_mask import PatchMask


class MAE(Method):
    """MAE; `configs/mae.py` explains its fields of `config.method`."""

    picture_names: tuple[str, ...] = ("input", "masked", "reconstruction")
    supports_image_chunks = True
    positions = "mae"  # of encoder and decoder, see `sincos_table`

    def __init__(self, config: Any):
        self.config = config
        self.dtype = jnp.dtype(config.dtype)
        self.encoder = encoders.vit(config, positions=self.positions)
        self.image_size, self.patch = tuple(config.data.image_size), config.model.patch_size
        self.decoder = self.new_decoder("decoder", out=self.patch**2 * config.data.channels)
        self.decoders = {"decoder": self.decoder}
        self.num_patches = self.encoder.grid[0] * self.encoder.grid[1]
        self.views = self.new_views()

    def new_views(self) -> tuple[View, ...]:
        """One crop with its mask."""
        mask = options.patch_mask(self.config, self.encoder.grid, kind=self.mask_kind())
        return (options.view(self.config, ingredients=(mask,)),)

    def mask_kind(self) -> str:
        """`PatchMask.kind`: "random", or "noise" where a subclass chooses the masked patches on the device."""
        return "random"

    def new_decoder(self, field: str, *, out: int) -> Decoder:
        """The decoder that `config.method.FIELD` describes, with `out` numbers per patch."""
        return encoders.decoder(self.config, field, grid=self.encoder.grid, out=out, positions=self.positions)

    @property
    def num_visible(self) -> int:
        """Patches of the first view that the encoder sees."""
        mask = self.views[0].find(PatchMask)
        assert mask is not None
        return mask.num_visible

    # --- State ------------------------------------------------------------------------------------------------
    def init(self, rng: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """params: encoder, decoder; no further state."""
        to_networks, _ = jax.random.split(rng)
        params, _ = self.init_networks(to_networks)
        return params, {}

    def init_networks(self, rng: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns (params, batch_stats), each with one entry per network."""
        to_encoder, to_decoder = jax.random.split(rng)
        images = jnp.zeros((2, *self.image_size, self.config.data.channels))
        encoder = self.encoder.init(to_encoder, images)["params"]
        return {"encoder": encoder, "decoder": self.init_decoder(self.decoder, to_decoder)}, {}

    def init_decoder(self, decoder: Decoder, rng: jax.Array) -> dict[str, Any]:
        """Initial parameters of a decoder."""
        latent = jnp.zeros((2, 1 + self.num_visible, self.encoder.width))
        patches = jnp.tile(jnp.arange(self.num_patches), (2, 1))
        return decoder.init(rng, latent, *jnp.split(patches, [self.num_visible], axis=1))["params"]

    # --- Loss -------------------------------------------------------------------------------------------------
    def preprocess(self, images: jax.Array) -> jax.Array:
        """(x / 255 - mean) / std."""
        return normalization.normalize(images, self.config.data.mean, self.config.data.std)

    def loss(self, params: dict[str, Any], batch: Arrays, context: StepContext) -> LossOutput:
        """The reconstruction error of the masked patches."""
        images = self.preprocess(batch["image"])
        out = self.reconstruct(params, images, batch["visible"], batch["masked"])
        return LossOutput(out["loss"], {"loss": out["loss"]}, context.model_state)

    def reconstruct(
        self,
        params: dict[str, Any],
        images: jax.Array,
        visible: jax.Array,
        masked: jax.Array,
        *,
        targets: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Returns {latent, loss} of preprocessed images under given masks.

        Args:
            params: Of the encoder and the decoder.
            images: What the encoder sees.
            visible: (B, n) indices of the patches that it sees.
            masked: (B, N - n) indices of all other patches.
            targets: What the decoder reconstructs; default: the images.
        """
        # 1. The visible patches are embedded and encoded; mask tokens never enter the encoder.
        latent = self.latent(params, images, visible)
        # 2. The decoder predicts the masked patches; 3. the loss compares them with the images.
        targets = images if targets is None else targets
        loss = chunked.mean_loss(
            self.decoder_loss, self.image_chunks, params["decoder"], latent, (targets, visible, masked)
        )
        return {"latent": latent, "loss": loss}

    def latent(self, params: dict[str, Any], images: jax.Array, visible: jax.Array) -> jax.Array:
        """(B, 1 + n, D): the cls token and the visible patches, encoded."""
        return self.encode(params, ViT.encode, self.encode(params, ViT.embed, images, visible))

    def decoder_loss(
        self, decoder_params: dict[str, Any], latent: jax.Array, given: tuple[jax.Array, ...]
    ) -> jax.Array:
        """The reconstruction error of the masked patches. given: (targets, visible, masked)."""
        targets, visible, masked = given
        prediction = self.decode({"decoder": decoder_params}, latent, visible, masked, only_masked=True)
        return self.error(prediction, self.target_patches(targets, masked))

    def target_patches(self, targets: jax.Array, ids: jax.Array) -> jax.Array:
        """Pixels of the patches `ids`; with norm_pix, each patch is normalized by its own mean and std."""
        patches = masking.take(masking.patchify(targets, self.patch), ids)
        return losses.normalize_patches(patches) if self.config.method.norm_pix else patches

    def error(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        """Mean squared error."""
        return losses.patch_mse(prediction, target)

    def encode(
        self, params: dict[str, Any], function: Callable[..., Any], *arguments: Any, **keywords: Any
    ) -> jax.Array:
        """Applies one of the encoder's methods with the encoder's parameters."""
        return self.encoder.apply({"params": params["encoder"]}, *arguments, **keywords, method=function)

    def decode(self, params: dict[str, Any], *arguments: Any, **keywords: Any) -> jax.Array:
        """Applies the decoder with its parameters."""
        return self.decoder.apply({"params": params["decoder"]}, *arguments, **keywords)

    def predict(self, params: dict[str, Any], latent: jax.Array, visible: jax.Array, masked: jax.Array) -> jax.Array:
        """(B, N, pixels of a patch): the decoder's prediction of every patch, in image order."""
        return masking.take(self.decode(params, latent, visible, masked), masking.restore_ids(visible, masked))

    # --- Evaluation -------------------------------------------------------------------------------------------
    def encoder_variables(
        self, params: dict[str, Any], model_state: dict[str, Any], *, target: bool = False
    ) -> dict[str, Any]:
        """A ViT has parameters only."""
        return {"params": params["encoder"]}

    def pictures(self, params: dict[str, Any], model_state: dict[str, Any], batch: Arrays) -> dict[str, jax.Array]:
        """The image, what the encoder saw of it, and the decoder's patches in the masked places."""
        return self.draw(params, self.preprocess(batch["image"]), batch["visible"], batch["masked"])

    def draw(
        self,
        params: dict[str, Any],
        images: jax.Array,
        visible: jax.Array,
        masked: jax.Array,
        *,
        targets: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """{input, masked, reconstruction} of preprocessed images under given masks; targets: as in `reconstruct`."""
        filled = self.predict(params, self.latent(params, images, visible), visible, masked).astype(jnp.float32)
        patches = masking.patchify(images, self.patch)
        if self.config.method.norm_pix:
            # The network predicts normalized patches: they are shown with the original patch's mean and std.
            original = patches if targets is None else masking.patchify(targets, self.patch)
            mean, std = losses.patch_statistics(original)
            filled = filled * std + mean
        hidden = masking.mask_of(visible, self.num_patches)[:, :, None]
        show = functools.partial(normalization.denormalize, mean=self.config.data.mean, std=self.config.data.std)
        place = functools.partial(masking.unpatchify, patch=self.patch, size=self.image_size)
        gray = place(jnp.where(hidden == 1, 0.5, masking.patchify(show(images), self.patch)))
        return {
            "input": show(images),
            "masked": gray,
            "reconstruction": show(place(jnp.where(hidden == 1, filled, patches))),
        }
