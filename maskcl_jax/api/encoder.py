"""An encoder for programs: whatever is given as images becomes features."""

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from maskcl_jax.api import images as images_lib
from maskcl_jax.api import weights
from maskcl_jax.api.fields import in_words_of_python
from maskcl_jax.errors import UserError
from maskcl_jax.evaluate import encoder as encoder_lib
from maskcl_jax.models.resnet import ResNet
from maskcl_jax.models.vit import ViT
from maskcl_jax.training import run as run_lib
from maskcl_jax.training import sharding


class Encoder:
    """A pre-trained encoder: images in, features out.

    Images are a path, an encoded image, a PIL image, an array (H, W, C), or a batch: a list of these, an array
    (N, H, W, C), or a folder: all images below it, sorted by path. Arrays are uint8, or floating point numbers in
    0..1, which are rounded to 8 bits. Images of another size than the encoder's are resized and cropped as evaluations
    do (`config.data.eval_resize`); files and PIL images are converted to its number of channels, arrays must have it.

    One image gives arrays without the batch dimension. The last batch is padded, so every batch size is compiled once.
    All devices of this process share each batch.

    Attributes:
        module: The linen module, for images of `image_size`.
        variables: Of the module: {"params": ...} and, of a ResNet, {"batch_stats": ...}; on the devices.
        config: Of the run that trained it.
        feature: What a call returns: "mean" of the patch tokens, "cls", "mean+cls" or "lastN" of a ViT; "pool" of a
            ResNet.
        network: "online", "target" (the EMA) or "random" (initial values).

    Example:
        >>> import maskcl_jax as mc
        >>> from skimage import data
        >>> encoder = mc.load("runs/example")
        >>> encoder(data.astronaut()).shape
        (32,)
        >>> encoder([data.astronaut(), data.coffee()]).shape
        (2, 32)
    """

    def __init__(
        self,
        run: run_lib.Run | str | os.PathLike[str],
        *,
        network: str = "online",
        image_size: int | tuple[int, int] | None = None,
        feature: str = "",
        batch_size: int = 256,
    ) -> None:
        """Makes the encoder of a run.

        Args:
            run: A run, or its folder; or one that `training.run` has read.
            network: Like the others, see `load`.
            image_size: See there.
            feature: See there.
            batch_size: See there.

        Raises:
            UserError: There is no run, or no such network or feature.
        """
        if isinstance(run, str | os.PathLike):
            with in_words_of_python():
                run = weights.open_run(pathlib.Path(run), network=network, step=None, layout="")
        if not isinstance(run, run_lib.Run):
            raise UserError(f"run is of type {type(run).__name__}: give a run, or its folder")
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        opened = encoder_lib.open_encoder(run, network=network, image_size=size)
        self.feature = feature or encoder_lib.default_feature(run)
        encoder_lib.check_feature(self.feature, opened.module)
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} is out of range: use 1 or more")
        # The optimizer's state is the largest part, and nothing here needs it.
        self.run = run._replace(state=dataclasses.replace(run.state, opt_state=None))
        self._mesh = sharding.create_mesh(devices=jax.local_devices())
        variables = jax.device_put(opened.variables, sharding.replicated(self._mesh))
        self._encoder = opened._replace(variables=variables)
        self._data = run.config.data.copy_and_resolve_references()
        if size is not None:
            self._data.image_size = tuple(size)
        self._batch_size = self._whole(batch_size)
        origin = f"{network} network, step {run.step} of" if weights.is_run(pathlib.Path(run.workdir)) else "weights of"
        self._origin = f"{origin} {run.workdir}"
        self._compiled: dict[str, Callable[..., jax.Array]] = {}

    @property
    def module(self) -> ViT | ResNet:
        """The linen module, for images of `image_size`."""
        return self._encoder.module

    @property
    def variables(self) -> dict[str, Any]:
        """The variables of `module`, on the devices."""
        return self._encoder.variables

    @property
    def config(self) -> ml_collections.ConfigDict:
        """The config of the run that trained the encoder."""
        return self.run.config

    @property
    def network(self) -> str:
        """Which network it is: "online", "target" or "random"."""
        return self._encoder.network

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images that `module` takes."""
        return tuple(self._data.image_size)

    @property
    def channels(self) -> int:
        """Channels of the images that `module` takes."""
        return self._data.channels

    def __call__(self, images: Any, *, feature: str = "") -> np.ndarray:
        """Computes features.

        Args:
            images: One image or a batch, see `Encoder`.
            feature: Another kind than `self.feature`.

        Returns:
            (N, D) float32, or (D,) of one image.

        Raises:
            UserError: An image cannot be read, or is not of the encoder's kind; or there is no such feature.
        """
        kind = feature or self.feature
        encoder_lib.check_feature(kind, self.module)
        return self._apply(kind, lambda variables, pixels: self._encoder.features(variables, pixels, kind), images)

    def tokens(self, images: Any) -> np.ndarray:
        """Computes the tokens of a ViT after its final norm, or the cells of a ResNet's last feature map.

        Args:
            images: One image or a batch, see `Encoder`.

        Returns:
            (N, 1 + patches, D) float32, the cls token first, then the patches row by row; of a ResNet (N, cells, D).
            Without N of one image.

        Raises:
            UserError: An image cannot be read, or is not of the encoder's kind.
        """

        def compute(variables: dict[str, Any], pixels: jax.Array) -> jax.Array:
            if self._encoder.is_vit:
                return self._encoder.layers(variables, pixels)[-1].astype(jnp.float32)
            cells = self._encoder.feature_map(variables, pixels)
            return cells.reshape(len(cells), -1, cells.shape[-1])

        return self._apply("tokens", compute, images)

    def feature_map(self, images: Any) -> np.ndarray:
        """Computes the patch tokens of a ViT on their grid, or the last feature map of a ResNet.

        Args:
            images: One image or a batch, see `Encoder`.

        Returns:
            (N, rows, columns, D) float32; without N of one image.

        Raises:
            UserError: An image cannot be read, or is not of the encoder's kind.
        """
        return self._apply("feature_map", self._encoder.feature_map, images)

    def attention(self, images: Any) -> np.ndarray:
        """Computes what the cls token of a ViT attends to, averaged over the heads.

        Args:
            images: One image or a batch, see `Encoder`.

        Returns:
            (N, blocks, rows, columns) float32, in the order of the blocks. Without N of one image.

        Raises:
            UserError: The encoder is a ResNet; or see `__call__`.

        Example:
            >>> import maskcl_jax as mc
            >>> from skimage import data
            >>> mc.load("runs/example").attention(data.astronaut()).shape
            (1, 4, 4)
        """
        if not self._encoder.is_vit:
            raise UserError("attention is that of a ViT, and this encoder is a ResNet: use feature_map")

        def compute(variables: dict[str, Any], pixels: jax.Array) -> jax.Array:
            return self._encoder.cls_attention(variables, pixels).swapaxes(0, 1)

        return self._apply("attention", compute, images)

    def read(self, images: Any) -> np.ndarray:
        """Reads images, and resizes and crops them to the encoder's size.

        Args:
            images: One image or a batch, see `Encoder`.

        Returns:
            (N, height, width, channels) uint8; without N of one image.

        Raises:
            UserError: An image cannot be read, or is not of the encoder's kind.
        """
        given, single = images_lib.as_list(images, self.channels)
        pixels = images_lib.read(given, self._data)
        return pixels[0] if single else pixels

    def preprocess(self, images: Any) -> jax.Array:
        """Makes the input of `module`.

        Args:
            images: A batch, see `Encoder`. An array of JAX's must be uint8 of the encoder's size, and may be traced:
                call it inside a jitted step.

        Returns:
            (N, height, width, channels) float32, normalized.

        Raises:
            UserError: An image cannot be read, or an array of JAX's is not uint8 of the encoder's size.

        Example:
            >>> import maskcl_jax as mc
            >>> from skimage import data
            >>> encoder = mc.load("runs/example")
            >>> encoder.module.apply(encoder.variables, encoder.preprocess([data.coffee()])).shape
            (1, 17, 32)
        """
        if isinstance(images, jax.Array):
            if images.dtype != np.uint8 or images.shape[1:] != (*self.image_size, self.channels):
                expected = ", ".join(map(str, (*self.image_size, self.channels)))
                raise UserError(
                    f"images are {images.dtype} {images.shape}: preprocess takes uint8 (N, {expected}) of JAX"
                )
            return self._encoder.preprocess(images)
        pixels = self.read(images)
        return self._encoder.preprocess(jnp.asarray(pixels if pixels.ndim == 4 else pixels[None]))

    def __repr__(self) -> str:
        kind = "ViT" if self._encoder.is_vit else "ResNet"
        size = "x".join(map(str, (*self.image_size, self.channels)))
        return f"Encoder({self.config.method.name}, {kind}, images {size}, feature {self.feature}, {self._origin})"

    def _apply(self, name: str, function: Callable[..., jax.Array], images: Any) -> np.ndarray:
        """Runs a function of (variables, uint8 images) on batches of images."""
        if name not in self._compiled:
            self._compiled[name] = jax.jit(function, out_shardings=sharding.replicated(self._mesh))
        given, single = images_lib.as_list(images, self.channels)
        # Few images do not fill a batch: the next power of two, so that there are few shapes to compile.
        size = min(self._batch_size, self._whole(1 << (len(given) - 1).bit_length()))
        placed, outputs = sharding.batch_sharding(self._mesh), []
        for start in range(0, len(given), size):
            pixels = images_lib.read(given[start : start + size], self._data)
            padded = np.concatenate([pixels, np.zeros((size - len(pixels), *pixels.shape[1:]), np.uint8)])
            output = self._compiled[name](self.variables, jax.device_put(padded, placed))
            outputs.append(np.asarray(output)[: len(pixels)])
        whole = np.concatenate(outputs)
        return whole[0] if single else whole

    def _whole(self, count: int) -> int:
        """`count`, rounded up to a multiple of the devices."""
        return -(-count // self._mesh.size) * self._mesh.size


@in_words_of_python()
def load(
    source: str | os.PathLike[str],
    *,
    network: str = "online",
    step: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    feature: str = "",
    layout: str = "",
    batch_size: int = 256,
) -> Encoder:
    """Loads an encoder.

    Args:
        source: A run (`Run`, or its folder), a folder that `export` made, a folder of timm or transformers, or a file
            of weights (safetensors, PyTorch).
        network: "online", "target" (the EMA) or "random" (initial values) of a run; weights have only one.
        step: Of the run's checkpoint; default: the newest.
        image_size: Another (height, width) than that of training; a ViT's position table is resized.
        feature: What calling the encoder returns, see `Encoder`; default: the run's `eval.feature`.
        layout: Whose names a file of weights has (`timm`, `mae`, `mocov3`, `hf`, `torchvision`, ...), where neither the
            names nor a file beside it tell. The code bases differ in heads, feature and normalization.
        batch_size: Images computed at once.

    Returns:
        The encoder.

    Raises:
        UserError: There is neither a run nor weights, or they are of another kind.

    Example:
        >>> import maskcl_jax as mc
        >>> encoder = mc.load("runs/example")
        >>> encoder.image_size, encoder.feature
        ((32, 32), 'mean')
    """
    run = weights.open_run(pathlib.Path(source), network=network, step=step, layout=layout)
    return Encoder(run, network=network, image_size=image_size, feature=feature, batch_size=batch_size)
