"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A mistake in a config, in data or in a call, told in one line.

    The message names the cause, the value seen and the remedy. The command line prints it
    without a traceback and exits with code 2.
    """
