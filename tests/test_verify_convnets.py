"""`verify` on files of other ResNets than those shipped: stages, blocks, width and stem follow the file."""

import json

import numpy as np
import pytest

from maskcl_jax.errors import UserError
from maskcl_jax.models import resnet
from maskcl_jax.verify import convnet_cases, verify_file
from maskcl_jax.verify.target_cases import stats

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[torch]'")

# Three stages of unequal blocks, narrow, of either kind; four with the small stem.
SIZES = [
    ({"layers": [1, 2, 1], "block": "Bottleneck", "stem_width": 8}, 7),
    ({"layers": [2, 1], "block": "BasicBlock", "stem_width": 6}, 7),
    ({"layers": [1, 1, 2, 1, 1], "block": "BasicBlock", "stem_width": 4}, 3),
]


def shapes(c: dict, kernel: int, *, fc: dict[str, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    """torch's tensors of a ResNet, and of the linear layers {key: (outputs, inputs)} behind it."""
    expansion = 4 if c["block"] == "Bottleneck" else 1
    width, found = c["stem_width"], {}

    def conv_bn(conv, bn, outputs, inputs, side):
        found[f"{conv}.weight"] = (outputs, inputs, side, side)
        found.update({f"{bn}.{name}": (outputs,) for name in ("weight", "bias", "running_mean", "running_var")})

    conv_bn("conv1", "bn1", width, 3, kernel)
    inputs = width
    for stage, count in enumerate(c["layers"]):
        inner, out = width * 2**stage, width * 2**stage * expansion
        for i in range(count):
            name = f"layer{stage + 1}.{i}"
            sides = (1, 3, 1) if expansion == 4 else (3, 3)
            widths = (inputs, inner, inner, out) if expansion == 4 else (inputs, inner, out)
            for n, side in enumerate(sides):
                conv_bn(f"{name}.conv{n + 1}", f"{name}.bn{n + 1}", widths[n + 1], widths[n], side)
            if i == 0 and (stage or expansion == 4):
                conv_bn(f"{name}.downsample.0", f"{name}.downsample.1", out, inputs, 1)
            inputs = out
    for key, (outputs, into) in fc.items():
        found |= {f"{key}.weight": (outputs, into or inputs), f"{key}.bias": (outputs,)}
    return found


def forward(weights: dict, images: np.ndarray, *, train: bool) -> list:
    """[stem, stage 1, ...] (B, C, H, W) float64 of a torch ResNet, read off the names and shapes of its tensors."""
    w = {key: torch.tensor(value, dtype=torch.float64) for key, value in weights.items()}
    conv2d, norm = torch.nn.functional.conv2d, torch.nn.functional.batch_norm

    def conv_bn(x, conv, bn, stride=1):
        kernel = w[f"{conv}.weight"]
        x = conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        running = [None, None] if train else [w[f"{bn}.running_mean"], w[f"{bn}.running_var"]]
        return norm(x, *running, w[f"{bn}.weight"], w[f"{bn}.bias"], training=train, eps=1e-5)

    imagenet = w["conv1.weight"].shape[-1] == 7
    x = conv_bn(torch.tensor(images, dtype=torch.float64), "conv1", "bn1", 2 if imagenet else 1).relu()
    outputs = [torch.nn.functional.max_pool2d(x, 3, 2, 1) if imagenet else x]
    x, stage = outputs[0], 1
    while f"layer{stage}.0.conv1.weight" in w:
        i = 0
        while f"layer{stage}.{i}.conv1.weight" in w:
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            convs = [n for n in (1, 2, 3) if f"{name}.conv{n}.weight" in w]
            strided = 2 if len(convs) == 3 else 1  # the first 3x3
            y = x
            for n in convs:
                y = conv_bn(y, f"{name}.conv{n}", f"{name}.bn{n}", stride if n == strided else 1)
                y = y.relu() if n != convs[-1] else y
            if f"{name}.downsample.0.weight" in w:
                x = conv_bn(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            x, i = (x + y).relu(), i + 1
        outputs.append(x)
        stage += 1
    return outputs


def failures(path, **options) -> list[str]:
    return [str(check) for check in verify_file(path, **options) if not check.passed]


def write(path, config, inputs, arrays):
    np.savez(path, config=json.dumps(config), **{f"inputs/{name}": x for name, x in inputs.items()}, **arrays)


def write_forward(path, size, kernel, wrong=0.0):
    """A file of a forward pass; `wrong` is added to the means of its last stage."""
    c = {"method": "resnet_forward", "salt": 3, **size, "weight_shapes": shapes(size, kernel, fc={"fc": (5, 0)})}
    weights = {key: convnet_cases.timm_weight(key, shape, 3) for key, shape in c["weight_shapes"].items()}
    images = np.random.default_rng(0).normal(size=(2, 3, 40, 32)).astype(np.float32)
    stem, *stages = forward(weights, images, train=False)
    outputs = {"stem_image0": stem[0, :8], "features": stages[-1], "pooled": stages[-1].mean((2, 3))}
    for i, stage in enumerate(stages, 1):
        outputs |= {f"layer{i}_spatial_mean": stage.mean((2, 3)), f"layer{i}_image0_first8": stage[0, :8]}
    arrays = {f"outputs/{name}": value.numpy() for name, value in outputs.items()}
    arrays |= {f"outputs/check_fill/{key}": value.ravel()[:8] for key, value in weights.items()}
    arrays[f"outputs/layer{len(stages)}_spatial_mean"] += wrong
    write(path, c, {"images": images}, arrays)


def write_step(path, size, kernel, mlp=True):
    """A file of a step of MoCo, which states the vectors before the contrast and the weights."""
    features = size["stem_width"] * 2 ** (len(size["layers"]) - 1) * (4 if size["block"] == "Bottleneck" else 1)
    heads = {"fc.0": (features, 0), "fc.2": (12, features)} if mlp else {"fc": (12, 0)}
    of_encoder = shapes(size, kernel, fc=heads)
    c = {"method": "mocov2", "batch": 4, "img_size": 32, "T": 0.2, "m": 0.99, "K": 8, "dim": 12, "mlp": mlp}
    c |= {"weight_seed": 5, "stem": f"{kernel}x{kernel}", **size}
    weights = {
        key: convnet_cases.moco_weight(f"encoder_q.{key}", shape, 5)
        for key, shape in of_encoder.items()
        if "running" not in key
    }
    rng = np.random.default_rng(1)
    inputs = {name: rng.normal(size=(4, 3, 32, 32)).astype(np.float32) for name in ("img_q", "img_k")}
    inputs |= {"queue": rng.normal(size=(12, 8)).astype(np.float32), "queue_ptr": np.array(0)}
    q = forward(weights, inputs["img_q"], train=True)[-1].mean((2, 3))
    for key in heads:
        matrix, bias = (torch.tensor(weights[f"{key}.{name}"], dtype=torch.float64) for name in ("weight", "bias"))
        q = (q.relu() if key == "fc.2" else q) @ matrix.T + bias
    arrays = {f"weights_stats/encoder_q.{key}": stats(value) for key, value in weights.items()}
    write(path, c, inputs, {"outputs/q_raw": q.numpy(), **arrays})


@pytest.mark.parametrize(("size", "kernel"), SIZES)
def test_a_forward_pass_follows_the_file(size, kernel, tmp_path):
    write_forward(tmp_path / "file.npz", size, kernel)
    assert failures(tmp_path / "file.npz") == []
    write_forward(tmp_path / "file.npz", size, kernel, wrong=1e-2)
    assert len(failures(tmp_path / "file.npz")) == 1


@pytest.mark.parametrize(("size", "mlp"), [(SIZES[1], False), (SIZES[2], True)])
def test_a_step_of_moco_follows_the_file(size, mlp, tmp_path):
    write_step(tmp_path / "file.npz", *size, mlp=mlp)
    assert failures(tmp_path / "file.npz") == []


def test_an_arch_that_is_unknown_is_one_line():
    with pytest.raises(UserError, match=r"arch='resnext50' is unknown: use one of resnet10, .*, or state layers"):
        convnet_cases.size_of({"arch": "resnext50"})


def test_the_switch_of_kernels_reaches_the_networks(monkeypatch, tmp_path):
    def refused(*arguments, **options):
        raise AssertionError("kernels.pointwise")

    monkeypatch.setattr(resnet.fused, "pointwise", refused)
    for write in (write_forward, write_step):
        write(tmp_path / "file.npz", *SIZES[0])
        assert failures(tmp_path / "file.npz", kernels="plain") == []
        with pytest.raises(AssertionError, match=r"kernels\.pointwise"):
            verify_file(tmp_path / "file.npz", kernels="fused")
