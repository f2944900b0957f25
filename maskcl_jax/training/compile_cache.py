"""The folder that keeps compiled programs, so that the next start of the same command does not compile again."""

import contextlib
import hashlib
import os
import pathlib
import platform
from typing import Any

import jax
from absl import logging
from jax.experimental.compilation_cache import compilation_cache

OFF = "off"
MAX_BYTES = 2 * 2**30  # above it the least recently read programs go, down to half of it
# JAX keeps what took it a second; the many small programs of a start add up to several.
MIN_COMPILE_SECONDS = 0.1


def use(folder: str = "") -> None:
    """Lets JAX keep compiled programs in a folder, and find them there; from now on, for all programs.

    A folder that cannot be made or used is said in a line, and programs are compiled as without one. A damaged program
    is compiled again (JAX warns). Several processes may use one folder at a time.

    Args:
        folder: `config.compile_cache`: a folder, or "off". "": the folder that JAX is configured with
            (JAX_COMPILATION_CACHE_DIR), else `default_folder`. JAX_ENABLE_COMPILATION_CACHE=false turns all off.
    """
    if folder == OFF:
        configure(None)
        return
    if not setting("jax_enable_compilation_cache"):
        return
    configured = setting("jax_compilation_cache_dir")
    path = folder or configured or os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(default_folder())
    if path == configured:
        return
    if "://" not in path:  # a bucket's address is JAX's matter
        try:
            pathlib.Path(path).mkdir(parents=True, exist_ok=True)
            if not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError("it cannot be written to")
            prune(pathlib.Path(path))
        except OSError as error:
            reason = error.strerror or error
            logging.warning("compiled programs are not kept in %s: %s; compile_cache=off silences this", path, reason)
            configure(None)
            return
    configure(path)


def setting(name: str) -> Any:
    """One of JAX's settings."""
    return getattr(jax.config, name)


def configure(path: str | None) -> None:
    """Tells JAX the folder, None for none; it reads the setting once only unless it is reset."""
    if path is not None and "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    jax.config.update("jax_compilation_cache_dir", path)
    compilation_cache.reset_cache()


def default_folder() -> pathlib.Path:
    """$XDG_CACHE_HOME/maskcl_jax/xla/CPU, by default in ~/.cache.

    CPU is a name of the processor's kind: a program for a CPU contains its instructions, and machines of other kinds
    may share the home.
    """
    cache = os.environ.get("XDG_CACHE_HOME", "")
    root = pathlib.Path(cache) if os.path.isabs(cache) else pathlib.Path(os.path.expanduser("~")) / ".cache"
    return root / "maskcl_jax" / "xla" / processor()


def processor(cpuinfo: pathlib.Path = pathlib.Path("/proc/cpuinfo")) -> str:
    """A name of the processor's kind: its architecture, and a hash of what instructions it has."""
    features = platform.processor()
    with contextlib.suppress(OSError, StopIteration):
        lines = cpuinfo.read_text().splitlines()
        features = next(line for line in lines if line.startswith(("flags", "Features")))
    return f"{platform.machine()}-{hashlib.blake2b(features.encode(), digest_size=4).hexdigest()}"


def prune(folder: pathlib.Path, limit: int = MAX_BYTES) -> None:
    """Removes the programs that were not read for longest, if all together are larger than a limit in bytes."""
    entries = []
    for path in folder.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):  # another process removes as well
            status = path.stat()
            entries.append((status.st_atime, status.st_size, path))
    total = sum(size for _, size, _ in entries)
    if total <= limit:
        return
    for _, size, path in sorted(entries):
        path.unlink(missing_ok=True)
        total -= size
        if total <= limit // 2:
            return
