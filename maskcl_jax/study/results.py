"""results.json: every figure with its seed, command, date and commit, and what is computed from them."""

import json
import pathlib
import subprocess
from collections.abc import Sequence
from typing import Any

from maskcl_jax.errors import UserError
from maskcl_jax.study import presets
from maskcl_jax.study.definition import Study
from maskcl_jax.study.pieces import Piece, pieces_of
from maskcl_jax.study.summary import comparisons, summary
from maskcl_jax.training import run_folder


class Results:
    """The results of one study at one scale, written whole after every change.

    Attributes:
        figures: One row for each figure of each evaluation.
        runs: One row for each training that ended: what it cost.
    """

    def __init__(self, path: pathlib.Path, study: Study, name: str, scale: str, known: Sequence[pathlib.Path] = ()):
        """Reads what is there.

        Args:
            path: Of results.json.
            study: The study.
            name: Of its file.
            scale: At which it runs.
            known: Further results.json, from earlier machines or of other studies; of their finished figures those are
                taken over that this study would get by the same commands with the same presets.

        Raises:
            UserError: A file is there and is no results.json, or the study's own has figures of other presets.
        """
        self.path, self.study, self.name, self.scale = path, study, name, scale
        self.figures: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        # Of the commands that the study has now: rows of others, before its file was changed, are left out.
        self.presets = presets.of_study(study)
        evaluations = pieces_of(study)
        self.pieces = {part.key: part for piece in evaluations for part in (piece, piece.needs) if part}
        for file in (path, *known):
            if file.exists():
                self.merge(file)

    def merge(self, file: pathlib.Path) -> None:
        """Takes over the figures and the runs of the study's pieces that are not here.

        Those that were measured with other presets are left out with a line, or refused in the study's own file: its
        folder has their runs.
        """
        content = read(file)
        old = {row["name"]: row["values"] for row in content.get("presets", [])}
        changed = presets.changes(old, self.presets)
        keys = {row["key"] for row in content["figures"] + content["runs"]} & self.pieces.keys()
        lines = {key: presets.concerning(self.study, self.pieces[key], changed) for key in keys}
        differing = {key for key in keys if lines[key]}
        for line in sorted({line for key in differing for line in lines[key]}):
            if file == self.path:
                raise UserError(f"{file}: since its runs began, {line}: give another --workdir, or change it back")
            print(f"{file}: {line}: what was measured before is not taken over")
        for mine, theirs in ((self.figures, content["figures"]), (self.runs, content["runs"])):
            missing = self.pieces.keys() - {row["key"] for row in mine} - differing
            mine += [row for row in theirs if row["key"] in missing]

    def has(self, piece: Piece) -> bool:
        """Whether a piece is finished."""
        return any(row["key"] == piece.key for row in self.figures + self.runs)

    def add(self, figures: list[dict[str, Any]], runs: list[dict[str, Any]]) -> None:
        """Adds rows and writes the file."""
        self.figures += figures
        self.runs += runs
        self.write()

    def write(self) -> None:
        """Writes the file, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        run_folder.write_text(self.path, dumps(self.content()))

    def content(self) -> dict[str, Any]:
        """What the file holds."""
        order = {entry.name: number for number, entry in enumerate(self.study.entries)}
        known = [row for row in self.figures if row["key"] in self.pieces]
        known.sort(key=lambda row: (order[row["entry"]], row["seed"], row["figure"]))
        runs = [row for row in self.runs if row["key"] in self.pieces]
        runs.sort(key=lambda row: (order[row["entry"]], row["seed"]))
        return {
            "study": self.name,
            "scale": self.scale,
            "question": self.study.question,
            "budget": self.study.budget,
            "entries": [{"name": entry.name, "note": entry.note} for entry in self.study.entries],
            "summary": summary(known, runs),
            "comparisons": comparisons(known, self.study.comparisons),
            "presets": [{"name": name, "values": values} for name, values in self.presets.items()],
            "figures": known,
            "runs": runs,
        }


def read(path: pathlib.Path) -> dict[str, Any]:
    """The content of a results.json. Raises UserError where it is none."""
    try:
        content = json.loads(path.read_text())
        rows = content["figures"] + content["runs"]
        assert all("key" in row for row in rows)
    except (OSError, ValueError, KeyError, TypeError, AssertionError):
        raise UserError(f"{path} is no results.json of a study: remove it, or give another folder") from None
    return content


def dumps(content: dict[str, Any]) -> str:
    """JSON with one line for each row."""
    parts = []
    for name, value in content.items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list) and value:
            text = "[\n" + ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in value) + "\n ]"
        parts.append(f" {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def commit() -> str:
    """The commit of the code that runs, with + where files were changed since; "" outside of a repository."""
    folder = pathlib.Path(__file__).parent
    try:
        words = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
