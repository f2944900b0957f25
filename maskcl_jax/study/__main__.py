"""Runs a study: `python -m maskcl_jax.study FILE.py --data=DIR [--workdir=DIR] [--hours=H] [--scale=cpu|gpu]`.

Trainings and evaluations that are missing run one after the other, each in a process of its own. Finished ones are
skipped, also those that results/ holds of this or of another study; a killed study goes on with the same command.
DIR/results.json is written after every one of them; DIR/table.md, and plots where matplotlib is installed, at the end.
Exit status: 0 done, or stopped by --hours; 1 a command failed; 2 the study cannot work as written; 143 (130) stopped by
SIGTERM (Ctrl-C) and saved.
"""

import pathlib
import sys

from absl import flags

from maskcl_jax import cli
from maskcl_jax.errors import UserError
from maskcl_jax.study import definition, pieces, plots, tables
from maskcl_jax.study.results import Results
from maskcl_jax.study.running import Runner
from maskcl_jax.training.run_folder import lock_run

WORKDIR = flags.DEFINE_string("workdir", "", "The study's folder; default runs/study-<name>-<scale>.")
DATA = flags.DEFINE_string("data", "", "The folder of the data sets, such as cifar10.npz.")
HOURS = flags.DEFINE_float("hours", 0.0, "Stop after so many hours; a run that is training saves itself. 0: never.")
SCALE = flags.DEFINE_string("scale", "cpu", "cpu | gpu: how long, how large, how many seeds.")
SEEDS = flags.DEFINE_list("seeds", [], "Only these seeds.")
ONLY = flags.DEFINE_list("only", [], "Only these entries, by name or folder: mae-rate-x3 for 'MAE, rate x3'.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Check everything and print the commands that are missing.")


def main(argv: list[str]) -> None:
    """Runs a study, or prints what it would run."""
    study, name = definition.load(argv[1], SCALE.value), pathlib.Path(argv[1]).stem
    if HOURS.value < 0:
        raise UserError(f"--hours={HOURS.value} is out of range: use 0 (never stop) or more")
    if any(not text.isdigit() for text in SEEDS.value):
        raise UserError(f"--seeds={','.join(SEEDS.value)} is not understood: write numbers with commas")
    queue = pieces.pieces_of(study, only=tuple(ONLY.value), seeds=tuple(map(int, SEEDS.value)))
    pieces.check(study, queue)
    workdir = pathlib.Path(WORKDIR.value or f"runs/study-{name}-{SCALE.value}")
    known = sorted(pathlib.Path(tables.RESULTS.value).glob(f"*-{SCALE.value}.json"))
    results = Results(workdir / "results.json", study, name, SCALE.value, known)
    if DRY_RUN.value:
        print(f"{study.question}\nBudget: {study.budget}")
        missing = [piece for piece in queue if not results.has(piece)]
        trainings = [piece.needs for piece in missing if piece.needs]
        for piece in dict.fromkeys([*trainings, *missing]):
            print(piece.command)
        return
    workdir.mkdir(parents=True, exist_ok=True)
    lock = lock_run(workdir)
    status = Runner(workdir, data=DATA.value, hours=HOURS.value, results=results).run(queue)
    lock.close()
    content = results.content()
    text = "\n\n".join(table(content) for table in tables.TABLES.values())
    (workdir / "table.md").write_text(text + "\n")
    plots.draw(content, workdir)
    print(tables.figures_table(content), flush=True)
    sys.exit(status)


if __name__ == "__main__":
    cli.run(main, positional="STUDY.py")
