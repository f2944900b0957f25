"""Executes every command of the documentation, in the order of its page.

    python tests/campaigns/commands.py [--start=0] [--count=100]
    python tests/campaigns/commands.py --only=7

Every page has a workspace of its own: the repository beside what its commands write, so that one reads what an earlier
one wrote. Placeholders (DIR, FILE, RUN, ...) stand for the things that `prepared_things.py` makes. An index is that of
a page. A command fails if its exit status is not 0, if it prints a traceback, or if it takes more than ten minutes.

What a page writes stays in the command; what is added to it only shortens:

* main, benchmark, import_torch: 2 steps of batches of 8, unless the page says otherwise; evaluations on at most 64
  training and 32 test images, no report at the end; of encoders of more than four blocks one, of images of more than 64
  pixels, 64, and no figures; of wide ResNets a ResNet-10 of width 16, at 56 pixels; of decoders one block. A run that
  is continued without a config gets the same lengths in its config.json.
* evaluate: 2 steps of batches of 8, where anything is trained.
* benchmark: 2 timed steps after 1; 16 JPEGs. benchmarks/accelerator.py: --toy, one minute. tests/benchmarks/kernels.py:
  2 rounds. compile_check: the same encoder as above at a batch of 64, --quick, and only where libtpu can be imported.
* study: --dry_run, without data.

What a command would write and is there already, because the page offers two commands of which a reader takes one,
is removed before. Home holds the data sets that TFDS prepared, for commands without `data_dir`.

Not executed, and counted as such: "others", programs that are not ours (git, pip, pytest, ...), and "marked", blocks
below a comment `<!-- not run: ... -->`.
"""

import argparse
import collections
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import common

sys.path.insert(0, str(common.ROOT / "tests"))

import prepared_things
from helpers.pages import Block, blocks, commands, files_of_pages

from maskcl_jax import cli
from maskcl_jax.config import flat
from maskcl_jax.evaluate.recipes import PROTOCOLS

SHELL: dict[str, list[Block]] = {}  # page -> its shell blocks
for shell_block in blocks("bash"):
    SHELL.setdefault(shell_block.page, []).append(shell_block)
LIMIT = 600.0  # seconds of one command
SHOWN = 20  # lines of a failed one
OTHERS = {"git", "cd", "source", "pip", "pytest", "ruff", "mypy", "sphinx-build", "pre-commit", ".ci/run"}
KINDS = {  # what starts a command: its row in the table
    "maskcl_jax.main": "main",
    "maskcl_jax.evaluate": "evaluate",
    "maskcl_jax.report": "report",
    "maskcl_jax.export": "export",
    "maskcl_jax.import_torch": "import_torch",
    "maskcl_jax.data.to_array": "data.to_array",
    "maskcl_jax.benchmark": "benchmark",
    "maskcl_jax.compile_check": "compile_check",
    "maskcl_jax.verify": "verify",
    "maskcl_jax.study": "study, dry run",
    "maskcl_jax.study.tables": "study.tables",
    "maskcl_jax.study.plots": "study.plots",
    "docs/options.py": "scripts",
    "docs/figures.py": "scripts",
    "benchmarks/accelerator.py": "scripts",
    "tests/benchmarks/kernels.py": "scripts",
}
SHORTER = {  # further words of some
    "maskcl_jax.benchmark": ["--steps=2", "--warmup=1"],
    "maskcl_jax.compile_check": ["--quick"],
    "maskcl_jax.study": ["--dry_run"],
    "benchmarks/accelerator.py": ["--toy", "--minutes=1"],
    "tests/benchmarks/kernels.py": ["--rounds=2"],
}
TRAINED = {"total_steps": 2, "batch_size": 8}  # and no more, by field
EVALUATED = {"eval.train_examples": 64, "eval.test_examples": 32, "log.report": False}
MOST = {"method.bn_group_size": 8, "method.decoder.depth": 1, "method.feature_decoder.depth": 1}
LIKE_PLACEHOLDERS = re.compile(r"(?<![\w-])[A-Z][A-Z_]+\d*(?![\w-])")


class Result(NamedTuple):
    """What came of one command: "executed", "failed" or "not executed", and CPU seconds."""

    kind: str
    result: str
    seconds: float = 0.0


def kind_of(block: Block, words: list[str]) -> str:
    """The row of a command in the table. Raises ValueError for one that this campaign cannot execute."""
    if block.reason:
        return "marked"
    if words[0] in OTHERS or words[:3] == ["python", "-m", "venv"]:
        return "others"
    if words[0] != "python" or program_of(words) not in KINDS:
        raise ValueError(f"{block}: {shlex.join(words)} is unknown to tests/campaigns/commands.py")
    return KINDS[program_of(words)]


def program_of(words: list[str]) -> str:
    """The module or the script of `python -m MODULE ...` or `python SCRIPT ...`."""
    return words[2] if words[1] == "-m" else words[1]


def flags_of(words: list[str]) -> dict[str, str]:
    """{flag: its text} of --FLAG=TEXT."""
    return dict(word.removeprefix("--").partition("=")[::2] for word in words if word.startswith("--"))


def filled(words: list[str], things: pathlib.Path) -> list[str]:
    """A command with prepared things for its placeholders. Raises ValueError for a placeholder that stands for none."""
    places = prepared_things.PLACES
    if "--format=detectron2" in words:  # which has ResNets only
        places = places | {r"\bRUN$": "resnet"}
    new = []
    for word in words:
        rest = word
        for pattern, place in places.items():
            found = place if place in prepared_things.IN_WORKSPACE else str(things / place)
            if re.search(pattern, rest):
                word, rest = re.sub(pattern, found, word), re.sub(pattern, "", rest)
        if unknown := LIKE_PLACEHOLDERS.search(rest):
            raise ValueError(f"{shlex.join(words)}: {unknown[0]} stands for nothing that is prepared")
        new.append(word)
    return new


def shortened(words: list[str]) -> list[str]:
    """A command with what makes it short; every word of it stays."""
    program = program_of(words)
    more = list(SHORTER.get(program, ()))
    if program == "maskcl_jax.benchmark" and any(word.startswith("--jpegs=") for word in words):
        more.append("--jpegs=16")
    values = flags_of(words)
    fields: dict[str, object] = {}
    if program == "maskcl_jax.evaluate":
        recipes = PROTOCOLS.get(values["protocol"].partition(":")[0], {})
        fields = TRAINED if any("total_steps" in recipe for recipe in recipes.values()) else {}
    elif values.get("config"):
        config = cli.load(values["config"], cli.split_overrides(words)[1])
        fields = smaller(config)
        if program == "maskcl_jax.compile_check":
            fields["batch_size"] = 64  # some for each of the chips
    return words + more + [f"--config.{field}={value}" for field, value in fields.items()]


def smaller(config) -> dict[str, object]:
    """The fields that make a training short: of those that the command sets itself, only the size of the encoder."""
    fields = flat(config)
    ours = {field for field, layer in config.origins.items() if layer in ("argument", "command line")}
    new = {field: value for field, value in (TRAINED | EVALUATED).items() if field not in ours}
    new |= {field: most for field, most in MOST.items() if fields.get(field, 0) > most}
    resnet = "model.stem" in fields
    if resnet and fields["model.width"] > 16:
        new |= {"model.depth": 10, "model.width": 16}
    elif not resnet and fields["model.depth"] > 4:
        new["model.depth"] = 1
    if max(fields["data.image_size"]) > 64 and "data.image_size" not in ours:
        new |= {"data.image_size": 56 if resnet else 64, "eval.pictures": 0}  # 56: a grid of 7 divides it
    return new


def workspace(folder: pathlib.Path, things: pathlib.Path) -> None:
    """The repository in a folder, beside the files that pages tell their reader to write, and trained runs."""
    for path in common.ROOT.iterdir():
        if path.is_dir() and not path.name.startswith(".") and path.name not in ("docs", "runs"):
            (folder / path.name).symlink_to(path)
    shutil.copytree(common.ROOT / "docs", folder / "docs")  # scripts write there
    for name, code in files_of_pages().items():
        (folder / name).write_text(code)
    for run in prepared_things.RUNS:
        shutil.copytree(things / run, folder / run)


def make_room(words: list[str]) -> None:
    """Removes what a command would write again; shortens a run that it would continue."""
    values = flags_of(words)
    old = values.get("out", "") if program_of(words) != "maskcl_jax.report" else ""
    if program_of(words) == "maskcl_jax.main" and "print_config" not in values:
        file, _, _ = values.get("config", "").partition(":")
        if file:
            preset = cli.load(values["config"], {}).preset
            old = values.get("workdir", f"runs/{pathlib.Path(file).stem}-{preset}")
        else:
            record = pathlib.Path(values["workdir"], "config.json")
            if record.is_file():  # else what was to write it has failed
                record.write_text(json.dumps(json.loads(record.read_text()) | TRAINED | EVALUATED))
    if old and pathlib.Path(old).is_dir():
        shutil.rmtree(old)


def execute(words: list[str], environment: dict[str, str]) -> tuple[str, float]:
    """(what is wrong with a command or "", its CPU seconds)."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, *words[1:]],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = str(process.wait(LIMIT))
        except subprocess.TimeoutExpired:
            status = "none"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        text = output.read()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    problem = f"exit status {status} after {time.monotonic() - begun:.0f} s" if status != "0" else ""
    if not problem and "Traceback (most recent call last)" in text:
        problem = "a traceback"
    lines = "\n    ".join(text.splitlines()[-SHOWN:])
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return problem and f"{problem}\n    {lines}", seconds


def run_page(page: str, folder: pathlib.Path, things: pathlib.Path, environment: dict[str, str], again: str):
    """Yields the results of a page's commands."""
    workspace(folder, things)
    os.chdir(folder)  # config files are found from there
    for block in SHELL[page]:
        for words in commands(block.code):
            kind = kind_of(block, words)
            if kind in ("others", "marked"):
                yield Result(kind, "not executed")
                continue
            if kind == "compile_check" and importlib.util.find_spec("libtpu") is None:
                yield Result("compile_check, needs libtpu", "not executed")
                continue
            long = filled(words, things)
            make_room(long)
            short = shortened(long)
            problem, seconds = execute(short, environment)
            print(f"{block}: {kind}, {seconds:.0f} s: {shlex.join(words)}", file=sys.stderr, flush=True)
            if problem:
                print(f"FAILED {block}: {shlex.join(short)}: {problem}\n  again: {again}", flush=True)
            yield Result(kind, "failed" if problem else "executed", seconds)


def main() -> None:
    """Executes the commands of the pages that are asked for, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=int, default=0, help="the first page")
    parser.add_argument("--count", type=int, default=len(SHELL))
    parser.add_argument("--only", type=int, help="one page")
    flags = parser.parse_args()
    if flags.only is not None:
        flags.start, flags.count = flags.only, 1
    table: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    seconds, begun = collections.Counter[str](), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="campaign_") as name:
        root = pathlib.Path(name)
        things = root / "things"
        environment = common.environment() | {"HOME": str(things), "JAX_COMPILATION_CACHE_DIR": str(root / "compiled")}
        if importlib.metadata.version("jax").startswith("0.10."):  # as tests/conftest.py has it: half the time
            environment["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
        os.chdir(common.ROOT)
        prepared_things.prepare(things, shortened, environment)
        for index, page in list(enumerate(SHELL))[flags.start : flags.start + flags.count]:
            print(f"page {index}, {page}", file=sys.stderr, flush=True)
            folder = root / "workspace"
            folder.mkdir()
            for result in run_page(page, folder, things, environment, f"python {sys.argv[0]} --only={index}"):
                table[result.kind][result.result] += 1
                seconds[result.kind] += result.seconds
            os.chdir(common.ROOT)
            shutil.rmtree(folder)
    results = ("executed", "failed", "not executed")
    print("| kind | count | " + " | ".join(results) + " | CPU seconds |\n|---" + "|---:" * 5 + "|")
    table["all"], seconds["all"] = sum(table.values(), collections.Counter[str]()), seconds.total()
    for kind, row in table.items():
        cells = [str(row.total()), *(str(row[result]) for result in results), f"{seconds[kind]:.0f}"]
        print(f"| {kind} | " + " | ".join(cells) + " |")
    print(f"{table['all']['failed']} failures; {time.monotonic() - begun:.0f} s; {shlex.join(['python', *sys.argv])}")
    sys.exit(1 if table["all"]["failed"] else 0)


if __name__ == "__main__":
    main()
