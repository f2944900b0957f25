"""One run in several processes: they find each other, check that they were started alike, and end together, at a signal
or when one is lost.

Where they find each other is given by flags or by the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
JAX_PROCESS_ID; or JAX detects it on a TPU, under SLURM, Open MPI, and in Kubernetes with the package `kubernetes`.
"""

import contextlib
import dataclasses
import glob
import importlib.util
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from maskcl_jax.config import flat
from maskcl_jax.errors import Diverged, UserError, disk_full_line, first_line


@dataclasses.dataclass(frozen=True)
class ProcessInfo:
    """Which process of the run this is; None for what neither flags nor variables give.

    Attributes:
        coordinator: HOST:PORT of process 0.
        num_processes: Processes of the run.
        process_id: From 0.
        initialization_timeout: Seconds until all processes must have arrived.
        heartbeat_timeout: Seconds without a sign of life after which a process counts as lost.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    initialization_timeout: int = 300
    heartbeat_timeout: int = 100

    @property
    def identity(self) -> tuple[str | None, int | None, int | None]:
        """(coordinator, num_processes, process_id), as `jax.distributed.initialize` takes them."""
        return self.coordinator, self.num_processes, self.process_id


def define_flags() -> None:
    """Defines a flag for every field of `ProcessInfo`."""
    default = ProcessInfo()
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, for a run in several processes.")
    flags.DEFINE_integer("num_processes", None, "Number of processes of the run.")
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
    flags.DEFINE_integer(
        "initialization_timeout", default.initialization_timeout, "Seconds until all processes must have arrived."
    )
    flags.DEFINE_integer(
        "heartbeat_timeout", default.heartbeat_timeout, "Seconds without a sign of life after which one is lost."
    )


def process_info_from_flags() -> ProcessInfo:
    """Reads the flags, and the environment variables for those that are not given.

    Raises:
        UserError: A value is out of range or not a number.
    """
    values: dict[str, Any] = {field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(ProcessInfo)}
    for name, variable in (
        ("coordinator", "JAX_COORDINATOR_ADDRESS"),
        ("num_processes", "JAX_NUM_PROCESSES"),
        ("process_id", "JAX_PROCESS_ID"),
    ):
        text = os.environ.get(variable)
        if values[name] is None and text:
            if name != "coordinator" and not text.isdigit():
                raise UserError(f"{variable}={text!r} is not a number: set it to one, or unset it")
            values[name] = text if name == "coordinator" else int(text)
    info = ProcessInfo(**values)
    check(info)
    return info


def check(info: ProcessInfo) -> None:
    """Raises UserError for values that no run has."""
    _, count, number = info.identity
    if info.coordinator is not None and not info.coordinator.rpartition(":")[2].isdigit():
        raise UserError(f"--coordinator={info.coordinator} has no port: write HOST:PORT")
    if count is not None and count < 1:
        raise UserError(f"--num_processes={count} is out of range: use 1 or more")
    if number is not None and not 0 <= number < (count or number + 1):
        raise UserError(f"--process_id={number} is out of range: use 0 to {(count or 1) - 1}")
    for field in ("initialization_timeout", "heartbeat_timeout"):
        if getattr(info, field) < 1:
            raise UserError(f"--{field}={getattr(info, field)} is out of range: use 1 or more seconds")


def detect_cluster() -> str | None:
    """The kind of cluster in which JAX can find the other processes itself; None where there is no sign of one."""
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


def join(info: ProcessInfo, config: Any, workdir: str) -> None:
    """Waits for all processes of the run and connects them; does nothing if this is the only one.

    Ends the process with one line and status 1 if some do not arrive within `initialization_timeout`.

    Args:
        info: Which process this is.
        config: The run's config,
        workdir: and its folder, which must be the same on all processes.

    Raises:
        UserError: On all processes alike: they were not started with the same command, or the other processes cannot
            be found.
    """
    cluster = detect_cluster()
    if info.identity == (None,) * 3 and cluster is None:
        return
    timer = threading.Timer(info.initialization_timeout, give_up, [info])
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            *info.identity,
            cluster_detection_method="deactivate" if None not in info.identity else None,
            # Longer than ours, whose message is one line: JAX aborts with a stack trace.
            initialization_timeout=info.initialization_timeout + 60,
            heartbeat_timeout_seconds=info.heartbeat_timeout,
            shutdown_timeout_seconds=info.heartbeat_timeout,
        )
        count = info.num_processes or jax.process_count()
        check_started_alike({"--num_processes": count, "--workdir": workdir, "jax": jax.__version__, **flat(config)})
    except (ValueError, OSError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, UserError):
            raise
        if cluster == "TPU" and info.identity == (None,) * 3:
            return  # a chip that belongs to no cluster
        raise UserError(
            f"the other processes cannot be found ({first_line(error)}): give --coordinator=HOST:PORT, --num_processes "
            "and --process_id"
        ) from None
    finally:
        timer.cancel()


def give_up(info: ProcessInfo) -> None:
    """Ends the process, whatever it waits for."""
    coordinator, count, number = (value if value is not None else "?" for value in info.identity)
    exit_now(
        f"after {info.initialization_timeout} s not all processes are there (this is number {number} of {count}, the "
        f"coordinator is {coordinator}): see that all hosts are started and reach it; --initialization_timeout=SECONDS "
        "waits longer",
        status=1,
    )


def exchange(text: str) -> list[str]:
    """The text of every process, by process index. All processes must call it."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(data.size))
    rows = multihost_utils.process_allgather(np.pad(data, (0, sizes.max() - data.size)))
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


def check_started_alike(start: Mapping[str, Any]) -> None:
    """Compares what the processes were started with. Raises UserError on all of them where one differs."""
    starts = [json.loads(text) for text in exchange(json.dumps(start))]
    if differing := differences(starts):
        raise UserError(f"{'; '.join(differing)}: start all processes with the same command")


def differences(starts: list[dict[str, Any]]) -> list[str]:
    """Up to three fields in which the first process that differs from process 0 does so."""
    first = starts[0]
    for i, start in enumerate(starts):
        fields = [name for name in first | start if first.get(name) != start.get(name)]
        if fields:
            return [f"{name} is {start.get(name)!r} on process {i}, {first.get(name)!r} on 0" for name in fields[:3]]
    return []


@contextlib.contextmanager
def exit_on_failure() -> Iterator[None]:
    """Ends this process at once if the code inside fails, as the other processes wait for it or are lost.

    So nothing waits for them once more on the way out, as a checkpoint's barriers would. Changes nothing for a single
    process, nor for Diverged, which all processes raise alike.
    """
    try:
        yield
    except Diverged:
        raise
    except Exception as error:
        if jax.process_count() == 1:
            raise
        process = f"process {jax.process_index()} of {jax.process_count()}"
        if isinstance(error, UserError):
            exit_now(f"{process}: {first_line(error)}", status=2)
        if line := disk_full_line(error):
            exit_now(f"{process}: {line}", status=1)
        if not isinstance(error, jax.errors.JaxRuntimeError):
            traceback.print_exc()
        exit_now(
            f"{process} cannot go on ({first_line(error)}): another one is probably lost, see its log. Start all "
            "again: the same command goes on from the newest checkpoint",
            status=1,
        )


def exit_now(text: str, *, status: int) -> None:
    """Prints one line and ends the process without waiting for anything."""
    sys.stdout.flush()
    print(f"error: {text}", file=sys.stderr, flush=True)
    os._exit(status)


class StopSignal:
    """Remembers a SIGINT or SIGTERM, so that the loop can save between two steps, after the same one on all hosts.

    A single process stops after the step that is running, and a second signal ends it at once. Of several processes
    each receives its own signals, and they may be some steps apart: JAX's preemption service catches SIGTERM on any of
    them and names a step that none has passed (`reached_preemption_sync_point`); SIGINT is passed on to it.
    """

    def __init__(self) -> None:
        self.single = jax.process_count() == 1
        self.signal = signal.SIGTERM
        self.received = False

    def __enter__(self) -> "StopSignal":
        caught = [signal.SIGINT, signal.SIGTERM] if self.single else [signal.SIGINT]
        if threading.current_thread() is not threading.main_thread():
            caught = []  # Python lets only the main thread catch signals
        self.previous = {number: signal.signal(number, self.receive) for number in caught}
        return self

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        self.__exit__()
        if self.single:
            self.signal, self.received = signal.Signals(number), True
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    def due(self, step: int) -> bool:
        """Whether the run must save and stop after `step`. All processes must ask after every step."""
        return self.received if self.single else multihost_utils.reached_preemption_sync_point(step)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
