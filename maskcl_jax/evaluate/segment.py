"""Semantic segmentation on patch tokens, or on the last feature map of a ResNet: mean IoU."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maskcl_jax.errors import UserError, check_choice
from maskcl_jax.evaluate import batches, checks
from maskcl_jax.evaluate.fit import fit
from maskcl_jax.evaluate.knn import to_host
from maskcl_jax.evaluate.session import Session
from maskcl_jax.models.heads import SEGMENTERS, Segmenter
from maskcl_jax.training import sharding

PARTS = ("head", "encoder")  # of the state


def run_segment(session: Session) -> dict[str, Any]:
    """Trains the head, then tests once.

    Returns:
        {"entries": [one]}, see `results.record`.

    Raises:
        UserError: For an unknown head, and where nothing is measured.
    """
    s, pairs = session.settings, session.source
    check_choice("head", s.head, SEGMENTERS)
    budget = batches.budget_of(s, pairs.num_examples("train"), session.mesh)
    head = Segmentation(session, budget)
    part = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    session.check_encoder(pairs.eval_batches("test", batch_size=s.eval_batch_size, **part), head.feature_map)
    state = fit(
        session,
        head,
        budget,
        lambda start: pairs.train_batches(batch_size=budget.batch_size, start=start, **part),
    )
    confusion, images = head.count(state, pairs.eval_batches("test", batch_size=s.eval_batch_size, **part))
    session.warn(checks.predictions_problem(confusion.sum(axis=0), "counted test pixels"))
    entry = scores(confusion) | {"n_test": images, "n_train": budget.n_train, "classes": pairs.num_classes}
    entry |= {"batch_size": budget.batch_size, "epochs": budget.epochs, "ignored": pairs.ignored("test")}
    entry |= {"frozen": s.frozen}
    return {"entries": [entry]}


def scores(confusion: np.ndarray) -> dict[str, Any]:
    """The figures of a confusion matrix.

    Args:
        confusion: (C, C) counts of pixels, rows true and columns predicted.

    Returns:
        {miou, pixel_accuracy, iou}: fractions; iou is None for a class that is neither true nor predicted anywhere,
        miou the mean over the others.

    Raises:
        UserError: Where the counted pixels are of fewer than two classes.
    """
    shown = int((confusion.sum(axis=1) > 0).sum())
    if shown < 2:
        raise UserError(
            f"segmentation measures nothing: the counted pixels of the test masks, at the encoder's size, are of "
            f"{shown} class{'' if shown == 1 else 'es'}; check first_label, ignore and the test images"
        )
    correct = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - correct
    iou = [float(c / u) if u else None for c, u in zip(correct, union, strict=True)]
    present = [value for value in iou if value is not None]
    return {"miou": sum(present) / len(present), "pixel_accuracy": float(correct.sum() / confusion.sum()), "iou": iou}


class Segmentation:
    """The state and the step of a segmenter on an encoder, which is frozen or trained with it.

    Args:
        session: The evaluation; its source are images with masks.
        budget: How long it is trained.
    """

    def __init__(self, session: Session, budget: batches.Budget):
        self.session, s = session, session.settings
        self.tx = budget.optimizer(s)
        self.size = tuple(s.data.image_size)
        self.classes = session.source.num_classes
        self.model = Segmenter(kind=s.head, num_classes=self.classes, width=s.width)
        self.count_batch = jax.jit(self.confusion, out_shardings=sharding.replicated(session.mesh))

    def feature_map(self, variables: Any, images: jax.Array) -> jax.Array:
        """(B, h, w, D) float32, without a gradient."""
        return jax.lax.stop_gradient(self.session.encoder.feature_map(variables, images))

    def trained_feature_map(self, variables: Any, images: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        """((B, h, w, D) float32, the new BatchNorm statistics, {} of a ViT), with a gradient."""
        encoder = self.session.encoder
        if encoder.is_vit:
            return encoder.feature_map(variables, images), {}
        features, new = encoder.module.apply(variables, encoder.preprocess(images), train=True, mutable=["batch_stats"])
        return features.astype(jnp.float32), new["batch_stats"]

    def new_state(self, key: jax.Array, variables: Any) -> dict[str, Any]:
        """A new head; and the encoder's `variables`, unless it is frozen."""
        images = jnp.zeros((1, *self.size, self.session.settings.data.channels), jnp.uint8)
        head = self.model.init(key, self.feature_map(variables, images), self.size, train=True)
        trained = {} if self.session.settings.frozen else variables
        params = {"head": head["params"], "encoder": trained.get("params", {})}
        stats = {"head": head["batch_stats"], "encoder": trained.get("batch_stats", {})}
        return {"params": params, "stats": stats, "opt_state": self.tx.init(params)}

    def parts(self, state: dict[str, Any], variables: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """(the head's variables, the encoder's) of a state."""
        head, encoder = ({"params": state["params"][part], "batch_stats": state["stats"][part]} for part in PARTS)
        return head, variables if self.session.settings.frozen else encoder

    def logits(self, state: dict[str, Any], variables: Any, images: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        """(logits (B, H, W, C), the new BatchNorm statistics) of a training batch."""
        head, encoder = self.parts(state, variables)
        if self.session.settings.frozen:
            features, moved = self.feature_map(encoder, images), {}
        else:
            features, moved = self.trained_feature_map(encoder, images)
        logits, new = self.model.apply(head, features, self.size, train=True, mutable=["batch_stats"])
        return logits, {"head": new["batch_stats"], "encoder": moved}

    def step(
        self, state: dict[str, Any], variables: Any, batch: dict[str, jax.Array], number: int
    ) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        """One step on the pixels that are counted."""
        counted = batch["mask"] >= 0

        def loss_of(params):
            logits, stats = self.logits(state | {"params": params}, variables, batch["image"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(batch["mask"], 0))
            return jnp.sum(losses * counted) / jnp.maximum(counted.sum(), 1), stats

        (loss, stats), grads = jax.value_and_grad(loss_of, has_aux=True)(state["params"])
        updates, opt_state = self.tx.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "stats": stats, "opt_state": opt_state}, {"loss": loss}

    def confusion(
        self, state: dict[str, Any], variables: Any, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """((C, C) int32 counts of a batch's pixels, rows true and columns predicted; whether outputs are finite)."""
        head, encoder = self.parts(state, variables)
        features = self.feature_map(encoder, batch["image"])
        logits = self.model.apply(head, features, self.size, train=False)
        predicted = logits.argmax(axis=-1)
        counted = (batch["mask"] >= 0) & batch["valid"][:, None, None]
        cell = jnp.maximum(batch["mask"], 0) * self.classes + predicted
        counts = jnp.zeros(self.classes**2, jnp.int32).at[cell.ravel()].add(counted.ravel().astype(jnp.int32))
        finite = (jnp.isfinite(logits).all(axis=-1) | ~counted).all()
        return counts.reshape(self.classes, self.classes), finite

    def count(self, state: dict[str, Any], split_batches: Iterable[dict[str, np.ndarray]]) -> tuple[np.ndarray, int]:
        """(confusion matrix int64, number of images) of all batches of a split.

        Raises:
            UserError: Where an output is not finite.
        """
        total, images = np.zeros((self.classes, self.classes), np.int64), 0
        for batch in split_batches:
            placed = self.session.put(batch)
            counts, finite = map(to_host, self.count_batch(state, self.session.encoder.variables, placed))
            self.session.refuse(checks.outputs_problem(bool(finite)))
            total += counts
            images += int(to_host(placed["valid"]).sum())
        return total, images
