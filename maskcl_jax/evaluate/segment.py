"""Semantic segmentation on frozen patch tokens, or on the last map of a ResNet: mean IoU."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maskcl_jax.errors import UserError
from maskcl_jax.evaluate import batches
from maskcl_jax.evaluate.fit import Fit, fit
from maskcl_jax.evaluate.knn import whole
from maskcl_jax.methods import base
from maskcl_jax.models.segmenter import HEADS, Segmenter
from maskcl_jax.training import optimizer, sharding


def run_segment(session) -> dict:
    """Trains the head, then tests once."""
    s, pairs = session.settings, session.source
    base.check_choice("head", s.head, HEADS)
    count = pairs.num_examples("train")
    size = batches.fitted_batch(s.batch_size, count, session.mesh)
    total, per_epoch = batches.total_steps(s, count, size)
    head = Head(session, batch_size=size, total=total, per_epoch=per_epoch)
    part = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    state = fit(
        Fit(head.new_state, head.step, session.encoder.variables, total, round(s.checkpoint_every_epochs * per_epoch)),
        lambda start: pairs.train_batches(batch_size=size, start=start, **part),
        workdir=session.folder / session.name,
        mesh=session.mesh,
        seed=s.seed,
        batch_size=size,
    )
    confusion, images = head.count(state, pairs.eval_batches("test", batch_size=s.eval_batch_size, **part))
    entry = scores(confusion) | {"n_test": images, "n_train": count, "classes": pairs.num_classes, "batch_size": size}
    return {"entries": [entry | {"epochs": total / per_epoch}]}


def scores(confusion: np.ndarray) -> dict:
    """{miou, pixel_accuracy, iou} of (C, C) counts, rows true and columns predicted.

    The mean is over the classes that are true or predicted somewhere. Raises UserError where no pixel is counted.
    """
    if not confusion.sum():
        raise UserError("no pixel of the test masks is counted: check first_label and ignore")
    right = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - right
    iou = [float(r / u) if u else None for r, u in zip(right, union, strict=True)]
    present = [value for value in iou if value is not None]
    return {"miou": sum(present) / len(present), "pixel_accuracy": float(right.sum() / confusion.sum()), "iou": iou}


class Head:
    """The state and the step of a segmenter on a frozen encoder."""

    def __init__(self, session, *, batch_size: int, total: int, per_epoch: int):
        self.session, s = session, session.settings
        config = s.copy_and_resolve_references()
        config.batch_size = batch_size
        schedule = optimizer.learning_rate(config, total_steps=total, steps_per_epoch=per_epoch)
        self.tx = optimizer.create(config, schedule)
        self.size = tuple(s.data.image_size)
        self.classes = session.source.num_classes
        self.model = Segmenter(kind=s.head, num_classes=self.classes, width=s.width)
        self.answer = jax.jit(self.confusion, out_shardings=sharding.replicated(session.mesh))

    def new_state(self, key, variables):
        """A new head."""
        images = jnp.zeros((1, *self.size, self.session.settings.data.channels), jnp.uint8)
        new = self.model.init(key, self.session.encoder.feature_map(variables, images), self.size, train=True)
        params = new["params"]
        return {"params": params, "stats": new["batch_stats"], "opt_state": self.tx.init(params)}

    def step(self, state, variables, batch, number):
        """One step on the pixels that are counted."""
        features = jax.lax.stop_gradient(self.session.encoder.feature_map(variables, batch["image"]))
        counted = batch["mask"] >= 0

        def loss_of(params):
            logits, new = self.model.apply(
                {"params": params, "batch_stats": state["stats"]},
                features,
                self.size,
                train=True,
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(batch["mask"], 0))
            return jnp.sum(losses * counted) / jnp.maximum(counted.sum(), 1), new["batch_stats"]

        (loss, stats), grads = jax.value_and_grad(loss_of, has_aux=True)(state["params"])
        updates, opt_state = self.tx.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "stats": stats, "opt_state": opt_state}, {"loss": loss}

    def confusion(self, state, variables, batch):
        """(C, C) int32 counts of a batch's pixels, rows true and columns predicted."""
        features = self.session.encoder.feature_map(variables, batch["image"])
        head = {"params": state["params"], "batch_stats": state["stats"]}
        predicted = self.model.apply(head, features, self.size, train=False).argmax(axis=-1)
        counted = (batch["mask"] >= 0) & batch["valid"][:, None, None]
        place = jnp.maximum(batch["mask"], 0) * self.classes + predicted
        counts = jnp.zeros(self.classes**2, jnp.int32).at[place.ravel()].add(counted.ravel().astype(jnp.int32))
        return counts.reshape(self.classes, self.classes)

    def count(self, state, feed) -> tuple[np.ndarray, int]:
        """(confusion matrix int64, images) of a whole split."""
        total, images = np.zeros((self.classes, self.classes), np.int64), 0
        for batch in feed:
            placed = self.session.put(batch)
            total += whole(self.answer(state, self.session.encoder.variables, placed))
            images += int(whole(placed["valid"]).sum())
        return total, images
