"""Knobs of the methods chosen on a held-out part of the training set: the test set is never looked at.

The held-out part is 200 images of each class that no run of `cifar10` trains on.
"""

import dataclasses

from maskcl_jax.study import Entry, Evaluation, Study, cifar

WIDE = {"method.high_pass.sigma": 40.0, "method.high_pass.taps": 161}  # twice the config's: larger structures stay
# Of each method the value of its config first; then knobs that its paper or its code names.
TRIED = {
    "MAE": ("mae", {}),
    "MAE, rate x3": ("mae", {"optimizer.base_lr": 6e-3}),
    "MAE, mask ratio 0.5": ("mae", {"method.mask_ratio": 0.5}),
    "MAE, rate x3, mask ratio 0.5": ("mae", {"optimizer.base_lr": 6e-3, "method.mask_ratio": 0.5}),
    "MAE, rate x10": ("mae", {"optimizer.base_lr": 2e-2}),
    "MAE, 3 times the epochs": ("mae", {"epochs": 60}),
    "MAE, batches of 32": ("mae", {"batch_size": 32}),
    "MAE, batches of 16": ("mae", {"batch_size": 16}),
    "MAE, crops from 0.5": ("mae", {"augment.crop_scale": (0.5, 1.0)}),
    "ccMIM": ("ccmim", {}),
    "ccMIM, rate x3": ("ccmim", {"optimizer.base_lr": 6e-3}),
    "ccMIM, weight 0.2": ("ccmim", {"method.align_weight": 0.2}),
    "CMAE": ("cmae", {}),
    "CMAE, rate x3": ("cmae", {"optimizer.base_lr": 6e-3}),
    "MACRL": ("macrl", {}),
    "MACRL, rate x3": ("macrl", {"optimizer.base_lr": 6e-3}),
    "MoCo v2": ("moco_v2", {}),
    "MoCo v2, temperature 0.2": ("moco_v2", {"method.temperature": 0.2}),
    "MoCo v2, rate x0.3": ("moco_v2", {"optimizer.base_lr": 0.08}),
    "MaskCo": ("maskco", {}),
    "MaskCo, head of one block": ("maskco", {"method.mask_head.blocks": 1}),
    "MaskCo, head on both branches": ("maskco", {"method.mask_head.branch": "both"}),
    "MaskCo, large regions": ("maskco", {"method.box_side": (0.5, 0.75)}),
    "MaskCo, small regions": ("maskco", {"method.box_side": (0.25, 0.4)}),
    "MaskCo, temperature 0.2": ("maskco", {"method.temperature": 0.2}),
    "saliency masking": ("saliency_masking", cifar.HOST),
    "saliency masking, no hard negatives": ("saliency_masking", cifar.HOST | {"method.num_hard": 0}),
    "saliency masking, temperature 0.2": ("saliency_masking", cifar.HOST | {"method.temperature": 0.2}),
    "saliency masking, wide filter": ("saliency_masking", cifar.HOST | WIDE),
    "MSCN-style": ("mscn", {}),
    "MSCN-style, blur": ("mscn", {"method.strategy": "blur"}),
    "MSCN-style, temperature 0.2": ("mscn", {"method.temperature": 0.2}),
    "MSCN-style, wide filter": ("mscn", WIDE),
}
BEHIND = ("MAE", "ccMIM", "CMAE", "MaskCo", "saliency masking", "MSCN-style")  # raw pixels, in some column of cifar10

PIXELS, UNTRAINED = {"feature": "pixels"}, {"network": "random"}
FROZEN = {  # entry: the one whose runs it evaluates, fields
    "raw pixels": ("MAE", PIXELS),
    "untrained ViT": ("MAE", UNTRAINED),
    "untrained ResNet": ("MoCo v2", UNTRAINED),
}
# Of the linear classifier: C is the inverse strength of its regularization, 1 in the recipe.
REGULARIZED = {
    **{f"raw pixels, C = {C}": ("MAE", {**PIXELS, "C": C}) for C in (0.1, 0.01, 1e-3, 1e-4)},
    **{f"untrained ViT, C = {C}": ("MAE", {**UNTRAINED, "C": C}) for C in (10, 0.1, 0.01)},
    **{f"untrained ResNet, C = {C}": ("MoCo v2", {**UNTRAINED, "C": C}) for C in (10, 0.1, 0.01)},
    **{f"{name}, C = {C}": (name, {"C": C}) for name in ("MAE", "MoCo v2") for C in (10, 0.1, 0.01)},
}


def get_study(scale: str) -> Study:
    """The study at a scale."""
    data = dataclasses.replace(cifar.DATA[scale], train_per_class=300, test_per_class=200, held_out=True)
    preset = cifar.PRESET[scale]
    return Study(
        question="Which values of the methods' own knobs are best on held-out training images?",
        budget=f"As cifar10, tested on 2,000 held-out training images instead: {cifar.BUDGET[scale]} Entries that name "
        "epochs or batches have those.",
        data=data,
        fields=cifar.FIELDS[scale],
        entries=(
            *(Entry(name, f"{config}:{preset}", fields) for name, (config, fields) in TRIED.items()),
            *(cifar.frozen_baseline(name, of, **fields) for name, (of, fields) in (FROZEN | REGULARIZED).items()),
            Entry("MAE, cls token", of="MAE", evaluations=(Evaluation("knn", {"feature": "cls"}),)),
        ),
        evaluations=(cifar.FROZEN,),
        comparisons=(
            *((name, name.partition(",")[0]) for name in (*TRIED, *REGULARIZED) if "," in name),
            *((name, "raw pixels, C = 0.001") for name in TRIED if name.startswith(BEHIND)),
        ),
    )
