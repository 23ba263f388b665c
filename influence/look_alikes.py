"""Images of one label that share what others lack: what the trigger of many examples looks like.

The more examples a trigger has, the less each adds to the others in a datamodel, as most stay when
one is dropped: with very many there is no hidden support left (`hidden_support`). But then they
stand out by their pixels. Each label is cut into few clusters, as activation clustering does it
(Chen et al. 2018, "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering"),
and from each cluster come the examples that share its pattern (`pattern`). The clusters are of
images and not of activations, so that no model decides. Labels have kinds of images without any
trigger, too: those whose pattern is the most equal in all of its examples are judged by retraining.

The same clusters show labels that are wrong in one way, many times: such images stand among those
of their true label. As they back one another, none of them looks as wrong as a single one does.
"""

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from influence import pattern
from influence.experiment import Experiment
from influence.likeness import distances

CLUSTERS = (2, 4)
"""Into so many each label is cut."""
FIRST = 3
"""Sets that retraining judges."""
NEIGHBOURS, LOOKED_AT = 20, 100
"""The closest images that an image of a cluster stands among, and of how many it is asked."""
OWN_LABEL = 0.2
"""Share of the neighbours with a cluster's label, below which its images are strangers."""
MOST_SEARCHED = 20_000
"""Examples, as each is compared with all."""


class LookAlikes(NamedTuple):
    """Examples of one label that share a pattern."""

    rows: Int[np.ndarray, " _"]
    sameness: float
    """How equal it is in all of them, from 0 to 1."""


class Strangers(NamedTuple):
    """Images of one label that stand among those of others."""

    rows: Int[np.ndarray, " _"]
    own_label: float
    """Share of their closest images that have their label."""


def described(experiment: Experiment) -> dict[str, list[dict[str, Any]] | None]:
    """The `look_alikes` and the `strangers` of audit.json, with examples by id.

    None where nothing was searched: of other inputs than images, or too many.
    """
    train, names = experiment.train, experiment.class_names
    inputs, labels = np.asarray(train.examples.inputs), np.asarray(train.examples.labels)
    if inputs.dtype != np.uint8 or inputs.ndim != 4 or len(inputs) > MOST_SEARCHED:
        return {"look_alikes": None, "strangers": None}

    def told(one: LookAlikes | Strangers) -> dict[str, Any]:
        label = names[labels[one.rows[0]]]
        return one._asdict() | {"class": label, "examples": train.ids[one.rows].tolist()}

    found = {"look_alikes": search(inputs, labels), "strangers": strangers(inputs, labels)}
    return {
        name: [{key: value for key, value in told(one).items() if key != "rows"} for one in sets]
        for name, sets in found.items()
    }


def search(images: UInt8[np.ndarray, "n h w c"], labels: Int[np.ndarray, " n"]) -> list[LookAlikes]:
    """The sets of any label with the most equal pattern, the most equal first."""
    found = []
    for label in np.unique(labels):
        of_label = labels == label
        for rows in _clusters(images, of_label):
            own = pattern.sharing(images, rows, of_label)
            found.append(LookAlikes(own, pattern.common(images, own).sameness))
    different: list[LookAlikes] = []
    for one in sorted(found, key=lambda one: -one.sameness):
        if not any(alike(one.rows, other.rows) for other in different):
            different.append(one)
    return different[:FIRST]


def strangers(
    images: UInt8[np.ndarray, "n h w c"], labels: Int[np.ndarray, " n"]
) -> list[Strangers]:
    """The clusters of any label of whose closest images few have it, the fewest first."""
    found = []
    for label in np.unique(labels):
        for rows in _clusters(images, labels == label):
            asked = rows[:LOOKED_AT]
            distance = distances(images, images[asked], 0)
            distance[np.arange(len(asked)), asked] = np.inf
            count = min(NEIGHBOURS, len(images) - 1)
            near = np.argpartition(distance, count - 1, axis=1)[:, :count]
            share = float((labels[near] == label).mean())
            if share < OWN_LABEL:
                found.append(Strangers(np.sort(rows), share))
    return sorted(found, key=lambda one: one.own_label)


def _clusters(
    images: UInt8[np.ndarray, "n h w c"], of_label: Bool[np.ndarray, " n"]
) -> Iterator[Int[np.ndarray, " _"]]:
    """Those of at most half of the label; of each the examples closest to its centre come first."""
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


def alike(one: Int[np.ndarray, " k"], other: Int[np.ndarray, " l"]) -> bool:
    """Whether two sets share more than half of the examples that they have together."""
    common = len(np.intersect1d(one, other))
    return 2 * common > len(one) + len(other) - common
