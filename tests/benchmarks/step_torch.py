"""One training step on the CPU beside PyTorch's (eager, as many threads): the same maths and shapes, in turn, one run.

    python tests/benchmarks/step_torch.py [--batch=32] [--rounds=3] [--threads=2]

MAE with a ViT-S/16 and MAE's decoder at 224 pixels, AdamW; MoCo v2 with a ResNet-18 at 64 pixels, one process, SGD.
Forward, backward, optimiser and EMA; views are given. The ratio is our time over theirs, median of the rounds.
"""

import argparse
import os
import pathlib
import runpy
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("XLA_FLAGS", "")  # the tests' flags are for compiling fast, not for running fast
import conftest  # noqa: E402, F401  (torchvision beside any build of torch)
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import torchvision  # noqa: E402
from torch import nn  # noqa: E402

from maskcl_jax.benchmark import modes  # noqa: E402


class Block(nn.Module):
    """A block of a vision transformer."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
        return x + self.mlp(self.norm2(x))


class TorchMAE(nn.Module):
    """MAE: a quarter of the patches encoded, all of them decoded."""

    def __init__(self, width=384, depth=12, heads=6, patch=16, size=224, decoder=(512, 8, 16)):
        super().__init__()
        self.patch, self.count = patch, (size // patch) ** 2
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.cls, self.mask_token = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, 1, decoder[0]))
        self.positions = nn.Parameter(torch.randn(1, self.count, width), requires_grad=False)
        self.decoder_positions = nn.Parameter(torch.randn(1, self.count, decoder[0]), requires_grad=False)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)), nn.LayerNorm(width, eps=1e-6))
        self.decoder_embed = nn.Linear(width, decoder[0])
        self.decoder = nn.Sequential(
            *(Block(decoder[0], decoder[2]) for _ in range(decoder[1])),
            nn.LayerNorm(decoder[0], eps=1e-6),
            nn.Linear(decoder[0], patch * patch * 3),
        )

    def forward(self, images, order):
        b, shown = len(images), self.count // 4
        tokens = self.embed(images).flatten(2).transpose(1, 2) + self.positions
        visible = tokens.gather(1, order[:, :shown, None].expand(-1, -1, tokens.shape[-1]))
        x = self.decoder_embed(self.blocks(torch.cat([self.cls.expand(b, -1, -1), visible], 1)))
        every = torch.cat([x[:, 1:], self.mask_token.expand(b, self.count - shown, -1)], 1)
        place = order.argsort(1)[:, :, None].expand(-1, -1, every.shape[-1])
        pred = self.decoder(torch.cat([x[:, :1], every.gather(1, place) + self.decoder_positions], 1))[:, 1:]
        side, p = images.shape[-1] // self.patch, self.patch
        target = images.reshape(b, 3, side, p, side, p).permute(0, 2, 4, 3, 5, 1).reshape(b, self.count, -1)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        mask = torch.ones(b, self.count).scatter(1, order[:, :shown], 0.0)
        return (((pred - target) ** 2).mean(-1) * mask).sum() / mask.sum()


class TorchMoCo(nn.Module):
    """MoCo v2's step without its shuffle: query, EMA key, queue."""

    def __init__(self, queue: int):
        super().__init__()
        self.query, self.key = (torchvision.models.resnet18(num_classes=128) for _ in range(2))
        for net in (self.query, self.key):
            net.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
        self.key.requires_grad_(requires_grad=False)
        self.register_buffer("queue", F.normalize(torch.randn(128, queue), dim=0))

    def forward(self, one, other):
        q = F.normalize(self.query(one), dim=1)
        with torch.no_grad():
            for theirs, ours in zip(self.key.parameters(), self.query.parameters(), strict=True):
                theirs.mul_(0.999).add_(ours, alpha=0.001)
            k = F.normalize(self.key(other), dim=1)
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ self.queue.clone()], 1) / 0.2
        self.queue[:, : len(k)] = k.T
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))


def mae(batch: int):
    """(our config, their step)."""
    net, images = TorchMAE(), torch.randn(batch, 3, 224, 224)
    tx = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.05)
    c = config_of("mae.py", f"imagenet,variant=S/16,batch_size={batch},dtype=float32")
    return c, stepper(tx, lambda: net(images, torch.rand(batch, net.count).argsort(1)))


def moco(batch: int):
    """(our config, their step)."""
    net, views = TorchMoCo(queue=64 * batch), torch.randn(2, batch, 3, 64, 64)
    tx = torch.optim.SGD(net.query.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)
    c = config_of("moco_v2.py", f"imagenet,variant=R18,batch_size={batch},dtype=float32,image_size=64")
    c.method.queue_size, c.method.bn_group_size = 64 * batch, 0
    for colours in (c.method.query_augment, c.method.key_augment):  # views are given
        colours.update({"jitter_p": 0.0, "grey_p": 0.0, "blur_p": 0.0})
    return c, stepper(tx, lambda: net(*views))


def config_of(file: str, argument: str):
    """One of our configs."""
    return runpy.run_path(str(ROOT / "configs" / file))["get_config"](argument)


def stepper(tx, loss):
    """One step of PyTorch."""

    def step():
        tx.zero_grad(set_to_none=True)
        loss().backward()
        tx.step()

    return step


def seconds(step, count: int = 4) -> float:
    """The median time of a step of PyTorch."""
    times = []
    for _ in range(count + 1):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def main() -> None:
    """Prints a line a model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    timer = modes.Timer(steps=4, warmup=1)
    for name, build in (("MAE, ViT-S/16, 224 pixels", mae), ("MoCo v2, ResNet-18, 64 pixels", moco)):
        config, theirs = build(arguments.batch)
        pairs = [(modes.step(config, timer).seconds_a_step, seconds(theirs)) for _ in range(arguments.rounds)]
        mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{name}, batch {arguments.batch}: {mine:.2f} s, PyTorch {other:.2f} s: {mine / other:.2f}", flush=True)


if __name__ == "__main__":
    main()
