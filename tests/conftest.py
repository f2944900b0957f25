"""What all tests share: the CPU, and a torchvision that imports beside a CPU build of torch."""

import importlib.util
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

if importlib.util.find_spec("torch") is not None:
    import torch

    # torchvision's compiled operators may not load beside this torch: then `import timm` fails for want of these two.
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
