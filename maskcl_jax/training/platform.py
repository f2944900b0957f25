"""Facts about the devices: what JAX runs on, its peak memory, and accelerators that it does not use."""

import contextlib
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable

import jax


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
