"""How far a sweep is: what is done, missing and damaged, how fast it goes, and what is left."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from influence.banks import open_bank
from influence.progress import duration, speed
from training.arm import Arm
from training.bank import Bank

RATE_WINDOW = 3600.0
"""Seconds before the last commit over which the speed is taken."""


@dataclass(frozen=True)
class ArmStatus:
    """Members of one arm, by what has become of them."""

    members: int
    done: int
    damaged: int
    """Of the done units, those whose data do not match their checksums."""

    @property
    def missing(self) -> int:
        """Members that no unit has yet."""
        return self.members - self.done - self.damaged


@dataclass(frozen=True)
class BankStatus:
    """All arms of a bank."""

    location: str
    arms: dict[str, ArmStatus]
    rate: float | None
    """Members a second, by all processes together; None before the second commit."""
    last_commit: float | None
    """Seconds since then."""

    @property
    def left(self) -> int:
        """Members to make: missing and damaged ones."""
        return sum(arm.members - arm.done for arm in self.arms.values())

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far."""
        return self.left / self.rate if self.rate else None

    def as_json(self) -> dict[str, Any]:
        """The same as numbers by name."""
        arms = {
            name: {
                "members": arm.members,
                "done": arm.done,
                "missing": arm.missing,
                "damaged": arm.damaged,
            }
            for name, arm in self.arms.items()
        }
        return {
            "bank": self.location,
            "arms": arms,
            "members_left": self.left,
            "members_a_second": self.rate,
            "seconds_left": self.seconds_left,
            "seconds_since_last_commit": self.last_commit,
        }

    def __str__(self) -> str:
        wide = max(map(len, ["arm", *self.arms])) + 2
        lines = [f"{'arm':{wide}s}{'members':>10s}{'done':>10s}{'missing':>10s}{'damaged':>10s}"]
        lines += [
            f"{name:{wide}s}{arm.members:10,d}{arm.done:10,d}{arm.missing:10,d}{arm.damaged:10,d}"
            for name, arm in self.arms.items()
        ]
        if self.last_commit is not None:
            lines.append(f"last unit finished {duration(self.last_commit)} ago")
        if self.left and self.rate is not None and self.seconds_left is not None:
            lines.append(
                f"{self.left:,} members left: {duration(self.seconds_left)} at {speed(self.rate)} "
                f"a second, the speed so far"
            )
        return "\n".join([f"bank {self.location}", *lines])


def run_status(path: Path) -> BankStatus:
    """The status of a run's bank. Everything that is done is read, and compared with its checksums.

    Raises:
        UserError: there is no run at `path`, or its manifest is damaged.
    """
    return bank_status(open_bank(path), time.time())


def bank_status(bank: Bank, now: float) -> BankStatus:
    """The status of a bank.

    Args:
        bank: may be in the making.
        now: seconds since the epoch.
    """
    commits = [
        (record["time"], record["members"][1] - record["members"][0])
        for arm in bank.arms.values()
        for record in arm.records().values()
    ]
    return BankStatus(
        str(bank.store),
        {name: _arm_status(arm) for name, arm in bank.arms.items()},
        _rate(commits),
        max(now - max(time for time, _ in commits), 0.0) if commits else None,
    )


def _arm_status(arm: Arm) -> ArmStatus:
    def members(units: list[int]) -> int:
        return sum(len(arm.spec.unit_rows(unit)) for unit in units)

    missing, damaged = members(arm.missing_units()), members(arm.damaged_units())
    return ArmStatus(arm.spec.members, arm.spec.members - missing - damaged, damaged)


def _rate(commits: list[tuple[float, int]]) -> float | None:
    """Members a second, from when units were finished and how many members each had."""
    if not commits:
        return None
    last = max(time for time, _ in commits)
    recent = sorted(commit for commit in commits if commit[0] >= last - RATE_WINDOW)
    seconds = last - recent[0][0]
    # The first of them began before the time that is counted.
    return sum(members for _, members in recent[1:]) / seconds if seconds > 0 else None
