"""What a person sees while a run works, and the same as lines of JSON."""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from training.arm import ArmSpec, Status
from training.files import writing

console = Console(stderr=True, soft_wrap=True)


def say(text: str) -> None:
    """One line on standard error."""
    console.print(text, markup=False, highlight=False)


SILENCE = 60.0
"""Seconds after which a log, in which no bar can move, gets a line."""


def duration(seconds: float) -> str:
    """For people: seconds, minutes, hours."""
    if seconds < 120:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def speed(rate: float) -> str:
    """For people: how many a second."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


@contextmanager
def working(text: str) -> Iterator[None]:
    """Says what is being done, and on a terminal for how long, where no one knows what is left."""
    if not console.is_terminal:
        say(text)
        yield
        return
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console
    ) as bar:
        task = bar.add_task(text, total=None)
        yield
        bar.update(task, total=1, completed=1)


@contextmanager
def progress(title: str, total: int, of: str, *, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A bar, which is told how many more are done.

    Where standard error is no terminal, a line now and then takes the place of the bar.

    Args:
        title: before the bar.
        total: that are to be done.
        of: what they are, as in "members".
        done: how many are before it begins.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    said = time.monotonic()
    # The speed is that of the last hour: a step may take minutes.
    with Progress(*columns, console=console, speed_estimate_period=3600) as bar:
        task = bar.add_task(title, total=total, completed=done)

        def advance(more: int) -> None:
            nonlocal said
            bar.advance(task, more)
            now, shown = time.monotonic(), bar.tasks[task]
            if not console.is_terminal and now - said >= SILENCE and shown.speed:
                said, wait = now, (total - shown.completed) / shown.speed
                say(
                    f"{title}: {shown.completed:,.0f} of {total:,} {of}, "
                    f"{speed(shown.speed)} a second, about {duration(wait)} left"
                )

        yield advance


@contextmanager
def sweep_progress(
    title: str, spec: ArmSpec, units: Sequence[int], missing: Sequence[int], log: Path
) -> Iterator[Callable[[int, UInt8[np.ndarray, " u"]], None]]:
    """A progress bar over members, and a line in metrics.jsonl for each unit.

    Args:
        title: before the bar.
        spec: of the arm.
        units: those of its units that this process is to see done.
        missing: those of them that are not done yet.
        log: the file that gets the lines.
    """
    total, left = (sum(len(spec.unit_rows(unit)) for unit in some) for some in (units, missing))
    started = time.monotonic()
    with writing(log):
        file = log.open("a", encoding="utf-8")
    with progress(title, total, "members", done=total - left) as advance, file:

        def on_unit(unit: int, status: UInt8[np.ndarray, " u"]) -> None:
            advance(len(status))
            line = {
                "time": round(time.time(), 3),
                "arm": spec.name,
                "unit": unit,
                "members": len(status),
                "not_finite": int(np.sum(status == Status.NOT_FINITE)),
                "seconds": round(time.monotonic() - started, 3),
            }
            with writing(log):  # in the thread of the one who calls
                file.write(json.dumps(line) + "\n")
                file.flush()

        yield on_unit
