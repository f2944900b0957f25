"""MACRL in its abstract's setting: against MAE and MoCo v3, with and without its asymmetry, on CIFAR-10.

`macrl_tiny_imagenet` is the same on Tiny-ImageNet.
"""

from maskcl_jax.study import Entry, Study, cifar

VARIANTS = {
    "MACRL": ("macrl", {}),
    "MACRL, equal views": ("macrl", {"method.mask_ratio_key": 0.75, "method.key_as_query": True}),
    "MACRL, roles swapped": ("macrl", {"method.swap_roles": True}),
    "MACRL, key not masked": (
        "macrl",
        {"method.mask_ratio_key": 0.0, "method.lambda_key": 0.0, "method.decoder.depth": 2},
    ),
    "MAE": ("mae", {}),
    "MoCo v3": ("mocov3", {}),
}
NOTES = {
    "MACRL, equal views": "both views with the query's mask ratio, crop and color augmentation",
    "MACRL, key not masked": "the key's view whole and not reconstructed, a decoder of 2 blocks: second-hand sources "
    "describe the paper so",
}


def get_study(scale: str) -> Study:
    """The study at a scale."""
    preset = cifar.PRESET[scale]
    return Study(
        question="Is MACRL better than MAE and MoCo v3 at an equal budget, and does its asymmetry matter?",
        budget=f"{cifar.BUDGET[scale]} Equal numbers of images, not equal time.",
        data=cifar.DATA[scale],
        fields=cifar.FIELDS[scale],
        entries=tuple(
            Entry(name, f"{config}:{preset}", fields, note=NOTES.get(name, ""))
            for name, (config, fields) in VARIANTS.items()
        ),
        evaluations=(cifar.FROZEN,),
        seeds=cifar.SEEDS[scale],
        comparisons=tuple(("MACRL", name) for name in VARIANTS if name != "MACRL"),
    )
