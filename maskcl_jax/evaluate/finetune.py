"""Fine-tuning: all weights, with a classifier on top, on all labels or few."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from maskcl_jax.errors import UserError, check_choice
from maskcl_jax.evaluate import batches, checks, mixing, results
from maskcl_jax.evaluate.encoder import position_table
from maskcl_jax.evaluate.fit import fit
from maskcl_jax.evaluate.knn import to_host
from maskcl_jax.evaluate.session import Session
from maskcl_jax.models.classifier import ResNetClassifier, ViTClassifier, drop_path
from maskcl_jax.training import sharding, train_state


def run_finetune(session: Session) -> dict[str, Any]:
    """Trains on the labeled images, then tests once.

    Returns:
        {"entries": [one]}, see `results.record`.

    Raises:
        UserError: For words that it does not know, and where nothing is measured.
    """
    s = session.settings
    check(s)
    budget = batches.budget_of(s, session.source.num_examples("train"), session.mesh)
    tuning = Tuning(session, budget)
    state = fit(
        session,
        tuning,
        budget,
        lambda start: batches.train_batches(session.source, s, batch_size=budget.batch_size, start=start),
    )
    entry = results.accuracy_of(*tuning.classify_test_split(state))
    entry |= {"n_train": budget.n_train, "batch_size": budget.batch_size, "epochs": budget.epochs}
    return {"entries": [entry | {"init": s.init}]}


def check(s: ml_collections.ConfigDict) -> None:
    """Raises UserError for words that fine-tuning does not know."""
    check_choice("init", s.init, ("pretrained", "scratch"))
    if s.feature:
        raise UserError(f"feature={s.feature!r} has no meaning in fine-tuning: set pool to mean or cls")


class Tuning:
    """The state and the step of one fine-tuning.

    Args:
        session: The evaluation.
        budget: How long it takes.
    """

    def __init__(self, session: Session, budget: batches.Budget):
        self.session, s = session, session.settings
        self.tx = budget.optimizer(s)
        self.classes = session.source.num_classes
        self.is_vit = session.encoder.is_vit
        # The position table is trained, whether or not it was so far (timm's ViT, which MAE fine-tunes).
        module = session.encoder.module
        if self.is_vit:
            module = module.clone(positions="learned", parent=None)
            self.model = ViTClassifier(encoder=module, num_classes=self.classes, pool=s.pool)
        else:
            self.model = ResNetClassifier(encoder=module, num_classes=self.classes)
        self.predict_batch = jax.jit(self.predict, out_shardings=sharding.replicated(session.mesh))

    def new_state(self, key: jax.Array, variables: dict[str, Any]) -> dict[str, Any]:
        """New weights, the encoder's replaced by the run's `variables` unless it starts from scratch."""
        images = jnp.zeros((2, *self.session.settings.data.image_size, self.session.settings.data.channels))
        new = self.model.init(key, images, train=True)
        params, stats = new["params"], new.get("batch_stats", {})
        if self.session.settings.init == "pretrained":
            params = params | {"encoder": self.pretrained(params["encoder"], variables["params"])}
            stats = {"encoder": variables["batch_stats"]} if "batch_stats" in variables else stats
        elif self.is_vit:
            # A fixed table is part of the architecture: a new network has it, too.
            params = params | {"encoder": params["encoder"] | self.table(variables["params"])}
        average = jax.tree.map(jnp.copy, params) if self.session.settings.ema else {}
        # The key is part of the state, not of the program: another seed needs no compilation.
        rng = jax.random.key_data(key)
        return {"params": params, "stats": stats, "average": average, "opt_state": self.tx.init(params), "rng": rng}

    def table(self, params: dict[str, Any]) -> dict[str, Any]:
        """The encoder's fixed position table as a parameter; {} where it is learned, and so initialized again."""
        module = self.session.encoder.module
        return {} if module.positions == "learned" else {"pos_embed": position_table(module, params)}

    def pretrained(self, new: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        """The run's encoder `params` with its position table, as far as the classifier (`new`) uses them."""
        full = params if not self.is_vit else params | self.table(params)
        return {name: full.get(name, value) for name, value in new.items()}

    def step(
        self, state: dict[str, Any], variables: Any, batch: dict[str, jax.Array], number: int
    ) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        """One step; all randomness follows from the seed and the number of the step."""
        s = self.session.settings
        key = jax.random.fold_in(jax.random.wrap_key_data(state["rng"]), number)
        to_erase, to_mix, to_paths = jax.random.split(key, 3)
        images = self.session.encoder.preprocess(batch["image"])
        if s.erase_p:
            images = mixing.erase(to_erase, images, s.erase_p)
        targets = mixing.smooth_targets(batch["label"], self.classes, s.label_smoothing)
        images, targets = mixing.mix(to_mix, images, targets, mixup=s.mixup, cutmix=s.cutmix)
        branches = None
        if s.drop_path and self.is_vit:
            branches = drop_path(to_paths, s.drop_path, depth=self.model.encoder.depth, batch=len(images))

        def loss_of(params):
            logits, new = self.model.apply(
                {"params": params, **statistics(state["stats"])},
                images,
                train=True,
                branches=branches,
                mutable=["batch_stats"],
            )
            return optax.softmax_cross_entropy(logits, targets).mean(), new.get("batch_stats", {})

        (loss, stats), grads = jax.value_and_grad(loss_of, has_aux=True)(state["params"])
        updates, opt_state = self.tx.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        average = train_state.ema(state["average"], params, s.ema) if s.ema else {}
        new_state = {"params": params, "stats": stats, "average": average, "opt_state": opt_state, "rng": state["rng"]}
        return new_state, {"loss": loss}

    def predict(self, state: dict[str, Any], batch: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
        """Of a batch: (predicted classes, labels with -1 for what is not counted, index, whether finite), all (B,)."""
        params = state["average"] or state["params"]
        images = self.session.encoder.preprocess(batch["image"])
        logits = self.model.apply({"params": params, **statistics(state["stats"])}, images, train=False)
        labels = jnp.where(batch["valid"], batch["label"], -1)
        return logits.argmax(axis=-1), labels, batch["index"], jnp.isfinite(logits).all(axis=-1)

    def classify_test_split(self, state: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """(whether it is classified correctly (n,) bool, its index (n,)) of each labeled image of the test split."""
        session = self.session
        batches = session.batches("test", session.settings.eval_batch_size)
        rows = [map(to_host, self.predict_batch(state, session.put(batch))) for batch in batches]
        predicted, labels, index, finite = map(np.concatenate, zip(*rows, strict=True))
        counted = labels >= 0
        session.refuse(checks.labels_problem(labels[counted], "test") or checks.outputs_problem(finite[counted].all()))
        session.warn(checks.predictions_problem(np.bincount(predicted[counted]), "test images"))
        return (predicted == labels)[counted], index[counted]


def statistics(stats: dict[str, Any]) -> dict[str, Any]:
    """The BatchNorm statistics of a ResNet as flax expects them; a ViT has none."""
    return {"batch_stats": stats} if stats else {}
