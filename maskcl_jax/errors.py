"""What ends a run without being a fault of the program; the command line (`cli.run`) shows it as one line."""


class UserError(ValueError):
    """Something the user wrote (a field, a file, a flag) cannot work.

    The message is one line that names the culprit and its value and says what to do about it.
    """


class Diverged(RuntimeError):
    """A loss is not finite any more. The message says at which step and what to try."""


def first_line(error: Exception) -> str:
    """The first line of an exception's text."""
    return (str(error).splitlines() or [type(error).__name__])[0]
