"""The commands of docs/export.md, as they stand there."""

import re
import shlex

import pytest
from helpers import forks
from helpers.processes import environment
from helpers.tiny import ROOT
from helpers.untrained import write_run

RESNET = {"model.stem": "imagenet", "model.width": 64, "model.depth": 18}


def commands(heading: str) -> list[str]:
    """The commands of the first code block under a heading, without their comments."""
    section = (ROOT / "docs/export.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL)[1]
    return [line.split("#")[0].strip() for line in block.splitlines() if line.strip()]


def test_the_commands_of_export_and_import(tmp_path):
    """A run goes out in each format of the page; the whole model comes back, and is trained to its end."""
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[torch]'")
    write_run(tmp_path / "mae", "mae", total_steps=1)
    write_run(tmp_path / "moco", "moco_v2", **RESNET)
    filled = []
    for line in commands("Commands"):
        format = (re.findall(r"--format=(\w+)", line) or [""])[0]
        line = line.replace("FILE", "to_mae").replace("DIR", f"to_{format}")
        line = line.replace("RUN", {"detectron2": "moco", "": "back"}.get(format, "mae"))
        python, m, *words = shlex.split(line)
        assert (python, m) == ("python", "-m")
        filled.append(words)
    assert [words[0].removeprefix("maskcl_jax.") for words in filled] == ["export"] * 4 + ["import_torch", "main"]
    libraries = (*forks.LIBRARIES, "torch")
    said = forks.output_of(filled, cwd=tmp_path, env=environment(1), libraries=libraries)
    assert (tmp_path / "to_detectron2/model.pkl").is_file()
    assert any(line.startswith("1/1 ") for line in said.splitlines())
