"""The study `macrl` on 100 classes of Tiny-ImageNet at 64 pixels: `tiny_imagenet100.npz` in the folder of --data."""

import pathlib
import runpy

from maskcl_jax.study import Data, Study

CIFAR10 = runpy.run_path(str(pathlib.Path(__file__).with_name("macrl.py")))
NORMALIZATION = {"data.mean": (0.485, 0.456, 0.406), "data.std": (0.229, 0.224, 0.225), "data.image_size": (64, 64)}
FIELDS = {
    "cpu": {"model.patch_size": 8, "epochs": 10},  # 64 patches, as at 32 pixels
    "gpu": {"model.patch_size": 8, "epochs": 200},
}


def get_study(scale: str) -> Study:
    """The study at a scale."""
    study = CIFAR10["get_study"](scale)
    part = {"train_per_class": 30, "test_per_class": 20} if scale == "cpu" else {}
    budget = {
        "cpu": "3,000 training images (30 of each of 100 classes), 10 epochs, batches of 64: 460 steps, 29,440 images; "
        "ViT of 4 blocks of width 96, patches of 8 of 64 pixels; 2,000 test images.",
        "gpu": "50,000 training images, 200 epochs, batches of 512; ViT-Ti/8; 5,000 test images.",
    }
    return Study(
        question=study.question,
        budget=budget[scale],
        data=Data("tiny_imagenet100.npz", fields=NORMALIZATION, **part),
        fields={**study.fields, **FIELDS[scale]},
        entries=study.entries,
        evaluations=study.evaluations,
        seeds=study.seeds,
        comparisons=study.comparisons,
    )
