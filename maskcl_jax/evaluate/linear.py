"""A linear classifier on frozen features of augmented images, for many learning rates in one pass over the data."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maskcl_jax.data.sources import Source
from maskcl_jax.errors import UserError
from maskcl_jax.evaluate import batches, checks, results
from maskcl_jax.evaluate.fit import fit
from maskcl_jax.evaluate.knn import to_host
from maskcl_jax.evaluate.session import Session
from maskcl_jax.training import sharding

BN_EPS, BN_MOMENTUM = 1e-6, 0.1  # facebookresearch/mae main_linprobe.py


def run_linear(session: Session) -> dict[str, Any]:
    """Trains one head for each factor of the learning rate; of several, the best on held-out images is tested.

    Returns:
        {"entries": [one], "held_out": {learning rate: accuracy}}, see `results.record`.

    Raises:
        UserError: For several factors without images to choose on, and where nothing is measured.
    """
    s = session.settings
    if len(s.factors) > 1 and not s.holdout:
        raise UserError(f"factors={s.factors} must be chosen from on images held out of train: set holdout, as 0.1")
    source = batches.with_holdout(session.source, s) if s.holdout else session.source
    budget = batches.budget_of(s, source.num_examples("train"), session.mesh)
    heads = Heads(session, budget)
    session.check_encoder(session.batches("test", s.eval_batch_size), heads.features)
    state = fit(
        session,
        heads,
        budget,
        lambda start: batches.train_batches(source, s, batch_size=budget.batch_size, start=start),
    )
    values: dict[str, Any] = {}
    best, held_out = 0, {}
    if s.holdout:
        held = heads.count(state, source, "test")
        session.refuse(checks.outputs_problem(held.finite.any()))
        best = int(np.where(held.finite, held.correct, -1).argmax())  # a head that has diverged is not chosen
        held_out = {"held_out_accuracy": float(held.correct[best] / held.n)}
        rates = [f"{factor * s.optimizer.base_lr:g}" for factor in s.factors]
        values["held_out"] = {rate: float(c / held.n) for rate, c in zip(rates, held.correct, strict=True)}
    # The other heads' predictions on the test images are not looked at.
    test = heads.count(state, session.source, "test")
    session.refuse(checks.outputs_problem(test.finite[best]))
    session.warn(checks.predictions_problem(test.predicted[best], "test images"))
    entry = results.accuracy(int(test.correct[best]), test.n)
    entry |= {"base_lr": s.factors[best] * s.optimizer.base_lr, "batch_size": budget.batch_size}
    entry |= {"epochs": budget.epochs} | held_out | {"n_train": budget.n_train}
    return {"entries": [entry]} | values


class Heads:
    """The state and the step of many linear heads on one frozen encoder.

    Args:
        session: The evaluation.
        budget: How long the heads are trained.
    """

    def __init__(self, session: Session, budget: batches.Budget):
        self.session, s = session, session.settings
        self.tx = budget.optimizer(s)
        self.factors = jnp.asarray(s.factors, jnp.float32)
        images = jax.ShapeDtypeStruct((1, *s.data.image_size, s.data.channels), jnp.uint8)
        self.width = jax.eval_shape(self.features, session.encoder.variables, images).shape[1]
        self.classes = session.source.num_classes
        self.count_batch = jax.jit(self.count_predictions, out_shardings=sharding.replicated(session.mesh))

    def features(self, variables: Any, images: jax.Array) -> jax.Array:
        """(B, D) float32, without a gradient."""
        return jax.lax.stop_gradient(self.session.encoder.features(variables, images, self.session.feature))

    def new_state(self, key: jax.Array, variables: Any) -> dict[str, Any]:
        """Weights N(0, 0.01), biases 0, the same for every factor; running statistics of the features."""
        kernel = 0.01 * jax.random.normal(key, (self.width, self.classes))
        head = {"kernel": kernel, "bias": jnp.zeros(self.classes)}
        heads = jax.tree.map(lambda leaf: jnp.tile(leaf, (len(self.factors),) + (1,) * leaf.ndim), head)
        stats = {"mean": jnp.zeros(self.width), "var": jnp.ones(self.width)}
        return {"heads": heads, "stats": stats, "opt_state": jax.vmap(self.tx.init)(heads)}

    def step(
        self, state: dict[str, Any], variables: Any, batch: dict[str, jax.Array], number: int
    ) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        """One step of all heads on the same features."""
        x, stats = self.normalized(self.features(variables, batch["image"]), state["stats"])

        def loss_of(head):
            logits = x @ head["kernel"] + head["bias"]
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

        losses, grads = jax.vmap(jax.value_and_grad(loss_of))(state["heads"])
        updates, opt_state = jax.vmap(self.tx.update)(grads, state["opt_state"], state["heads"])
        # Every rule's updates are proportional to the learning rate: a head's factor can come after the schedule.
        updates = jax.tree.map(lambda u: u * self.factors.reshape(-1, *(1,) * (u.ndim - 1)), updates)
        heads = optax.apply_updates(state["heads"], updates)
        # A head whose learning rate is too high may diverge; the others go on.
        return {"heads": heads, "stats": stats, "opt_state": opt_state}, {"loss": jnp.nanmin(losses)}

    def normalized(self, x: jax.Array, stats: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(features normalized by their batch, running statistics updated); unchanged without BatchNorm."""
        if not self.session.settings.batch_norm:
            return x, stats
        mean = x.mean(axis=0)
        var = jnp.mean((x - mean) ** 2, axis=0)
        unbiased = var * len(x) / max(len(x) - 1, 1)
        updated = {
            "mean": stats["mean"] + BN_MOMENTUM * (mean - stats["mean"]),
            "var": stats["var"] + BN_MOMENTUM * (unbiased - stats["var"]),
        }
        return (x - mean) / jnp.sqrt(var + BN_EPS), updated

    def count_predictions(
        self, state: dict[str, Any], variables: Any, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """((heads,) correct, (heads, C) predicted, (heads,) finite, labels (B,) with -1 for what is not counted)."""
        x = self.features(variables, batch["image"])
        if self.session.settings.batch_norm:
            x = (x - state["stats"]["mean"]) / jnp.sqrt(state["stats"]["var"] + BN_EPS)
        logits = jnp.einsum("bd,hdc->hbc", x, state["heads"]["kernel"]) + state["heads"]["bias"][:, None]
        labels = jnp.where(batch["valid"], batch["label"], -1)
        counted, classes = labels >= 0, logits.argmax(axis=-1)
        correct = ((classes == labels) & counted).sum(axis=1)
        predicted = jnp.zeros(logits.shape[::2], jnp.int32)
        predicted = predicted.at[jnp.arange(len(logits))[:, None], classes].add(counted.astype(jnp.int32))
        finite = (jnp.isfinite(logits).all(axis=-1) | ~counted).all(axis=1)
        return correct, predicted, finite, labels

    def count(self, state: dict[str, Any], source: Source, split: str) -> "Counts":
        """What the heads predict on a split: each labeled image once."""
        session, parts = self.session, []
        seen: list[np.ndarray] = []
        for batch in session.batches(split, session.settings.eval_batch_size, source):
            *part, labels = map(to_host, self.count_batch(state, session.encoder.variables, session.put(batch)))
            parts.append(part)
            seen.append(labels)
        labels = np.concatenate(seen)
        session.refuse(checks.labels_problem(labels[labels >= 0], split))
        correct, predicted, finite = (np.stack(column) for column in zip(*parts, strict=True))
        return Counts(correct.sum(axis=0), predicted.sum(axis=0), finite.min(axis=0), int((labels >= 0).sum()))


class Counts(NamedTuple):
    """What every head predicts on a split.

    Attributes:
        correct: (heads,) images that are classified correctly.
        predicted: (heads, C) images that are predicted as each class.
        finite: (heads,) whether all outputs are finite.
        n: Labeled images.
    """

    correct: np.ndarray
    predicted: np.ndarray
    finite: np.ndarray
    n: int
