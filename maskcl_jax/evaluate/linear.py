"""A linear classifier on frozen features of augmented images, for many learning rates in one pass over the data."""

from typing import Any

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
        UserError: for several factors without images to choose on, and where nothing is measured.
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
        correct, n = heads.count(state, source, "test")
        best = int(correct.argmax())
        held_out = {"held_out_accuracy": float(correct[best] / n)}
        rates = [f"{factor * s.optimizer.base_lr:g}" for factor in s.factors]
        values["held_out"] = {rate: float(c / n) for rate, c in zip(rates, correct, strict=True)}
    # The other heads' predictions on the test images are not looked at.
    correct, n = heads.count(state, session.source, "test")
    entry = results.accuracy(int(correct[best]), n)
    entry |= {"base_lr": s.factors[best] * s.optimizer.base_lr, "batch_size": budget.batch_size}
    entry |= {"epochs": budget.epochs} | held_out | {"n_train": budget.n_train}
    return {"entries": [entry]} | values


class Heads:
    """The state and the step of many linear heads on one frozen encoder.

    Args:
        session: the evaluation.
        budget: how long the heads are trained.
    """

    def __init__(self, session: Session, budget: batches.Budget):
        self.session, s = session, session.settings
        self.tx = budget.optimizer(s)
        self.factors = jnp.asarray(s.factors, jnp.float32)
        images = jax.ShapeDtypeStruct((1, *s.data.image_size, s.data.channels), jnp.uint8)
        self.width = jax.eval_shape(self.features, session.encoder.variables, images).shape[1]
        self.classes = session.source.num_classes
        self.count_batch = jax.jit(self.count_correct, out_shardings=sharding.replicated(session.mesh))

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

    def count_correct(
        self, state: dict[str, Any], variables: Any, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """((heads,) correct predictions on a batch, its labels (B,) with -1 for what is not counted)."""
        x = self.features(variables, batch["image"])
        if self.session.settings.batch_norm:
            x = (x - state["stats"]["mean"]) / jnp.sqrt(state["stats"]["var"] + BN_EPS)
        logits = jnp.einsum("bd,hdc->hbc", x, state["heads"]["kernel"]) + state["heads"]["bias"][:, None]
        labels = jnp.where(batch["valid"], batch["label"], -1)
        return ((logits.argmax(axis=-1) == labels) & (labels >= 0)).sum(axis=1), labels

    def count(self, state: dict[str, Any], source: Source, split: str) -> tuple[np.ndarray, int]:
        """((heads,) correct predictions on a split, the number of its labeled images): each image once."""
        session, correct = self.session, np.zeros(len(self.factors), np.int64)
        seen: list[np.ndarray] = []
        for batch in session.batches(split, session.settings.eval_batch_size, source):
            batch_correct, labels = self.count_batch(state, session.encoder.variables, session.put(batch))
            correct += to_host(batch_correct)
            seen.append(to_host(labels))
        labels = np.concatenate(seen)
        session.refuse(checks.labels_problem(labels[labels >= 0], split))
        return correct, int((labels >= 0).sum())
