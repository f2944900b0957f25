"""ccMIM's claim: the contrast of the two halves makes a masked autoencoder converge faster.

k-NN and a linear classifier against epochs, at equal epochs and at equal CPU time of the steps.
"""

from maskcl_jax.study import Entry, Study, cifar

VARIANTS = {
    "MAE": ("mae", {}),
    "ccMIM": ("ccmim", {}),
    "ccMIM, random masks": ("ccmim", {"method.masking": "random"}),
    "ccMIM, no alignment": ("ccmim", {"method.align_weight": 0.0}),
}


def get_study(scale: str) -> Study:
    """The study at a scale."""
    preset = cifar.PRESET[scale]
    online = {"eval.every_epochs": 2.5 if scale == "cpu" else 20.0, "eval.linear": True}
    return Study(
        question="Does ccMIM converge faster than MAE, at equal epochs and at equal time, and which of its two parts "
        "makes the difference?",
        budget=cifar.BUDGET[scale],
        data=cifar.DATA[scale],
        fields=cifar.FIELDS[scale] | online,
        entries=tuple(Entry(name, f"{config}:{preset}", fields) for name, (config, fields) in VARIANTS.items()),
        evaluations=(cifar.FROZEN,),
        seeds=(0, 1, 2),
        comparisons=(
            *((name, "MAE") for name in VARIANTS if name != "MAE"),
            ("ccMIM", "ccMIM, random masks"),
            ("ccMIM", "ccMIM, no alignment"),
        ),
    )
