"""Training examples that are near copies of clean targets, which then are no test of the model.

A copy is much closer to its target than the next closest example is: that ratio of distances needs
no scale, and tells a copy from a kind of example that is common (as Lowe 2004 tells matching points
of images). Images are compared whatever their brightness, and moved by a pixel; texts by how often
each token occurs; numbers by standardised differences.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Num

from influence.likeness import distances

MUCH_CLOSER = 0.47
"""Times the distance of the next closest example."""
MOST_COPIES = 5
"""Of one target."""
BLOCK = 256
"""Targets that are compared with all training examples at a time."""


class Copy(NamedTuple):
    """A near copy of a target."""

    target: int
    """Its position among the targets."""
    example: int
    """Row of the training example."""
    ratio: float
    """Its distance to the target, in units of that of the closest example that is no copy."""


def near_copies(
    train: Num[np.ndarray, "n *shape"], targets: Num[np.ndarray, "t *shape"], vocabulary: int = 0
) -> list[Copy]:
    """The training examples that are near copies of targets, target by target.

    Args:
        train: inputs of training examples: images (uint8, h w c), texts, or numbers.
        targets: the same of targets.
        vocabulary: of texts: every token id is below it; 0 for others.
    """
    found = []
    for first in range(0, len(targets), BLOCK):
        distance = distances(train, targets[first : first + BLOCK], vocabulary)
        count = min(MOST_COPIES + 1, distance.shape[1])
        order = np.argsort(distance, axis=1, kind="stable")[:, :count]
        near = np.take_along_axis(distance, order, axis=1)
        # The next closest is at a distance, or many are alike, as empty texts are.
        apart = (near[:, :-1] <= MUCH_CLOSER * near[:, 1:]) & (near[:, 1:] > 0)
        for row in np.flatnonzero(apart.any(1)):
            copies = int(np.flatnonzero(apart[row])[-1]) + 1
            found += [
                Copy(
                    first + int(row), int(order[row, at]), float(near[row, at] / near[row, copies])
                )
                for at in range(copies)
            ]
    return found
