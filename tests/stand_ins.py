"""Stand-ins for the programs of clouds and clusters, and arguments that the launchers take."""

import os
import pathlib
import stat
import subprocess

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
