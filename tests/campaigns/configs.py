"""Damaged configs, overrides and command lines.

    python tests/campaigns/configs.py [--seed=0] [--count=500] [--start=0]
    python tests/campaigns/configs.py --seed=0 --only=13

Random fields of random methods get random values (of their range, at its ends, beyond it, of another type, no values at
all), the argument behind the colon, flags and config files are damaged. Each command line is parsed and refused in one
line, or is let through everything that `train` checks before it writes, up to the shapes of the training state. Every
twelfth one starts `python -m maskcl_jax.main` in a process of its own and must end with status 0, or 2 and one line.
"""

import os
import pathlib
import resource
import shutil
import subprocess
import sys

import common
import numpy as np

sys.path.insert(0, str(common.ROOT / "tests"))

METHODS = (
    "mae",
    "ccmim",
    "cmae",
    "macrl",
    "mocov3",
    "moco_v2",
    "simclr",
    "simclr_vit",
    "maskco",
    "saliency_masking",
    "mscn",
)
TEXTS = (
    *(
        "",
        " ",
        "x",
        "none",
        "None",
        "null",
        "true",
        "False",
        "1",
        "0",
        "-1",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "1e-400",
        "1_0",
    ),
    *(
        "0x10",
        "1,5",
        "(",
        ")",
        "()",
        "(1",
        "[1,2]",
        "1x",
        "x1",
        "1x2x3",
        "(0.2,1.0)",
        "(1.0,0.2)",
        "0.5,,0.5",
        "a,b",
        "é",
        "٣",
    ),
    *(
        "%s",
        "{}",
        "$HOME",
        "`ls`",
        "../..",
        "/",
        "/dev/null",
        "\n",
        "\t1",
        "--epochs",
        "=",
        "==1",
        "1=2",
        "'1'",
        '"1"',
        "\\",
    ),
    *("9" * 30, "1" + "0" * 400, "1e10", "-9223372036854775809", "2147483648", "4294967296", "0.1.2", "1e", "1j", "½"),
)
KINDS = ("a value", "several values", "a number in its range", "argument", "flags", "file", "names")
MEMORY = 12 * 2**30  # bytes that the worker may map; beyond, an attempt is a MemoryError


def random_value(field: str, value, rng: np.random.Generator, *, inside: bool) -> str:
    """A text for a field; inside: one of its type and range, the ends included, as long as it is no giant."""
    from maskcl_jax.config import ranges

    if not inside and rng.random() < 0.6:
        return str(TEXTS[int(rng.integers(len(TEXTS)))])
    if isinstance(value, bool):
        return str(rng.choice(["true", "false"]))
    if isinstance(value, str):
        choices = ranges.CHOICES.get(field)
        return str(rng.choice(choices)) if inside and choices else str(rng.choice(["auto", "cls", "mean", "x", value]))
    allowed = ranges.range_of(field)
    low = allowed.low if np.isfinite(allowed.low) else -100
    high = min(allowed.high if np.isfinite(allowed.high) else 100, 200)

    def number(kind) -> str:
        drawn = low + (high - low) * rng.choice([0.0, 1.0, 1e-6, 1 - 1e-6, rng.random(), rng.random() / 10])
        if not inside:
            drawn = float(rng.choice([drawn, -drawn, low - 1, high + 1, 10.0 ** rng.integers(0, 30)]))
        return str(round(drawn)) if kind is int else repr(float(drawn))

    if isinstance(value, list):
        kind = type(value[0]) if value else int
        count = len(value) if inside else int(rng.integers(0, 5))
        numbers = [number(kind) for _ in range(count)]
        return ",".join(sorted(numbers, key=float) if inside else numbers)
    return number(type(value))


def words_of(kind: str, folder: pathlib.Path, rng: np.random.Generator) -> list[str]:
    """A command line."""
    from maskcl_jax import config as config_lib

    method = str(rng.choice(METHODS))
    base = config_lib.flat(config_lib.load(method, "synthetic"))
    fields = sorted(field for field in base if field != "preset")
    words = [f"--config={method}:synthetic"]

    def random_field() -> str:
        return fields[int(rng.integers(len(fields)))]

    if kind in ("a value", "several values", "a number in its range"):
        for _ in range(int(rng.integers(2, 6)) if kind == "several values" else 1):
            field = random_field()
            inside = kind == "a number in its range" or (kind == "several values" and rng.random() < 0.7)
            words.append(f"--config.{field}={random_value(field, base[field], rng, inside=inside)}")
    elif kind == "argument":
        field = str(rng.choice([random_field(), "variant", "base_lr", "path", "image_size"]))
        value = random_value(field, base.get(field, "B/16"), rng, inside=bool(rng.random() < 0.3))
        preset = str(rng.choice(["synthetic", "synthetic", "embedded", "folder", "npz", "cifar10", "synthetc", ""]))
        text = str(
            rng.choice([f"{preset},{field}={value}", f"{field}={value}", f"{preset},{field}", f"{preset},=", value])
        )
        words = [f"--config={method}:{text}"]
        if rng.random() < 0.3:
            variant = str(
                rng.choice(["B/16", "Ti/0", "S/-4", "R50x0", "R18/large", "X/16", "R50x99999", "H/14", "Ti/1000"])
            )
            words = [f"--config={method}:synthetic,variant={variant}"]
    elif kind == "flags":
        field = random_field()
        damaged = [
            [f"--{field}=1"],
            [f"--config.{field}"],
            [f"--noconfig.{field}"],
            [f"--config.{field}", "--config.epochs=1"],
            [f"--config.{field}."],
            [f"--config..{field}=1"],
            [f"--config.{field.partition('.')[0]}=1"],
            [f"--config.{field}.more=1"],
            [f"-config.{field}=1"],
            ["--config=mae", "--config=cmae"],
            ["--workdir"],
            ["--num_processes=many"],
            ["--num_processes=2"],
            ["--process_id=3", "--num_processes=2", "--coordinator=nowhere"],
            ["--print_config=maybe"],
            ["train", "now"],
            ["--", "x"],
            ["--flagfile=/nonexistent"],
            ["--undefok=x", "--x=1"],
            ["--é=1"],
            ["-"],
            ["--config"],
            ["--config="],
            ["--config=:"],
            ["--config=/"],
            ["--config=."],
            ["--config=\0"],
        ]
        words += damaged[int(rng.integers(len(damaged)))]
    elif kind == "file":
        words = [f"--config={damaged_file(method, folder, rng)}:synthetic"]
    else:
        fields_with_names = [field for field in fields if isinstance(base[field], str)]
        field = fields_with_names[int(rng.integers(len(fields_with_names)))]
        names = [
            "mae",
            "os:system",
            "json:JSONDecoder",
            "x:y",
            "a.b.c:D",
            ":",
            "x:",
            "antigravity:x",
            "maskcl_jax.main:main",
        ]
        names += [
            "tfds",
            "folder",
            "tar",
            "npz",
            "embedded",
            "scenes",
            "synthetic",
            "/",
            "/dev/null",
            str(folder),
            "~unknown/x",
        ]
        words.append(f"--config.{field}={names[int(rng.integers(len(names)))]}")
    if kind != "flags" or rng.random() < 0.5:
        words.append(f"--workdir={folder / 'run'}")
    return words


def damaged_file(method: str, folder: pathlib.Path, rng: np.random.Generator) -> pathlib.Path:
    """A copy of a config file that is damaged, or says something else."""
    file = folder / f"{method}.py"
    text = (common.ROOT / "configs" / f"{method}.py").read_bytes()
    change = int(rng.integers(10))
    content = (common.cut, common.bits, common.noise, common.zeros, common.exchanged)
    if change < len(content):
        file.write_bytes(content[change](bytearray(text), rng))
        return file
    ends = [
        b"\n1 / 0\n",
        b"\nraise SystemExit(3)\n",
        b"\ndef get_config(argument=None):\n    return None\n",
        b"\ndef get_config(argument=None):\n    return {'seed': 1}\n",
        b"\ndef get_config():\n    return build(None, method=METHOD, presets=PRESETS)\n",
        b"\nget_config = 3\n",
        b"\nMETHOD.pop('name')\n",
        b"\nMETHOD['name'] = 7\n",
        b"\nPRESETS['synthetic'] = {'epochs': 'many'}\n",
        b"\nPRESETS['synthetic'] = {'no.such.field': 1}\n",
        b"\nPRESETS['synthetic'] = {'model.width': None, 'model.depth': -1}\n",
        b"\nMETHOD['new'] = object()\n",
        b"\ndef get_config(argument=None):\n    import sys\n    sys.exit()\n",
        b"\ndel PRESETS\n",
    ]
    file.write_bytes(text + ends[int(rng.integers(len(ends)))])
    return file


def start_of_a_run(words: list[str]) -> None:
    """What `python -m maskcl_jax.main` does before it writes or computes anything."""
    from absl import flags

    from maskcl_jax import cli, main
    from maskcl_jax.training import distributed
    from maskcl_jax.training.loop import prepare

    flags.FLAGS.unparse_flags()
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    cli.parse_flags(["main", *words])
    config = cli.CONFIG.value
    if config is None:
        return
    distributed.process_info_from_flags()
    assert main.WORKDIR.value is not None
    _, program = prepare(config)
    program.batch_shapes()


def attempt(seed: int, index: int, folder: pathlib.Path) -> common.Outcome:
    """One command line."""
    from maskcl_jax.errors import UserError

    rng = np.random.default_rng([seed, index])
    kind = KINDS[index % len(KINDS)]
    words = words_of(kind, folder, rng)
    (folder / "here").mkdir()
    os.chdir(folder / "here")
    outcome, shown = common.Outcome(kind, "start"), " ".join(map(repr, words)).replace(str(folder), "FOLDER")
    if index % 12 == 11 and "\0" not in shown:
        return by_command(outcome, words, folder)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    refusal, log = "", folder / "log"
    with common.captured(log):
        try:
            start_of_a_run(words)
        except UserError as error:
            refusal, outcome.result = str(error), "refused"
        except BaseException as error:
            outcome.result, outcome.failure = "traceback", f"{shown}: {common.described(error)}"
    printed = log.read_text(errors="replace")
    log.unlink()
    if any("compile_cache" in word for word in words):  # which makes that folder
        shutil.rmtree(folder / "here")
        (folder / "here").mkdir()
    left = {path.name for path in folder.iterdir()} - {"here"} - {path.name for path in folder.glob("*.py")}
    if not outcome.failure and len(refusal) > 900:
        outcome.failure = f"{shown}: too long: {refusal}"
    elif not outcome.failure and "Traceback" in printed:
        outcome.failure = f"{shown}: printed {printed[-1500:]}"
    elif not outcome.failure and (left or list((folder / "here").iterdir())):
        outcome.failure = f"{shown}: left {left}, {list((folder / 'here').iterdir())}"
    return outcome


def by_command(outcome: common.Outcome, words: list[str], folder: pathlib.Path) -> common.Outcome:
    """The command itself, for one step of a small batch where the words do not say otherwise."""
    small = [
        f"--config.{field}" for field in ("total_steps=1", "batch_size=8", "data.num_examples=64", "eval.batch_size=16")
    ]
    command = [sys.executable, "-m", "maskcl_jax.main", *(small if words[0].endswith(":synthetic") else []), *words]
    options = {
        "env": common.environment(),
        "cwd": folder / "here",
        "capture_output": True,
        "text": True,
        "check": False,
    }
    try:
        done = subprocess.run(command, timeout=290, **options)
    except subprocess.TimeoutExpired:
        outcome.result, outcome.failure = "hang", f"{words}: still running after 290 s"
        return outcome
    outcome.result = f"command ends with {done.returncode}"
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if done.returncode not in (0, 2) or "Traceback" in done.stderr + done.stdout:
        outcome.failure = f"{words}: status {done.returncode}: {(done.stdout + done.stderr)[-1500:]}"
    elif done.returncode == 2 and len(errors) != 1:
        outcome.failure = f"{words}: {done.stderr[-1500:]}"
    return outcome


if __name__ == "__main__":
    common.run(attempt, __doc__, count=500)
