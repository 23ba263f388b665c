"""The members of an arm as stages read them: all masks, and outputs a block of targets at a time.

So a bank that is larger than memory can be fitted and audited.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from training.arm import TARGET_BLOCK, Status


@dataclass(frozen=True)
class Members:
    """Members of one arm."""

    masks: Bool[np.ndarray, "m g"]
    """True = kept."""
    status: UInt8[np.ndarray, " m"]
    outputs: Callable[[slice], Float32[np.ndarray, "m b"]]
    """Theirs on some targets, by the experiment's order of targets."""

    @property
    def usable(self) -> Bool[np.ndarray, " m"]:
        """Members that a fit or an average may use."""
        return self.status != Status.NOT_FINITE

    def take(self, chosen: Bool[np.ndarray, " m"]) -> "Members":
        """Some of the members."""
        return Members(
            self.masks[chosen], self.status[chosen], lambda targets: self.outputs(targets)[chosen]
        )


def target_blocks(targets: slice) -> Iterator[slice]:
    """Parts of some targets that are worked on one after the other."""
    for first in range(targets.start, targets.stop, TARGET_BLOCK):
        yield slice(first, min(first + TARGET_BLOCK, targets.stop))
