"""Images of one label that stand among those of others: labels that are wrong in one way, often.

As such images back one another, none of them looks as wrong as a single one does. They are searched
in the clusters of each label (`image_clusters`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from influence.likeness import closest

NEIGHBOURS, LOOKED_AT = 20, 100
"""The closest images that an image of a cluster stands among, and of how many it is asked."""
OWN_LABEL = 0.2
"""Share of the neighbours with a cluster's label, below which its images are strangers."""
MOST_STRANGE = 0.25
"""Share of all images beyond which closeness says little of labels, so that none are strangers."""


class Strangers(NamedTuple):
    """Images of one label that stand among those of others."""

    rows: Int[np.ndarray, " _"]
    own_label: float
    """Share of their closest images that have their label."""


def search(
    images: UInt8[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    clusters: Sequence[Int[np.ndarray, " _"]],
) -> list[Strangers]:
    """The clusters of any label of whose closest images few have it, the fewest first.

    None that another one holds; and none at all where they are more than `MOST_STRANGE`.

    Args:
        images: of all training examples.
        labels: of them.
        clusters: each of one label, as rows; the first `LOOKED_AT` of each are asked.
    """
    found = []
    for rows in clusters:
        near = closest(images, rows[:LOOKED_AT], np.arange(len(images)), NEIGHBOURS)
        share = float((labels[near] == labels[rows[0]]).mean())
        if share < OWN_LABEL:
            found.append(Strangers(np.sort(rows), share))
    widest: list[Strangers] = []
    for one in sorted(found, key=lambda one: -len(one.rows)):
        if not any(np.isin(one.rows, other.rows).all() for other in widest):
            widest.append(one)
    if sum(len(one.rows) for one in widest) > MOST_STRANGE * len(images):
        return []
    return sorted(widest, key=lambda one: one.own_label)
