"""CMAE's ablation: MAE, then the contrast, then the pixel shift of the target's view, then the feature decoder."""

from maskcl_jax.study import Entry, Study, cifar

CONTRAST = {"method.feature_decoder.kind": "none", "method.pixel_shift": 0, "method.master_size": 224}
VARIANTS = {
    "MAE": ("mae", {}),
    "+ contrast": ("cmae", CONTRAST),
    "+ pixel shift": ("cmae", {"method.feature_decoder.kind": "none"}),
    "CMAE": ("cmae", {}),  # + feature decoder
}


def get_study(scale: str) -> Study:
    """The study at a scale."""
    preset, names = cifar.PRESET[scale], list(VARIANTS)
    return Study(
        question="What does each part of CMAE add to MAE?",
        budget=cifar.BUDGET[scale],
        data=cifar.DATA[scale],
        fields=cifar.FIELDS[scale],
        entries=tuple(Entry(name, f"{config}:{preset}", fields) for name, (config, fields) in VARIANTS.items()),
        evaluations=(cifar.FROZEN,),
        seeds=(0, 1, 2),
        comparisons=(*zip(names[1:], names, strict=False), (names[-1], "MAE")),
    )
