"""maskcl_jax beside lightly and stable-pretraining at equal CPU time, on the same images and encoders of one size.

    python benchmarks/peers/compare.py --data=PART.npz --peer_python=ENV/bin/python --minutes=3 --out=DIR

PART.npz is a part of CIFAR-10 that `python -m maskcl_jax.study studies/cifar10.py` writes into its folder's data/.
Every program is started, and stopped by SIGTERM when it has used so many CPU minutes, start and compilation included
(wall time would depend on what else the machine does). Its frozen features are measured by our k-NN. DIR/peers.json is
written after each.
"""

import argparse
import datetime
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np

from maskcl_jax.evaluate import knn
from maskcl_jax.study.results import commit

METHODS = ("mae", "simclr", "moco_v2")
PEERS = ("lightly", "stable_pretraining")
HERE = pathlib.Path(__file__).parent
FIELDS = {
    "data.source": "npz",
    "data.mean": "0.4914,0.4822,0.4465",
    "data.std": "0.2470,0.2435,0.2616",
    "data.on_device": True,
    "epochs": 10000,  # as good as a constant learning rate
    "batch_size": 64,
    "eval.every_epochs": 0,
    "eval.pictures": 0,
    "optimizer.warmup_epochs": 1,
}


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and of those that it has waited for, Linux."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def run(words: list[str], minutes: float, log: pathlib.Path) -> float:
    """Runs a command until it has used so many CPU minutes; returns wall seconds. Raises where it fails before."""
    begin = time.monotonic()
    with log.open("wb") as stream:
        process = subprocess.Popen(words, stdout=stream, stderr=subprocess.STDOUT)
        while process.poll() is None and cpu_seconds(process.pid) < 60 * minutes:
            time.sleep(0.2)
        if process.poll() is not None:
            raise RuntimeError(f"{log} says why it ended early")
        process.send_signal(signal.SIGTERM)
        process.wait()
    return time.monotonic() - begin


def accuracy(train: np.ndarray, test: np.ndarray, labels: dict[str, np.ndarray]) -> float:
    """k-NN in percent: k 20, temperature 0.07, cosine."""
    classes = int(labels["train"].max()) + 1
    predicted = knn.knn_predict(train, labels["train"], test, num_classes=classes)
    return float(100 * np.mean(predicted == labels["test"]))


def peer(library: str, method: str, a: argparse.Namespace, labels: dict[str, np.ndarray]) -> dict:
    """One run of another library."""
    out = a.out / f"{library}-{method}.npz"
    out.unlink(missing_ok=True)
    words = [a.peer_python, str(HERE / "peer_run.py"), library, method, str(a.data), str(out)]
    wall = run([*words, f"--seed={a.seed}"], a.minutes, out.with_suffix(".log"))
    with np.load(out) as file:
        images, seconds = int(file["images"]), float(file["cpu_seconds"])
        value = accuracy(file["train"], file["test"], labels)
    return {"images": images, "images_per_cpu_second": images / seconds, "knn": value, "wall": wall}


def ours(method: str, a: argparse.Namespace, labels: dict[str, np.ndarray]) -> dict:
    """One run of maskcl_jax."""
    workdir = a.out / f"ours-{method}"
    shutil.rmtree(workdir, ignore_errors=True)  # of an attempt that was interrupted
    fields = [f"--config.{name}={value}" for name, value in {**FIELDS, "data.path": a.data, "seed": a.seed}.items()]
    words = [sys.executable, "-m", "maskcl_jax.main", f"--config={method}:embedded", *fields, f"--workdir={workdir}"]
    wall = run(words, a.minutes, a.out / f"ours-{method}.log")
    evaluate = [sys.executable, "-m", "maskcl_jax.evaluate", f"--workdir={workdir}", "--protocol=knn"]
    subprocess.run(evaluate, check=True, stdout=subprocess.DEVNULL)
    (record,) = (json.loads(path.read_text()) for path in (workdir / "evaluate").glob("knn*.json"))
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    costs = sorted(row["cpu_seconds_per_image"] for row in rows if row.get("cpu_seconds_per_image"))
    images, speed = FIELDS["batch_size"] * record["step"], 1 / costs[len(costs) // 2]
    value = 100 * record["values"]["entries"][0]["accuracy"]
    return {"images": images, "images_per_cpu_second": speed, "knn": value, "wall": wall}


def main() -> None:
    """Runs what is missing, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--peer_python", required=True)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/peers"))
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    path, cores = a.out / "peers.json", len(os.sched_getaffinity(0))
    facts = {"cpu_minutes": a.minutes, "seed": a.seed, "cores": cores}
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    with np.load(a.data) as file:
        labels = {split: file[f"{split}_labels"] for split in ("train", "test")}
    for method in METHODS:
        for library in ("maskcl_jax", *PEERS):
            if any((row["method"], row["library"]) == (method, library) for row in rows):
                continue
            values = peer(library, method, a, labels) if library in PEERS else ours(method, a, labels)
            origin = {"date": datetime.date.today().isoformat(), "commit": commit()}
            rows.append({"method": method, "library": library, **values, **origin})
            print(rows[-1], flush=True)
            path.write_text(json.dumps({"facts": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
