"""`python -m maskcl_jax` lists every command of the package, and nothing else."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

import maskcl_jax
from maskcl_jax.__main__ import COMMANDS

PACKAGE = pathlib.Path(maskcl_jax.__file__).parent


def test_the_table_has_every_module_that_can_be_run():
    files = [path for path in PACKAGE.rglob("*.py") if 'if __name__ == "__main__":' in path.read_text()]
    modules = {".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__main__") for path in files}
    assert modules - {"__main__"} == set(COMMANDS)


def test_the_command_prints_the_table():
    done = subprocess.run([sys.executable, "-m", "maskcl_jax"], capture_output=True, text=True, check=True)
    for name, summary in COMMANDS.items():
        (line,) = [line for line in done.stdout.splitlines() if f"maskcl_jax.{name} " in line]
        assert line.endswith(summary)


def test_an_argument_is_refused_in_one_line():
    done = subprocess.run([sys.executable, "-m", "maskcl_jax", "train"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: argument 'train' is not understood: run one of the commands above\n"


def test_every_flag_of_a_docstring_exists():
    texts = {path: path.read_text() for path in PACKAGE.rglob("*.py")}
    defined = {name for text in texts.values() for name in re.findall(r'DEFINE_\w+\(\s*"(\w+)"', text)}
    others = {"data_dir", "path", "kernels"}  # which are defined with a variable for the name or the value
    for path, text in texts.items():
        words = re.findall(r"--([a-z][\w-]*)", ast.get_docstring(ast.parse(text)) or "")
        unknown = {word.removeprefix("no") for word in words} - defined - others
        assert not unknown, path


@pytest.mark.parametrize(
    "command", ["main --config=mae --print_config", "main --help", f"verify {PACKAGE}/verify/reference/boxes.npz"]
)
def test_a_reader_that_has_gone_is_no_error(command):
    words = f"-m maskcl_jax.{command}".split()
    with subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()  # as `head` does
        assert process.stderr.read() == b""
    assert process.returncode in (1, 141)  # absl's --help has 1
