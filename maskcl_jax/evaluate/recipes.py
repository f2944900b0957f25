"""The protocols and their recipes by name: every number a field, with its source.

PROTOCOLS[protocol][recipe] is what `evaluate.settings` makes the settings of one evaluation from. The first recipe of
each protocol is for an encoder of any kind; `settings.default_recipe` chooses for a given one.
"""

from typing import Any

CROP: dict[str, Any] = {
    "crop_scale": (0.08, 1.0),
    "crop_ratio": (3 / 4, 4 / 3),
    "interpolation": "bicubic",
    "flip": True,
}
BILINEAR = CROP | {"interpolation": "bilinear"}

# Of any training protocol.
LOOP = {
    "epochs": 90.0,
    "total_steps": 0,  # wins over epochs where it is not 0
    "checkpoint_every_epochs": 5.0,
    "eval_batch_size": 256,
}
OPTIMIZER = {
    "name": "sgd",
    "base_lr": 0.1,  # at a batch of 256
    "min_lr": 0.0,
    "warmup_epochs": 0.0,
    "per_epoch": False,
    "milestones": (),  # epochs at which the learning rate falls to a tenth; () is a cosine
    "weight_decay": 0.0,
    "decay_on": "matrices",
    "b1": 0.9,
    "b2": 0.999,
    "eps": 1e-8,
    "mu_dtype": "float32",
    "momentum": 0.9,
    "clip_norm": 0.0,
}


def linear(*, batch_size: int, epochs: int, augment: dict, optimizer: dict, **fields: Any) -> dict:
    """A linear classifier on frozen features of augmented images."""
    shared = {
        "batch_size": batch_size,
        "factors": (1.0,),  # of base_lr: one head each, all trained in one pass
        "holdout": 0.0,  # fraction of train on which the best factor is chosen; needed for more than one
        "batch_norm": False,  # BatchNorm without affine, eps 1e-6, before the head
        "augment": augment,
        "optimizer": OPTIMIZER | optimizer,
    }
    return LOOP | {"epochs": float(epochs)} | shared | fields


# Each follows its authors: facebookresearch/mae main_linprobe.py, moco-v3 main_lincls.py, moco main_lincls.py. MAE's
# crop is a single draw there, ten attempts here.
LINEAR = {
    # Our choice: for any encoder and small data; MAE's head, seven learning rates at once.
    "sweep": linear(
        batch_size=1024,
        epochs=20,
        augment=CROP,
        optimizer={"base_lr": 0.1, "warmup_epochs": 1.0},
        batch_norm=True,
        factors=(0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
        holdout=0.1,
    ),
    "mae": linear(
        batch_size=16384,
        epochs=90,
        augment=CROP,
        optimizer={"name": "lars_mae", "base_lr": 0.1, "warmup_epochs": 10.0},
        batch_norm=True,
        feature="cls",
    ),
    "mocov3": linear(
        batch_size=1024, epochs=90, augment=BILINEAR, optimizer={"base_lr": 3.0, "per_epoch": True}, feature="cls"
    ),
    "mocov2": linear(batch_size=256, epochs=100, augment=BILINEAR, optimizer={"base_lr": 30.0, "milestones": (60, 80)}),
}

# MAE's and CMAE's augmentation (timm's rand-m9-mstd0.5-inc1 and what goes with it).
STRONG: dict[str, Any] = {
    "randaugment": {"operations": 2, "magnitude": 9.0, "std": 0.5, "probability": 0.5},
    "erase_p": 0.25,
    "mixup": 0.8,
    "cutmix": 1.0,
    "label_smoothing": 0.1,
}
NONE: dict[str, Any] = {
    "randaugment": {"operations": 0, "magnitude": 9.0, "std": 0.5, "probability": 0.5},
    "erase_p": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "label_smoothing": 0.0,
}


def finetune(*, epochs: int, batch_size: int, optimizer: dict, augment: dict = CROP, **fields: Any) -> dict:
    """All weights trained with a classifier on top."""
    shared = {
        "batch_size": batch_size,
        "init": "pretrained",  # scratch: new weights, the same recipe
        "pool": "mean",  # mean: fc_norm on the mean of the patch tokens; cls: the encoder's norm on the cls token
        "drop_path": 0.0,
        "ema": 0.0,  # momentum of an average of the weights, which is then what is tested; 0: none
        "augment": augment,
        "optimizer": OPTIMIZER | {"layer_decay": 1.0} | optimizer,
    }
    return LOOP | {"epochs": float(epochs)} | shared | NONE | fields


def adamw(**fields: Any) -> dict:
    """AdamW as MAE fine-tunes."""
    recipe = {"name": "adamw", "weight_decay": 0.05, "min_lr": 1e-6, "warmup_epochs": 5.0, "decay_on": "finetune_mae"}
    return recipe | fields


def mae(*, epochs: int, base_lr: float, layer_decay: float, drop_path: float, **optimizer: Any) -> dict:
    """facebookresearch/mae FINETUNE.md, batch 1024; not its paper's table, which is of the un-normalized target."""
    return finetune(
        epochs=epochs,
        batch_size=1024,
        optimizer=adamw(base_lr=base_lr, layer_decay=layer_decay, **optimizer),
        drop_path=drop_path,
        **STRONG,
    )


# ZhichengHuang/CMAE configs/fine-tuning: the learning rate of its 1600-epoch model; 5e-4 for the one of 300 epochs.
CMAE: dict[str, Any] = {"base_lr": 2.5e-4, "decay_on": "finetune_cmae"}

FINETUNE = {
    "mae_b": mae(epochs=100, base_lr=5e-4, layer_decay=0.65, drop_path=0.1),
    "mae_l": mae(epochs=50, base_lr=1e-3, layer_decay=0.75, drop_path=0.2),
    "mae_h": mae(epochs=50, base_lr=1e-3, layer_decay=0.75, drop_path=0.3),
    "cmae_b": mae(epochs=100, layer_decay=0.65, drop_path=0.1, **CMAE),
    # Not published: CMAE's rule with MAE's values for L (our choice).
    "cmae_l": mae(epochs=50, layer_decay=0.75, drop_path=0.2, **CMAE | {"base_lr": 1e-3}),
    # SGD as linear evaluations and ResNets are trained (our choice).
    "resnet": finetune(
        epochs=100,
        batch_size=256,
        augment=BILINEAR,
        optimizer={"base_lr": 0.01, "weight_decay": 1e-4, "decay_on": "all"},
    ),
    # Small ViTs, small images, few labels: light crops and flips, small batches for many steps, and a learning rate
    # that is high at the head and halves with every block below it (our choice).
    "small": finetune(
        epochs=20,
        batch_size=32,
        augment=CROP | {"crop_scale": (0.8, 1.0)},
        optimizer=adamw(base_lr=3.2e-2, layer_decay=0.5, warmup_epochs=2.0),
        label_smoothing=0.1,
    ),
}


def segment(head: str, *, epochs: int) -> dict:
    """Semantic segmentation (our choice throughout)."""
    fields = {
        "batch_size": 16,
        "head": head,
        "frozen": True,  # False: the encoder is trained with the head; with network=random that is supervised only
        "width": 256,  # of the small decoder's convolutions
        "crop_scale": (0.25, 1.0),
        "mask_key": "",  # tfds: the feature that holds the masks
        "mask_path": "",  # folder: the masks of data.path, and of data.test_path in test_mask_path
        "test_mask_path": "",
        "classes": 0,  # 0: as many as the training masks show
        "first_label": 0,  # value of the first class; smaller values are not counted
        "ignore": 255,  # value that is not counted
        "optimizer": OPTIMIZER | {"name": "adamw", "base_lr": 1.6e-2, "weight_decay": 1e-4, "warmup_epochs": 1.0},
    }
    return LOOP | {"epochs": float(epochs)} | fields


PROTOCOLS: dict[str, dict[str, dict[str, Any]]] = {
    # Wu et al. 2018, with k and temperature as DINO reports them; several k are counted on the same neighbors.
    "knn": {"": {"batch_size": 256, "k": (20,), "temperature": 0.07}},
    "logistic": {"": {"batch_size": 256, "C": 1.0}},
    "lowshot": {"": {"batch_size": 256, "C": 1.0, "labels": "1%,10%"}},
    "linear": LINEAR,
    "finetune": FINETUNE,
    "segment": {"linear": segment("linear", epochs=20), "decoder": segment("decoder", epochs=20)},
    "features": {"": {"batch_size": 256, "split": "test", "out": "", "pictures": 8, "neighbors": 7}},
}
CHEAP = ("logistic", "lowshot", "knn")  # what --protocol=all runs: no gradient through an encoder
