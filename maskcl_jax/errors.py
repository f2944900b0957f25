"""Errors that are the user's to fix, shown as one line by the command line (`cli.run`), and checks that raise them."""

import errno
import importlib
import pathlib
import re
import sysconfig
import traceback
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """Something the user wrote (a field, a file, a flag) cannot work.

    The message is one line that names the culprit and its value and says what to do about it.

    Example:
        >>> import maskcl_jax as mc
        >>> try:
        ...     mc.load("no/such/run")
        ... except mc.UserError as error:
        ...     print(error)
        no/such/run does not exist: give the folder of a run or of an export, or a file of weights
    """


class Diverged(RuntimeError):
    """A loss is not finite any more. The message says at which step and what to try.

    Example:
        >>> import maskcl_jax as mc
        >>> from maskcl_jax.training.throughput import fetch
        >>> try:
        ...     fetch(3, {"loss": float("nan")})  # what a run does with the metrics of every step
        ... except mc.Diverged as error:
        ...     print(str(error).split(":")[0])
        loss is nan at step 3
    """


def first_line(error: BaseException, length: int | None = None) -> str:
    """The first line of an exception's text, at most `length` characters of it.

    Without addresses in memory, and without descriptions of how TensorStore opened a file.
    """
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    line = re.split(r" \[tensorstore_spec|\. See full TensorStore details", line)[0]
    return re.sub(r" at 0x[0-9a-f]+", "", line)[:length]


def import_problem(module: str, *names: str) -> str:
    """Why a library cannot be used: tried with what is needed of it, since a broken one fails late.

    Args:
        module: To import.
        *names: Dotted names that must be found in it.

    Returns:
        A reason in one line; "" where everything can be imported.
    """
    attempt = module
    try:
        importlib.import_module(module)
        for name in names:
            attempt = f"{module}.{name}"
            value: Any = importlib.import_module(module)
            for part in name.split("."):
                value = getattr(value, part)
    except Exception as error:  # a broken installation raises anything
        if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
            return f"{error.name} is not installed"
        return f"{attempt} cannot be imported ({type(error).__name__}: {first_line(error, 200)})"
    return ""


def place_of(error: BaseException) -> str:
    """` (FILE, line N)` of the innermost line that an error went through outside of Python's and others' packages."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}, line {error.lineno})"
    packages = ("importlib", "site-packages", sysconfig.get_path("stdlib"), str(pathlib.Path(__file__).parent))
    own = [frame for frame in frames if not any(part in frame.filename for part in packages)]
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""


def disk_full_line(error: BaseException | None) -> str | None:
    """One line for an error that a full disk (or quota) caused, directly or not; None for any other error."""
    while error is not None:
        words = ("No space left on device", "Disk quota exceeded")  # tensorstore raises a ValueError that says so
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(word in str(error) for word in words):
            quoted = re.search(r'"(/[^"]+)"', str(error))
            file = getattr(error, "filename", None) or (quoted and quoted[1])
            return (
                f"the disk is full{f', {file} cannot be written' if file else ''}: free some space and start the same "
                "command again; a run goes on from its newest whole checkpoint"
            )
        error = error.__cause__ or error.__context__
    return None


def check_range(field: str, value: float, low: float, high: float) -> None:
    """Raises UserError if a number lies outside [low, high]."""
    if not low <= value <= high:
        raise UserError(f"{field}={value} is out of range: use {low} to {high}")


def check_choice(field: str, value: str, known: Iterable[str]) -> None:
    """Raises UserError if a word is not one of those known."""
    if value not in known:
        raise UserError(f"{field}={value!r} is unknown: use one of {', '.join(known)}")
