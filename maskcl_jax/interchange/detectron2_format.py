"""detectron2: a pickle of numpy arrays for its DetectionCheckpointer, and the lines that its config needs."""

from maskcl_jax.interchange import torchvision_format
from maskcl_jax.interchange.files import quoted
from maskcl_jax.interchange.product import Product

CONFIG = "detectron2.yaml"


def lacks(p: Product) -> str:
    """Why its `build_resnet_backbone` has no such network; "" where it has."""
    if p.encoder.stem == "small":
        return "detectron2 has no ResNet with the small stem"
    if p.channels != 3:
        return f"detectron2 reads color images, not {p.channels} channels"
    if not torchvision_format.is_stock(p):
        return f"detectron2 has no {p.encoder.size.name}"
    return torchvision_format.not_in_torchvision(p)


def load(p: Product, folder: str) -> str:
    """The lines that read it as its checkpointer does."""
    path = quoted(f"{folder}/model.pkl")
    return f'import pickle\nstate = pickle.load(open({path}, "rb"), encoding="latin1")["model"]'


def settings(p: Product, weights: str) -> str:
    """The YAML lines: normalization, channel order and the position of the stride as in the run."""
    mean, std = ([round(255 * value, 6) for value in values] for values in p.moments)
    width = "" if p.bottleneck else "    RES2_OUT_CHANNELS: 64\n"
    return (
        f"MODEL:\n  WEIGHTS: {quoted(weights)}\n  PIXEL_MEAN: {mean}\n  PIXEL_STD: {std}\n  RESNETS:\n"
        f"    DEPTH: {p.encoder.size.depth}\n    STRIDE_IN_1X1: False\n{width}INPUT:\n  FORMAT: RGB\n"
    )


def texts(p: Product) -> dict[str, str]:
    """The YAML lines as a file beside the weights."""
    return {CONFIG: settings(p, "model.pkl")}


def notes(p: Product, folder: str) -> str:
    """The same lines, to be copied."""
    weights = f"{folder}/model.pkl"
    return f"In the config (also in `{CONFIG}`):\n\n```yaml\n{settings(p, weights)}```\n"
