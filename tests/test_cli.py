"""The command line: what a config's flags set, what is printed of it, and refusals of one line."""

import json
import os
import subprocess
import sys

import pytest
from helpers.processes import environment

from maskcl_jax import cli, config
from maskcl_jax.errors import UserError

# Parses each command line of standard input as the training command does, and answers with the config or the error.
PARSE = """
import json, sys
from absl import flags
from maskcl_jax import cli, main
from maskcl_jax.config import flat
from maskcl_jax.errors import UserError
for words in json.load(sys.stdin):
    flags.FLAGS.unparse_flags()
    try:
        cli.parse_flags(["main", *words])
        print(json.dumps(flat(cli.CONFIG.value) | {"flag": cli.CONFIG.name}))
    except UserError as error:
        print(json.dumps(str(error)))
"""
ANSWERS = {
    "--config=mae --config.method.mask_ration=0.5": "did you mean 'method.mask_ratio'",
    "--config=mae --config.nothing=1": "--config.nothing=1: 'nothing' is not a field",
    "--config=mae --config.epochs=many": "--config.epochs=many does not fit: epochs is a whole number",
    "--config=mae:epochs=many": "config argument 'epochs=many' does not fit: epochs is a whole number",
    "--config=mae --config.augment.crop_scale=a": "as 64x32 or '(0.2,1.0)' (quoted, for the shell)",
    "--config=mae --config.epochs": "--config.epochs=true does not fit",
    "--config=mae --config.method=1": "it is a group, set for instance method.decoder.depth",
    "--config=mae:imagnet": "preset 'imagnet' is unknown, did you mean 'imagenet'",
    "--config=configs/none.py": "--config=configs/none.py is neither a file nor the name of a config",
    "--config=mae --config.workdir=runs/a": "--config.workdir is not a field of the config: write --workdir=runs/a",
    "--config=mae --epochs=3": "--epochs is not a flag: write --config.epochs=VALUE",
    "--config.epochs=3": "--config.epochs without --config=FILE",
    "--config=mae now": "argument 'now' is not understood",
    "--config=mae --worker=a": "Unknown command line flag 'worker'",
}


@pytest.fixture(scope="module")
def parsed():
    """Command line -> what it is understood as, in one process."""
    lines = [*ANSWERS, "--config=mae:epochs=3 --config.epochs 5", "--config mae --config.scan --config.mesh.data -1"]
    lines += ["--config=mae --config.eval.linear --noconfig.augment.flip", "--config=mae --config.data.path="]
    lines += ["--config=mae --config.data.image_size=64 --config.optimizer.base_lr=3 --config.data.mean=(.1,1)"]
    done = subprocess.run(
        [sys.executable, "-c", PARSE],
        input=json.dumps([line.split() for line in lines]),
        env=environment(1),
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(zip(lines, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("line", ANSWERS)
def test_the_command_line_names_the_culprit(line, parsed):
    assert ANSWERS[line] in parsed[line]
    assert len(parsed[line].splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        ("mae:epochs=3", {"epochs": 5, "flag": "mae"}),
        ("--config mae", {"scan": True, "mesh.data": -1}),
        ("linear", {"eval.linear": True, "augment.flip": False}),
        ("path", {"data.path": ""}),
        ("image_size", {"data.image_size": [64, 64], "optimizer.base_lr": 3.0, "data.mean": [0.1, 1.0]}),
    ],
)
def test_the_command_line_sets_fields(words, fields, parsed):
    (values,) = (value for line, value in parsed.items() if words in line and line not in ANSWERS)
    assert {field: values[field] for field in fields} == fields


def test_words_of_a_list_may_follow_a_field():
    rest, overrides = cli.split_overrides(["main", "FILE", "--config.a.b", "-3", "--out=x", "--config.c=--d=e\nf"])
    assert (rest, overrides) == (["main", "FILE", "--out=x"], {"a.b": "-3", "c": "--d=e\nf"})


def test_an_unlisted_field_cannot_be_added_later():
    loaded = cli.load("mae:synthetic", {})
    with pytest.raises(AttributeError):
        loaded.epoch = 3
    with pytest.raises(UserError):
        cli.load("mae:synthetic", {"epoch": "3"})


OWN = """
import pathlib
from maskcl_jax import config
with pathlib.Path(__file__).with_name("executed").open("a") as file:
    file.write("once\\n")
def get_config(argument):
    return config.build(argument, method={"name": "mae", "rate": 0.5}, presets={"synthetic": {"epochs": 3}})
"""


def test_print_config_says_where_each_value_comes_from(tmp_path):
    """In an empty folder, of a file of the user's, which is executed once; the workdir is not made."""
    (tmp_path / "own.py").write_text(OWN)
    command = [sys.executable, "-m", "maskcl_jax.main", "--config=own.py:synthetic,seed=4", "--config.batch_size=8"]
    done = subprocess.run(
        [*command, "--print_config"], cwd=tmp_path, env=environment(1), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "executed").read_text() == "once\n"
    assert sorted(os.listdir(tmp_path)) == ["executed", "own.py"]
    rows = [line.replace("#", "=").split("=") for line in done.stdout.splitlines()]
    printed = {field.strip(): (value.strip(), origin.strip()) for field, value, origin in rows}
    assert printed.keys() == config.flat(config.load(tmp_path / "own.py", None)).keys()
    expected = {
        "data.image_size": ("(32, 32)", "default"),
        "data.source": ("'synthetic'", "data preset synthetic"),
        "method.rate": ("0.5", "own.py METHOD"),
        "epochs": ("3", "own.py:synthetic"),
        "seed": ("4", "argument"),
        "preset": ("'synthetic'", "argument"),
        "batch_size": ("8", "command line"),
    }
    assert {field: printed[field] for field in expected} == expected


def test_print_config_needs_a_config():
    done = subprocess.run(
        [sys.executable, "-m", "maskcl_jax.main", "--print_config"], env=environment(1), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (2, "error: --print_config without --config: give one of configs/\n")


LATER = """
from maskcl_jax import cli
async def read(text):
    try:
        await never()
    finally:
        raise Exception(text)
class never:
    def __await__(self):
        yield
cli.silence_arrays()
for text in ({texts}):
    coroutine = read(text)
    coroutine.send(None)
    del coroutine
"""


def test_pending_reads_of_a_damaged_checkpoint_say_nothing():
    """Orbax waits for the first array that fails; Python prints the others when it finds them, most often later."""
    texts = ["Encountered error. See full TensorStore details: <it>", "Event loop is closed", "something else"]
    code = LATER.format(texts=texts)
    done = subprocess.run([sys.executable, "-c", code], env=environment(1), capture_output=True, text=True, check=False)
    assert done.stderr.count("Exception ignored in") == 1
    assert done.stderr.rstrip().endswith("something else")


LOGGED = """
import asyncio
from absl import app, logging
from maskcl_jax import cli
async def fails(text):
    raise ValueError(text)
async def _read_array():
    pass
def serialize():
    async def write_fragment():
        pass
    write_fragment()
async def tasks():
    of_arrays = ['Error opening "zarr" driver [tensorstore_spec=...]', 'Error reading "0.0" in OCDBT database at F']
    for text in [*of_arrays, "something else"]:
        task = asyncio.create_task(fails(text))
        await asyncio.sleep(0)
        del task
def main(argv):
    cli.silence_arrays()
    logging.error("Failed to json parse Metadata file: F, file content: %s", "x" * 1000)
    logging.error("Failed to read Metadata file: F, error: invalid start byte")
    logging.warning("Metadata file does not exist: F")
    logging.warning("Provided metadata contains unknown key k. Adding it to custom_metadata.")
    logging.warning("a warning that is shown")
    _read_array()
    serialize()
    asyncio.run(tasks())
app.run(main)
"""


def test_what_orbax_and_asyncio_log_of_damage_is_dropped_and_nothing_else():
    done = subprocess.run(
        [sys.executable, "-c", LOGGED], env=environment(1), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("Traceback", "  "))]
    words = ["a warning that is shown", "Task exception was never retrieved", "something else", "something else"]
    assert len(lines) == len(words), done.stderr
    assert all(word in line for word, line in zip(words, lines, strict=True))
