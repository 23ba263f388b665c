"""Files that are seen whole or not at all."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from training.errors import UserError, reason


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make what prevents a file or folder from being written one line.

    Raises:
        UserError: naming the path, in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space" if full else "make it writable"
        raise UserError(
            f"cannot write {path} ({reason(error)}); {remedy}, and run the same command again"
        ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is seen whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
