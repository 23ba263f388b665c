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


@contextmanager
def sweep_progress(
    title: str, spec: ArmSpec, units: Sequence[int], missing: Sequence[int], log: Path
) -> Iterator[Callable[[int, UInt8[np.ndarray, " u"]], None]]:
    """A progress bar over members, and a line in metrics.jsonl for each unit.

    Where standard error is no terminal, a line now and then takes the place of the bar.

    Args:
        title: before the bar.
        spec: of the arm.
        units: those of its units that this process is to see done.
        missing: those of them that are not done yet.
        log: the file that gets the lines.
    """
    total, left = (sum(len(spec.unit_rows(unit)) for unit in some) for some in (units, missing))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    started = said = time.monotonic()
    # The speed is that of the last hour: units may take minutes.
    bar = Progress(*columns, console=console, speed_estimate_period=3600)
    with writing(log):
        file = log.open("a", encoding="utf-8")
    with bar, file:
        task = bar.add_task(title, total=total, completed=total - left)

        def on_unit(unit: int, status: UInt8[np.ndarray, " u"]) -> None:
            nonlocal said
            bar.advance(task, len(status))
            now, shown = time.monotonic(), bar.tasks[task]
            if not console.is_terminal and now - said >= SILENCE and shown.speed:
                said, wait = now, (total - shown.completed) / shown.speed
                say(
                    f"{title}: {shown.completed:,.0f} of {total:,} members, "
                    f"{shown.speed:.2g} a second, about {duration(wait)} left"
                )
            line = {
                "time": round(time.time(), 3),
                "arm": spec.name,
                "unit": unit,
                "members": len(status),
                "not_finite": int(np.sum(status == Status.NOT_FINITE)),
                "seconds": round(now - started, 3),
            }
            with writing(log):  # in the thread of the one who calls
                file.write(json.dumps(line) + "\n")
                file.flush()

        yield on_unit
