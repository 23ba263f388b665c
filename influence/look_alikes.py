"""Images of one label that share what others lack: what the trigger of many examples looks like.

The more examples a trigger has, the less each adds to the others in a datamodel, as most stay when
one is dropped: with very many there is no hidden support left (`hidden_support`). But then they
stand out by their pixels: from each cluster of a label (`image_clusters`) come the examples that
share its pattern (`pattern`). Labels have kinds of images without any trigger, too: those whose
pattern is the most equal in all of its examples are judged by retraining.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from datamodels.terms import mostly_same
from influence import pattern

FIRST = 3
"""Sets that retraining judges."""


class LookAlikes(NamedTuple):
    """Examples of one label that share a pattern."""

    rows: Int[np.ndarray, " _"]
    sameness: float
    """How equal it is in all of them, from 0 to 1."""


def search(
    images: UInt8[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    clusters: Sequence[Int[np.ndarray, " _"]],
) -> list[LookAlikes]:
    """The sets of any label with the most equal pattern, the most equal first.

    Args:
        images: of all training examples.
        labels: of them.
        clusters: each of one label, as rows; those that are surest of it come first.
    """
    found = []
    for rows in clusters:
        own = pattern.sharing(images, rows, labels == labels[rows[0]])
        found.append(LookAlikes(own, pattern.common(images, own).sameness))
    different: list[LookAlikes] = []
    for one in sorted(found, key=lambda one: -one.sameness):
        if not any(mostly_same(one.rows, other.rows) for other in different):
            different.append(one)
    return different[:FIRST]
