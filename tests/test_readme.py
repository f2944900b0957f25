"""The commands of docs/export.md, as they stand there, in a shell."""

import re
import subprocess
import sys

import pytest
from helpers.processes import environment
from helpers.tiny import ROOT
from helpers.untrained import write_run

RESNET = {"model.stem": "imagenet", "model.width": 64, "model.depth": 18}


def commands(heading: str) -> list[str]:
    """The commands of the first code block under a heading, without their comments."""
    section = (ROOT / "docs/export.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL)[1]
    return [line.split("#")[0].strip() for line in block.splitlines() if line.strip()]


def shell(line: str, folder):
    """Runs a command with this Python, in a folder."""
    line = line.replace("python ", f"{sys.executable} ", 1)
    return subprocess.run(line, shell=True, env=environment(1), cwd=folder, capture_output=True, text=True)


def test_the_commands_of_export_and_import(tmp_path):
    """A run goes out in each format of the page; the whole model comes back, and is trained to its end."""
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[torch]'")
    write_run(tmp_path / "mae", "mae", total_steps=1)
    write_run(tmp_path / "moco", "moco_v2", **RESNET)
    ran = []
    for line in commands("Commands"):
        format = (re.findall(r"--format=(\w+)", line) or [""])[0]
        line = line.replace("FILE", "to_mae").replace("DIR", f"to_{format}")
        line = line.replace("RUN", {"detectron2": "moco", "": "back"}.get(format, "mae"))
        done = shell(line, tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        ran.append(line.split()[2].removeprefix("maskcl_jax."))
    assert ran == ["export"] * 4 + ["import_torch", "main"]
    assert (tmp_path / "to_detectron2/model.pkl").is_file()
    assert "1/1" in done.stdout
