"""What a person sees while a run works, and the same as lines of JSON."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from training.bank import Arm, Rows, Status

console = Console(stderr=True, soft_wrap=True)


def say(text: str) -> None:
    """One line on standard error."""
    console.print(text, markup=False, highlight=False)


@contextmanager
def sweep_progress(title: str, arm: Arm, log: Path) -> Iterator[Callable[[int, Rows], None]]:
    """A progress bar over an arm's members, and a line in metrics.jsonl for each unit."""
    spec = arm.spec
    missing = sum(len(spec.unit_rows(unit)) for unit in arm.missing_units())
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    started = time.monotonic()
    with Progress(*columns, console=console) as bar, log.open("a", encoding="utf-8") as file:
        task = bar.add_task(title, total=spec.members, completed=spec.members - missing)

        def on_unit(unit: int, rows: Rows) -> None:
            bar.advance(task, len(rows.status))
            line = {
                "time": round(time.time(), 3),
                "arm": spec.name,
                "unit": unit,
                "members": len(rows.status),
                "not_finite": int(np.sum(rows.status == Status.NOT_FINITE)),
                "seconds": round(time.monotonic() - started, 3),
            }
            file.write(json.dumps(line) + "\n")
            file.flush()

        yield on_unit
