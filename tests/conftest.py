"""What all tests share: the CPU, and a torchvision that imports beside a CPU build of torch."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

try:
    import torch
except ImportError:
    pass
else:
    # torchvision's compiled operators may not load beside this torch, and then `import timm` fails on this one.
    if not hasattr(torch.ops.torchvision, "nms"):
        LIBRARY = torch.library.Library("torchvision", "DEF")
        LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
