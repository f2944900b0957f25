"""Saving, restoring, and refusing what is not ours."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.untrained import made
from PIL import Image

from maskcl_jax import config
from maskcl_jax.data.sources import open_source
from maskcl_jax.errors import UserError
from maskcl_jax.training import checkpoint, checkpoint_metadata, run_folder, sharding, train_state
from maskcl_jax.training.run import restore_run


def small_config(arg="synthetic"):
    return config.load("mae", arg)


def state(*, width=3, step=0):
    return train_state.TrainState(
        step=jnp.asarray(step, jnp.int32),
        params={"dense": {"kernel": jax.random.normal(jax.random.key(step), (2, width))}},
        target_params=None,
        model_state={"batch_stats": {"mean": jnp.full((width,), 1 / 3)}},
        opt_state=({"mu": jnp.arange(width, dtype=jnp.float32)}, ()),
    )


def abstract(tree):
    placed = sharding.replicated(sharding.create_mesh())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), tree)


def test_a_state_comes_back_bit_for_bit(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(7, state(step=7))
    checkpoints.close()
    restored = checkpoint.Checkpoints(tmp_path).restore(abstract(state()))
    assert isinstance(restored, train_state.TrainState)
    jax.tree.map(np.testing.assert_array_equal, restored, state(step=7))


def test_the_last_and_every_nth_are_kept(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep_last=2, keep_every=4)
    for step in range(1, 8):
        checkpoints.save(step, state(step=step))
    checkpoints.close()
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [4, 6, 7]


def test_another_architecture_is_refused_with_the_shapes(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(1, state(width=3))
    checkpoints.close()
    with pytest.raises(UserError, match=r"another architecture.*\(2, 3\) there, \(2, 5\) here.*another --workdir"):
        checkpoint.Checkpoints(tmp_path).restore(abstract(state(width=5)))
    with pytest.raises(UserError, match=r"another architecture.* here: remove it$"):
        checkpoint.Checkpoints(tmp_path, remedy="remove it").restore(abstract(state(width=5)))


def test_the_folder_of_another_config_is_refused_with_the_difference(tmp_path):
    run_folder.claim(tmp_path / "run", small_config())
    run_folder.claim(tmp_path / "run", small_config())
    other = small_config()
    other.log.every_steps = 3  # what is only shown may change
    other.data.workers, other.data.path = "2", "elsewhere"  # and where the same data lie
    run_folder.claim(tmp_path / "run", other)
    other.method.mask_ratio = 0.5
    with pytest.raises(UserError, match=r"method.mask_ratio: 0.75 there, 0.5 here"):
        run_folder.claim(tmp_path / "run", other)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="not writable"):
        run_folder.claim(tmp_path / "file" / "run", small_config())


def data_files(folder):
    """The files of a checkpoint's arrays, the largest first."""
    return sorted(
        (p for p in folder.rglob("*") if p.is_file() and "/d/" in p.as_posix()), key=lambda p: -p.stat().st_size
    )


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "overwritten": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "one bit": flip_a_bit,
}


# Every kind of file of a checkpoint, and the arrays' largest.
FILES = {
    "metadata": "_CHECKPOINT_METADATA",
    "arrays": "state/d/*",
    "arrays of a process": "state/ocdbt.process_0/d/*",
    "manifest": "state/manifest.ocdbt",
    "manifest of a process": "state/ocdbt.process_0/manifest.ocdbt",
    "tree": "state/_METADATA",
    "shardings": "state/_sharding",
    "shapes": "state/array_metadatas/process_0",
}


def file_of(checkpoint, kind):
    """The largest file of a kind."""
    return max(checkpoint.glob(FILES[kind]), key=lambda path: path.stat().st_size)


def two_checkpoints(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, state(width=512, step=step), small_config())
    checkpoints.close()


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_newest_checkpoint_is_named(file, kind, tmp_path, capfd):
    two_checkpoints(tmp_path)
    DAMAGE[kind](file_of(tmp_path / "checkpoints" / "2", file))
    checkpoints, said = checkpoint.Checkpoints(tmp_path), []
    restored = checkpoints.restore_newest(abstract(state(width=512)), said.append)
    step = int(restored.step)
    jax.tree.map(np.testing.assert_array_equal, restored, state(width=512, step=step))
    assert len(said) == 2 - step
    assert step == 1 or file not in ("metadata", "arrays of a process")  # what is not known without them
    assert all("checkpoints/2 is damaged" in line and "\n" not in line for line in said)
    assert all(len(line) < 400 + len(str(tmp_path)) for line in said)
    assert "Traceback" not in (printed := "".join(capfd.readouterr())) and "json" not in printed


def test_a_damaged_checkpoint_is_moved_aside_as_often_as_it_is_damaged(tmp_path):
    two_checkpoints(tmp_path)
    said = []
    for aside in (["damaged-2"], ["damaged-2", "damaged-2-2"], ["damaged-2", "damaged-2-2", "damaged-2-3"]):
        DAMAGE["cut"](data_files(tmp_path / "checkpoints" / "2")[0])
        checkpoints = checkpoint.Checkpoints(tmp_path)
        restored = checkpoints.restore_newest(abstract(state(width=512)), said.append, move=True)
        jax.tree.map(np.testing.assert_array_equal, restored, state(width=512, step=1))
        assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["1", *aside]
        checkpoints.save(2, state(width=512, step=2), small_config())  # the run makes that step again
        checkpoints.close()
    restored = checkpoint.Checkpoints(tmp_path).restore_newest(abstract(state(width=512)), said.append)
    jax.tree.map(np.testing.assert_array_equal, restored, state(width=512, step=2))
    assert len(said) == 3


def test_without_a_whole_checkpoint_the_run_ends_with_one_line(tmp_path):
    two_checkpoints(tmp_path)
    for step in (1, 2):
        DAMAGE["cut"](data_files(tmp_path / "checkpoints" / str(step))[0])
    said = []
    for _ in range(2):  # the second time is no new run
        with pytest.raises(UserError, match=r"no checkpoint of this run .*checkpoints/2 is damaged \([^/]*\); use"):
            checkpoint.Checkpoints(tmp_path).restore_newest(abstract(state(width=512)), said.append, move=True)
    assert len(said) == 2  # the error says the rest
    checkpoints = checkpoint.Checkpoints(tmp_path)
    assert checkpoints.restore_newest(abstract(state(width=512)), said.append, move=True, or_none=True) is None
    assert "checkpoints/1 is damaged" in said[-1] and "starts from step 0" in said[-1]
    assert checkpoint.Checkpoints(tmp_path).latest() is None


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_an_error_that_may_pass_is_no_damage(error, tmp_path, monkeypatch):
    two_checkpoints(tmp_path)
    checkpoints = checkpoint.Checkpoints(tmp_path)

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(checkpoints.manager, "restore", fail)
    with pytest.raises(UserError, match=r"checkpoints/2 cannot be read .*start again") as caught:
        checkpoints.restore_newest(abstract(state(width=512)), lambda line: None, move=True)
    assert "remove" not in str(caught.value) and "delete" not in str(caught.value)
    assert (tmp_path / "checkpoints" / "2").exists()


def test_a_lost_config_is_known_from_the_checkpoint(tmp_path):
    run_folder.claim(tmp_path, small_config()).close()
    two_checkpoints(tmp_path)
    (tmp_path / "config.json").unlink()
    assert run_folder.read_config(tmp_path) == config.flat(small_config())
    other = small_config()
    other.method.mask_ratio = 0.5
    with pytest.raises(UserError, match=r"method.mask_ratio: 0.75 there, 0.5 here"):
        run_folder.claim(tmp_path, other)
    run_folder.claim(tmp_path, small_config()).close()


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_lost_config_and_damaged_metadata_are_known_from_the_checkpoint_before(kind, tmp_path):
    run_folder.claim(tmp_path, small_config()).close()
    two_checkpoints(tmp_path)
    (tmp_path / "config.json").unlink()
    DAMAGE[kind](tmp_path / "checkpoints" / "2" / "_CHECKPOINT_METADATA")
    other = small_config()
    other.method.mask_ratio = 0.5
    with pytest.raises(UserError, match=r"method.mask_ratio: 0.75 there, 0.5 here"):
        run_folder.claim(tmp_path, other)


@pytest.mark.parametrize("kind", DAMAGE)
def test_other_data_are_refused_though_the_newest_metadata_are_damaged(kind, tmp_path):
    facts = {"train": 18, "test": 2, "classes": 2, "digest": "a"}
    checkpoints = checkpoint.Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, state(step=step), small_config(), facts)
    checkpoints.close()
    DAMAGE[kind](tmp_path / "checkpoints" / "2" / "_CHECKPOINT_METADATA")
    with pytest.raises(UserError, match=r"18 training and 2 test images, 2 classes there, 20 training"):
        checkpoint.Checkpoints(tmp_path).check_data(facts | {"train": 20}, accept=False)


@pytest.mark.parametrize("name", ["custom_metadata", "digest", "checksums", "config", "processes"])
def test_a_turned_bit_in_a_name_of_the_metadata_makes_it_no_earlier_versions(name, tmp_path):
    two_checkpoints(tmp_path)
    path = tmp_path / "checkpoints" / "2" / "_CHECKPOINT_METADATA"
    assert checkpoint_metadata.read(path.parent)["config"] == config.flat(small_config())
    path.write_text(path.read_text().replace(f'"{name}"', f'"{name[:-1]}z"'))
    with pytest.raises(ValueError, match="not what was written"):
        checkpoint_metadata.read(path.parent)


def test_metadata_that_orbax_refuses_are_no_traceback(tmp_path):
    """A bit in the name of a time, which nothing reads."""
    two_checkpoints(tmp_path)
    path, said = tmp_path / "checkpoints" / "2" / "_CHECKPOINT_METADATA", []
    path.write_text(path.read_text().replace('"commit_timestamp_nsecs"', '"Commit_timestamp_nsecs"'))
    restored = checkpoint.Checkpoints(tmp_path).restore_newest(abstract(state(width=512)), said.append)
    jax.tree.map(np.testing.assert_array_equal, restored, state(width=512, step=2 - len(said)))


@pytest.mark.parametrize("content", [b"\xff\xfe\0", b"", b"{", b"[]", b"null", b"3", b"{}", b'{"seed": [1]}'])
def test_a_damaged_config_is_read_from_the_checkpoint(content, tmp_path):
    run_folder.claim(tmp_path, small_config()).close()
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json cannot be read \(.*\): is this the folder of a run"):
        run_folder.read_config(tmp_path)
    two_checkpoints(tmp_path)
    (tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir()  # of a run that was killed as it saved
    (tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp" / "_CHECKPOINT_METADATA").write_text("{")
    assert run_folder.read_config(tmp_path) == config.flat(small_config())


def test_a_config_that_is_not_the_checkpoints_is_refused(tmp_path):
    """A turned bit makes another seed of it, which `--workdir` alone would take for the run's."""
    run_folder.claim(tmp_path, small_config()).close()
    two_checkpoints(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(UserError, match=r"the config that the newest checkpoint was made with \(seed: 1 there, 0"):
        run_folder.read_config(tmp_path)
    (tmp_path / "config.json").write_text(text.replace('"log.every_steps": ', '"log.every_steps": 1'))
    run_folder.read_config(tmp_path)  # what may differ


def photographs(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / name)
    c = small_config()
    c.data.source, c.data.path = "folder", f"{folder}/"  # a trailing slash is no difference
    return open_source(c.data).facts()


def test_other_data_are_refused_with_both_figures_and_a_moved_folder_is_not(tmp_path):
    names = [f"{kind}/{i}.png" for kind in "ab" for i in range(10)]
    facts = photographs(tmp_path / "here", names)
    assert (facts["train"], facts["test"], facts["classes"]) == (18, 2, 2)
    checkpoints = checkpoint.Checkpoints(tmp_path / "run")
    checkpoints.check_data(facts, accept=False)  # nothing to compare with
    checkpoints.save(1, state(), small_config(), facts)
    checkpoints.close()
    checkpoints = checkpoint.Checkpoints(tmp_path / "run")
    checkpoints.check_data(photographs(tmp_path / "elsewhere", names), accept=False)
    more = photographs(tmp_path / "more", [*names, "b/10.png", "b/11.png"])
    with pytest.raises(
        UserError, match=r"18 training and 2 test images, 2 classes there, 20 training and 2 test images"
    ):
        checkpoints.check_data(more, accept=False)
    checkpoints.check_data(more, accept=True)
    renamed = photographs(tmp_path / "renamed", [*names[:-1], "b/other.png"])
    with pytest.raises(
        UserError, match=r"as many \(18 training .*\), with other names or labels.*data.accept_changes=True"
    ):
        checkpoints.check_data(renamed, accept=False)


def test_a_damaged_step_that_is_asked_for_says_which_others_there_are(tmp_path):
    run = made("mae")
    run_folder.claim(str(tmp_path), run.config).close()
    checkpoints = checkpoint.Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, run.state, run.config)
    checkpoints.close()
    DAMAGE["cut"](file_of(tmp_path / "checkpoints" / "2", "metadata"))
    with pytest.raises(
        UserError, match=r"checkpoints/2 is damaged \(.*\): choose another step \(there are 1\), or use a"
    ):
        restore_run(str(tmp_path), 2)
    assert restore_run(str(tmp_path)).step == 7  # of the state that is saved as 1


def test_processes_that_meet_a_damaged_checkpoint_say_what_to_do(tmp_path, monkeypatch):
    two_checkpoints(tmp_path)
    for step, then in ((2, "goes on from step 1"), (1, "starts from step 0")):
        checkpoints = checkpoint.Checkpoints(tmp_path)
        DAMAGE["cut"](file_of(tmp_path / "checkpoints" / str(step), "metadata"))
        with monkeypatch.context() as patched, pytest.raises(UserError) as caught:
            patched.setattr(checkpoint.jax, "process_count", lambda: 2)
            checkpoints.restore_newest(abstract(state(width=512)), lambda line: None, move=True)
        remedy = f"move that folder elsewhere, and the same command {then}"
        assert f"/{step} is damaged" in str(caught.value) and remedy in str(caught.value)
        shutil.rmtree(tmp_path / "checkpoints" / str(step))
