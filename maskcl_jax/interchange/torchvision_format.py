"""torchvision: a state dict, and the lines that build its ResNet, whatever the stem and width."""

from maskcl_jax.interchange.files import quoted
from maskcl_jax.interchange.product import Product

STOCK = (18, 34, 50, 101)


def is_stock(p: Product) -> bool:
    """Whether a ResNet's stages are those of a depth that every library has."""
    return p.encoder.size.is_named and p.encoder.size.depth in STOCK


def not_in_torchvision(p: Product) -> str:
    """Why a ResNet is not one that every library has; "" where it is."""
    if len(p.blocks) != 4:
        return f"it has no ResNet of {len(p.blocks)} stages"
    if p.encoder.width != 64:
        return (
            f"it has no ResNet whose stem has {p.encoder.width} channels: --format=torchvision writes the lines for it"
        )
    return ""


def build(p: Product) -> str:
    """Python that makes `model`, with torchvision's initial values."""
    e, block = p.encoder, "Bottleneck" if p.bottleneck else "BasicBlock"
    lines = ["import torch", "from torchvision.models import resnet"]
    lines.append(
        f"model = resnet.resnet{e.size.depth}()"
        if is_stock(p)
        else f"model = resnet.ResNet(resnet.{block}, {p.blocks})"
    )
    if e.width != 64:
        lines += [
            f"model.inplanes, model.bn1 = {e.width}, torch.nn.BatchNorm2d({e.width})",
            f"stages = [model._make_layer(resnet.{block}, {e.width} * 2**i, n, 2 if i else 1) "
            f"for i, n in enumerate({p.blocks})]",
            "model.layer1, model.layer2, model.layer3, model.layer4 = stages",
        ]
    if e.stem == "small":
        lines.append(f"model.conv1 = torch.nn.Conv2d({p.channels}, {e.width}, 3, padding=1, bias=False)")
        lines.append("model.maxpool = torch.nn.Identity()")
    elif e.width != 64 or p.channels != 3:
        lines.append(f"model.conv1 = torch.nn.Conv2d({p.channels}, {e.width}, 7, stride=2, padding=3, bias=False)")
    return "\n".join([*lines, "model.fc = torch.nn.Identity()"])


def load(p: Product, folder: str) -> str:
    """The lines that build and load it, strictly."""
    return (
        f"{build(p)}\nfrom safetensors.torch import load_file\n"
        f"model.load_state_dict(load_file({quoted(f'{folder}/model.safetensors')}))\nmodel.eval()"
    )
