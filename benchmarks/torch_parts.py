"""What `accelerator.py` measures of PyTorch: the same models compiled, in bfloat16, channels last, fused attention."""

import datetime
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))
import conftest  # noqa: F401  (torchvision beside any build of torch)
import torch
import torch_models

QUEUE = 65536
TOY = {"width": 32, "heads": 2, "depth": 1, "size": 64}
VIEWS = {"mae": 1, "ccmim": 1, "cmae": 2, "mocov3": 2, "moco_v2": 2, "simclr": 2}


def network(model: str, batch: int, *, toy: bool) -> torch.nn.Module:
    """The whole model of a method, with its loss."""
    if model == "moco_v2":
        return torch_models.MoCo(queue=8 * batch if toy else QUEUE, depth=18 if toy else 50)
    if model == "simclr":
        return torch_models.SimCLR(depth=18 if toy else 50)
    size = TOY if toy else torch_models.VIT_B
    kind = {"mae": torch_models.MAE, "ccmim": torch_models.CCMIM, "cmae": torch_models.CMAE}
    if model not in kind:
        return torch_models.MoCoV3(**size)
    return kind[model](**size, **({"shown": 4} if toy else {}))


def measure(name: str, *, toy: bool, cifar10: str) -> dict[str, Any]:
    """Times the step of a part; see `our_parts.measure`."""
    _, model, batch = name.split("/")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_default_device(device)
    torch.manual_seed(0)
    net = network(model, int(batch), toy=toy)
    convolutional = model in ("moco_v2", "simclr")
    if convolutional:
        net = net.to(memory_format=torch.channels_last)
    views = [torch.randn(int(batch), 3, *(2 * [64 if toy else 224])) for _ in range(VIEWS[model])]
    if convolutional:
        views = [images.contiguous(memory_format=torch.channels_last) for images in views]
    trained = [p for p in net.parameters() if p.requires_grad]
    tx = torch.optim.SGD(trained, lr=0.03, momentum=0.9) if convolutional else torch.optim.AdamW(trained, lr=1e-4)
    loss = net if toy else torch.compile(net)

    def step() -> None:
        tx.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            value = loss(*views)
        value.backward()
        tx.step()
        if hasattr(net, "move"):
            net.move()

    begin = time.monotonic()
    step()
    finish(device)
    first = time.monotonic() - begin
    seconds = timed(step, device, steps=2 if toy else 15)
    found = {"images_per_second": int(batch) / seconds, "seconds_a_step": seconds, "compile_seconds": first}
    if device == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
    kind = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return found | {"date": datetime.date.today().isoformat(), "platform": f"{kind}, torch {torch.__version__}"}


def timed(step: Callable[[], None], device: str, *, steps: int) -> float:
    """Median seconds of a step, after one that does not count."""
    times = []
    for _ in range(1 + steps):
        begin = time.perf_counter()
        step()
        finish(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def finish(device: str) -> None:
    """Waits for the device."""
    if device == "cuda":
        torch.cuda.synchronize()
