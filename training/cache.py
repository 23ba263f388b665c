"""What can be made again but is kept between runs; no result depends on it."""

import contextlib
import os
from pathlib import Path

from training.files import write_atomically

# RuntimeError: the user has no home. ValueError: not UTF-8.
OUT_OF_REACH = (OSError, RuntimeError, ValueError)


def cache_folder() -> Path:
    """ACCOMPLICE_CACHE, else accomplice in XDG_CACHE_HOME, else in ~/.cache; need not exist."""
    if own := os.environ.get("ACCOMPLICE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "accomplice"


def read_cache(name: str) -> str | None:
    """The text kept under `name`, a path within the cache folder; None if none can be read."""
    try:
        return (cache_folder() / name).read_text(encoding="utf-8")
    except OUT_OF_REACH:
        return None


def write_cache(name: str, text: str) -> None:
    """Keep a text under `name`; a folder that cannot be written is no error."""
    with contextlib.suppress(*OUT_OF_REACH):
        write_atomically(cache_folder() / name, text.encode())
