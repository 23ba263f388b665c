"""Which part of a sweep this process makes, when many make one together.

Processes of a sweep never talk to each other: each makes the units whose number, counted over all
arms, leaves its index when divided by how many shards there are.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from training.errors import UserError

COUNT_VARIABLE = "ACCOMPLICE_SHARDS"
"""How many shards there are, where the job system tells each process only its index."""


@dataclass(frozen=True)
class Shard:
    """Part `index` (from 0) of `count`."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def owns(self, unit: int) -> bool:
        """Whether a unit, by its number over all arms, is of this shard."""
        return unit % self.count == self.index


WHOLE = Shard(0, 1)


def parse_shard(text: str) -> Shard:
    """From "i/k".

    Raises:
        UserError: it is something else, or i is not from 0 to k - 1.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found:
        raise UserError(f"--shard {text} must read i/k, as in 0/16")
    return _checked(int(found[1]), int(found[2]), f"--shard {text}")


def find_shard(environment: Mapping[str, str]) -> tuple[Shard, str]:
    """The shard that a job system gave this process, and the variables that say so ("" if none).

    Looked for, in this order: a SLURM job array, a Kubernetes Indexed Job (whose completions have
    to be in `ACCOMPLICE_SHARDS`), SkyPilot's managed jobs.

    Raises:
        UserError: variables that contradict each other or lack one.
    """

    def number(name: str, default: int | None = None) -> int:
        text = environment.get(name)
        if text is None and default is not None:
            return default
        if text is None or not text.isdecimal():
            raise UserError(f"{name} = {text} must be a number; or give --shard i/k yourself")
        return int(text)

    if "SLURM_ARRAY_TASK_ID" in environment:
        step = max(number("SLURM_ARRAY_TASK_STEP", 1), 1)
        index = (number("SLURM_ARRAY_TASK_ID") - number("SLURM_ARRAY_TASK_MIN", 0)) // step
        source = "SLURM_ARRAY_TASK_ID"
        return _checked(index, number("SLURM_ARRAY_TASK_COUNT"), source), source
    if "JOB_COMPLETION_INDEX" in environment:
        source = f"JOB_COMPLETION_INDEX and {COUNT_VARIABLE}"
        return _checked(number("JOB_COMPLETION_INDEX"), number(COUNT_VARIABLE), source), source
    if "SKYPILOT_JOB_RANK" in environment:
        source = "SKYPILOT_JOB_RANK and SKYPILOT_NUM_JOBS"
        return _checked(number("SKYPILOT_JOB_RANK"), number("SKYPILOT_NUM_JOBS"), source), source
    return WHOLE, ""


def _checked(index: int, count: int, source: str) -> Shard:
    if not 0 <= index < count:
        raise UserError(
            f"{source} gives shard {index} of {count}; shards are numbered from 0 to one below "
            f"their number, so give --shard i/k yourself"
        )
    return Shard(index, count)
