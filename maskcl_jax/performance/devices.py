"""Devices: what JAX runs on, and peak FLOP/s, memory and its bandwidth of chips, for `compile_check` and MFU.

Sources: TPU peak, HBM and its bandwidth from Google's page of each generation (cloud.google.com/tpu/docs/v3 ... /v6e,
/tpu7x); `usable_gib` is what the compiler names as available when it refuses a program (libtpu 0.0.42), the rest is
reserved. GPU: NVIDIA's data sheets, the dense figure (half of the one "with sparsity") with float32 accumulation; for
V100 and T4, which have no bfloat16, that of float16.
"""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable, Sequence

import jax


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of chip.

    Attributes:
        name: Short name, of a TPU the generation in a topology's name.
        kind: `jax.Device.device_kind`: all of it for a TPU, its end for a GPU.
        bf16_flops: Peak FLOP/s of the whole chip.
        hbm_gib: Memory of the whole chip in GiB (of a GPU the GB of its data sheet).
        hbm_bandwidth: Of that memory, bytes/s of the whole chip.
        usable_gib: The part of it that a program may use; None if unknown.
        devices: JAX devices per chip.
    """

    name: str
    kind: str
    bf16_flops: float
    hbm_gib: float
    hbm_bandwidth: float
    usable_gib: float | None = None
    devices: int = 1


CHIPS = (
    Chip(name="v2", kind="TPU v2", bf16_flops=46e12, hbm_gib=16, hbm_bandwidth=700e9, usable_gib=14.96, devices=2),
    Chip(name="v3", kind="TPU v3", bf16_flops=123e12, hbm_gib=32, hbm_bandwidth=900e9, usable_gib=30.96, devices=2),
    Chip(name="v4", kind="TPU v4", bf16_flops=275e12, hbm_gib=32, hbm_bandwidth=1200e9, usable_gib=30.75),
    Chip(name="v5e", kind="TPU v5 lite", bf16_flops=197e12, hbm_gib=16, hbm_bandwidth=819e9, usable_gib=15.75),
    Chip(name="v5p", kind="TPU v5", bf16_flops=459e12, hbm_gib=95, hbm_bandwidth=2765e9, usable_gib=95.74),
    Chip(name="v6e", kind="TPU v6 lite", bf16_flops=918e12, hbm_gib=32, hbm_bandwidth=1600e9, usable_gib=31.25),
    Chip(
        name="tpu7x", kind="TPU7x", bf16_flops=2307e12, hbm_gib=192, hbm_bandwidth=7380e9, usable_gib=189.5, devices=2
    ),
    Chip(name="T4", kind="Tesla T4", bf16_flops=65e12, hbm_gib=16, hbm_bandwidth=320e9),
    Chip(name="V100 16 GB", kind="Tesla V100-SXM2-16GB", bf16_flops=125e12, hbm_gib=16, hbm_bandwidth=900e9),
    Chip(name="V100 32 GB", kind="Tesla V100-SXM2-32GB", bf16_flops=125e12, hbm_gib=32, hbm_bandwidth=900e9),
    Chip(name="A100 40 GB", kind="A100-SXM4-40GB", bf16_flops=312e12, hbm_gib=40, hbm_bandwidth=1555e9),
    Chip(name="A100 80 GB", kind="A100-SXM4-80GB", bf16_flops=312e12, hbm_gib=80, hbm_bandwidth=2039e9),
    Chip(name="A100 PCIe 40 GB", kind="A100-PCIE-40GB", bf16_flops=312e12, hbm_gib=40, hbm_bandwidth=1555e9),
    Chip(name="A100 PCIe 80 GB", kind="A100 80GB PCIe", bf16_flops=312e12, hbm_gib=80, hbm_bandwidth=1935e9),
    Chip(name="L4", kind="NVIDIA L4", bf16_flops=121e12, hbm_gib=24, hbm_bandwidth=300e9),
    Chip(name="H100 PCIe", kind="H100 PCIe", bf16_flops=756e12, hbm_gib=80, hbm_bandwidth=2000e9),
    Chip(name="H100 SXM", kind="H100 80GB HBM3", bf16_flops=989e12, hbm_gib=80, hbm_bandwidth=3350e9),
    Chip(name="H200", kind="NVIDIA H200", bf16_flops=989e12, hbm_gib=141, hbm_bandwidth=4800e9),
    Chip(name="RTX 3090", kind="GeForce RTX 3090", bf16_flops=71e12, hbm_gib=24, hbm_bandwidth=936e9),
    Chip(name="RTX 4090", kind="GeForce RTX 4090", bf16_flops=165e12, hbm_gib=24, hbm_bandwidth=1008e9),
)


def find_chip(device_kind: str) -> Chip | None:
    """The chip of a `jax.Device.device_kind`; None if the table does not have it (a laptop's GPU, for instance)."""
    for chip in CHIPS:
        if device_kind == chip.kind or (not chip.kind.startswith("TPU") and device_kind.endswith(f" {chip.kind}")):
            return chip
    return None


def peak_flops(devices: Sequence[jax.Device] | None = None) -> float | None:
    """bf16 FLOP/s of all devices together (default: those of the run); None if the chip is not in the table."""
    devices = jax.devices() if devices is None else devices
    chip = find_chip(devices[0].device_kind)
    return None if chip is None else len(devices) * chip.bf16_flops / chip.devices


def describe_platform() -> str:
    """One line, for instance `cpu, 2 devices (cpu), jax 0.10.2`."""
    devices = jax.devices()
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    plural = "s" if len(devices) > 1 else ""
    processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{jax.default_backend()}, {len(devices)} device{plural} ({kinds}){processes}, jax {jax.__version__}"


def peak_memory() -> int | None:
    """Peak bytes in use on the fullest device of this process; None where the backend does not count (CPU)."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    return max((peak for peak in peaks if peak is not None), default=None)


def accelerators_present(devices: pathlib.Path = pathlib.Path("/dev")) -> list[str]:
    """Accelerators that this machine has, whether or not JAX can use them: device files, else nvidia-smi's list."""
    patterns = ["nvidia[0-9]*", "accel[0-9]*", "kfd"]
    if any(name in os.environ for name in ("TPU_NAME", "TPU_WORKER_ID", "TPU_ACCELERATOR_TYPE")):
        patterns.append("vfio/[0-9]*")  # any device passed through looks so; only on a TPU machine is it a TPU
    present = sorted(str(path) for pattern in patterns for path in devices.glob(pattern))
    if not present and (tool := shutil.which("nvidia-smi")):  # under WSL a GPU has no /dev/nvidia*
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=10, check=False)
            present = [line.split(" (UUID")[0] for line in done.stdout.splitlines() if line.startswith("GPU ")]
    return present


def accelerator_fallback(present: Callable[[], list[str]] = accelerators_present) -> str | None:
    """A warning if JAX runs on the CPU though the machine has an accelerator and JAX_PLATFORMS does not say cpu."""
    chosen = os.environ.get("JAX_PLATFORMS", "").startswith("cpu")
    if jax.default_backend() != "cpu" or chosen or not (accelerators := present()):
        return None
    return (
        f"WARNING: JAX FELL BACK TO THE CPU, though this machine has {', '.join(accelerators)}. Install JAX for it: "
        "pip install -e '.[cuda]' or pip install -e '.[tpu]'. JAX_PLATFORMS=cpu silences this."
    )
