"""Facts about the devices."""

import jax
import pytest

from maskcl_jax.performance import devices


@pytest.mark.parametrize(("stats", "peak"), [([None], None), ([{"peak_bytes_in_use": 7}, {"peak_bytes_in_use": 9}], 9)])
def test_memory_is_the_peak_of_the_fullest_device(stats, peak, monkeypatch):
    local = [type("Device", (), {"memory_stats": lambda self, s=s: s})() for s in stats]
    monkeypatch.setattr(jax, "local_devices", lambda: local)
    assert devices.peak_memory() == peak


def test_the_platform_is_one_line():
    assert devices.describe_platform() == f"cpu, 1 device (cpu), jax {jax.__version__}"


def test_a_fallback_to_the_cpu_is_a_loud_warning(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "")
    warning = devices.accelerator_fallback(present=lambda: ["/dev/nvidia0"])
    assert "FELL BACK TO THE CPU" in warning
    assert "/dev/nvidia0" in warning
    assert devices.accelerator_fallback(present=list) is None
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert devices.accelerator_fallback(present=lambda: ["/dev/nvidia0"]) is None


@pytest.mark.parametrize(
    ("files", "tpu", "present"),
    [
        (["nvidia0", "nvidiactl"], False, ["nvidia0"]),
        (["accel0"], False, ["accel0"]),
        (["vfio/0", "vfio/vfio"], False, []),
        (["vfio/0", "vfio/vfio"], True, ["vfio/0"]),
    ],
)
def test_accelerators_are_found_by_their_device_files(files, tpu, present, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    for name in ("TPU_NAME", "TPU_WORKER_ID", "TPU_ACCELERATOR_TYPE"):
        monkeypatch.delenv(name, raising=False)
    if tpu:
        monkeypatch.setenv("TPU_WORKER_ID", "0")
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    assert devices.accelerators_present(tmp_path) == [str(tmp_path / name) for name in present]


def test_accelerators_are_found_by_nvidia_smi(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-1)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices.accelerators_present(tmp_path / "dev") == ["GPU 0: NVIDIA H200"]
