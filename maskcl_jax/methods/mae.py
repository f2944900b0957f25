"""MAE: Masked Autoencoders Are Scalable Vision Learners (He et al., CVPR 2022, arXiv 2111.06377).

The encoder sees a random quarter of the patches; a light decoder gets its output and a mask token for each other
patch, and predicts their pixels. Faithful to facebookresearch/mae at efb2a80 (outputs and gradients: `verify`).
"""

import functools

import jax
import jax.numpy as jnp

from maskcl_jax.methods import base
from maskcl_jax.models.decoder import Decoder
from maskcl_jax.models.vit import ViT
from maskcl_jax.ops import chunked, losses, masking
from maskcl_jax.views import PatchMask, View


class MAE(base.Method):
    """Fields of `config.method`: mask_ratio, norm_pix, decoder {width, depth, heads, mlp_ratio}."""

    picture_names = ("input", "masked", "reconstruction")

    def __init__(self, config):
        self.config = config
        m, d = config.model, config.method.decoder
        self.dtype = jnp.dtype(config.dtype)
        self.image_size, self.patch = tuple(config.data.image_size), m.patch_size
        self.encoder = base.encoder_of(config, positions=self.positions)
        self.decoder = self.new_decoder("method.decoder", d, out=m.patch_size**2 * config.data.channels)
        self.num_patches = self.encoder.grid[0] * self.encoder.grid[1]
        self.views = self.new_views()
        self.image_chunks = max(1, config.image_chunks)

    positions = "mae"  # the order of the position tables
    # What the host draws: "random" patch numbers, or "noise" where the method chooses on the device.
    mask_kind = "random"
    error = staticmethod(losses.patch_mse)
    works_in_chunks = True
    counted = "masked"  # the patches whose error counts: "masked" or "all"

    def new_views(self) -> tuple[View, ...]:
        """One crop, flipped or not, with its mask."""
        mask = base.patch_mask(self.config, self.encoder.grid, field="mask_ratio", kind=self.mask_kind)
        return (base.view_of(self.config, ingredients=(mask,)),)

    @property
    def num_visible(self) -> int:
        """Patches of the first view that the encoder sees."""
        return self.views[0].find(PatchMask).num_visible

    def new_decoder(self, field: str, d, *, out: int) -> Decoder:
        """The decoder that `config.FIELD` describes."""
        base.check_transformer(field, d)
        base.check_attention(self.config, field, d)
        return Decoder(
            grid=self.encoder.grid,
            width=d.width,
            depth=d.depth,
            heads=d.heads,
            out=out,
            mlp_ratio=d.mlp_ratio,
            positions=self.positions,
            dtype=self.dtype,
            **base.compiled_as(self.config),
        )

    def init(self, rng):
        """(params {encoder, decoder}, {})."""
        to_encoder, to_decoder = jax.random.split(rng)
        images = jnp.zeros((2, *self.image_size, self.config.data.channels))
        encoder = self.encoder.init(to_encoder, images)["params"]
        return {"encoder": encoder, "decoder": self.init_decoder(self.decoder, to_decoder)}, {}

    def init_decoder(self, decoder: Decoder, rng):
        """New parameters of a decoder."""
        latent = jnp.zeros((2, 1 + self.num_visible, self.config.model.width))
        patches = jnp.tile(jnp.arange(self.num_patches), (2, 1))
        return decoder.init(rng, latent, *jnp.split(patches, [self.num_visible], axis=1))["params"]

    def encode(self, params, function, *arguments, **options):
        """One of the encoder's functions with the encoder's parameters."""
        return self.encoder.apply({"params": params["encoder"]}, *arguments, **options, method=function)

    def normalized(self, images):
        """uint8 images as the networks take them."""
        return base.normalize(images, self.config.data.mean, self.config.data.std)

    def loss(self, params, carried, batch, rng):
        """Mean squared error of the masked patches."""
        out = self.forward(params, self.normalized(batch["image"]), batch["visible"], batch["masked"])
        return out["loss"], base.Aux({"loss": out["loss"]}, carried.model_state)

    def forward(self, params, images, visible, masked):
        """{latent, loss} of one step, for normalised images and given masks."""
        return self.reconstruct(params, images, images, visible, masked)

    def reconstruct(self, params, images, painted, visible, masked):
        """`forward`, for images that are seen and others, or the same, that the decoder shall paint."""
        latent = self.latent(params, images, visible)
        of_decoder = params["decoder"], latent, (painted, visible, masked)
        return {"latent": latent, "loss": chunked.mean_loss(self.reconstruction_loss, self.image_chunks, *of_decoder)}

    def latent(self, params, images, visible):
        """(B, 1 + n, D): the visible patches encoded, and the cls token before them."""
        # What is not seen is not embedded either: a patch's token is its own affair.
        return self.encode(params, ViT.encode, self.encode(params, ViT.embed, images, visible))

    def reconstruction_loss(self, decoder, latent, given):
        """The error of the masked patches, each normalised by its own mean and deviation; no others are predicted.

        given: (painted images, visible, masked).
        """
        (painted, visible, masked), params = given, {"decoder": decoder}
        of_masked = self.counted == "masked"
        pred = self.decode(params, latent, visible, masked, only_masked=of_masked)
        counted = masked if of_masked else jnp.concatenate([visible, masked], axis=1)
        patches = masking.take(masking.patchify(painted, self.patch), counted)
        return self.error(pred, losses.normalize_patches(patches) if self.config.method.norm_pix else patches)

    def decode(self, params, *arguments, **options):
        """The decoder with its parameters."""
        return self.decoder.apply({"params": params["decoder"]}, *arguments, **options)

    def predict(self, params, latent, visible, masked):
        """(B, N, pixels of a patch): what the decoder makes of every patch, in the order of the image."""
        return masking.take(self.decode(params, latent, visible, masked), masking.restore_ids(visible, masked))

    def features(self, params, model_state, images, *, kind: str):
        """The mean of the patch tokens, or the cls token, after the final norm of an unmasked pass."""
        return base.pooled(self.encode(params, ViT.__call__, self.normalized(images)), kind)

    def masks_of(self, params, batch):
        """(visible, masked) patch numbers of a batch."""
        return batch["visible"], batch["masked"]

    def pictures(self, params, model_state, batch):
        """The image, what the encoder saw of it, and the decoder's patches in the masked places."""
        return self.drawn(params, self.normalized(batch["image"]), *self.masks_of(params, batch))

    def drawn(self, params, images, visible, masked, painted=None):
        """{input, masked, reconstruction} of normalised images under given masks.

        painted: what the decoder was trained to paint, where that is not the images.
        """
        filled = self.predict(params, self.latent(params, images, visible), visible, masked).astype(jnp.float32)
        patches = masking.patchify(images, self.patch)
        if self.config.method.norm_pix:
            # The network predicts normalised patches: they are shown with the true patch's mean and deviation.
            true = patches if painted is None else masking.patchify(painted, self.patch)
            mean, std = losses.patch_statistics(true)
            filled = filled * std + mean
        hidden = masking.mask_of(visible, self.num_patches)[:, :, None]
        show = functools.partial(base.denormalize, mean=self.config.data.mean, std=self.config.data.std)
        place = functools.partial(masking.unpatchify, patch=self.patch, size=self.image_size)
        grey = place(jnp.where(hidden == 1, 0.5, masking.patchify(show(images), self.patch)))
        return {
            "input": show(images),
            "masked": grey,
            "reconstruction": show(place(jnp.where(hidden == 1, filled, patches))),
        }
