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

    Example:
        >>> import jax
        >>> import maskcl_jax as mc
        >>> context = mc.StepContext(target_params=None, model_state={}, rng=jax.random.key(0), progress=0.5)
        >>> jax.random.uniform(context.rng, (2, 3)).shape
        (2, 3)
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

    Example:
        >>> import jax.numpy as jnp
        >>> import maskcl_jax as mc
        >>> loss = jnp.mean(jnp.array([1.0, 3.0]))
        >>> mc.LossOutput(loss, {"loss": loss}, model_state={}).metrics["loss"].item()
        2.0
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

    Example:
        >>> import maskcl_jax as mc
        >>> from maskcl_jax import config
        >>> from maskcl_jax.methods.mae import MAE
        >>> class HalfMAE(MAE):  # inherits from a method of the package, and changes its loss
        ...     def loss(self, params, batch, context):
        ...         out = super().loss(params, batch, context)
        ...         return out._replace(loss=out.loss / 2)
        >>> method = HalfMAE(config.load("mae", "embedded"))
        >>> isinstance(method, mc.Method), [view.name for view in method.views]
        (True, ['image'])
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
        """Returns parameters and state at step 0.

        Args:
            rng: A key of the run for initial values.

        Returns:
            (params, model_state). params: one entry per network, float32. model_state: everything else that a step
            changes, under names of the method's choice; {} if there is nothing. Names that evaluation, export and
            import know: `batch_stats` and `target_batch_stats` (BatchNorm statistics per network), `queue`.
        """

    @abc.abstractmethod
    def preprocess(self, images: jax.Array) -> jax.Array:
        """Converts images to what the encoder takes.

        Args:
            images: (B, H, W, C) uint8.

        Returns:
            (B, H, W, C) in the dtype of the computation, normalized.
        """

    @abc.abstractmethod
    def loss(self, params: dict[str, Any], batch: Arrays, context: StepContext) -> LossOutput:
        """Computes the loss of a batch.

        Args:
            params: Of `init`, or after some steps: what the loss is differentiated by.
            batch: Arrays (B, ...) by the keys that `views` declare.
            context: What else the loss may use, see `StepContext`.

        Returns:
            The loss, scalars to log, and the state for the next step.
        """

    @abc.abstractmethod
    def encoder_variables(
        self, params: dict[str, Any], model_state: dict[str, Any], *, target: bool = False
    ) -> dict[str, Any]:
        """Returns the variables of `encoder`: {"params"} and, with BatchNorm, {"batch_stats"}.

        Args:
            params: The online parameters, or those of the EMA target.
            model_state: The method's state.
            target: Whether `params` are those of the EMA target.

        Returns:
            What `encoder.apply` takes.
        """

    def features(
        self, params: dict[str, Any], model_state: dict[str, Any], images: jax.Array, *, kind: str
    ) -> jax.Array:
        """Computes features of unmasked images; here those of `encoders.features`.

        Args:
            params: The online parameters.
            model_state: The method's state.
            images: (B, H, W, C) uint8.
            kind: One of `feature_kinds`; "mean" of the patch tokens or of a feature map, or "cls".

        Returns:
            (B, D) float32.
        """
        variables = self.encoder_variables(params, model_state)
        return encoders.features(self.encoder, variables, self.preprocess(images), kind=kind)

    @abc.abstractmethod
    def pictures(self, params: dict[str, Any], model_state: dict[str, Any], batch: Arrays) -> dict[str, jax.Array]:
        """Draws the images of a batch, for the grid that shows progress.

        Args:
            params: The online parameters.
            model_state: The method's state.
            batch: As for `loss`, of a few images.

        Returns:
            {column: (B, H, W, C) float32 in 0..1}, one entry for each of `picture_names`.
        """

    def target_params(self, params: dict[str, Any]) -> dict[str, Any] | None:
        """Chooses the parameters that the EMA target mirrors.

        Args:
            params: The online parameters.

        Returns:
            A part of them, whose names the target keeps; None, as here, without a target.
        """
        return None

    def momentum(self, progress: jax.Array | float) -> jax.Array:
        """Computes the momentum of the EMA target.

        Args:
            progress: Fraction of the run that is done, 0 to 1.

        Returns:
            () float32, the weight of the target's old value in a step.

        Raises:
            UserError: The method has a target and does not define its momentum.
        """
        raise UserError(f"{type(self).__name__} has an EMA target and must say its momentum: define momentum(progress)")
