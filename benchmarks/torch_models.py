"""The models of the benchmarks in PyTorch: the same maths and shapes as ours, each with its whole loss.

New tensors are made on PyTorch's default device (`torch.set_default_device`).
"""

import itertools
import types
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import nn


class Block(nn.Module):
    """A block of a vision transformer."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def split(self, x):
        b, n, d = x.shape
        return self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)

    def mixed(self, x, q, k, v):
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))
        return x + self.mlp(self.norm2(x))

    def forward(self, x):
        return self.mixed(x, *self.split(x))

    @staticmethod
    def importance(q, k):
        """What the cls token attends to: only its row, (B, T - 1)."""
        row = (q[:, :, :1] @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        return row[:, :, 0, 1:].mean(1)


VIT_B = {"width": 768, "heads": 12}


class Encoder(nn.Module):
    """A vision transformer, by default ViT-S/16 of 224 pixels."""

    def __init__(self, width=384, depth=12, heads=6, patch=16, size=224):
        super().__init__()
        self.patch, self.count, self.width = patch, (size // patch) ** 2, width
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, self.count, width), requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def tokens(self, images):
        return self.embed(images).flatten(2).transpose(1, 2) + self.positions

    def with_cls(self, tokens):
        return torch.cat([self.cls.expand(len(tokens), -1, -1), tokens], 1)

    def last(self, tokens):
        x = self.with_cls(tokens)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, tokens):
        return self.norm(self.last(tokens))

    def importance(self, tokens):
        """The attention of the cls token, summed over blocks; of the last one only its query and the keys run."""
        x, total = self.with_cls(tokens), 0
        for i, block in enumerate(self.blocks):
            q, k, v = block.split(x)
            total = total + block.importance(q, k)
            if i < len(self.blocks) - 1:
                x = block.mixed(x, q, k, v)
        return total


class Decoder(nn.Module):
    """Encoded tokens among mask tokens, through blocks, to `out` numbers a patch."""

    def __init__(self, encoder, out: int, depth=8, width=512, heads=16):
        super().__init__()
        self.embed, self.mask_token = nn.Linear(encoder.width, width), nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, encoder.count, width), requires_grad=False)
        layers = [*(Block(width, heads) for _ in range(depth)), nn.LayerNorm(width, eps=1e-6), nn.Linear(width, out)]
        self.layers = nn.Sequential(*layers)

    def forward(self, latent, order):
        x = self.embed(latent)
        hidden = order.shape[1] - x.shape[1] + 1
        every = torch.cat([x[:, 1:], self.mask_token.expand(len(x), hidden, -1)], 1)
        x = torch.cat([x[:, :1], take(every, order.argsort(1)) + self.positions], 1)
        return self.layers(x)[:, 1:]


class MAE(nn.Module):
    """MAE: `shown` patches encoded, all of them decoded; decoder: its size; size: of the encoder."""

    def __init__(self, shown: int = 49, decoder: Mapping[str, int] = types.MappingProxyType({}), **size: Any):
        super().__init__()
        self.encoder, self.shown = Encoder(**size), shown
        self.decoder = Decoder(self.encoder, self.encoder.patch**2 * 3, **decoder)

    def new_order(self, count: int):
        return torch.rand(count, self.encoder.count).argsort(1)

    def reconstruct(self, images, tokens, order):
        """(encoded visible tokens, loss)."""
        b, p, side = len(images), self.encoder.patch, images.shape[-1] // self.encoder.patch
        latent = self.encoder(take(tokens, order[:, : self.shown]))
        pred = self.decoder(latent, order)
        target = images.reshape(b, 3, side, p, side, p).permute(0, 2, 4, 3, 5, 1).reshape(b, side**2, -1)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        mask = torch.ones(b, side**2).scatter(1, order[:, : self.shown], 0.0)
        return latent, (((pred - target) ** 2).mean(-1) * mask).sum() / mask.sum()

    def forward(self, images):
        return self.reconstruct(images, self.encoder.tokens(images), self.new_order(len(images)))[1]


class CCMIM(MAE):
    """ccMIM: masks by importance, and the cls tokens of both halves contrasted."""

    def __init__(self, shown: int = 49, **size: Any):
        super().__init__(shown, **size)
        width = self.encoder.width
        self.projector = nn.Sequential(
            nn.Linear(width, width, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, 256, bias=False),
            nn.BatchNorm1d(256, affine=False),
        )

    def forward(self, images):
        tokens = self.encoder.tokens(images)
        with torch.no_grad():
            order = (self.encoder.importance(tokens) - torch.rand(tokens.shape[:2])).argsort(1)
        latent, loss = self.reconstruct(images, tokens, order)
        ours = self.projector(latent[:, 0])
        with torch.no_grad():
            theirs = self.projector(self.encoder(take(tokens, order[:, self.shown :]))[:, 0])
        return loss + 0.1 * 2 * 0.5 * info_nce(ours, theirs, 0.5)


class CMAE(MAE):
    """CMAE: MAE on one view, a feature decoder, and an EMA target on the other view."""

    def __init__(self, shown: int = 68, **size: Any):  # 17 of 49 squares of four patches
        super().__init__(shown, **size)
        width = self.encoder.width
        self.features = Decoder(self.encoder, width, depth=2)
        self.projector, self.target_projector = head(width), head(width)
        self.predictor = head(256)
        self.target = Encoder(**size).requires_grad_(requires_grad=False)
        self.target_projector.requires_grad_(requires_grad=False)

    def forward(self, images, others):
        order = self.new_order(len(images))
        latent, loss = self.reconstruct(images, self.encoder.tokens(images), order)
        ours = self.predictor(self.projector(self.features(latent, order).mean(1)))
        with torch.no_grad():
            theirs = self.target_projector(self.target.last(self.target.tokens(others))[:, 1:].mean(1))
        return loss + 2 * 0.07 * info_nce(ours, theirs, 0.07)

    @torch.no_grad()
    def move(self):
        """The EMA, after the optimiser."""
        for target, online in ((self.target, self.encoder), (self.target_projector, self.projector)):
            torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), 0.004)


class MoCo(nn.Module):
    """MoCo v2's step without its shuffle: query, EMA key, queue; depth: of the ResNet."""

    def __init__(self, queue: int, depth: int = 18):
        super().__init__()
        self.query, self.key = resnet(depth, 128), resnet(depth, 128)
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


class SimCLR(nn.Module):
    """SimCLR with a ResNet: the NT-Xent loss of two views in one pass."""

    def __init__(self, depth: int = 50):
        super().__init__()
        self.net = resnet(depth, 128)

    def forward(self, one, other):
        z = F.normalize(self.net(torch.cat([one, other])), dim=1)
        logits = (z @ z.T / 0.1).float().fill_diagonal_(-torch.inf)
        return F.cross_entropy(logits, torch.arange(len(z)).roll(len(one)))


class MoCoV3(nn.Module):
    """MoCo v3: two views through encoder, projector and predictor, each against the EMA networks' keys of the other."""

    def __init__(self, **size: Any):
        super().__init__()
        self.online, self.target = (self.networks(size) for _ in range(2))
        self.target.requires_grad_(requires_grad=False)
        self.online["encoder"].embed.requires_grad_(requires_grad=False)
        self.predictor = perceptron(256, 4096, 256)

    @staticmethod
    def networks(size):
        encoder = Encoder(**size)
        return nn.ModuleDict({"encoder": encoder, "projector": perceptron(encoder.width, 4096, 4096, 256)})

    @staticmethod
    def keys(networks, images):
        encoder = networks["encoder"]
        return networks["projector"](encoder(encoder.tokens(images))[:, 0])

    def forward(self, one, other):
        queries = [self.predictor(self.keys(self.online, images)) for images in (one, other)]
        with torch.no_grad():
            keys = [self.keys(self.target, images) for images in (other, one)]
        return 2 * 0.2 * sum(info_nce(q, k, 0.2) for q, k in zip(queries, keys, strict=True))

    @torch.no_grad()
    def move(self):
        """The EMA, after the optimiser."""
        torch._foreach_lerp_(list(self.target.parameters()), list(self.online.parameters()), 0.01)


def resnet(depth: int, out: int):
    """A ResNet of torchvision with a head of two layers."""
    net = getattr(torchvision.models, f"resnet{depth}")()
    width = net.fc.in_features
    net.fc = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out))
    return net


def perceptron(*widths: int):
    """Linear layers, each with BatchNorm, ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def take(tokens, ids):
    """Rows by patch numbers."""
    return tokens.gather(1, ids[:, :, None].expand(-1, -1, tokens.shape[-1]))


def head(width: int):
    """CMAE's projector or predictor."""
    return nn.Sequential(nn.Linear(width, 1536), nn.BatchNorm1d(1536), nn.ReLU(), nn.Linear(1536, 256, bias=False))


def info_nce(queries, keys, temperature: float):
    """Each query finds its own key among those of the batch."""
    logits = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(queries)))
