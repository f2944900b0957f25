"""The parts of `accelerator.py` by name: in which order they are measured, and which belong together."""

VITS, RESNETS = ("mae", "ccmim", "cmae", "mocov3"), ("moco_v2", "simclr", "maskco", "saliency_masking")
IN_TORCH = ("mae", "ccmim", "cmae", "mocov3", "moco_v2", "simclr")
BATCHES = (128, 256, 512, 1024, 2048)
FIRST_BATCH, TOY_BATCH = 256, 8


def names(*, toy: bool) -> list[str]:
    """Every part, the most telling first."""
    first, rest = (TOY_BATCH, (2 * TOY_BATCH,)) if toy else (FIRST_BATCH, tuple(b for b in BATCHES if b != FIRST_BATCH))
    models = VITS + RESNETS
    found = [step(model, first) for model in VITS] + [torch(model, first) for model in IN_TORCH]
    found += [step(model, first) for model in RESNETS]
    found += [step(model, first, attention="cudnn") for model in VITS]
    found += [step(model, first, kernels="fused") for model in VITS]
    found += ["end_to_end/device", "end_to_end/host", "verify", "resume", "cifar10"]
    for batch in rest:
        found += [step(model, batch) for model in models]
        found += [step(model, batch, attention="cudnn") for model in VITS] + [torch(model, batch) for model in IN_TORCH]
    return found


def step(model: str, batch: int, kernels: str = "plain", attention: str = "xla") -> str:
    """The name of a step of ours."""
    return f"step/{model}/{kernels}/{attention}/{batch}"


def torch(model: str, batch: int) -> str:
    """The name of a step of PyTorch's."""
    return f"torch/{model}/{batch}"


def split_batch(name: str) -> tuple[str, int]:
    """(the name without its batch, the batch), the batch 0 where there is none."""
    kind, _, batch = name.rpartition("/")
    return (kind, int(batch)) if batch.isdigit() else (name, 0)


def counterpart(name: str) -> str:
    """The name of the same step in PyTorch; "" for other parts."""
    kind, *rest = name.split("/")
    return torch(rest[0], int(rest[-1])) if kind == "step" else ""
