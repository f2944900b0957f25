"""Stand-ins for the programs of clouds and clusters, with arguments that the launchers take, for trackers and UMAP."""

import os
import pathlib
import stat
import subprocess
import types

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
CONFIG = "--config=configs/cmae.py:imagenet"
CLOUD = ["--name=cmae", "--zone=zone-a", "--topology=v5e:4x4", "--bucket=my-runs", CONFIG]
TPU_JOB = ["--name=cmae", "--topology=v4:2x2x4", "--image=host/image:1", "--bucket=my-runs", CONFIG]
GPU_JOB = ["--name=cmae", "--gpu=nvidia-h100-80gb", "--nodes=2", "--gpus-per-node=8", "--image=i", "--bucket=my-runs"]
SLURM = ["--name=cmae", CONFIG, "--workdir=runs/cmae", "--nodes=4", "--gpus-per-node=8"]
ARGUMENTS = {
    "tpu_vm": CLOUD,
    "queued_resource": CLOUD,
    "tpu_host": ["--name=cmae", "--bucket=my-runs", CONFIG],
    "gke_tpu": TPU_JOB,
    "gke_gpu": [*GPU_JOB, CONFIG],
    "slurm": SLURM,
    "gpu_node": [CONFIG, "--workdir=runs/cmae"],
}
# Programs that no test may really call. Each writes down how it was called.
FOREIGN = ("gcloud", "kubectl", "sbatch", "squeue", "srun", "scontrol", "systemctl", "systemd-run", "apt-get", "curl")


class Machine:
    """A PATH whose foreign programs are stand-ins that fail, until `answer` says what they do."""

    def __init__(self, folder):
        self.folder, self.calls_file = folder, folder / "calls"
        for program in FOREIGN:
            self.answer(program, "exit 1")

    def answer(self, program, lines):
        """What a program does from now on."""
        file = self.folder / program
        file.write_text(f'#!/bin/bash\necho "{program} $*" >> {self.calls_file}\n{lines}\n')
        file.chmod(file.stat().st_mode | stat.S_IXUSR)

    def run(self, script, *arguments, **environment):
        """(exit status, stdout, stderr) of a launcher."""
        command = ["bash", str(LAUNCH / f"{script}.sh"), *arguments]
        env = os.environ | {"PATH": f"{self.folder}:{os.environ['PATH']}"} | environment
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)
        return done.returncode, done.stdout, done.stderr

    @property
    def calls(self):
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []


def wandb_like(calls):
    """A module with those functions of wandb and trackio that a run calls; each writes down how it was called."""

    class Run:
        def __init__(self, name):
            self.id = self.name = name

        def log(self, values, step):
            calls.append(("log", step, values))

        def finish(self):
            calls.append(("finish",))

    def init(*, project, name, config, resume="never", **options):
        calls.append(("init", project, name, config, resume, options))
        return Run(options.get("id", name))

    return types.SimpleNamespace(init=init, Image=lambda image: ("image", image.shape))


def mlflow_like(calls):
    """The same of MLflow's client."""

    class Client:
        def get_experiment_by_name(self, name):
            calls.append(("experiment", name))

        def create_experiment(self, name):
            return "7"

        def create_run(self, experiment_id, run_name):
            calls.append(("run", experiment_id, run_name))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="abc"))

        def update_run(self, run_id, status):
            calls.append(("again", run_id, status))

        def log_param(self, run_id, key, value):
            calls.append(("param", run_id, key, value))

        def log_metric(self, run_id, key, value, step):
            calls.append(("metric", run_id, key, value, step))

        def log_image(self, run_id, image, artifact_file):
            calls.append(("image", run_id, image.shape, artifact_file))

        def set_terminated(self, run_id):
            calls.append(("end", run_id))

    return types.SimpleNamespace(MlflowClient=Client)


def umap_like(made):
    """The module of umap-learn with the call that a report makes: it notes the options of each UMAP.

    A projection is the last two features, the last one first.
    """

    class UMAP:
        def __init__(self, **options):
            made.append(options)

        def fit_transform(self, values):
            return values[:, ::-1][:, :2]

    return types.SimpleNamespace(UMAP=UMAP)
