"""One method of lightly on a .npz of images: python lightly_runs.py METHOD DATA.npz OUT.npz [--seed=0] [--threads=2].

Its own transforms, heads, losses and masked ViT, in the training loop of its examples; encoder, batch, learning rate
and temperature are those of maskcl_jax's small presets. It trains until SIGTERM (`compare.py` sends it), then writes
the features of both splits, the images that it has seen, and seconds.
"""

import argparse
import pathlib
import signal
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
NORMALIZE = {"mean": list(MEAN), "std": list(STD)}
BATCH, WARMUP = 64, 50


def imports():
    """lightly, also where torchvision's compiled operators do not fit torch: none of them is used."""
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import lightly.loss
    import lightly.models.modules
    import lightly.models.utils
    import lightly.transforms

    return lightly


class Residual(nn.Module):
    """A basic block of a ResNet."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        same = inputs == width and stride == 1
        down = (nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        self.shortcut = nn.Identity() if same else nn.Sequential(*down)

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def resnet10() -> nn.Module:
    """ResNet-10 of width 16 with the stem for small images: 128 features."""
    stem = (nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    blocks = (Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2), Residual(64, 128, 2))
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class MAE(nn.Module):
    """lightly's example of MAE at the size of the small preset."""

    def __init__(self, lightly):
        super().__init__()
        from timm.models.vision_transformer import VisionTransformer

        vit = VisionTransformer(img_size=32, patch_size=4, embed_dim=96, depth=4, num_heads=3, num_classes=0)
        modules, self.utils = lightly.models.modules, lightly.models.utils
        self.backbone = modules.MaskedVisionTransformerTIMM(vit=vit)
        self.decoder = modules.MAEDecoderTIMM(
            num_patches=64, patch_size=4, embed_dim=96, decoder_embed_dim=64, decoder_depth=1, decoder_num_heads=4
        )
        self.transform = lightly.transforms.MAETransform(input_size=32, normalize=NORMALIZE)

    def loss(self, views):
        """The mean squared error of the masked patches, each normalized."""
        (images,) = views
        keep, mask = self.utils.random_token_mask(size=(len(images), 65), mask_ratio=0.75)
        encoded = self.decoder.embed(self.backbone.encode(images=images, idx_keep=keep))
        tokens = self.utils.repeat_token(self.decoder.mask_token, (len(images), 65))
        tokens = self.utils.set_at_index(tokens, keep, encoded.type_as(tokens))
        predicted = self.decoder.predict(self.utils.get_at_index(self.decoder.decode(tokens), mask))
        target = self.utils.get_at_index(self.utils.patchify(images, 4), mask - 1)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        return F.mse_loss(predicted, target)

    def features(self, images):
        """The mean of the patch tokens."""
        return self.backbone.encode(images=images)[:, 1:].mean(1)


class SimCLR(nn.Module):
    """lightly's SimCLR."""

    def __init__(self, lightly):
        super().__init__()
        self.backbone = resnet10()
        self.head = lightly.models.modules.SimCLRProjectionHead(128, 128, 64)
        self.criterion = lightly.loss.NTXentLoss(temperature=0.2)
        self.transform = lightly.transforms.SimCLRTransform(
            input_size=32, cj_strength=0.5, min_scale=0.2, gaussian_blur=0.0, normalize=NORMALIZE
        )

    def loss(self, views):
        """Both views in one pass."""
        first, second = self.head(self.backbone(torch.cat(views))).chunk(2)
        return self.criterion(first, second)

    def features(self, images):
        """What is pooled."""
        return self.backbone(images)


class MoCoV2(nn.Module):
    """lightly's MoCo v2, a queue of 512 keys; keys are shuffled in the code of the paper, here not."""

    def __init__(self, lightly):
        super().__init__()
        modules, self.utils = lightly.models.modules, lightly.models.utils
        self.backbone, self.head = resnet10(), modules.MoCoProjectionHead(128, 128, 64)
        self.key_backbone, self.key_head = resnet10(), modules.MoCoProjectionHead(128, 128, 64)
        self.key_backbone.load_state_dict(self.backbone.state_dict())
        self.key_head.load_state_dict(self.head.state_dict())
        self.criterion = lightly.loss.NTXentLoss(temperature=0.1, memory_bank_size=(512, 64))
        self.transform = lightly.transforms.MoCoV2Transform(input_size=32, gaussian_blur=0.0, normalize=NORMALIZE)

    def loss(self, views):
        """Queries against keys of the EMA encoder."""
        self.utils.update_momentum(self.backbone, self.key_backbone, m=0.99)
        self.utils.update_momentum(self.head, self.key_head, m=0.99)
        query = self.head(self.backbone(views[0]))
        with torch.no_grad():
            key = self.key_head(self.key_backbone(views[1]))
        return self.criterion(query, key)

    def features(self, images):
        """What is pooled."""
        return self.backbone(images)


METHODS = {"mae": MAE, "simclr": SimCLR, "moco_v2": MoCoV2}


class Views(torch.utils.data.Dataset):
    """Images through a transform of lightly."""

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
    """Trains until the signal, at a constant rate after a warm-up; (images seen, seconds of the steps)."""
    loader = torch.utils.data.DataLoader(Views(images, model.transform), BATCH, shuffle=True, drop_last=True)
    optimizer, step, begin = optimizer_of(name, model), 0, 0.0
    peak = optimizer.param_groups[0]["lr"]
    while not stop:
        for views in loader:
            if stop:
                break
            begin = begin or time.monotonic()
            optimizer.param_groups[0]["lr"] = peak * min(1.0, (step + 1) / WARMUP)
            loss = model.loss(views)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    return step * BATCH, time.monotonic() - begin


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
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    torch.manual_seed(a.seed)
    torch.set_num_threads(a.threads)
    with np.load(a.data) as file:
        train_images, test_images = file["train_images"], file["test_images"]
    model = METHODS[a.method](imports())
    seen, seconds = train(a.method, model, train_images, stop)
    arrays = {"train": features(model, train_images), "test": features(model, test_images)}
    np.savez(a.out, **arrays, images=seen, seconds=seconds)


if __name__ == "__main__":
    main()
