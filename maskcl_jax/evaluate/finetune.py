"""Fine-tuning: all weights, with a classifier on top, on all labels or few."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maskcl_jax.errors import UserError
from maskcl_jax.evaluate import batches, mixing, results
from maskcl_jax.evaluate.encoder import position_table
from maskcl_jax.evaluate.fit import Fit, fit
from maskcl_jax.evaluate.knn import whole
from maskcl_jax.methods import base
from maskcl_jax.models.classifier import ResNetClassifier, ViTClassifier, drop_path
from maskcl_jax.training import optimizer, sharding, train_state


def run_finetune(session) -> dict:
    """Trains on the labelled images, then tests once."""
    s = session.settings
    check(s)
    count = session.source.num_examples("train")
    size = batches.fitted_batch(s.batch_size, count, session.mesh)
    total, per_epoch = batches.total_steps(s, count, size)
    tuning = Tuning(session, batch_size=size, total=total, per_epoch=per_epoch)
    plan = Fit(
        tuning.new_state, tuning.step, session.encoder.variables, total, round(s.checkpoint_every_epochs * per_epoch)
    )
    state = fit(
        plan,
        lambda start: batches.train_batches(session.source, s, batch_size=size, start=start),
        workdir=session.folder / session.name,
        mesh=session.mesh,
        seed=s.seed,
        batch_size=size,
    )
    correct, n = tuning.count(state)
    entry = results.accuracy(correct, n) | {"n_train": count, "batch_size": size, "epochs": total / per_epoch}
    return {"entries": [entry | {"init": s.init}]}


def check(s) -> None:
    """Raises UserError for fields that cannot be."""
    base.check_choice("init", s.init, ("pretrained", "scratch"))
    for field in ("drop_path", "erase_p", "label_smoothing", "ema"):
        base.check_range(field, s[field], 0.0, 1.0)
    for field in ("mixup", "cutmix"):
        base.check_range(field, s[field], 0.0, 100.0)
    if s.feature:
        raise UserError(f"feature={s.feature!r} has no meaning in fine-tuning: set pool to mean or cls")


class Tuning:
    """The state and the step of one fine-tuning."""

    def __init__(self, session, *, batch_size: int, total: int, per_epoch: int):
        self.session, s = session, session.settings
        config = s.copy_and_resolve_references()
        config.batch_size = batch_size
        self.tx = optimizer.create(
            config, optimizer.learning_rate(config, total_steps=total, steps_per_epoch=per_epoch)
        )
        self.classes = session.source.num_classes
        self.is_vit = session.encoder.is_vit
        # The position table is trained: a parameter from here on, whatever it was (timm's, which MAE fine-tunes).
        module = session.encoder.module
        if self.is_vit:
            module = module.clone(positions="learned", parent=None)
            self.model = ViTClassifier(encoder=module, num_classes=self.classes, pool=s.pool)
        else:
            self.model = ResNetClassifier(encoder=module, num_classes=self.classes)
        self.answer = jax.jit(self.right, out_shardings=sharding.replicated(session.mesh))

    def new_state(self, key, given):
        """New weights, the encoder's replaced by the run's unless it starts from scratch."""
        images = jnp.zeros((2, *self.session.settings.data.image_size, self.session.settings.data.channels))
        variables = self.model.init(key, images, train=True)
        params, stats = variables["params"], variables.get("batch_stats", {})
        if self.session.settings.init == "pretrained":
            params = params | {"encoder": self.started(params["encoder"], given["params"])}
            stats = {"encoder": given["batch_stats"]} if "batch_stats" in given else stats
        elif self.is_vit:
            # A fixed table is part of the architecture: a new network has it, too.
            params = params | {"encoder": params["encoder"] | self.table(given["params"])}
        average = jax.tree.map(jnp.copy, params) if self.session.settings.ema else {}
        # The key is part of the state, not of the program: another seed compiles nothing anew.
        rng = jax.random.key_data(key)
        return {"params": params, "stats": stats, "average": average, "opt_state": self.tx.init(params), "rng": rng}

    def table(self, given) -> dict:
        """The encoder's position table as a parameter; nothing where it was learned, and so is drawn anew."""
        module = self.session.encoder.module
        return {} if module.positions == "learned" else {"pos_embed": position_table(module, given)}

    def started(self, new: dict, given: dict) -> dict:
        """The run's encoder with its table as a parameter. Of what the classifier does not use nothing is taken."""
        full = given if not self.is_vit else given | self.table(given)
        return {name: full.get(name, value) for name, value in new.items()}

    def step(self, state, constants, batch, number):
        """One step; all randomness follows from the seed and the number of the step."""
        s = self.session.settings
        key = jax.random.fold_in(jax.random.wrap_key_data(state["rng"]), number)
        to_erase, to_mix, to_paths = jax.random.split(key, 3)
        images = self.session.encoder.prepared(batch["image"])
        if s.erase_p:
            images = mixing.erase(to_erase, images, s.erase_p)
        targets = mixing.targets_of(batch["label"], self.classes, s.label_smoothing)
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

    def right(self, state, batch):
        """Right answers among the valid, labelled images of a batch, and how many these are."""
        params = state["average"] or state["params"]
        images = self.session.encoder.prepared(batch["image"])
        logits = self.model.apply({"params": params, **statistics(state["stats"])}, images, train=False)
        counted = batch["valid"] & (batch["label"] >= 0)
        return ((logits.argmax(axis=-1) == batch["label"]) & counted).sum(), counted.sum()

    def count(self, state) -> tuple[int, int]:
        """Right answers on the test split, and of how many images: each once."""
        session = self.session
        found = np.zeros(2, np.int64)
        for batch in session.batches("test", session.settings.eval_batch_size):
            found += [int(whole(number)) for number in self.answer(state, session.put(batch))]
        if not found[1]:
            raise UserError("--protocol=finetune: no image of the test split has a label")
        return int(found[0]), int(found[1])


def statistics(stats) -> dict:
    """The BatchNorm statistics of a ResNet as flax wants them; a ViT has none."""
    return {"batch_stats": stats} if stats else {}
