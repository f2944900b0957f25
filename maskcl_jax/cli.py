"""The command line that every program of the package shares: flags, the config, one-line errors."""

import collections
import contextlib
import functools
import os
import pathlib
import re
import select
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import ml_collections
from absl import app, flags, logging

from maskcl_jax import config as config_lib
from maskcl_jax.errors import Diverged, UserError, disk_full_line


class ConfigFlag:
    """What --config=FILE[:ARGUMENT] and --config.FIELD=VALUE say, once the flags are parsed.

    Attributes:
        value: The config, None without --config.
        text: FILE[:ARGUMENT].
    """

    value: ml_collections.ConfigDict | None = None
    text: str = ""

    @property
    def name(self) -> str:
        """The bare name of the file: `ccmim` for configs/ccmim.py:imagenet."""
        return pathlib.Path(self.text.partition(":")[0]).stem


CONFIG = ConfigFlag()


def define_config() -> ConfigFlag:
    """Defines --config and --print_config, and returns what the parsed command line will fill."""
    flags.DEFINE_string(
        "config", None, "FILE[:ARGUMENT], a file or the name of one of configs/; --config.FIELD=VALUE sets a field."
    )
    flags.DEFINE_bool("print_config", False, "Print every field with its value and where that comes from, and exit.")
    return CONFIG


Value = TypeVar("Value")


def given(flag: flags.FlagHolder[Value | None]) -> Value:
    """The value of a flag that is marked as required: no program starts without it."""
    assert flag.value is not None
    return flag.value


def run(main: Callable[[list[str]], None], *, positional: str = "", several: bool = False) -> None:
    """Runs `main(argv)` after parsing the flags; errors that need no traceback become one line on stderr.

    Exit status 2: what the user wrote cannot work (UserError); 1: the loss is not finite (Diverged) or the disk full;
    141: the reader of standard output has gone.

    Args:
        main: The program.
        positional: The name of the one argument without --, "" for none.
        several: There may be more than one of it.
    """
    parser = functools.partial(parse_flags, positional=positional, several=several)
    with one_line_errors():
        app.run(functools.partial(start, main), flags_parser=parser)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the process with one line instead of a traceback, and the exit status that `run` names."""
    try:
        yield
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(2)
    except Diverged as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    except BrokenPipeError:
        if not output_is_closed():
            raise
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        if (line := disk_full_line(error)) is None:
            raise
        print(f"error: {line}", file=sys.stderr, flush=True)
        sys.exit(1)
    finally:
        output_is_closed()  # otherwise Python writes lines of its own at the end


def start(main: Callable[[list[str]], None], argv: list[str]) -> None:
    """Runs a program, or prints its config with --print_config."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # orbax reports every file that it writes
    silence_arrays()
    if "print_config" in flags.FLAGS and flags.FLAGS.print_config:
        if CONFIG.value is None:
            raise UserError("--print_config without --config: give one of configs/")
        print(listing(CONFIG.value, CONFIG.text))
    else:
        main(argv)


def output_is_closed() -> bool:
    """Whether the reader of standard output, `head` for instance, has gone; then nothing is written there any more."""
    try:
        sys.stdout.flush()
        closed = any(events & select.POLLERR for _, events in poll_output())
    except BrokenPipeError:
        closed = True
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return closed


def poll_output() -> list[tuple[int, int]]:
    """What the system says of standard output; nothing where it is no file, as in tests."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return poll.poll(0)
    except (OSError, ValueError, AttributeError):
        return []


# What Orbax logs of metadata that are damaged, once with the whole content of a file, once a line for each array.
DAMAGE_LOGGED = re.compile(
    "Failed to (json parse|read) Metadata file|Metadata file does not exist|"
    "was found in the checkpoint, but could not be|Provided metadata contains unknown key"
)


def silence_arrays() -> None:
    """Drops what orbax, asyncio and tensorstore print for each array of a checkpoint; one line is printed for all.

    That is where the disk is full, and where a checkpoint is damaged.
    """

    def shown(record: Any) -> bool:
        error = record.exc_info and record.exc_info[1]
        return not (is_of_an_array(error) or disk_full_line(error) or DAMAGE_LOGGED.search(record.getMessage()))

    logging.get_absl_handler().addFilter(shown)
    warnings.filterwarnings("ignore", r"coroutine '[\w.<>]*(read|write)\w*' was never awaited", RuntimeWarning)
    default = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not is_of_an_array(unraisable.exc_value):
            default(unraisable)

    sys.unraisablehook = hook


def is_of_an_array(error: BaseException | None) -> bool:
    """Whether an error is of a read or a write that no code waits for: the restore or the save itself raises.

    Reads and writes that are still pending when another has failed find their event loop gone, or fail too.
    """
    text = str(error)
    of_tensorstore = ("TensorStore details", "[tensorstore_spec=", "in OCDBT database at")
    return text == "Event loop is closed" or any(words in text for words in of_tensorstore)


def listing(config: ml_collections.ConfigDict, text: str) -> str:
    """One line for each field: its name, its value, and where the value comes from.

    Args:
        config: The config.
        text: FILE[:ARGUMENT], what --config says.
    """
    file, preset = text.partition(":")[0], config.get("preset", "")
    origins = {"data": f"data preset {preset}", "method": f"{file} METHOD", "preset": f"{file}:{preset}"}
    layers = getattr(config, "origins", {})
    rows = []
    for field, value in config_lib.flat(config).items():
        layer = layers.get(field, file)
        rows.append((field, repr(tuple(value) if isinstance(value, list) else value), origins.get(layer, layer)))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{field:{widths[0]}} = {value:{widths[1]}}  # {origin}" for field, value, origin in sorted(rows))


def parse_flags(argv: list[str], *, positional: str = "", several: bool = False) -> list[str]:
    """Parses the flags and the config; returns the program's name and its arguments. Raises UserError."""
    words, overrides = split_overrides(argv)
    flags.FLAGS.set_gnu_getopt(bool(positional))  # flags may follow the argument
    try:
        rest = flags.FLAGS(words)
    except flags.UnrecognizedFlagError as error:
        if error.flagname in config_lib.flat(config_lib.DEFAULTS):
            raise UserError(f"--{error.flagname} is not a flag: write --config.{error.flagname}=VALUE") from None
        raise UserError(str(error)) from None
    except flags.Error as error:
        raise UserError(str(error)) from None
    allowed = 2 if positional else 1
    if len(rest) > allowed and not several:
        raise UserError(f"argument {rest[allowed]!r} is not understood: every argument starts with --")
    if len(rest) < allowed:
        raise UserError(f"{positional} is missing: write it before the flags")
    CONFIG.text = flags.FLAGS["config"].value or "" if "config" in flags.FLAGS else ""
    CONFIG.value = load(CONFIG.text, overrides)
    return rest


def split_overrides(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """(words without --config.FIELD=VALUE, {FIELD: VALUE}).

    As absl's flags: one dash or two, VALUE after = or as the next word; --config.FIELD alone is true, --noconfig.FIELD
    false.
    """
    words, rest, overrides = collections.deque(argv), [], {}
    while words:
        word = words.popleft()
        match = re.fullmatch(r"--?(no)?config\.([^=]+)(=.*)?", word, re.DOTALL)
        if match is None:
            rest.append(word)
            continue
        no, field, value = match.groups()
        if value is not None:
            overrides[field] = value[1:]
        elif not no and words and not re.match("--?[a-z]", words[0]):
            overrides[field] = words.popleft()
        else:
            overrides[field] = "false" if no else "true"
    return rest, overrides


def load(text: str, overrides: dict[str, str]) -> ml_collections.ConfigDict | None:
    """The config of FILE[:ARGUMENT] with fields set from text; None where neither is given. Raises UserError."""
    if not text:
        if overrides:
            remedy = "give one of configs/" if "config" in flags.FLAGS else "this program has no config, leave it out"
            raise UserError(f"--config.{next(iter(overrides))} without --config=FILE: {remedy}")
        return None
    file, _, argument = text.partition(":")
    config = config_lib.load(file, argument or None)
    for field, value in overrides.items():
        if field in flags.FLAGS and field not in config_lib.flat(config):
            raise UserError(f"--config.{field} is not a field of the config: write --{field}={value}")
        config_lib.set_field(config, field, value, written=f"--config.{field}={value}", layer="command line")
    return config.lock()
