"""Numeric self-check: every method against reference values computed with the authors' own code.

    python -m maskcl_jax.verify [--kernels=auto|plain|fused] [FILE.npz ...]

A file holds `config` (JSON), `weights/KEY`, `inputs/NAME`, `outputs/NAME`, `grads/KEY`, in PyTorch's names and
layouts; without arguments the files that the package ships are run. A case rebuilds the method from the file's
config, whatever dimensions it states, and computes every output and gradient; see `cases`. The error of an array is
max|ours - theirs| / rms(theirs); its limit is what float32 arithmetic in another framework may differ by.
"""

from maskcl_jax.verify.report import Check, verify_file

__all__ = ["Check", "verify_file"]
