"""What all tests share: the CPU, and a timm that imports beside any build of torch, and beside TensorFlow."""

import functools
import importlib.metadata
import importlib.util
import os
import sys
import tempfile
import types

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tiny programs, compiled by the hundred: code that runs less fast is made in half the time.
CHEAP = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# Half the time again. XLA ends a process that names a flag it does not know, and this one may go: for 0.10 alone.
if importlib.metadata.version("jax").startswith("0.10."):
    CHEAP += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", CHEAP)
# What one test has compiled, another need not: every run of a method is the same program, in workers and sub-processes.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix="maskcl_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    # What a test starts without these variables: never the user's own folder.
    os.environ["XDG_CACHE_HOME"] = COMPILED.name


def torchvision_without_operators() -> None:
    """Lets `import timm` succeed: torchvision's compiled operators do not fit this torch.

    Depending on what else the process has loaded they are not found, or found and abort it. So they are never
    looked for, and the two operators that torchvision registers at import are declared here.
    """
    extension = types.ModuleType("torchvision.extension")

    def no_operators(*arguments):
        raise ImportError("torchvision's compiled operators are left out in the tests")

    extension._HAS_OPS = False
    extension._has_ops = lambda: False
    extension._load_library = lambda name: False
    extension._check_cuda_version = lambda: -1
    extension._assert_has_ops = no_operators
    sys.modules["torchvision.extension"] = extension
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


if importlib.util.find_spec("torch") is not None and importlib.util.find_spec("torchvision") is not None:
    # A CUDA build of torch brings triton, whose LLVM crashes a process that has loaded TensorFlow's. Nothing needs it.
    sys.modules["triton"] = None
    import torch

    torchvision_without_operators()


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """No index is left behind in the user's cache, nor found there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def without_compiling(monkeypatch):
    """Initial values are zeros: what is tested of an imported run is what replaces them."""
    from helpers.untrained import zeros

    from maskcl_jax.interchange import importing

    monkeypatch.setattr(importing.jax, "jit", lambda function: functools.partial(zeros, function))


@pytest.fixture(autouse=importlib.util.find_spec("torch") is None)
def without_torch_files(monkeypatch):
    """A test that comes to read a file of PyTorch, where that is not installed, is skipped with the reason."""
    from maskcl_jax.interchange import files

    def skip(path):
        pytest.skip(f"PyTorch is not installed, and {path.name} is its file: pip install -e '.[torch]'")

    monkeypatch.setattr(files, "read_torch", skip)
