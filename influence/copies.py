"""The search for near copies of clean targets among a run's training examples."""

from typing import Any

import numpy as np

from influence.arms import mask_columns, positions_of
from influence.audit import Weights
from influence.experiment import Experiment
from influence.leakage import near_copies
from influence.members import target_blocks


def search(experiment: Experiment, weights: Weights) -> list[dict[str, Any]]:
    """The `copies` of audit.json, the closest first.

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
