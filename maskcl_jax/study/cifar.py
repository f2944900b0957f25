"""What the studies of CIFAR-10 share: its images, budgets, protocols and baselines at each scale."""

from collections.abc import Mapping
from typing import Any

from maskcl_jax.study.definition import Data, Entry, Evaluation

NORMALIZATION = {"data.mean": (0.4914, 0.4822, 0.4465), "data.std": (0.2470, 0.2435, 0.2616)}
DATA = {
    "cpu": Data("cifar10.npz", train_per_class=300, test_per_class=500, fields=NORMALIZATION),
    "gpu": Data("cifar10.npz", fields=NORMALIZATION),
}
PRESET = {"cpu": "embedded", "gpu": "cifar10"}  # of the methods: sizes, learning rates, temperatures
BUDGET = {
    "cpu": "3,000 training images (300 of each class), 20 epochs, batches of 64: 920 steps, 58,880 images; ViT of 4 "
    "blocks of width 96, patches of 4; ResNet-10 of width 16; 5,000 test images (500 of each class).",
    "gpu": "50,000 training images, 200 epochs, batches of 512; ViT-Ti/4, ResNet-18; 10,000 test images.",
}
FIELDS: dict[str, dict[str, Any]] = {
    "cpu": {"epochs": 20, "batch_size": 64, "data.on_device": True, "eval.every_epochs": 0, "eval.pictures": 0},
    "gpu": {"epochs": 200, "batch_size": 512, "data.on_device": True, "eval.every_epochs": 0, "eval.pictures": 0},
}
HOST = {"data.on_device": False}  # of saliency masking, whose boundaries are drawn by the host
SEEDS = {"cpu": (0, 1), "gpu": (0, 1, 2)}

FROZEN = Evaluation("all")  # k-NN, logistic regression on all labels, 1 % and 10 % of them
SCRATCH_VIT = {"init": "scratch", "optimizer.layer_decay": 1.0, "optimizer.base_lr": 8e-3}
RESNET = {"batch_size": 32, "optimizer.base_lr": 0.08}  # of fine-tuning
SCRATCH_RESNET = {"init": "scratch", **RESNET}


def few_labels(fields: Mapping[str, Any]) -> Evaluation:
    """All weights on 1 % and 10 % of the labels, 200 steps of up to 32 images."""
    return Evaluation("lowshot:finetune", {"total_steps": 200, **fields}, late=True)


FROZEN_AND_TUNED_VIT = (FROZEN, few_labels({}))
FROZEN_AND_TUNED_RESNET = (FROZEN, few_labels(RESNET))


def frozen_baseline(name: str, of: str, *, note: str = "", **fields: Any) -> Entry:
    """Raw pixels (`feature`) or initial values (`network`), for the images and the encoder of another entry."""
    return Entry(name, of=of, evaluations=(Evaluation("all", fields),), note=note)


def pixels(name: str, of: str) -> Entry:
    """The pixels that another entry's encoder sees: 3,072 numbers an image, which need more regularization."""
    note = "the linear classifier has C = 0.001, which was best of raw pixels on held-out images; of features it has 1"
    return frozen_baseline(name, of, note=note, feature="pixels", C=1e-3)


def supervised(name: str, of: str, recipe: str, fields: Mapping[str, Any], *, epochs: int) -> Entry:
    """The encoder of another entry trained from new weights with labels only: all of them, and few."""
    everything = Evaluation(f"finetune:{recipe}", {**fields, "epochs": epochs}, late=True)
    note = "the same encoder from new weights with labels only"
    return Entry(name, of=of, evaluations=(everything, few_labels(fields)), note=note)
