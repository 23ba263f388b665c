"""The search for sets of examples that support one another and no clean target, in a run."""

from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int

import datamodels
from influence.arms import mask_columns
from influence.audit import Weights
from influence.experiment import Experiment, Targets
from influence.members import target_blocks

FIRST = 3
"""Sets that retraining judges even if as much may be found by chance: the most hidden ones. What is
found by chance in classes that differ is hard to tell, and a weak trigger is first even so."""
MOST_SEARCHED = 20_000
"""Groups whose weights on each other are looked at together: a matrix of 1.6 GB."""


def search(
    weights: Weights,
    targets: Targets,
    group_of: Int[np.ndarray, " n"],
    higher_is_better: bool,
) -> datamodels.Hidden | None:
    """Search the datamodel weights of training examples on each other.

    What a group does to another one is what it does to its examples, in the mean. The class of a
    group is the commonest of its examples.

    Args:
        weights: datamodel weights of some targets.
        targets: which of them are training examples, and which clean targets.
        group_of: the mask's column of each training example.
        higher_is_better: False for an output such as the loss, whose weights are negated.

    Returns:
        None where there are more than `MOST_SEARCHED` groups.
    """
    if group_of.max() >= MOST_SEARCHED:
        return None
    sign = 1.0 if higher_is_better else -1.0
    return datamodels.hidden_support(
        on_each_other(weights, targets, group_of, higher_is_better),
        sign * weights_on(weights, targets.clean),
        majority_labels(targets, group_of),
    )


def on_each_other(
    weights: Weights,
    targets: Targets,
    group_of: Int[np.ndarray, " n"],
    higher_is_better: bool,
) -> Float32[np.ndarray, "g g"]:
    """The weight of each group (row) on each group as a target (column): mean over its examples."""
    count = np.bincount(group_of)
    own = np.zeros((len(count), len(count)), np.float32)
    for block in target_blocks(targets.train):
        column = group_of[block.start - targets.train.start : block.stop - targets.train.start]
        np.add.at(own.T, column, weights(block).T)
    return own / (count if higher_is_better else -count)[None].astype(np.float32)


def majority_labels(targets: Targets, group_of: Int[np.ndarray, " n"]) -> Int[np.ndarray, " g"]:
    """The commonest label of each group."""
    labels = np.asarray(targets.examples.labels)[targets.train]
    counts = np.zeros((int(group_of.max()) + 1, int(labels.max()) + 1), int)
    np.add.at(counts, (group_of, labels), 1)
    return counts.argmax(1)


def commonest(labels: Int[np.ndarray, " k"]) -> int:
    """The label that most examples of a set have, the smallest of several."""
    return int(np.bincount(labels).argmax())


def weights_on(weights: Weights, targets: slice) -> Float[np.ndarray, "g t"]:
    """The weights of all groups on some targets."""
    return np.concatenate([weights(block) for block in target_blocks(targets)], axis=1)


def described(
    experiment: Experiment, hidden: datamodels.Hidden | None
) -> list[dict[str, Any]] | None:
    """The `hidden_sets` of audit.json: sets beyond chance, and the `FIRST`; their examples by id.

    Of a set those that are supported most come first. None where nothing was searched.
    """
    columns, ids = mask_columns(experiment), experiment.train.ids
    labels = np.asarray(experiment.train.examples.labels)
    if hidden is None:
        return None
    found = []
    for one in hidden.sets[: max(FIRST, len(hidden.beyond_chance))]:
        rows = np.concatenate([np.flatnonzero(columns == group) for group in one.groups])
        found.append(
            {
                "class": experiment.class_names[commonest(labels[rows])],
                "examples": ids[rows].tolist(),
                "support": one.support,
                "clean": one.clean,
                "hidden": one.hidden,
                "chance": hidden.chance,
            }
        )
    return found
