"""Parameters of finished members, kept so that targets can be added without training again.

ARM/params/000007    written by orbax: `arrays`, the members of unit 7 by name of the variable,
                     each with a leading axis of members, and `about`, with their digest
"""

import contextlib
import time

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from training.arm import Arm
from training.errors import UserError, reason
from training.orbax_files import (
    FAILURES,
    described,
    folder_in,
    has_folder,
    require_folder,
    restore,
    this_process,
    unit_folder,
)

TEMPORARY = ".orbax-checkpoint-tmp"
"""In the names of folders that orbax has not written to the end."""

LEFT_OVER = 3600.0
"""Seconds after which such a folder is that of a process that died."""

Params = dict[str, np.ndarray]
"""Variables of some members by name, with a leading axis of members; keys as their numbers."""


class KeptParams:
    """The kept parameters of an arm."""

    def __init__(self, arm: Arm):
        self._arm = arm

    def units(self) -> set[int]:
        """Units whose parameters are kept; whether they are whole is seen when they are read."""
        if not has_folder(self._arm.store):
            return set()
        folder = folder_in(self._arm.store, "params")
        with contextlib.suppress(*FAILURES):
            return {int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal()}
        return set()

    def read(self, unit: int) -> Params | None:
        """The parameters of a unit; None where they are not kept, or damaged."""
        for folder in self._written(unit):
            with contextlib.suppress(*FAILURES):
                found = restore(folder)
                if found is not None and found[1]["members"] == self._arm.spec.unit_span(unit):
                    return found[0]
        return None

    def write(self, unit: int, params: Params) -> None:
        """Keep the parameters of a unit, unless they are kept already.

        Processes that make the same unit by mistake have a folder each, as orbax needs.

        Raises:
            UserError: they cannot be written.
        """
        require_folder(self._arm.store)
        if self.read(unit) is not None:
            return
        try:
            for damaged in self._written(unit):
                damaged.rmtree()
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
                own = self._folder(unit) / this_process()
                writer.save(
                    own, args=described(params, {"members": self._arm.spec.unit_span(unit)})
                )
        except FAILURES as error:
            if self.read(unit) is not None:
                return  # another process was first
            raise UserError(
                f"cannot write the parameters of unit {unit} to {self._arm.store} "
                f"({reason(error)}); free some space, or set sweep.keep_params = false, and run "
                f"the same command again: finished units are kept"
            ) from error

    def clean(self) -> None:
        """Delete what processes left that died while they wrote."""
        for unit in self.units():
            with contextlib.suppress(*FAILURES):
                for entry in self._folder(unit).iterdir():
                    age = time.time() - entry.stat().mtime
                    if TEMPORARY in entry.name and age > LEFT_OVER:
                        entry.rmtree()

    def _folder(self, unit: int) -> epath.Path:
        return unit_folder(self._arm.store, "params", unit)

    def _written(self, unit: int) -> list[epath.Path]:
        """Folders of processes that wrote the unit to the end."""
        if unit not in self.units():
            return []
        return [entry for entry in self._folder(unit).iterdir() if TEMPORARY not in entry.name]
