"""What `accelerator.py` measures of ours, a part in a process of its own."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from accelerator_parts import RESNETS

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from maskcl_jax import config as config_lib  # noqa: E402
from maskcl_jax.benchmark import modes  # noqa: E402

TOY_SIZES = {
    "model.depth": 1,
    "model.width": 32,
    "model.heads": 2,
    "method.decoder.width": 32,
    "method.decoder.depth": 1,
    "method.decoder.heads": 2,
    "method.queue_size": 64,
    "method.bn_group_size": 0,
}
TOY_RESNET = {"model.depth": 10, "model.width": 8, "model.stem": "small"}
KEPT = ("images_per_second", "seconds_a_step", "mfu", "peak_bytes", "compile_seconds", "data_wait", "date", "platform")


def measure(name: str, *, toy: bool, cifar10: str) -> dict[str, Any]:
    """Measures one part.

    Args:
        name: One of `accelerator_parts.names` that is not PyTorch's.
        toy: Whether with tiny networks.
        cifar10: A file of images, for the part of that name.

    Returns:
        What is known of KEPT, or `text`.
    """
    kind, *rest = name.split("/")
    if kind == "step":
        return step(*rest[:3], int(rest[3]), toy=toy)
    if kind == "end_to_end":
        return end_to_end(on_device=rest[0] == "device", toy=toy)
    return {"verify": verify, "resume": lambda: resume(toy=toy), "cifar10": lambda: train(cifar10, toy=toy)}[kind]()


def step(model: str, kernels: str, attention: str, batch: int, *, toy: bool) -> dict[str, Any]:
    """A training step alone, on one batch of synthetic views."""
    config = config_of(model, batch, toy=toy)
    config.kernels = kernels
    if "attention" in config.model:
        config.model.attention = attention
    return facts(modes.step(config, modes.Timer(steps=2, warmup=1) if toy else modes.Timer(steps=15, warmup=3)))


def end_to_end(*, on_device: bool, toy: bool) -> dict[str, Any]:
    """Training on two views of 224 pixels with a ViT-S/16, from decoded images in the device's or the host's memory."""
    config = config_of("mocov3", 8 if toy else 256, toy=toy, variant="S/16")
    config.data.on_device = on_device
    return facts(modes.end_to_end(config, modes.Timer(steps=2, warmup=1) if toy else modes.Timer(steps=20, warmup=3)))


def config_of(model: str, batch: int, *, toy: bool, variant: str = "") -> Any:
    """A method's ImageNet config in bfloat16 on synthetic images, or a tiny one."""
    if toy:
        config = config_lib.load(model, f"synthetic,batch_size={batch}")
        sizes = TOY_SIZES | (TOY_RESNET if model in RESNETS else {})
        known = config_lib.flat(config)
        config.update_from_flattened_dict({field: value for field, value in sizes.items() if field in known})
        return config
    config = config_lib.load(
        model, f"imagenet,batch_size={batch},dtype=bfloat16" + f",variant={variant}" * bool(variant)
    )
    config.data.source, config.data.num_examples = "synthetic", 4096
    return config


def facts(report: modes.Report) -> dict[str, Any]:
    """What the file keeps of a report of the benchmark."""
    return {name: value for name, value in dataclasses.asdict(report).items() if name in KEPT and value is not None}


def command(module: str, *arguments: str) -> subprocess.Popen[str]:
    """Starts a command of the package."""
    return subprocess.Popen(
        [sys.executable, "-m", f"maskcl_jax.{module}", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def output_of(process: subprocess.Popen[str], *, statuses: tuple[int, ...] = (0,)) -> str:
    """What a command printed. Raises RuntimeError where it ended with another status."""
    text = process.communicate()[0]
    if process.returncode not in statuses:
        raise RuntimeError(f"status {process.returncode}: {text.splitlines()[-1]}")
    return text


def verify() -> dict[str, Any]:
    """All comparisons with the authors' code, on this device."""
    lines = output_of(command("verify"), statuses=(0, 1)).splitlines()
    failed = [line for line in lines if "FAILED" in line]
    return {"text": lines[-1], "platform": lines[0], "failed": failed[:20]}


def resume(*, toy: bool) -> dict[str, Any]:
    """A run that is stopped and started again, beside one that is not: how far the last loss differs."""
    size = [f"--config.{field}={value}" for field, value in TOY_SIZES.items() if field.startswith("model.")] * toy
    run = [f"--config={ROOT / 'configs' / 'mae.py'}:synthetic", "--config.total_steps=60", "--config.log.every_steps=1"]
    run += [*size, "--config.eval.every_epochs=0.0", "--config.data.workers=0", "--config.checkpoint.every_epochs=1.0"]
    with tempfile.TemporaryDirectory() as folder:
        whole, stopped = (pathlib.Path(folder) / name for name in ("whole", "stopped"))
        output_of(command("main", *run, f"--workdir={whole}"))
        process = command("main", *run, f"--workdir={stopped}")
        while process.poll() is None and not rows(stopped):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        output_of(process, statuses=(0, 143))
        at = rows(stopped)[-1]["step"]
        output_of(command("main", *run, f"--workdir={stopped}"))
        losses = [rows(where)[-1]["loss"] for where in (whole, stopped)]
    difference = abs(losses[0] - losses[1])
    return {"text": f"stopped after step {at} of 60; the last loss {losses[0]:.6f} differs by {difference:.1e}"}


def rows(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl that have a loss; [] before there is one."""
    path = workdir / "metrics.jsonl"
    text = path.read_text() if path.is_file() else ""
    found = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [row for row in found if "loss" in row]


def train(file: str, *, toy: bool) -> dict[str, Any]:
    """ccMIM on CIFAR-10 for 20 epochs, images in the device's memory."""
    if not file:
        raise RuntimeError("give --cifar10=FILE.npz (python -m maskcl_jax.data.to_array --data=cifar10 --out=FILE.npz)")
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run = [f"--config={ROOT / 'configs' / 'ccmim.py'}:cifar10", "--config.data.source=npz"]
        run += [f"--config.data.path={file}", "--config.data.on_device=True", f"--workdir={folder}"]
        run += ["--config.total_steps=2", "--config.eval.every_epochs=0.0"] if toy else ["--config.epochs=20"]
        text = output_of(command("main", *run))
    accuracy = re.search(r"k-NN .*-> ([\d.]+) %", text)
    found = {
        "text": f"k-NN {accuracy[1] if accuracy else '?'} % after 20 epochs, {time.monotonic() - begin:.0f} s in all"
    }
    if speed := re.search(r"([\d,.]+) images/s", text):
        found["images_per_second"] = float(speed[1].replace(",", ""))
    return found
