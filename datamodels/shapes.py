"""Shapes of joint action: outputs that turn where r of k groups are kept, and how well one fits.

Any one of k copies is enough (redundancy, r = 1), all are needed (synergy, r = k), or some number
between is (threshold). Such an output has a joint effect on every subset of its groups, which
alternate in sign for a redundancy; seen together they are one thing.
"""

from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import comb
from scipy.stats import binom

MOST_ORDER = 4
"""Groups of the largest subsets that are looked at: of all 2^k, those that can be estimated."""


@lru_cache
def has(size: int) -> Bool[np.ndarray, "b k"]:
    """Which of so many groups each subset holds: all subsets of at most `MOST_ORDER` groups."""
    chosen = [
        each
        for order in range(min(size, MOST_ORDER) + 1)
        for each in combinations(range(size), order)
    ]
    found = np.zeros((len(chosen), size), bool)
    for row, each in enumerate(chosen):
        found[row, list(each)] = True
    found.flags.writeable = False
    return found


def subsets(sets: Int[np.ndarray, "n k"]) -> Int[np.ndarray, "n b o"]:
    """The subsets of each set, the groups first and then -1."""
    width = min(sets.shape[1], MOST_ORDER)
    held = has(sets.shape[1])
    order = np.argsort(~held, axis=1, kind="stable")[:, :width]
    inside = np.take_along_axis(held, order, axis=1)
    return np.where(inside[None], sets[:, order], -1)


@lru_cache(maxsize=1024)
def step_effects(size: int, least: int, kept: float) -> Float[np.ndarray, " b"]:
    """Joint effects of every subset on an output of 1 where `least` of all groups are kept, else 0.

    Args:
        size: number of groups.
        least: how many of them it takes.
        kept: the probability of each, while it is averaged over.
    """
    held = has(size).sum(1)
    found = np.zeros(held.max() + 1)
    for inside in range(len(found)):
        cells = np.arange(inside + 1)
        others = binom.sf(least - 1 - cells, size - inside, kept)
        found[inside] = ((-1.0) ** (inside - cells) * comb(inside, cells) * others).sum()
    return found[held]


class ShapeFit(NamedTuple):
    """The step that sets of one size are most like."""

    least: Int[np.ndarray, " n"]
    """How many groups it takes."""
    share: Float[np.ndarray, " n"]
    """Of the variance of the set's joint action (without its main effects) that the step has."""
    variance: Float[np.ndarray, " n"]
    """Of the output, by the step's joint action, in its squared unit."""


def fit_shapes(
    effects: Float[np.ndarray, "n b"],
    size: int,
    kept: Float[np.ndarray, " l"],
    share: Float[np.ndarray, " l"],
) -> ShapeFit:
    """Fit a step to the joint effects of the subsets of each set.

    Each subset counts by the variance that its joint effect gives to the output, product of
    p (1 - p) over its groups, which is also one over the variance of its estimate.

    Args:
        effects: of the subsets of each set, as `subsets` has them.
        size: groups of each set.
        kept: the probability that a group is kept, in each part of a mixture.
        share: of each part.
    """
    own = np.maximum((subset_weights(size, kept, share) * effects**2).sum(1), 1e-30)
    along = np.square(along_steps(effects, size, kept, share))
    best = along.argmax(1)
    variance = along[np.arange(len(along)), best]
    return ShapeFit(best + 1, variance / own, variance)


def along_steps(
    effects: Float[np.ndarray, "n b"],
    size: int,
    kept: Float[np.ndarray, " l"],
    share: Float[np.ndarray, " l"],
) -> Float[np.ndarray, "n k"]:
    """How far the joint action goes along each step, as a root of variance; negative: against it.

    Arguments as of `fit_shapes`; column r is the step at r + 1 groups.
    """
    weight = subset_weights(size, kept, share)
    steps = np.stack([mixed_step(size, least, kept, share) for least in range(1, size + 1)])
    return effects @ (weight * steps).T / np.sqrt((weight * steps**2).sum(1))


def mixed_step(
    size: int, least: int, kept: Float[np.ndarray, " l"], share: Float[np.ndarray, " l"]
) -> Float[np.ndarray, " b"]:
    """`step_effects`, averaged over a mixture."""
    return share @ np.stack([step_effects(size, least, float(each)) for each in kept])


def subset_weights(
    size: int, kept: Float[np.ndarray, " l"], share: Float[np.ndarray, " l"]
) -> Float[np.ndarray, " b"]:
    """Of every subset as `set_weight` has it; 0 of those that are no joint action."""
    order = has(size).sum(1)
    return np.where(order >= 2, set_weight(order, kept, share), 0)


def set_weight(
    order: int | Int[np.ndarray, " b"],
    kept: Float[np.ndarray, " l"],
    share: Float[np.ndarray, " l"],
) -> Float[np.ndarray, "*b"]:
    """The variance of the output that a joint effect of 1 on so many groups gives."""
    return share @ (kept * (1 - kept))[:, None] ** np.atleast_1d(order)[None]
