"""Training examples that are near copies of clean targets, which then are no test of the model.

A copy is much closer to its target than the next closest example is: that ratio of distances needs
no scale, and tells a copy from a kind of example that is common (as Lowe 2004 tells matching points
of images). Images are compared whatever their brightness, and moved by a pixel; texts by how often
each token occurs; numbers by standardised differences.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num
from scipy.sparse import csr_matrix
from sklearn.metrics.pairwise import cosine_similarity, euclidean_distances

MUCH_CLOSER = 0.47
"""Times the distance of the next closest example."""
MOST_COPIES = 5
"""Of one target."""
MOST_SHIFT = 1
"""Pixels that an image may be moved by, along each side."""
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
        distance = _distances(train, targets[first : first + BLOCK], vocabulary)
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


def _distances(
    train: Num[np.ndarray, "n *shape"], targets: Num[np.ndarray, "t *shape"], vocabulary: int
) -> Float[np.ndarray, "t n"]:
    if vocabulary:
        alike = cosine_similarity(
            _token_counts(targets, vocabulary), _token_counts(train, vocabulary)
        )
        return np.sqrt(np.maximum(1 - alike, 0))
    if train.dtype == np.uint8:
        return np.sqrt(np.maximum(1 - _most_alike(targets, train), 0))
    flat = train.reshape(len(train), -1).astype(np.float64)
    scale = np.maximum(flat.std(0), 1e-12)
    return euclidean_distances(targets.reshape(len(targets), -1) / scale, flat / scale)


def _token_counts(texts: Num[np.ndarray, "n l"], vocabulary: int) -> csr_matrix:
    """How often each token occurs; padding does not count."""
    ids = texts.astype(np.int64)
    row = np.broadcast_to(np.arange(len(ids))[:, None], ids.shape)
    there = ids > 0
    ones = np.ones(int(there.sum()))
    return csr_matrix((ones, (row[there], ids[there])), shape=(len(ids), vocabulary))


def _most_alike(
    first: Num[np.ndarray, "t h w c"], second: Num[np.ndarray, "n h w c"]
) -> Float[np.ndarray, "t n"]:
    """The largest correlation of two images over shifts."""
    best = np.full((len(first), len(second)), -1.0, np.float32)
    for own, other in _overlaps(*first.shape[1:3]):
        best = np.maximum(best, _standardised(first[own]) @ _standardised(second[other]).T)
    return best


def _overlaps(height: int, width: int) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """The parts of two images that lie on each other when one is moved."""
    steps = range(-MOST_SHIFT, MOST_SHIFT + 1)
    for down in steps:
        for right in steps:
            yield (
                (slice(None), _moved(down, height), _moved(right, width)),
                (slice(None), _moved(-down, height), _moved(-right, width)),
            )


def _moved(by: int, length: int) -> slice:
    return slice(max(by, 0), length + min(by, 0))


def _standardised(images: Num[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n d"]:
    """Without their mean, and of length 1."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
