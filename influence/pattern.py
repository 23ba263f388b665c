"""What the inputs of a set have in common beyond others like them, and putting it on other inputs.

Reference: the training examples outside the set that are closest to each example, whatever their
labels; a trigger leaves those of the image below it among the closest. The difference, in the mean
over the set, is what its examples share and their neighbours lack.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Num
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

NEIGHBOURS = 20
WHITE = 255.0
FAINT = 16.0
"""Of WHITE: where neighbours are closer to black, or to white, than this, a difference counts less,
as it cannot be told from noise."""
HAS_IT = (0.7, 0.5)
"""Share of the pattern from which on an example has it: first, so that a set that has two things in
common settles for one of them; and then, of that one."""
SOME = 0.25
"""Share from which on an example may have it and not show it, as its neighbours have it as well."""
SURE = 0.5
"""Sameness of a pattern that such examples are looked for by; vague ones are in half of a class."""
FEWEST = 4
"""Examples that a pattern is taken from."""
ROUNDS = 10
"""Of looking for more examples, after which a set that still changes is left."""
REST = 0.25
"""Share of a set that is looked at again when the others have a pattern."""


class Pattern(NamedTuple):
    """What some inputs have in common."""

    difference: Float[np.ndarray, "*shape"]
    """Theirs to their neighbours, in the mean."""
    reference: Float[np.ndarray, "*shape"]
    """The mean of the neighbours."""
    sameness: float
    """How equal it is in all of them, from 0 to 1: the share of the mean squared difference that is
    the square of the mean, where what they have in common counts, by that square. A trigger is the
    same in all; what a kind of clean example has in common varies."""


def common(inputs: Num[np.ndarray, "n *shape"], rows: Int[np.ndarray, " k"]) -> Pattern:
    """What some of the inputs have in common, and all the others of `inputs` lack."""
    flat, centre, unit = _scaled(inputs)
    difference, reference = _apart(flat, rows, rows)
    shape = inputs.shape[1:]
    return Pattern(
        (unit * difference.mean(0)).reshape(shape),
        (centre + unit * reference.mean(0)).reshape(shape),
        _sameness(difference),
    )


def patterns_in(
    inputs: Num[np.ndarray, "n *shape"],
    rows: Int[np.ndarray, " k"],
    may_share: Bool[np.ndarray, " n"],
) -> list[Int[np.ndarray, " _"]]:
    """The examples that share a pattern of a set, for each pattern in it; arguments as `sharing`.

    Those without the first pattern may have another.
    """
    found, left = [], rows
    while len(left) >= max(FEWEST, REST * len(rows)):
        found.append(sharing(inputs, left, may_share))
        others = left[~np.isin(left, found[-1])]
        if len(others) == len(left):
            break
        left = others
    return found


def sharing(
    inputs: Num[np.ndarray, "n *shape"],
    rows: Int[np.ndarray, " k"],
    may_share: Bool[np.ndarray, " n"],
) -> Int[np.ndarray, " r"]:
    """The examples that share the pattern of a set, whether they are in it or not.

    It is taken from the first half of the set, and then from all that share it, until they stay the
    same. How much of it an example has is the projection of its own difference, in units of the
    mean difference of the others, which it is no part of. Of a pattern that is sure, those are
    added that are one another's neighbours, beside which none of them shows it (`_completed`).

    Args:
        inputs: of all training examples.
        rows: the set; those that are surest of it come first.
        may_share: the examples that may be in it.

    Returns:
        In their order; the set itself where fewer than `FEWEST` share anything, or more than half
        of all that may.
    """
    looked_at = np.union1d(np.flatnonzero(may_share), rows)
    flat, *_ = _scaled(inputs)
    difference, _ = _apart(flat, rows, looked_at)
    within = np.isin(looked_at, rows[: max(FEWEST, len(rows) // 2)])
    for share in HAS_IT:
        for _ in range(ROUNDS):
            found = _share(difference, within) >= share
            if not FEWEST <= found.sum() <= len(looked_at) / 2:
                return np.sort(rows)
            if (found == within).all():
                break
            within = found
    return looked_at[_completed(flat, looked_at, difference, within)]


def _completed(
    flat: Float[np.ndarray, "n d"],
    looked_at: Int[np.ndarray, " l"],
    difference: Float[np.ndarray, "l d"],
    within: Bool[np.ndarray, " l"],
) -> Bool[np.ndarray, " l"]:
    """Those within, and those that may have a sure pattern and show it once they are left out of
    one another's neighbours; it then shows in more, so until these stay the same."""
    left_out = np.zeros(len(within), bool)
    for _ in range(ROUNDS):
        some = within | (_share(difference, within) >= SOME)
        vague = _sameness(difference[within]) < SURE
        if vague or (some == left_out).all() or some.sum() > len(looked_at) / 2:
            break
        difference, _ = _apart(flat, looked_at[some], looked_at)
        within = within | (some & (_share(difference, within) >= HAS_IT[0]))
        left_out = some
    return within


def carried(
    inputs: Num[np.ndarray, "n *shape"],
    rows: Int[np.ndarray, " k"],
    others: Num[np.ndarray, "o *shape"],
) -> Bool[np.ndarray, " o"]:
    """Whether other inputs, of which none is among `inputs`, have the pattern of a set."""
    both, new = np.concatenate([inputs, others]), len(inputs) + np.arange(len(others))
    # Several of the others may have it, so none is a neighbour.
    looked_at = np.concatenate([rows, new])
    flat, *_ = _scaled(both)
    difference, _ = _apart(flat, looked_at, looked_at)
    share = _share(difference, np.arange(len(looked_at)) < len(rows))
    return share[len(rows) :] >= HAS_IT[-1]


def _apart(
    flat: Float[np.ndarray, "n d"],
    rows: Int[np.ndarray, " k"],
    looked_at: Int[np.ndarray, " l"],
) -> tuple[Float[np.ndarray, "l d"], Float[np.ndarray, "l d"]]:
    """The difference of each example to its neighbours outside a set, and the mean of these."""
    others = np.setdiff1d(np.arange(len(flat)), rows)
    # One more than are wanted: an example outside the set may be among its own.
    near = others[_nearest(flat[others], flat[looked_at])]
    left_out = near == looked_at[:, None]
    left_out[~left_out.any(1), -1] = True
    near = near[~left_out].reshape(len(near), -1)
    # One neighbour of all at a time: all of theirs together are twenty times as much memory.
    total = np.zeros_like(flat[looked_at])
    for place in near.T:
        total += flat[place]
    reference = total / near.shape[1]
    return flat[looked_at] - reference, reference


def _scaled(
    inputs: Num[np.ndarray, "n *shape"],
) -> tuple[Float32[np.ndarray, "n d"], Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    """Inputs as differences are measured, and from and in what: grey levels of images; of numbers
    the mean and the deviation of each, so that one that never changes counts for nothing."""
    flat = inputs.reshape(len(inputs), -1)
    if inputs.dtype == np.uint8:
        ones = np.ones(flat.shape[1], np.float32)
        return flat.astype(np.float32), 0 * ones, ones
    scaler = StandardScaler().fit(flat.astype(np.float64))
    centre, unit = np.asarray(scaler.mean_), np.asarray(scaler.scale_)
    return ((flat - centre) / unit).astype(np.float32), centre, unit


def _nearest(
    among: Float[np.ndarray, "o d"], of: Float[np.ndarray, "l d"]
) -> Int[np.ndarray, "l k"]:
    count = min(NEIGHBOURS + 1, len(among))
    search = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(among)
    return search.kneighbors(of, return_distance=False)


def _share(
    difference: Float[np.ndarray, "l d"], within: Bool[np.ndarray, " l"]
) -> Float[np.ndarray, " l"]:
    """How much of what those within have in common each has; of them, of what the others have."""
    total, count = difference[within].sum(0), within.sum()
    own = difference @ total
    square = np.square(difference).sum(1)
    # Of one within, the others' mean is (total - its own) / (count - 1).
    others = np.where(within, count - 1, count)
    projected = np.where(within, own - square, own) / others
    size = np.where(within, total @ total - 2 * own + square, total @ total) / others**2
    return projected / np.maximum(size, 1e-30)


def _sameness(difference: Float[np.ndarray, "k d"]) -> float:
    """As of `Pattern`."""
    square, variance = np.square(difference.mean(0)), difference.var(0, ddof=1)
    return float(np.square(square).sum() / max((square * (square + variance)).sum(), 1e-30))


def put(inputs: Num[np.ndarray, "n *shape"], pattern: Pattern) -> Num[np.ndarray, "_ *shape"]:
    """Inputs with a pattern put on them; images twice, since a trigger may be either.

    Added, and as light and shade: a pixel goes by a share of the way to white, or to black, so that
    one which is white anyway stays so.
    """
    added = inputs + pattern.difference
    if inputs.dtype != np.uint8:
        return added.astype(inputs.dtype)
    light = np.clip(pattern.difference / (WHITE - pattern.reference + FAINT), 0, 1)
    shade = np.clip(-pattern.difference / (pattern.reference + FAINT), 0, 1)
    both = np.concatenate([added, inputs * (1 - shade) + (WHITE - inputs) * light])
    return np.clip(np.rint(both), 0, WHITE).astype(np.uint8)
