"""The one exception that means: the user can mend this."""

import difflib
from collections.abc import Sequence


class UserError(Exception):
    """A mistake in a config, in data or in a call, told in one line.

    The message names the cause, the value seen and the remedy. The command line prints it
    without a traceback and exits with code 2.
    """


def reason(error: BaseException) -> str:
    """What another library or the user's own code raised, as the end of a one-line message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint like ' (did you mean "label"?)', or nothing when no known name is near."""
    close = difflib.get_close_matches(name, known, n=1)
    return f' (did you mean "{close[0]}"?)' if close else ""
