"""The error that stands for a mistake of the user."""


class UserError(ValueError):
    """Something the user gave cannot be used: a file, a data set, a value of the configuration.

    The message says what came, what was wanted and what to do. The command line prints it as it is,
    without a traceback, and exits with status 2; from Python it is an ordinary ``ValueError``.
    """
