"""Training examples that are near copies of clean targets, which then are no test of the model.

A copy is much closer to its target than the next closest example is: that ratio of distances needs
no scale, and tells a copy from a kind of example that is common (as Lowe 2004 tells matching points
of images). Images are compared whatever their brightness, and moved by a pixel; texts by how often
each token occurs; numbers by standardised differences.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Num

from influence.arms import mask_columns, positions_of
from influence.audit import Weights
from influence.experiment import Experiment
from influence.likeness import distances
from influence.members import target_blocks

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


def search(experiment: Experiment, weights: Weights) -> list[dict[str, Any]]:
    """The `copies` of audit.json, the closest first, with the datamodel weight of each example on
    its target, in output units; positive where keeping it helps the target's label.

    Args:
        experiment: of the run.
        weights: datamodel weights of some targets.
    """
    train, targets, columns = experiment.train, experiment.targets, mask_columns(experiment)
    inputs = np.asarray(targets.examples.inputs)[targets.clean]
    found = near_copies(np.asarray(train.examples.inputs), inputs, experiment.vocabulary)
    sign = 1.0 if experiment.higher_is_better else -1.0
    copied, of_target = {targets.clean.start + one.target for one in found}, {}
    for block in target_blocks(targets.clean):
        if own := copied & set(range(block.start, block.stop)):
            on_block = weights(block)
            of_target |= {at: on_block[:, at - block.start] for at in own}
    described = []
    for one in sorted(found, key=lambda one: one.ratio):
        at = targets.clean.start + one.target
        described.append(
            {
                "target": targets.ids[at],
                "example": int(train.ids[one.example]),
                "same_label": bool(
                    targets.examples.labels[at] == train.examples.labels[one.example]
                ),
                "ratio": one.ratio,
                "weight": sign * float(of_target[at][columns[one.example]]),
            }
        )
    return described


def positions(experiment: Experiment, copies: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """Each as the position among the clean targets, and the row of the training example."""
    targets, train = experiment.targets, experiment.train
    places = positions_of(targets.ids, (one["target"] for one in copies)) - targets.clean.start
    rows = positions_of(train.ids.tolist(), (one["example"] for one in copies))
    return list(zip(places.tolist(), rows.tolist(), strict=True))
