"""The members of an arm as stages read them: all masks, and outputs a block of targets at a time.

So a bank that is larger than memory can be fitted and audited.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8

from training.arm import TARGET_BLOCK, Status


@dataclass(frozen=True)
class Members:
    """Members of one arm, or of several."""

    masks: Bool[np.ndarray, "m g"]
    """True = kept."""
    status: UInt8[np.ndarray, " m"]
    outputs: Callable[[slice], Float32[np.ndarray, "m b"]]
    """Theirs on some targets, by the experiment's order of targets."""
    alpha: Float[np.ndarray, "#m #g"]
    """The probability that each group is kept, as `datamodels.effects` takes it."""
    draws: Int[np.ndarray, " m"]
    """Members of one number were drawn together: retrains of a mask, complementary masks."""

    @property
    def usable(self) -> Bool[np.ndarray, " m"]:
        """Members that a fit or an average may use."""
        return self.status != Status.NOT_FINITE

    def take(self, chosen: Bool[np.ndarray, " m"]) -> "Members":
        """Some of the members."""
        return Members(
            self.masks[chosen],
            self.status[chosen],
            lambda targets: self.outputs(targets)[chosen],
            self.alpha if len(self.alpha) == 1 else self.alpha[chosen],
            self.draws[chosen],
        )


def join(parts: Sequence[Members]) -> Members:
    """The members of several arms, one after the other."""
    if len(parts) == 1:
        return parts[0]
    firsts = np.cumsum([0, *(part.draws.max() + 1 for part in parts)])
    alphas = [np.broadcast_to(part.alpha, (len(part.masks), part.alpha.shape[1])) for part in parts]
    return Members(
        np.concatenate([part.masks for part in parts]),
        np.concatenate([part.status for part in parts]),
        lambda targets: np.concatenate([part.outputs(targets) for part in parts]),
        np.concatenate(alphas),
        np.concatenate([part.draws + first for part, first in zip(parts, firsts, strict=False)]),
    )


def target_blocks(targets: slice) -> Iterator[slice]:
    """Parts of some targets that are worked on one after the other."""
    for first in range(targets.start, targets.stop, TARGET_BLOCK):
        yield slice(first, min(first + TARGET_BLOCK, targets.stop))
