"""The order of Chin et al. on Imagenette: no mask, random masks, saliency; which view; hard negatives; which provider.

Data: Imagenette as `imagenette128.npz` in the folder of --data.
"""

from maskcl_jax.study import Data, Entry, Evaluation, Study

NORMALIZATION = {"data.mean": (0.485, 0.456, 0.406), "data.std": (0.229, 0.224, 0.225)}
DATA = {
    "cpu": Data("imagenette128.npz", train_per_class=200, test_per_class=150, fields=NORMALIZATION),
    "gpu": Data("imagenette128.npz", fields=NORMALIZATION),
}
BUDGET = {
    "cpu": "2,000 training images (200 of each class) at 64 pixels, 10 epochs, batches of 64: 310 steps, 19,840 "
    "images; ResNet-10 of width 16; 1,500 test images.",
    "gpu": "9,469 training images at 96 pixels, 200 epochs, batches of 256; ResNet-18; 3,925 test images.",
}
FIELDS = {
    "cpu": {"epochs": 10, "batch_size": 64, "data.image_size": (64, 64), "eval.every_epochs": 0, "eval.pictures": 0},
    "gpu": {"epochs": 200, "batch_size": 256, "data.image_size": (96, 96), "eval.every_epochs": 0, "eval.pictures": 0},
}
BLUR = {"method.strategy": "blur", "method.grid": 8}  # cells of 8 or 12 pixels; without the filter of the whole input
RANDOM = {**BLUR, "method.provider": "uniform"}
VARIANTS = {
    "no mask (MoCo v2)": ("moco_v2", {}),
    "random": ("saliency_masking", RANDOM | {"method.num_hard": 0}),
    "saliency": ("saliency_masking", BLUR),
    "saliency, no hard negatives": ("saliency_masking", BLUR | {"method.num_hard": 0}),
    "saliency of the EMA encoder": ("saliency_masking", BLUR | {"method.provider": "ema"}),
    "saliency, key": ("saliency_masking", BLUR | {"method.masked": "key", "method.num_hard": 0}),
    "saliency, both": ("saliency_masking", BLUR | {"method.masked": "both", "method.num_hard": 0}),
    "random, hard negatives": ("saliency_masking", RANDOM),
}
COMPARISONS = (
    ("saliency", "no mask (MoCo v2)"),
    ("random", "no mask (MoCo v2)"),
    ("saliency, no hard negatives", "random"),
    ("saliency", "random, hard negatives"),
    ("saliency", "saliency, no hard negatives"),
    ("saliency of the EMA encoder", "saliency"),
    ("saliency, no hard negatives", "saliency, key"),
    ("saliency, no hard negatives", "saliency, both"),
)


def get_study(scale: str) -> Study:
    """The study at a scale."""
    preset = {"cpu": "embedded", "gpu": "cifar10"}[scale]
    return Study(
        question="Is the order of Chin et al. (saliency before random before no mask; query before key and both; hard "
        "negatives help) that of these photographs?",
        budget=BUDGET[scale],
        data=DATA[scale],
        fields=FIELDS[scale],
        entries=tuple(Entry(name, f"{config}:{preset}", fields) for name, (config, fields) in VARIANTS.items()),
        evaluations=(Evaluation("all"),),
        seeds=(0, 1) if scale == "cpu" else (0, 1, 2),
        comparisons=COMPARISONS,
    )
