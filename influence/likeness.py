"""How far inputs are apart, whatever they are, and what is said of those that are close.

Images are compared whatever their brightness, and moved by a pixel; texts by how often each token
occurs; numbers by standardised differences.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int, Num
from scipy.sparse import csr_matrix
from sklearn.metrics.pairwise import cosine_similarity, euclidean_distances
from sklearn.preprocessing import StandardScaler

ALIKE = 10
"""Examples of its label that an example is most like."""
MOST_COMPARED = 5000
"""Examples of a label that each is compared with; of more, so many random ones."""
BLOCK = 256
"""Examples that are compared at a time."""
MOST_SHIFT = 1
"""Pixels that an image may be moved by, along each side."""


def mean_of_alike(
    values: Float[np.ndarray, " n"],
    inputs: Num[np.ndarray, "n *shape"],
    labels: Int[np.ndarray, " n"],
    vocabulary: int = 0,
) -> Float[np.ndarray, " n"]:
    """The mean value of the examples of its label that each example is most like.

    Args:
        values: of each example; NaN where there is none, which then counts nowhere.
        inputs: images (uint8, h w c), texts, or numbers.
        labels: of each.
        vocabulary: of texts: every token id is below it; 0 for others.

    Returns:
        Its own value for an example whose label has no other value.
    """
    found, rng = values.copy(), np.random.default_rng(0)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        among = rows[np.isfinite(values[rows])]
        if len(among) < 2:
            continue
        if len(among) > MOST_COMPARED:
            among = rng.choice(among, MOST_COMPARED, replace=False)
        for first in range(0, len(rows), BLOCK):
            own = rows[first : first + BLOCK]
            found[own] = values[closest(inputs, own, among, ALIKE, vocabulary)].mean(1)
    return found


def closest(
    inputs: Num[np.ndarray, "n *shape"],
    rows: Int[np.ndarray, " k"],
    among: Int[np.ndarray, " a"],
    count: int,
    vocabulary: int = 0,
) -> Int[np.ndarray, "k c"]:
    """The examples that some are most like, in no order, never themselves.

    Args:
        inputs: of all examples.
        rows: which are asked about.
        among: at least two examples, from which the closest are taken.
        count: how many of them; of fewer examples all but one.
        vocabulary: as in `distances`.
    """
    distance = distances(inputs[among], inputs[rows], vocabulary)
    distance[rows[:, None] == among[None]] = np.inf
    count = min(count, len(among) - 1)
    return among[np.argpartition(distance, count - 1, axis=1)[:, :count]]


def distances(
    train: Num[np.ndarray, "n *shape"], targets: Num[np.ndarray, "t *shape"], vocabulary: int
) -> Float[np.ndarray, "t n"]:
    """How far each target is from each training example.

    Args:
        train: inputs of training examples: images (uint8, h w c), texts, or numbers.
        targets: the same of targets.
        vocabulary: of texts: every token id is below it; 0 for others.
    """
    if vocabulary:
        alike = cosine_similarity(
            _token_counts(targets, vocabulary), _token_counts(train, vocabulary)
        )
        return np.sqrt(np.maximum(1 - alike, 0))
    if train.dtype == np.uint8:
        return np.sqrt(np.maximum(1 - _most_alike(targets, train), 0))
    flat = train.reshape(len(train), -1).astype(np.float64)
    scaler = StandardScaler().fit(flat)
    of_targets = scaler.transform(targets.reshape(len(targets), -1).astype(np.float64))
    return euclidean_distances(of_targets, scaler.transform(flat))


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
