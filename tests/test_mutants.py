"""The mutants still fit the code; `python tests/mutants/run.py` shows that each is killed."""

import ast
import pathlib

import pytest
from mutants.table import MUTANTS

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_applies_and_its_test_exists(mutant):
    text = (ROOT / mutant.file).read_text()
    assert text.count(mutant.old) == 1
    ast.parse(text.replace(mutant.old, mutant.new))
    file, _, name = mutant.test.partition("::")
    tests = {node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)}
    assert name.partition("[")[0] in tests


def test_names_differ():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 34
