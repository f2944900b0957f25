"""What every method is worth on small photographs, beside raw pixels, the untrained encoder and labels.

Data: CIFAR-10 as `cifar10.npz` (train_images, train_labels, test_images, test_labels) in the folder of --data.
"""

from maskcl_jax.study import Data, Entry, Evaluation, Study

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
FIELDS = {
    "cpu": {"epochs": 20, "batch_size": 64, "data.on_device": True, "eval.every_epochs": 0, "eval.pictures": 0},
    "gpu": {"epochs": 200, "batch_size": 512, "data.on_device": True, "eval.every_epochs": 0, "eval.pictures": 0},
}
HOST = {"data.on_device": False}  # boundaries are drawn by the host
FROZEN = Evaluation("all")  # k-NN, logistic regression on all labels, 1 % and 10 % of them
SCRATCH_VIT = {"init": "scratch", "optimizer.layer_decay": 1.0, "optimizer.base_lr": 8e-3}
SCRATCH_RESNET = {"init": "scratch", "batch_size": 32, "optimizer.base_lr": 0.08}


def few_labels(**fields: object) -> Evaluation:
    """All weights on 1 % and 10 % of the labels, 200 steps of up to 32 images."""
    return Evaluation("lowshot:finetune", {"total_steps": 200, **fields}, late=True)


VIT = (FROZEN, few_labels())
RESNET = (FROZEN, few_labels(**{"batch_size": 32, "optimizer.base_lr": 0.08}))
METHODS = {  # name: config, fields, evaluations
    "MAE": ("mae", {}, VIT),
    "ccMIM": ("ccmim", {}, VIT),
    "CMAE": ("cmae", {}, VIT),
    "MACRL": ("macrl", {}, VIT),
    "MoCo v2": ("moco_v2", {}, RESNET),
    "SimCLR": ("simclr", {}, RESNET),
    "SimCLR, ViT": ("simclr_vit", {}, VIT),
    "MoCo v3": ("mocov3", {}, VIT),
    "MaskCo": ("maskco", {}, RESNET),
    "saliency masking, high-pass": ("saliency_masking", HOST, RESNET),
    "saliency masking, blur": ("saliency_masking", HOST | {"method.strategy": "blur"}, RESNET),
    "saliency masking, mean": ("saliency_masking", HOST | {"method.strategy": "mean"}, RESNET),
    "MSCN-style": ("mscn", {}, RESNET),
}


def get_study(scale: str) -> Study:
    """The study at a scale."""

    def entry(name: str) -> Entry:
        config, fields, evaluations = METHODS[name]
        return Entry(name, f"{config}:{PRESET[scale]}", fields, evaluations=evaluations)

    supervised = {"epochs": 20} if scale == "cpu" else {"epochs": 100}
    baselines = {
        "raw pixels": Entry("raw pixels", of="MAE", evaluations=(Evaluation("all", {"feature": "pixels"}),)),
        "untrained ViT": Entry("untrained ViT", of="MAE", evaluations=(Evaluation("all", {"network": "random"}),)),
        "untrained ResNet": Entry(
            "untrained ResNet", of="MoCo v2", evaluations=(Evaluation("all", {"network": "random"}),)
        ),
        "supervised ViT": Entry(
            "supervised ViT",
            of="MAE",
            evaluations=(
                Evaluation("finetune:small", SCRATCH_VIT | supervised, late=True),
                few_labels(**SCRATCH_VIT),
            ),
            note="the same encoder from new weights with labels only",
        ),
        "supervised ResNet": Entry(
            "supervised ResNet",
            of="MoCo v2",
            evaluations=(
                Evaluation("finetune:resnet", SCRATCH_RESNET | supervised, late=True),
                few_labels(**SCRATCH_RESNET),
            ),
            note="the same encoder from new weights with labels only",
        ),
    }
    of_resnet = [name for name, method in METHODS.items() if method[2] is RESNET]
    names = ["MAE", "raw pixels", "untrained ViT", "ccMIM", "CMAE", "MoCo v2", "untrained ResNet", "MACRL"]
    names += [name for name in (*METHODS, *baselines) if name not in names]
    comparisons = [("ccMIM", "MAE"), ("CMAE", "MAE"), ("MACRL", "MAE"), ("MACRL", "MoCo v3"), ("MaskCo", "MoCo v2")]
    comparisons += [(name, "MoCo v2") for name in of_resnet if name.startswith("saliency")]
    comparisons += [("saliency masking, high-pass", "MSCN-style")]
    comparisons += [(name, "raw pixels") for name in METHODS]
    comparisons += [(name, "untrained ResNet" if name in of_resnet else "untrained ViT") for name in METHODS]
    return Study(
        question="Does every method learn more than raw pixels and an untrained encoder hold, and is the order of the "
        "methods that of their papers?",
        budget=BUDGET[scale],
        data=DATA[scale],
        fields=FIELDS[scale],
        entries=tuple(baselines.get(name) or entry(name) for name in names),
        seeds=(0, 1) if scale == "cpu" else (0, 1, 2),
        comparisons=tuple(comparisons),
    )
