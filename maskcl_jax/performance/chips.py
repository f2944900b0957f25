"""What an accelerator chip can do: its peak and its memory, for `compile_check` and the benchmark.

Sources. TPU: Google's page of each generation (cloud.google.com/tpu/docs/v3 ... /v6e, /tpu7x) for peak and HBM;
`usable_gib` is what the compiler itself names as available when it refuses a program (libtpu 0.0.42): the rest is
reserved. GPU: NVIDIA's data sheets, the dense figure (half of the one "with sparsity"), with float32 accumulation; of
V100 and T4, which have no bfloat16, that of float16.
"""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of chip.

    kind: `jax.Device.device_kind`, whole of a TPU, the end of it of a GPU. bf16_flops: peak FLOP/s of the whole chip.
    hbm_gib, usable_gib: memory of the whole chip, GiB (a GPU's: the GB of its data sheet). devices: JAX devices it is.
    """

    name: str
    kind: str
    bf16_flops: float
    hbm_gib: float
    usable_gib: float | None = None
    devices: int = 1


CHIPS = (
    Chip(name="v2", kind="TPU v2", bf16_flops=46e12, hbm_gib=16, usable_gib=14.96, devices=2),
    Chip(name="v3", kind="TPU v3", bf16_flops=123e12, hbm_gib=32, usable_gib=30.96, devices=2),
    Chip(name="v4", kind="TPU v4", bf16_flops=275e12, hbm_gib=32, usable_gib=30.75),
    Chip(name="v5e", kind="TPU v5 lite", bf16_flops=197e12, hbm_gib=16, usable_gib=15.75),
    Chip(name="v5p", kind="TPU v5", bf16_flops=459e12, hbm_gib=95, usable_gib=95.74),
    Chip(name="v6e", kind="TPU v6 lite", bf16_flops=918e12, hbm_gib=32, usable_gib=31.25),
    Chip(name="tpu7x", kind="TPU7x", bf16_flops=2307e12, hbm_gib=192, usable_gib=189.5, devices=2),
    Chip(name="T4", kind="Tesla T4", bf16_flops=65e12, hbm_gib=16),
    Chip(name="V100 16 GB", kind="Tesla V100-SXM2-16GB", bf16_flops=125e12, hbm_gib=16),
    Chip(name="V100 32 GB", kind="Tesla V100-SXM2-32GB", bf16_flops=125e12, hbm_gib=32),
    Chip(name="A100 40 GB", kind="A100-SXM4-40GB", bf16_flops=312e12, hbm_gib=40),
    Chip(name="A100 80 GB", kind="A100-SXM4-80GB", bf16_flops=312e12, hbm_gib=80),
    Chip(name="A100 PCIe 40 GB", kind="A100-PCIE-40GB", bf16_flops=312e12, hbm_gib=40),
    Chip(name="A100 PCIe 80 GB", kind="A100 80GB PCIe", bf16_flops=312e12, hbm_gib=80),
    Chip(name="L4", kind="NVIDIA L4", bf16_flops=121e12, hbm_gib=24),
    Chip(name="H100 PCIe", kind="H100 PCIe", bf16_flops=756e12, hbm_gib=80),
    Chip(name="H100 SXM", kind="H100 80GB HBM3", bf16_flops=989e12, hbm_gib=80),
    Chip(name="H200", kind="NVIDIA H200", bf16_flops=989e12, hbm_gib=141),
    Chip(name="RTX 3090", kind="GeForce RTX 3090", bf16_flops=71e12, hbm_gib=24),
    Chip(name="RTX 4090", kind="GeForce RTX 4090", bf16_flops=165e12, hbm_gib=24),
)


def chip_of(device_kind: str) -> Chip | None:
    """The chip that a `jax.Device.device_kind` names; None where this table has none (of a laptop's, say)."""
    for chip in CHIPS:
        if device_kind == chip.kind or (not chip.kind.startswith("TPU") and device_kind.endswith(f" {chip.kind}")):
            return chip
    return None


def peak_flops(devices=None) -> float | None:
    """bf16 FLOP/s of all devices (default: of the run) together; None where the chip is not in the table."""
    devices = jax.devices() if devices is None else devices
    chip = chip_of(devices[0].device_kind)
    return None if chip is None else len(devices) * chip.bf16_flops / chip.devices
