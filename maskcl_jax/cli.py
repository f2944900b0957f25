"""The command line that every program of the package shares: flags, config files, and one-line errors."""

import functools
import pathlib
import runpy
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from maskcl_jax.config import flat, suggestion
from maskcl_jax.errors import Diverged, UserError


def run(main, *, positional: str = "") -> None:
    """Runs `main(argv)` after parsing the flags; errors that need no traceback become one line on stderr.

    positional: the name of the one argument without --, "" for none.
    Exit status 2: what the user wrote cannot work (UserError); 1: the loss is not finite any more (Diverged).
    """
    try:
        app.run(quietly(main), flags_parser=functools.partial(parse_flags, positional=positional))
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(2)
    except Diverged as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)


def quietly(main):
    """Warnings and errors only, unless --verbosity asks for more: orbax tells every file it writes."""

    def run_main(argv):
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        return main(argv)

    return run_main


def define_config():
    """The flag --config=FILE[:ARGUMENT], with --config.FIELD=VALUE for each field."""
    return config_flags.DEFINE_config_file("config", None, "A file of configs/, with an argument after a colon.")


def config_stem() -> str:
    """The bare name of the config file: `ccmim` for configs/ccmim.py:imagenet."""
    return pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem


def parse_flags(argv: list[str], *, positional: str = "") -> list[str]:
    """absl's parser, with what a user may get wrong told in one line. Raises UserError."""
    check_config_flags(argv)
    flags.FLAGS.set_gnu_getopt(bool(positional))  # flags may follow the argument
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        raise UserError(str(error)) from None
    allowed = 2 if positional else 1
    if len(rest) > allowed:
        raise UserError(f"argument {rest[allowed]!r} is not understood: every argument starts with --")
    if len(rest) < allowed:
        raise UserError(f"{positional} is missing: write it before the flags")
    return rest


def check_config_flags(argv: list[str]) -> None:
    """Loads the config file first, by itself: config_flags would wrap its errors and not name an unknown field."""
    file = None
    for i, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            file = value if equals else (argv[i + 1] if i + 1 < len(argv) else "")
    if file is None:
        return
    path, _, argument = file.partition(":")
    if not pathlib.Path(path).is_file():
        raise UserError(f"--config={path} is not a file: give one of configs/, for instance configs/ccmim.py")
    module = runpy.run_path(path)
    if "get_config" not in module:
        raise UserError(f"--config={path} has no get_config function: give one of configs/")
    fields = flat(module["get_config"](argument or None))
    for argument in argv[1:]:
        name = argument.partition("=")[0].lstrip("-")
        if name.startswith("config.") and name.removeprefix("config.") not in fields:
            unknown = name.removeprefix("config.")
            raise UserError(f"--config.{unknown} is not a field of {path}{suggestion(unknown, fields)}")
