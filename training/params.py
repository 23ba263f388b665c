"""Parameters of finished members, kept so that targets can be added without training again.

ARM/params/000007    written by orbax: `arrays`, the members of unit 7 by name of the variable,
                     each with a leading axis of members, and `about`, with their digest
"""

import contextlib

import numpy as np
import orbax.checkpoint as ocp

from training.arm import Arm
from training.errors import UserError, reason
from training.orbax_files import FAILURES, described, folder_in, has_folder, require_folder, restore

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
        if unit in self.units():
            with contextlib.suppress(*FAILURES):
                found = restore(folder_in(self._arm.store, "params") / _name(unit))
                if found is not None and found[1]["members"] == self._span(unit):
                    return found[0]
        return None

    def write(self, unit: int, params: Params) -> None:
        """Keep the parameters of a unit, over older ones if there are any.

        Raises:
            UserError: they cannot be written.
        """
        require_folder(self._arm.store)
        try:
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
                writer.save(
                    folder_in(self._arm.store, "params") / _name(unit),
                    args=described(params, {"members": self._span(unit)}),
                    force=True,
                )
        except FAILURES as error:
            raise UserError(
                f"cannot write the parameters of unit {unit} to {self._arm.store} "
                f"({reason(error)}); free some space, or set sweep.keep_params = false, and run "
                f"the same command again: finished units are kept"
            ) from error

    def _span(self, unit: int) -> list[int]:
        members = self._arm.spec.unit_slice(unit)
        return [members.start, members.stop]


def _name(unit: int) -> str:
    return f"{unit:06d}"
