"""Frozen patch tokens of ViTs and the last map of a ResNet on CamVid: a linear head, mean IoU of 11 classes.

Data: the folder `camvid` with {train,val,test}/{images,masks} in the folder of --data; class 11 is not labeled. The
encoders are trained on CamVid's own training images, without labels; the supervised ones with the masks only.
"""

from maskcl_jax.study import Entry, Evaluation, Study

SIZE = (64, 80)
CAMVID = {
    "data.path": "{data}/camvid/train/images",
    "data.test_path": "{data}/camvid/test/images",
    "mask_path": "{data}/camvid/train/masks",
    "test_mask_path": "{data}/camvid/test/masks",
}
RUNS = {"data.source": "folder", "data.path": "{data}/camvid/train/images", "eval.every_epochs": 0, "eval.pictures": 0}
FIELDS = {
    "cpu": {**RUNS, "data.image_size": SIZE, "epochs": 40, "batch_size": 32, "optimizer.warmup_epochs": 4.0},
    "gpu": {**RUNS, "data.image_size": (160, 208), "epochs": 800, "batch_size": 64, "optimizer.warmup_epochs": 40.0},
}
BUDGET = {
    "cpu": "367 training images at 64x80 pixels, 40 epochs, batches of 32: 440 steps, 14,080 images; ViT of 4 blocks "
    "of width 96, patches of 4; ResNet-10 of width 16; the head 20 epochs, supervised encoders with it 40; 233 test "
    "images.",
    "gpu": "367 training images at 160x208 pixels, 800 epochs, batches of 64; ViT-Ti/8, ResNet-18; the head 40 epochs, "
    "supervised encoders with it 200.",
}


def get_study(scale: str) -> Study:
    """The study at a scale."""
    preset = {"cpu": "embedded", "gpu": "cifar10"}[scale]
    head = {**CAMVID, "ignore": 11, "classes": 11, "epochs": {"cpu": 20, "gpu": 40}[scale]}
    vit = {"model.patch_size": 8} if scale == "gpu" else {}
    methods = {"MAE": ("mae", vit), "ccMIM": ("ccmim", vit), "CMAE": ("cmae", vit), "MoCo v2": ("moco_v2", {})}

    supervised = {"network": "random", "frozen": False, "epochs": {"cpu": 40, "gpu": 200}[scale]}

    def mean_iou(**fields: object) -> tuple[Evaluation, ...]:
        return (Evaluation("segment:linear", head | fields, data="folder"),)

    entries = [
        Entry(name, f"{config}:{preset}", fields, evaluations=mean_iou()) for name, (config, fields) in methods.items()
    ]
    entries[1:1] = [Entry("untrained ViT", of="MAE", evaluations=mean_iou(network="random"))]
    entries += [
        Entry("untrained ResNet", of="MoCo v2", evaluations=mean_iou(network="random")),
        Entry("supervised ViT", of="MAE", evaluations=mean_iou(**supervised)),
        Entry("supervised ResNet", of="MoCo v2", evaluations=mean_iou(**supervised)),
    ]
    return Study(
        question="How much of a street scene do frozen features hold that were learned without labels, beside those of "
        "an untrained encoder?",
        budget=BUDGET[scale],
        fields=FIELDS[scale],
        entries=tuple(entries),
        seeds=(0, 1) if scale == "cpu" else (0, 1, 2),
        comparisons=(
            *((name, "untrained ViT") for name in ("MAE", "ccMIM", "CMAE")),
            ("MoCo v2", "untrained ResNet"),
            ("MAE", "supervised ViT"),
            ("MoCo v2", "supervised ResNet"),
            ("ccMIM", "MAE"),
            ("CMAE", "MAE"),
        ),
    )
