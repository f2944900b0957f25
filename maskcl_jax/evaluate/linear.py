"""A linear classifier on frozen features of augmented images, for many learning rates in one pass over the data."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maskcl_jax.errors import UserError
from maskcl_jax.evaluate import batches, results
from maskcl_jax.evaluate.fit import Fit, fit
from maskcl_jax.evaluate.knn import whole
from maskcl_jax.training import optimizer, sharding

BN_EPS, BN_MOMENTUM = 1e-6, 0.1  # facebookresearch/mae main_linprobe.py


def run_linear(session) -> dict:
    """One head a factor of the rate; where there are several the best on held-out images is tested, and no other."""
    s = session.settings
    if not s.factors or min(s.factors) <= 0:
        raise UserError(f"factors={s.factors} is out of range: give one or more positive numbers")
    if len(s.factors) > 1 and not s.holdout:
        raise UserError(f"factors={s.factors} must be chosen from on images held out of train: set holdout, as 0.1")
    source = batches.with_holdout(session.source, s) if s.holdout else session.source
    count = source.num_examples("train")
    size = batches.fitted_batch(s.batch_size, count, session.mesh)
    total, per_epoch = batches.total_steps(s, count, size)
    heads = Heads(session, batch_size=size, total=total, per_epoch=per_epoch)
    state = fit(
        Fit(
            heads.new_state, heads.step, session.encoder.variables, total, round(s.checkpoint_every_epochs * per_epoch)
        ),
        lambda start: batches.train_batches(source, s, batch_size=size, start=start),
        workdir=session.folder / session.name,
        mesh=session.mesh,
        seed=s.seed,
        batch_size=size,
    )
    held = heads.count(state, source, "test") if s.holdout else None
    best = int(held[0].argmax()) if s.holdout else 0
    # The others' answers on the test images are not looked at.
    correct, n = heads.count(state, session.source, "test")
    entry = results.accuracy(int(correct[best]), n)
    entry |= {"base_lr": s.factors[best] * s.optimizer.base_lr, "batch_size": size, "epochs": total / per_epoch}
    if s.holdout:
        shares = {f"{f * s.optimizer.base_lr:g}": float(c / held[1]) for f, c in zip(s.factors, held[0], strict=True)}
        entry["held_out_accuracy"] = float(held[0][best] / held[1])
        return {"entries": [entry | {"n_train": count}], "held_out": shares}
    return {"entries": [entry | {"n_train": count}]}


class Heads:
    """The state and the step of many heads on one encoder."""

    def __init__(self, session, *, batch_size: int, total: int, per_epoch: int):
        self.session, s = session, session.settings
        config = s.copy_and_resolve_references()
        config.batch_size = batch_size
        self.schedule = optimizer.learning_rate(config, total_steps=total, steps_per_epoch=per_epoch)
        self.tx = optimizer.create(config, self.schedule)
        self.factors = jnp.asarray(s.factors, jnp.float32)
        images = jax.ShapeDtypeStruct((1, *s.data.image_size, s.data.channels), jnp.uint8)
        self.width = jax.eval_shape(self.features, session.encoder.variables, images).shape[1]
        self.classes = session.source.num_classes
        self.answer = jax.jit(self.right, out_shardings=sharding.replicated(session.mesh))

    def features(self, variables, images):
        """(B, D) float32, frozen."""
        return jax.lax.stop_gradient(self.session.encoder.features(variables, images, self.session.feature))

    def new_state(self, key, variables):
        """Weights N(0, 0.01), biases 0, the same for every factor; running statistics of the features."""
        kernel = 0.01 * jax.random.normal(key, (self.width, self.classes))
        head = {"kernel": kernel, "bias": jnp.zeros(self.classes)}
        heads = jax.tree.map(lambda leaf: jnp.tile(leaf, (len(self.factors),) + (1,) * leaf.ndim), head)
        stats = {"mean": jnp.zeros(self.width), "var": jnp.ones(self.width)}
        return {"heads": heads, "stats": stats, "opt_state": jax.vmap(self.tx.init)(heads)}

    def step(self, state, variables, batch, number):
        """One step of all heads on the same features."""
        x, stats = self.normalized(self.features(variables, batch["image"]), state["stats"])

        def loss_of(head):
            logits = x @ head["kernel"] + head["bias"]
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

        losses, grads = jax.vmap(jax.value_and_grad(loss_of))(state["heads"])
        updates, opt_state = jax.vmap(self.tx.update)(grads, state["opt_state"], state["heads"])
        # Every rule's updates are proportional to the rate: a head's factor can come after the schedule.
        updates = jax.tree.map(lambda u: u * self.factors.reshape(-1, *(1,) * (u.ndim - 1)), updates)
        heads = optax.apply_updates(state["heads"], updates)
        # A head whose rate is too high may diverge; the others go on.
        return {"heads": heads, "stats": stats, "opt_state": opt_state}, {"loss": jnp.nanmin(losses)}

    def normalized(self, x, stats):
        """The features by their batch's statistics, and the running ones moved, where the recipe has BatchNorm."""
        if not self.session.settings.batch_norm:
            return x, stats
        mean = x.mean(axis=0)
        var = jnp.mean((x - mean) ** 2, axis=0)
        unbiased = var * len(x) / max(len(x) - 1, 1)
        moved = {
            "mean": stats["mean"] + BN_MOMENTUM * (mean - stats["mean"]),
            "var": stats["var"] + BN_MOMENTUM * (unbiased - stats["var"]),
        }
        return (x - mean) / jnp.sqrt(var + BN_EPS), moved

    def right(self, state, variables, batch):
        """(heads,) right answers among the valid, labelled images of a batch, and how many these are."""
        x = self.features(variables, batch["image"])
        if self.session.settings.batch_norm:
            x = (x - state["stats"]["mean"]) / jnp.sqrt(state["stats"]["var"] + BN_EPS)
        logits = jnp.einsum("bd,hdc->hbc", x, state["heads"]["kernel"]) + state["heads"]["bias"][:, None]
        counted = batch["valid"] & (batch["label"] >= 0)
        return ((logits.argmax(axis=-1) == batch["label"]) & counted).sum(axis=1), counted.sum()

    def count(self, state, source, split: str) -> tuple[np.ndarray, int]:
        """(heads,) right answers on a split, and of how many images: each once."""
        session, size = self.session, self.session.settings.eval_batch_size
        correct, n = np.zeros(len(self.factors), np.int64), 0
        for batch in session.batches(split, size, source):
            found = self.answer(state, session.encoder.variables, session.put(batch))
            correct, n = correct + whole(found[0]), n + int(whole(found[1]))
        if not n:
            raise UserError(f"--protocol={session.settings.protocol}: no image of the {split} split has a label")
        return correct, n
