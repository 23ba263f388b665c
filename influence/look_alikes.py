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
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from datamodels.terms import alike
from influence import pattern
from influence.experiment import Experiment
from influence.likeness import closest

CLUSTERS = (2, 4)
"""Into so many each label is cut."""
FIRST = 3
"""Sets that retraining judges."""
NEIGHBOURS, LOOKED_AT = 20, 100
"""The closest images that an image of a cluster stands among, and of how many it is asked."""
OWN_LABEL = 0.2
"""Share of the neighbours with a cluster's label, below which its images are strangers."""
MOST_STRANGE = 0.25
"""Share of all images beyond which closeness says little of labels, so that none are strangers."""
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

    own = clusters(inputs, labels)

    def told(rows: Int[np.ndarray, " k"]) -> dict[str, Any]:
        return {"class": names[labels[rows[0]]], "examples": train.ids[rows].tolist()}

    return {
        "look_alikes": [
            told(one.rows) | {"sameness": one.sameness} for one in search(inputs, labels, own)
        ],
        "strangers": [
            told(one.rows) | {"own_label": one.own_label} for one in strangers(inputs, labels, own)
        ],
    }


def search(
    images: UInt8[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    clusters: Sequence[Int[np.ndarray, " _"]],
) -> list[LookAlikes]:
    """The sets of any label with the most equal pattern, the most equal first."""
    found = []
    for rows in clusters:
        own = pattern.sharing(images, rows, labels == labels[rows[0]])
        found.append(LookAlikes(own, pattern.common(images, own).sameness))
    different: list[LookAlikes] = []
    for one in sorted(found, key=lambda one: -one.sameness):
        if not any(alike(one.rows, other.rows) for other in different):
            different.append(one)
    return different[:FIRST]


def strangers(
    images: UInt8[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"],
    clusters: Sequence[Int[np.ndarray, " _"]],
) -> list[Strangers]:
    """The clusters of any label of whose closest images few have it, the fewest first.

    None that another one holds; and none at all where they are more than `MOST_STRANGE`.
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


def clusters(
    images: UInt8[np.ndarray, "n h w c"], labels: Int[np.ndarray, " n"]
) -> list[Int[np.ndarray, " _"]]:
    """Those of every label, each of at most half of it, which both searches look at.

    Of each the examples closest to its centre come first.
    """
    return [rows for label in np.unique(labels) for rows in _clusters(images, labels == label)]


def _clusters(
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
