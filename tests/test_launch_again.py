"""The launchers called again: what continues, what is left alone, what is requested again."""

import os
import signal
import subprocess
import sys
import time

import pytest
from stand_ins import CLOUD, CONFIG, LAUNCH, SLURM, TPU_JOB, Machine


@pytest.fixture
def machine(tmp_path):
    """A machine on which nothing can be reached."""
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("state", "verbs"),
    [
        ("", ["get", "apply"]),
        ("cmae Completed", ["get"]),
        ("cmae ", ["get"]),
        ("cmae Failed", ["get", "delete", "apply"]),
    ],
)
def test_a_second_call_continues_a_run_or_leaves_it_alone(machine, state, verbs):
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
    status, printed, errors = machine.run("queued_resource", *CLOUD)
    assert status == 0, errors
    queue = [call.split()[4] for call in machine.calls if "queued-resources" in call]
    looks = ["describe"]
    assert queue == [*looks, "create", *looks, *looks, "delete", *looks, "create", *looks, *looks, "delete"]
    assert "done: gs://my-runs/cmae" in printed
    assert "--spot" in next(call for call in machine.calls if "queued-resources create" in call)


# --- SLURM ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("status", "requeued"), [(0, False), (143, True), (2, False)])
def test_a_slurm_job_that_was_stopped_is_requeued(machine, status, requeued):
    machine.answer("srun", f'echo "$JAX_LOCAL_DEVICE_IDS"; exit {status}')
    machine.answer("scontrol", "exit 0")
    got, printed, _ = machine.run("slurm_job", CONFIG, SLURM_JOB_ID="17", SLURM_GPUS_ON_NODE="4")
    assert got == status
    assert printed.strip() == "0,1,2,3"
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
    started = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    # Tests in the background of a script ignore SIGINT, and a shell that begins so cannot trap it.
    process = subprocess.Popen(command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **started)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    if to_the_group:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    assert (process.wait(timeout=30), rest) == (143, "saved after 1\n")
