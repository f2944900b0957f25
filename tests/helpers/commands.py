"""Stands in for the commands that a study runs: `python commands.py maskcl_jax.main|maskcl_jax.evaluate WORDS`.

A training is 20 steps, each of `--config.pause` seconds, that end up in metrics.jsonl; stopped, it saves its step and
goes on there. An evaluation leaves a record. A word `--config.fails=1` makes either fail.
"""

import json
import pathlib
import shlex
import signal
import sys
import time

STEPS = 20


def main(module: str, *words: str) -> int:
    """Does what the command would leave in the run's folder; returns the exit status."""
    values = dict(word.removeprefix("--").split("=", 1) for word in words)
    run = pathlib.Path(values["workdir"])
    if "config.fails" in values:
        print("error: it fails")
        return 2
    if module == "maskcl_jax.evaluate":
        command = shlex.join(["python", "-m", module, *words])
        entry = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "n_test": 4, "k": 20, "correct": "oA=="}
        record = {"command": command, "protocol": "knn", "labels": "all", "recipe": "", "date": "today"}
        (run / "evaluate").mkdir(exist_ok=True)
        (run / "evaluate" / "knn.json").write_text(json.dumps(record | {"values": {"entries": [entry]}}))
        return 0
    return train(run, float(values.get("config.pause", 0)))


def train(run: pathlib.Path, pause: float) -> int:
    """20 steps, from where an earlier attempt stopped."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(json.dumps({"batch_size": 8, "method.name": "mae"}))
    saved, stop = run / "saved", []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    start = int(saved.read_text()) if saved.exists() else 0
    with (run / "starts").open("a") as starts:
        starts.write(f"{start}\n")
    for step in range(start + 1, STEPS + 1):
        time.sleep(pause)
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "loss": 1.0 / step}) + "\n")
        if stop:
            saved.write_text(str(step))
            return 128 + signal.SIGTERM
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
