"""What a user's slip raises; the command line (`cli.run`) shows it as one line and exits with status 2."""


class UserError(ValueError):
    """Something the user wrote (a field, a file, a flag) cannot work.

    The message is one line that names the culprit and its value and says what to do about it.
    """
