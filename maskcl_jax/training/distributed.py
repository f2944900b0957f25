"""One run in several processes: how they find each other, agree on what is run, and end when one is lost.

Told by flags or by the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; or found out by JAX
itself on a TPU, under SLURM, Open MPI, and in Kubernetes with the package `kubernetes`. All before any device is asked
for.
"""

import contextlib
import dataclasses
import glob
import importlib.util
import json
import os
import sys
import threading
import traceback

import jax
from absl import flags

from maskcl_jax.config import flat
from maskcl_jax.errors import Diverged, UserError, first_line

FACTS, VERDICT = "maskcl_jax/facts", "maskcl_jax/verdict"


@dataclasses.dataclass(frozen=True)
class Place:
    """This process among those of the run; None for what nobody told. Timeouts in seconds."""

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    initialization_timeout: int = 300
    heartbeat_timeout: int = 100

    @property
    def told(self) -> tuple:
        """(coordinator, num_processes, process_id)."""
        return self.coordinator, self.num_processes, self.process_id


def define_flags() -> None:
    """The flags of `Place`."""
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, of a run in several processes.")
    flags.DEFINE_integer("num_processes", None, "How many processes the run has.")
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
    flags.DEFINE_integer("initialization_timeout", Place.initialization_timeout, "Seconds until all must have arrived.")
    flags.DEFINE_integer("heartbeat_timeout", Place.heartbeat_timeout, "Seconds after which a silent one is lost.")


def place_of_flags() -> Place:
    """What flags say, and variables where they do not. Raises UserError for what is no place."""
    values = {field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(Place)}
    for name, variable in (
        ("coordinator", "JAX_COORDINATOR_ADDRESS"),
        ("num_processes", "JAX_NUM_PROCESSES"),
        ("process_id", "JAX_PROCESS_ID"),
    ):
        text = os.environ.get(variable)
        if values[name] is None and text:
            if name != "coordinator" and not text.isdigit():
                raise UserError(f"{variable}={text!r} is not a number")
            values[name] = text if name == "coordinator" else int(text)
    place = Place(**values)
    check(place)
    return place


def check(place: Place) -> None:
    """Raises UserError for numbers that no run has."""
    _, count, number = place.told
    if place.coordinator is not None and not place.coordinator.rpartition(":")[2].isdigit():
        raise UserError(f"--coordinator={place.coordinator} has no port: write HOST:PORT")
    if count is not None and count < 1:
        raise UserError(f"--num_processes={count} is out of range: use 1 or more")
    if number is not None and not 0 <= number < (count or number + 1):
        raise UserError(f"--process_id={number} is out of range: use 0 to {(count or 1) - 1}")
    for field in ("initialization_timeout", "heartbeat_timeout"):
        if getattr(place, field) < 1:
            raise UserError(f"--{field}={getattr(place, field)} is out of range: use 1 or more seconds")


def surroundings() -> str | None:
    """What says that there may be other processes, which JAX can then find; None where nothing does."""
    e = os.environ
    if "SLURM_STEP_NODELIST" in e and int(e.get("SLURM_NTASKS", 1)) > 1:
        return "SLURM"
    if int(e.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return "Open MPI"
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= e.keys() and importlib.util.find_spec("kubernetes"):
        return "Kubernetes"
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    wanted = e.get("JAX_PLATFORMS", "tpu").startswith("tpu")
    return "TPU" if chips and wanted and importlib.util.find_spec("libtpu") else None


def join(place: Place, config, workdir: str) -> None:
    """Waits for all processes of the run and makes them one; does nothing where there is only this one.

    Raises UserError, on all processes alike, where they were not started with the same command, and where some of the
    place is neither told nor found. Where some do not arrive in time, ends the process with one line and status 1.
    """
    around = surroundings()
    if place.told == (None,) * 3 and around is None:
        return
    waiting = threading.Timer(place.initialization_timeout, give_up, [place])
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(
            *place.told,
            cluster_detection_method="deactivate" if None not in place.told else None,
            # Longer than ours, whose message is one line: JAX aborts with a stack trace.
            initialization_timeout=place.initialization_timeout + 60,
            heartbeat_timeout_seconds=place.heartbeat_timeout,
            shutdown_timeout_seconds=place.heartbeat_timeout,
        )
        agree({"--workdir": workdir, "jax": jax.__version__, **flat(config)}, place)
    except (ValueError, OSError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, UserError):
            raise
        if around == "TPU" and place.told == (None,) * 3:
            return  # a chip that belongs to no cluster
        raise UserError(
            f"the other processes cannot be found ({first_line(error)}): give --coordinator=HOST:PORT, --num_processes "
            "and --process_id"
        ) from None
    finally:
        waiting.cancel()


def give_up(place: Place) -> None:
    """Ends the process, whatever it waits for."""
    coordinator, count, number = (value if value is not None else "?" for value in place.told)
    end(
        f"after {place.initialization_timeout} s not all processes are there (this is number {number} of {count}, the "
        f"coordinator is {coordinator}): see that all hosts are started and reach it; --initialization_timeout=SECONDS "
        "waits longer",
        status=1,
    )


def agree(facts: dict, place: Place) -> None:
    """Compares what the processes were started with, before any of them asks for a device.

    Process 0 judges, and all get its verdict. Raises UserError where one differs.
    """
    # The key-value store of JAX's coordinator has no public face yet; orbax takes the same road.
    from jax._src.distributed import global_state

    client, number, count = global_state.client, global_state.process_id, global_state.num_processes
    if count == 1:
        return
    milliseconds = 1000 * (place.initialization_timeout + 60)  # `give_up` comes first
    client.key_value_set(f"{FACTS}/{number}", json.dumps({"--num_processes": count, **facts}))
    if number == 0:
        told = [json.loads(client.blocking_key_value_get(f"{FACTS}/{i}", milliseconds)) for i in range(count)]
        client.key_value_set(VERDICT, "; ".join(differences(told)) or "agreed")
    verdict = client.blocking_key_value_get(VERDICT, milliseconds)
    if verdict != "agreed":
        raise UserError(f"{verdict}: start all processes with the same command")


def differences(told: list[dict]) -> list[str]:
    """What the first process that differs from process 0 was told otherwise: up to three fields."""
    for i, facts in enumerate(told):
        fields = [name for name in told[0] | facts if told[0].get(name) != facts.get(name)]
        if fields:
            return [f"{name} is {facts.get(name)!r} on process {i}, {told[0].get(name)!r} on 0" for name in fields[:3]]
    return []


@contextlib.contextmanager
def ending_with_the_others():
    """Ends this process at once where its step fails: the others wait for it, or are what it waited for.

    So nothing may wait for them once more on the way out, as a checkpoint's barriers do. Changes nothing for a process
    that is alone, and for what all processes find alike.
    """
    try:
        yield
    except Diverged:
        raise
    except Exception as error:
        if jax.process_count() == 1:
            raise
        who = f"process {jax.process_index()} of {jax.process_count()}"
        if isinstance(error, UserError):
            end(f"{who}: {first_line(error)}", status=2)
        if not isinstance(error, jax.errors.JaxRuntimeError):
            traceback.print_exc()
        end(
            f"{who} cannot go on ({first_line(error)}): another one is probably lost, see its log. Start all again: "
            "the same command goes on from the newest checkpoint",
            status=1,
        )


def end(text: str, *, status: int) -> None:
    """Prints one line and ends the process without waiting for anything."""
    sys.stdout.flush()
    print(f"error: {text}", file=sys.stderr, flush=True)
    os._exit(status)
