"""The folder that keeps compiled programs: where it is, how it is turned off, and that it never ends a run."""

import os
import pathlib

import jax
import jax.numpy as jnp
import pytest
from helpers.tiny import quick

from maskcl_jax.training import compile_cache, loop

NAMES = ("jax_compilation_cache_dir", "jax_enable_compilation_cache", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture(autouse=True)
def restored():
    before = {name: getattr(jax.config, name) for name in NAMES}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compile_cache.compilation_cache.reset_cache()


@pytest.fixture
def unset(monkeypatch):
    """As on a user's machine: no folder is set for JAX."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    jax.config.update("jax_compilation_cache_dir", None)


def number(x):
    """A program whose text no other test compiles."""
    return jnp.tanh(x * 0.12345) + 0.54321


def compiled_number():
    jax.clear_caches()
    return float(jax.jit(number)(jnp.float32(2.0)))


def entries(folder):
    return sorted(pathlib.Path(folder).rglob("jit_number-*-cache"))


def test_by_default_it_is_in_the_users_cache_folder(unset, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compile_cache.use()
    value = compiled_number()
    assert jax.config.jax_compilation_cache_dir == str(compile_cache.default_folder())
    (entry,) = entries(tmp_path / "maskcl_jax" / "xla")
    entry.with_name("seen").touch()
    assert compiled_number() == value
    assert entries(tmp_path) == [entry]


def test_what_compiles_in_a_moment_is_not_kept(unset, monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    compile_cache.use(str(tmp_path))
    compiled_number()
    assert not entries(tmp_path)


@pytest.mark.parametrize("relative", ["", "cache"])
def test_without_an_absolute_cache_folder_it_is_in_the_home(relative, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", relative)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compile_cache.default_folder().is_relative_to(tmp_path / ".cache" / "maskcl_jax")


def test_a_folder_of_jax_is_kept_and_one_of_the_config_wins(monkeypatch, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "jax"))
    compile_cache.use()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "jax")
    compile_cache.use(str(tmp_path / "config"))
    compiled_number()
    assert entries(tmp_path / "config") and not entries(tmp_path / "jax")


def test_off(unset, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compile_cache.use("off")
    compiled_number()
    jax.config.update("jax_enable_compilation_cache", False)
    compile_cache.use()
    assert not list(tmp_path.iterdir())


def test_a_damaged_program_is_compiled_again(tmp_path):
    compile_cache.use(str(tmp_path))
    value = compiled_number()
    (entry,) = entries(tmp_path)
    entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2])  # as a process that was killed leaves it
    with pytest.warns(UserWarning, match="Error reading persistent compilation cache entry"):
        assert compiled_number() == value


def test_a_folder_that_cannot_be_made_is_said_and_left(tmp_path, caplog):
    (tmp_path / "file").touch()
    compile_cache.use(str(tmp_path / "file" / "cache"))
    assert "compiled programs are not kept" in caplog.text
    assert jax.config.jax_compilation_cache_dir is None
    compiled_number()


def test_a_folder_that_cannot_be_written_to_is_said_and_left(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    compile_cache.use(str(tmp_path))
    assert "it cannot be written to" in caplog.text
    assert jax.config.jax_compilation_cache_dir is None


def test_the_programs_that_were_not_read_for_longest_go(tmp_path):
    for age in range(6):
        path = tmp_path / f"jit_{age}-cache"
        path.write_bytes(bytes(100))
        os.utime(path, (1e9 - age, 1e9))
    (tmp_path / "gone-cache").symlink_to(tmp_path / "absent")  # as one that another process has just removed
    compile_cache.prune(tmp_path, limit=600)
    assert len(list(tmp_path.iterdir())) == 7
    compile_cache.prune(tmp_path, limit=599)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gone-cache", "jit_0-cache", "jit_1-cache"]


def test_processors_have_folders_of_their_own(tmp_path):
    def name(flags):
        path = tmp_path / "cpuinfo"
        path.write_text(f"processor : 0\nmodel name : x\nflags : {flags}\n")
        return compile_cache.processor(path)

    assert name("sse avx2") == name("sse avx2") != name("sse avx2 avx512f")
    assert compile_cache.processor(tmp_path / "absent")


def test_a_run_keeps_its_programs_for_the_next_one(unset, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    loop.train(quick("mae", **{"total_steps": 1, "eval.pictures": 0}), str(tmp_path / "run"))
    names = sorted(path.name for path in (tmp_path / "cache").rglob("*-cache"))
    assert any(name.startswith("jit_train_step") for name in names)
    assert any(name.startswith("jit_make_state") for name in names)
    jax.clear_caches()
    loop.train(quick("mae", **{"total_steps": 1, "eval.pictures": 0}), str(tmp_path / "next"))
    assert sorted(path.name for path in (tmp_path / "cache").rglob("*-cache")) == names
