"""Worker processes of the input pipeline: the same batches, no orphans, one line where one dies."""

import concurrent.futures
import io
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from helpers import prepared
from helpers.views import assert_same, data_config, view_of
from PIL import Image

from maskcl_jax.api import images
from maskcl_jax.data import decode, pipeline
from maskcl_jax.data.sources import open_source, records
from maskcl_jax.errors import UserError
from maskcl_jax.views.cell_mask import CellMask, CellRule
from maskcl_jax.views.color import Color
from maskcl_jax.views.patch_mask import PatchMask
from maskcl_jax.views.randaugment import RandAugment

RULE = CellRule(name="query", ratio=(0.3, 0.5))
VIEWS = [
    view_of(
        (32, 32),
        CellMask(grid=4, provider="boundary", spread=0.5, rules=(RULE,)),
        PatchMask(kind="random", num_patches=16, num_visible=4, block=2, grid=(4, 4)),
        Color(applied_on="host"),
        name="query",
    )
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """30 images of several sizes in two classes; number 7 cannot be read."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(30):
        path = root / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)).save(path)
    (root / "b" / "07.png").write_bytes(b"rubbish")
    return root


def config_of(folder, **fields):
    return data_config(**{"source": "folder", "path": str(folder), "test_path": str(folder)} | fields)


def take(folder, count, *, views=VIEWS, batch_size=12, start=0, process=(0, 1), **fields):
    """(batches, names of what was skipped)."""
    config = config_of(folder, **fields)
    source = open_source(config)
    options = {"batch_size": batch_size, "seed": 3, "start_step": start}
    options |= {"process_index": process[0], "process_count": process[1]}
    with pipeline.train_batches(source, views, data_config=config, **options) as batches:
        return [next(batches) for _ in range(count)], set(source.skipped)


def test_workers_change_nothing(folder):
    straight, skipped = take(folder, 5, threads=2)
    assert skipped == {str(folder / "b" / "07.png")}  # named, though another process met it
    made, by_workers = take(folder, 5, workers=2)
    assert_same(made, straight)
    assert by_workers == skipped
    assert_same(take(folder, 2, workers=1, start=3)[0], straight[3:])


def test_threads_and_processes_change_nothing(folder):
    straight, _ = take(folder, 5, threads=1)
    assert_same(take(folder, 5, threads=3)[0], straight)
    parts = [take(folder, 5, threads=1, process=(i, 2))[0] for i in range(2)]
    joined = [{key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*parts, strict=True)]
    assert_same(joined, straight)


def test_images_in_memory_go_to_workers_too():
    config = data_config(source="synthetic", num_examples=22, image_size=(16, 16))
    batches = []
    for workers in (0, 1):
        config.workers = workers
        feed = pipeline.train_batches(open_source(config), VIEWS, data_config=config, batch_size=8, seed=0)
        with feed:
            batches.append([next(feed) for _ in range(3)])
    assert_same(*batches)


def test_a_worker_that_dies_is_one_line(folder):
    config = config_of(folder, workers=2)
    with pipeline.train_batches(open_source(config), VIEWS, data_config=config, batch_size=12, seed=0) as feed:
        next(feed)
        victim = next(child for child in multiprocessing.active_children() if "grain" in child.name)
        os.kill(victim.pid, signal.SIGKILL)
        with pytest.raises(UserError, match=r"a worker process .* died .*exit code -9.*fewer") as caught:
            for _ in range(40):
                next(feed)
    assert "\n" not in str(caught.value)


def test_an_error_in_a_worker_is_that_error(folder, tmp_path):
    for i in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    config = config_of(tmp_path, workers=1)
    source = open_source(config)
    source.split("train")
    for file in tmp_path.iterdir():
        file.write_bytes(b"gone")
    with (
        pipeline.train_batches(source, VIEWS, data_config=config, batch_size=2, seed=0) as feed,
        pytest.raises(UserError, match="none of the 4 images can be decoded"),
    ):
        next(feed)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def die(pids: list[int]) -> bool:
    """Whether processes end, within 10 s."""
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not any(alive(pid) for pid in pids)


PARENT = """
import multiprocessing, sys
sys.path.insert(0, "tests")
import test_workers as t
if __name__ == "__main__":
    config = t.config_of(sys.argv[1], workers=2)
    for _ in range(2):
        feed = t.pipeline.train_batches(t.open_source(config), t.VIEWS, data_config=config, batch_size=12, seed=0)
        next(feed)
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
        sys.stdin.readline()
        feed.close()
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="needs /proc")
def test_no_worker_outlives_its_feed_or_its_run(folder, tmp_path):
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    root = pathlib.Path(__file__).parents[1]
    env = os.environ | {"PYTHONPATH": f"{root}:{root / 'tests'}"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, str(program), str(folder)], cwd=root, env=env, **pipes) as parent:
        for end in ("closed", "killed"):
            children = [int(pid) for pid in parent.stdout.readline().split()]
            assert len(children) == 2 and all(alive(pid) for pid in children)
            if end == "closed":
                parent.stdin.write("\n")
                parent.stdin.flush()
            else:
                parent.kill()
            assert die(children), end


def test_no_pool_has_more_threads_than_wanted(tmp_path, monkeypatch):
    """Of indices of tar files and of tfds sets, of decoding into memory, and of images from Python."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sizes, executor = [], concurrent.futures.ThreadPoolExecutor

    def noted(threads, *rest):
        sizes.append(threads)
        return executor(threads, *rest)

    monkeypatch.setattr(concurrent.futures, "ThreadPoolExecutor", noted)
    file = io.BytesIO()
    Image.new("RGB", (9, 8)).save(file, "PNG")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("a.png")
        info.size = len(file.getvalue())
        tar.addfile(info, io.BytesIO(file.getvalue()))
    shards = [[{"image": file.getvalue(), "label": 0}]]
    prepared.write(tmp_path / "tiny", {"train": shards, "test": shards}, shape=(8, 9, 3))
    for threads in (3, 5):
        fields = {"threads": threads, "data_dir": str(tmp_path), "name": "tiny"}
        open_source(data_config(source="tar", path=str(tmp_path / "a.tar"), **fields))
        assert sizes == [threads]
        open_source(data_config(source="tfds", **fields)).split("train")
        images.read([file.getvalue()], data_config(**fields))
        assert sizes == [threads] * 4
        sizes.clear()
    open_source(data_config(source="tar", path=str(tmp_path / "a.tar")))
    assert sizes == [records.THREADS]


def test_who_loads_is_chosen_by_what_the_views_need(folder, monkeypatch):
    config = config_of(folder, workers="auto")
    source = open_source(config)
    plain = [view_of((32, 32), PatchMask(kind="random", num_patches=16, num_visible=4), Color())]
    on_host = [view_of((32, 32), RandAugment())]
    for cores, heavy in ((2, "2 threads"), (8, "7 worker processes"), (64, "16 worker processes")):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        assert pipeline.describe_loading(source, plain, config) == f"input by {cores} threads"
        for views in (VIEWS, on_host):
            assert pipeline.describe_loading(source, views, config) == f"input by {heavy}"
    with monkeypatch.context() as broken:
        broken.setitem(decode.PROBLEMS, "simplejpeg", "simplejpeg cannot be imported (ValueError: size changed)")
        said = pipeline.describe_loading(source, plain, config)
    assert said == "input by 64 threads, by Pillow as simplejpeg cannot be imported (ValueError: size changed)"
    config.workers = "3"
    assert pipeline.describe_loading(source, plain, config) == "input by 3 worker processes"
