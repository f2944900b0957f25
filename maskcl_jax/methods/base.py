"""The interface of a method: what training, evaluation and export use of it, and nothing else."""

import abc
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from maskcl_jax.errors import UserError
from maskcl_jax.methods import encoders
from maskcl_jax.views.base import View

Arrays = Mapping[str, jax.Array]  # a batch, as the views describe it: see `views.base.batch_entries`


class StepContext(NamedTuple):
    """What a loss gets besides parameters and batch; no gradient reaches any of it.

    Attributes:
        target_params: Parameters of the EMA target; None for a method without one.
        model_state: The method's own state, as `Method.init` or the previous step left it.
        rng: A key of this step (and of this micro-batch) for all randomness on the device.
        progress: Fraction of the run that is done, 0 to 1.
    """

    target_params: Any
    model_state: dict[str, Any]
    rng: jax.Array
    progress: jax.Array | float = 0.0


class LossOutput(NamedTuple):
    """What a loss returns.

    Attributes:
        loss: () float32.
        metrics: Scalars to log, by name.
        model_state: The state for the next step; the same names, shapes and dtypes as before.
    """

    loss: jax.Array
    metrics: dict[str, jax.Array]
    model_state: dict[str, Any]


class Method(abc.ABC):
    """A self-supervised method. Made from a config; holds no arrays; all functions are pure and can be jitted.

    A subclass takes the config as the only argument of its constructor and sets, on the class or in the constructor:

    Attributes:
        views: The views of an image that a batch holds.
        encoder: The linen module that is pre-trained, a `ViT` or a `ResNet`; its parameters are `params["encoder"]`.
        decoders: Further modules with a position table, by the name of their parameters.
        picture_names: The columns of `pictures`, in order.
        feature_kinds: The values of `kind` that `features` accepts.
        ema_first: Whether the EMA target moves before the loss (MoCo) or after the optimizer's step.
        frozen: Paths of parameters that keep their initial values.
        supports_image_chunks: Whether `config.image_chunks` may exceed 1.
        image_chunks: The number of chunks in which a loss takes its images, one at a time; set by `methods.create`.
    """

    views: tuple[View, ...]
    encoder: nn.Module
    decoders: Mapping[str, nn.Module] = {}
    picture_names: tuple[str, ...]
    feature_kinds: tuple[str, ...] = ("mean", "cls")
    ema_first: bool = False
    frozen: tuple[tuple[str, ...], ...] = ()
    supports_image_chunks: bool = False
    image_chunks: int = 1

    @abc.abstractmethod
    def init(self, rng: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns (params, model_state) at step 0.

        params: one entry per network, float32. model_state: everything else that a step changes, under names of the
        method's choice; {} if there is nothing. Names that evaluation, export and import know: `batch_stats` and
        `target_batch_stats` (BatchNorm statistics per network), `queue`.
        """

    @abc.abstractmethod
    def preprocess(self, images: jax.Array) -> jax.Array:
        """Converts uint8 images (B, H, W, C) to what the encoder takes."""

    @abc.abstractmethod
    def loss(self, params: dict[str, Any], batch: Arrays, context: StepContext) -> LossOutput:
        """Computes the loss of a batch."""

    @abc.abstractmethod
    def encoder_variables(
        self, params: dict[str, Any], model_state: dict[str, Any], *, target: bool = False
    ) -> dict[str, Any]:
        """Returns the variables of `encoder`: {"params"} and, with BatchNorm, {"batch_stats"}.

        Args:
            params: The online parameters, or those of the EMA target.
            model_state: The method's state.
            target: Whether `params` are those of the EMA target.
        """

    def features(
        self, params: dict[str, Any], model_state: dict[str, Any], images: jax.Array, *, kind: str
    ) -> jax.Array:
        """Returns (B, D) float32 features of unmasked uint8 images (B, H, W, C); here those of `encoders.features`.

        kind: one of `feature_kinds`; "mean" of the patch tokens or of a feature map, or "cls".
        """
        variables = self.encoder_variables(params, model_state)
        return encoders.features(self.encoder, variables, self.preprocess(images), kind=kind)

    @abc.abstractmethod
    def pictures(self, params: dict[str, Any], model_state: dict[str, Any], batch: Arrays) -> dict[str, jax.Array]:
        """Returns {column: (B, H, W, C) float32 in 0..1} of a batch, for the grid that shows progress."""

    def target_params(self, params: dict[str, Any]) -> dict[str, Any] | None:
        """Returns the part of the parameters that the EMA target mirrors; None, as here, without a target."""
        return None

    def momentum(self, progress: jax.Array | float) -> jax.Array:
        """Returns the momentum of the EMA target at a fraction `progress` of the run."""
        raise UserError(f"{type(self).__name__} has an EMA target and must say its momentum: define momentum(progress)")
