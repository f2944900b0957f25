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
from maskcl_jax.evaluate.results import pack_counts
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
    pixels = head.count(state, pairs.eval_batches("test", batch_size=s.eval_batch_size, **part))
    total = pixels.sum(axis=0)
    _, predicted, _ = total
    session.warn(checks.predictions_problem(predicted, "counted test pixels"))
    entry = scores(total) | {"n_test": len(pixels), "n_train": budget.n_train, "classes": pairs.num_classes}
    entry |= {"batch_size": budget.batch_size, "epochs": budget.epochs, "ignored": pairs.ignored("test")}
    entry |= {"frozen": s.frozen, "pixels": pack_counts(pixels)}
    return {"entries": [entry]}


def scores(pixels: np.ndarray) -> dict[str, Any]:
    """The figures of all test images.

    Args:
        pixels: (3, C) counts of pixels: of each class those labeled so, predicted so, and both.

    Returns:
        {miou, pixel_accuracy, iou}: fractions; iou is None for a class that is neither true nor predicted anywhere,
        miou the mean over the others.

    Raises:
        UserError: Where the counted pixels are of fewer than two classes.
    """
    labeled, predicted, both = pixels
    shown = int((labeled > 0).sum())
    if shown < 2:
        raise UserError(
            f"segmentation measures nothing: the counted pixels of the test masks, at the encoder's size, are of "
            f"{shown} class{'' if shown == 1 else 'es'}; check first_label, ignore and the test images"
        )
    iou = [float(b / u) if u else None for b, u in zip(both, labeled + predicted - both, strict=True)]
    present = [value for value in iou if value is not None]
    return {"miou": sum(present) / len(present), "pixel_accuracy": float(both.sum() / labeled.sum()), "iou": iou}


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
        self.count_batch = jax.jit(self.count_pixels, out_shardings=sharding.replicated(session.mesh))

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

    def count_pixels(
        self, state: dict[str, Any], variables: Any, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """((B, 3, C) int32 counts of each image's pixels, as `scores` takes them; whether outputs are finite)."""
        head, encoder = self.parts(state, variables)
        features = self.feature_map(encoder, batch["image"])
        logits = self.model.apply(head, features, self.size, train=False)
        labeled, predicted = jnp.maximum(batch["mask"], 0), logits.argmax(axis=-1)
        counted = (batch["mask"] >= 0) & batch["valid"][:, None, None]
        image, empty = jnp.arange(len(labeled))[:, None, None], jnp.zeros((len(labeled), self.classes), jnp.int32)
        pixels = ((labeled, counted), (predicted, counted), (labeled, counted & (labeled == predicted)))
        counts = jnp.stack([empty.at[image, classes].add(ones) for classes, ones in pixels], axis=1)
        return counts, (jnp.isfinite(logits).all(axis=-1) | ~counted).all()

    def count(self, state: dict[str, Any], split_batches: Iterable[dict[str, np.ndarray]]) -> np.ndarray:
        """(n, 3, C) int64, the counts of each image of a split, in its order.

        Raises:
            UserError: Where an output is not finite.
        """
        rows = []
        for batch in split_batches:
            placed = self.session.put(batch)
            counts, finite = map(to_host, self.count_batch(state, self.session.encoder.variables, placed))
            self.session.refuse(checks.outputs_problem(bool(finite)))
            rows.append(counts[to_host(placed["valid"])])
        return np.concatenate(rows).astype(np.int64)
