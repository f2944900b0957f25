"""One method of another library: python peer_run.py LIBRARY METHOD DATA.npz OUT.npz [--seed=0].

LIBRARY is lightly or stable_pretraining. Its own transforms, heads and losses, in a plain training loop; encoder,
batch, learning rate and temperature are those of maskcl_jax's small presets. It trains until SIGTERM (`compare.py`
sends it), then writes the features of both splits, the images that it has seen, and CPU seconds of the steps.
"""

import argparse
import importlib
import os
import pathlib
import signal
import time

import numpy as np
import torch
from small_networks import MEAN, STD
from torch import nn

BATCH, WARMUP = 64, 50
LIBRARIES = ("lightly", "stable_pretraining")
METHODS = ("mae", "simclr", "moco_v2")


def without_compiled_operators() -> None:
    """Imports go on where torchvision's compiled operators do not fit torch: none of them is used."""
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


class Views(torch.utils.data.Dataset):
    """Images through a transform of the library."""

    def __init__(self, images, transform):
        from PIL import Image

        self.images, self.transform = [Image.fromarray(image) for image in images], transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(self.images[index])


def optimizer_of(name: str, model: nn.Module):
    """The optimizer and the peak learning rate of maskcl_jax's small preset at a batch of 64."""
    trained = [p for n, p in model.named_parameters() if p.requires_grad and not n.startswith("key_")]
    if name == "mae":
        return torch.optim.AdamW(trained, lr=5e-4, betas=(0.9, 0.95), weight_decay=0.05)
    return torch.optim.SGD(trained, lr=0.06, momentum=0.9, weight_decay=5e-4)


def train(name: str, model: nn.Module, images, stop: list) -> tuple[int, float]:
    """Trains until the signal, at a constant rate after a warm-up; (images seen, CPU seconds of the steps)."""
    loader = torch.utils.data.DataLoader(Views(images, model.transform), BATCH, shuffle=True, drop_last=True)
    optimizer, step, begin = optimizer_of(name, model), 0, 0.0
    peak = optimizer.param_groups[0]["lr"]
    while not stop:
        for views in loader:
            if stop:
                break
            begin = begin or time.process_time()
            optimizer.param_groups[0]["lr"] = peak * min(1.0, (step + 1) / WARMUP)
            loss = model.loss(views)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    return step * BATCH, time.process_time() - begin


@torch.no_grad()
def features(model: nn.Module, images) -> np.ndarray:
    """(N, D) of uint8 images."""
    model.eval()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    parts = [images[i : i + 256] for i in range(0, len(images), 256)]
    batches = (torch.from_numpy(part).permute(0, 3, 1, 2) / 255.0 for part in parts)
    return torch.cat([model.features((batch - mean) / std) for batch in batches]).numpy()


def main() -> None:
    """Trains one method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    torch.manual_seed(a.seed)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with np.load(a.data) as file:
        train_images, test_images = file["train_images"], file["test_images"]
    without_compiled_operators()
    model = importlib.import_module(f"{a.library}_methods").METHODS[a.method]()
    seen, cpu_seconds = train(a.method, model, train_images, stop)
    arrays = {"train": features(model, train_images), "test": features(model, test_images)}
    np.savez(a.out, **arrays, images=seen, cpu_seconds=cpu_seconds)


if __name__ == "__main__":
    main()
