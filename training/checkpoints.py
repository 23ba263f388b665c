"""What a unit in training has reached, kept so that members that take hours are not begun again."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from training.arm import Arm
from training.errors import reason
from training.orbax_files import (
    FAILURES,
    described,
    folder_in,
    has_folder,
    restore,
    this_process,
    unit_folder,
)
from training.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointConfig:
    """How long members are saved while they train."""

    every_steps: int = 0
    """Steps of a member between two checkpoints of the unit in training; 0: none, a unit that is
    interrupted is begun again. Whether there are any is fixed for a run, since low bits depend on
    it."""


class Reached(NamedTuple):
    """How far a unit is."""

    launch: int
    """The launch in training; those before are finished."""
    step: int
    """Steps that it has made."""
    arrays: list[np.ndarray]
    """Its progress, and the results of the launches before."""


class UnitCheckpoints:
    """The checkpoints of one unit.

    Every process has a folder of its own in that of the unit, so that two which make the same unit
    by mistake do not disturb each other. A checkpoint that cannot be written is no reason to stop;
    the first one is logged.
    """

    def __init__(self, arm: Store, unit: int, of: str):
        """Name the place.

        Args:
            arm: of the unit.
            unit: its number.
            of: what is trained, and where; checkpoints of anything else are not gone on from.
        """
        self._of = of
        self._older: list[epath.Path] = []
        self._failed = False
        self._folder = unit_folder(arm, "checkpoints", unit)
        self._own = self._folder / this_process()
        self._manager: ocp.CheckpointManager | None = None

    def newest(self, shapes: Sequence[np.ndarray | jax.ShapeDtypeStruct]) -> Reached | None:
        """The furthest checkpoint that is whole, by whatever process; None if there is none.

        Args:
            shapes: of the arrays that were saved.
        """
        found = []
        with contextlib.suppress(*FAILURES):
            for folder in self._folder.iterdir() if self._folder.exists() else ():
                steps = ocp.utils.checkpoint_steps(folder)
                found += [(step, folder) for step in steps]
        for step, folder in sorted(found, reverse=True):
            with contextlib.suppress(*FAILURES):
                reached = _restore(folder, step, self._of, shapes)
                if reached is not None:
                    self._older = [other for _, other in found if other != self._own]
                    return reached
        return None

    def save(self, reached: Reached) -> None:
        """Begin to write a checkpoint over the one before."""
        with self._logged():
            if self._manager is None:
                self._manager = _manager(self._own)
            elif self._manager.all_steps():
                # What this process went on from is behind what it has reached.
                while self._older:
                    self._older.pop().rmtree(missing_ok=True)
            about = {"launch": reached.launch, "step": reached.step, "of": self._of}
            self._manager.save(  # waits for the one before
                _number(reached.launch, reached.step), args=described(reached.arrays, about)
            )

    def wait(self) -> None:
        """Until what was begun is written."""
        if self._manager is not None:
            with self._logged():
                self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _logged(self) -> Iterator[None]:
        try:
            yield
        except FAILURES as error:
            if not self._failed:
                log.warning("no checkpoint in %s (%s)", self._own, reason(error))
            self._failed = True

    def delete(self) -> None:
        """Delete all checkpoints of the unit, of whatever process."""
        with contextlib.suppress(*FAILURES):
            if self._manager is not None:
                self._manager.close()
            self._manager = None
            if self._folder.exists():
                self._folder.rmtree()


def delete_finished(arm: Arm) -> None:
    """Delete checkpoints of units that are done: what a process left that died just then."""
    if not has_folder(arm.store):
        return
    with contextlib.suppress(*FAILURES):
        folder = folder_in(arm.store, "checkpoints")
        for unit in folder.iterdir() if folder.exists() else ():
            if unit.name.isdecimal() and arm.is_done(int(unit.name)):
                unit.rmtree()


def _manager(folder: epath.Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.LatestN(1),
        cleanup_tmp_directories=True,
        create=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    return ocp.CheckpointManager(folder, options=options)


def _restore(
    folder: epath.Path,
    number: int,
    of: str,
    shapes: Sequence[np.ndarray | jax.ShapeDtypeStruct],
) -> Reached | None:
    """A checkpoint; None if it is not what was written, or of something else."""
    found = restore(folder / str(number), list(shapes))
    if found is None:
        return None
    arrays, about = found
    if about["of"] != of or number != _number(about["launch"], about["step"]):
        return None
    return Reached(about["launch"], about["step"], arrays)


LARGEST_STEP = 10**9


def _number(launch: int, step: int) -> int:
    """Rises from checkpoint to checkpoint."""
    return launch * LARGEST_STEP + step
