"""Clusters of the training images of each label, in which sets of images are searched.

Each label is cut into few, as activation clustering does it (Chen et al. 2018, "Detecting Backdoor
Attacks on Deep Neural Networks by Activation Clustering"). The clusters are of images and not of
activations, so that no model decides.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from influence import pattern
from influence.experiment import Experiment

CLUSTERS = (2, 4)
"""Into so many each label is cut."""
MOST_SEARCHED = 20_000
"""Examples, as each is compared with all."""


def of_training(experiment: Experiment) -> list[Int[np.ndarray, " _"]] | None:
    """Those of the training examples, as rows; None of other inputs than images, or of too many."""
    examples = experiment.train.examples
    inputs = np.asarray(examples.inputs)
    if inputs.dtype != np.uint8 or inputs.ndim != 4 or len(inputs) > MOST_SEARCHED:
        return None
    return clusters(inputs, np.asarray(examples.labels))


def described(
    experiment: Experiment,
    clusters: Sequence[Int[np.ndarray, " _"]] | None,
    search: Callable[..., Sequence[Any]],
) -> list[dict[str, Any]] | None:
    """What a search finds in clusters, as audit.json has it: class, examples by id, and the rest.

    Args:
        experiment: of the run.
        clusters: of its training examples (`of_training`); None where they are not searched.
        search: of `look_alikes` or `strangers`.
    """
    if clusters is None:
        return None
    train = experiment.train
    inputs, labels = np.asarray(train.examples.inputs), np.asarray(train.examples.labels)
    found = []
    for one in search(inputs, labels, clusters):
        said = one._asdict()
        rows = said.pop("rows")
        of_label = experiment.class_names[labels[rows[0]]]
        found.append({"class": of_label, "examples": train.ids[rows].tolist()} | said)
    return found


def clusters(
    images: UInt8[np.ndarray, "n h w c"], labels: Int[np.ndarray, " n"]
) -> list[Int[np.ndarray, " _"]]:
    """Those of every label, each of at most half of it.

    Of each the examples closest to its centre come first.
    """
    return [rows for label in np.unique(labels) for rows in _of_label(images, labels == label)]


def _of_label(
    images: UInt8[np.ndarray, "n h w c"], of_label: Bool[np.ndarray, " n"]
) -> Iterator[Int[np.ndarray, " _"]]:
    rows = np.flatnonzero(of_label)
    flat = images[rows].reshape(len(rows), -1).astype(np.float32)
    for count in CLUSTERS:
        if len(rows) < count * pattern.FEWEST:
            continue
        with warnings.catch_warnings():
            # Of equal images there are fewer clusters.
            warnings.simplefilter("ignore", ConvergenceWarning)
            distances = KMeans(count, n_init="auto", random_state=0).fit_transform(flat)
        cluster = distances.argmin(1)
        for number in range(count):
            own = np.flatnonzero(cluster == number)
            if pattern.FEWEST <= len(own) <= len(rows) / 2:
                yield rows[own[np.argsort(distances[own, number], kind="stable")]]
