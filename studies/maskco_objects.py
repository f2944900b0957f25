"""MaskCo's claim: on images of several objects it loses less than MoCo v2, whose two crops may show different things.

Scenes are four images of CIFAR-10, two by two; either encoder is evaluated on single images. `, 64 pixels` keeps the
four at full size, so that the last map has 8 x 8 cells instead of 4 x 4.
"""

from maskcl_jax.study import Entry, Study, cifar

SCENES = {"data.source": "scenes", "data.parts": "npz"}
NO_HEAD = {"method.mask_head.branch": "none"}
VARIANTS = {
    "MoCo v2": ("moco_v2", {}),
    "MaskCo": ("maskco", {}),
    "MoCo v2, scenes": ("moco_v2", SCENES),
    "MaskCo, scenes": ("maskco", SCENES),
    "MaskCo without head, scenes": ("maskco", SCENES | NO_HEAD),
    "MaskCo, head on both branches, scenes": ("maskco", SCENES | {"method.mask_head.branch": "both"}),
    "MaskCo, head of one block, scenes": ("maskco", SCENES | {"method.mask_head.blocks": 1}),
    "MaskCo, large regions, scenes": ("maskco", SCENES | {"method.box_side": (0.5, 0.75)}),
    "MaskCo, small regions, scenes": ("maskco", SCENES | {"method.box_side": (0.25, 0.4)}),
    "MoCo v2, scenes, 64 pixels": ("moco_v2", SCENES),
    "MaskCo, scenes, 64 pixels": ("maskco", SCENES),
    "MaskCo without head, scenes, 64 pixels": ("maskco", SCENES | NO_HEAD),
    "MaskCo without head": ("maskco", NO_HEAD),
    "MaskCo, queue of 2048, scenes": ("maskco", SCENES | {"method.queue_size": 2048}),
}
LARGE = {  # of the entries `, 64 pixels`: four times the cost of a step
    "cpu": {"data.image_size": (64, 64), "epochs": 10},
    "gpu": {"data.image_size": (64, 64)},
}
COMPARISONS = (
    ("MaskCo", "MoCo v2"),
    ("MaskCo, scenes", "MoCo v2, scenes"),
    ("MaskCo, scenes, 64 pixels", "MoCo v2, scenes, 64 pixels"),
    ("MaskCo", "MaskCo without head"),
    ("MaskCo, scenes", "MaskCo without head, scenes"),
    ("MaskCo, scenes, 64 pixels", "MaskCo without head, scenes, 64 pixels"),
    ("MaskCo without head", "MoCo v2"),
    ("MaskCo without head, scenes", "MoCo v2, scenes"),
    ("MaskCo without head, scenes, 64 pixels", "MoCo v2, scenes, 64 pixels"),
    ("MaskCo, head on both branches, scenes", "MaskCo, scenes"),
    ("MaskCo, head of one block, scenes", "MaskCo, scenes"),
    ("MaskCo, small regions, scenes", "MaskCo, scenes"),
    ("MaskCo, large regions, scenes", "MaskCo, scenes"),
    ("MaskCo, small regions, scenes", "MoCo v2, scenes"),  # added after its row
    ("MaskCo, queue of 2048, scenes", "MaskCo, scenes"),
)


def get_study(scale: str) -> Study:
    """The study at a scale."""
    preset = cifar.PRESET[scale]
    sizes = {name: LARGE[scale] if name.endswith("64 pixels") else {} for name in VARIANTS}
    return Study(
        question="Does the distance of MaskCo to MoCo v2 shrink or turn with several objects an image, and does its "
        "mask prediction head help?",
        budget=cifar.BUDGET[scale] + {"cpu": " Scenes at 64 pixels: 10 epochs.", "gpu": ""}[scale],
        data=cifar.DATA[scale],
        fields=cifar.FIELDS[scale],
        entries=tuple(
            Entry(name, f"{config}:{preset}", fields | sizes[name]) for name, (config, fields) in VARIANTS.items()
        ),
        evaluations=(cifar.FROZEN,),
        seeds=cifar.SEEDS[scale],
        comparisons=COMPARISONS,
    )
