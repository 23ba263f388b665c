"""Sets of groups that a fitted posterior says act jointly: what is worth an estimate of its own.

All pairs are screened by one matrix product a kernel. From a pair that stands out, a set grows by
the group that adds most, for as long as one step ("any one is enough", "all are needed", "some
are") is what nearly all of its joint action is like; such a set is one candidate, and not its
subsets. Sets of three whose pairs do nothing are searched among the groups that matter most.
"""

from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from datamodels.closed_form import (
    Average,
    Contexts,
    joint_effects,
    pair_effects,
    subset_effects,
)
from datamodels.shapes import ShapeFit, fit_shapes, set_weight

LARGEST_SET = 16
"""Groups of a candidate."""
MOST_PAIRS = 100
"""From which sets grow."""
NEIGHBOURS = 4
"""Groups that each set may grow by, those with the strongest pairs."""
COHERENT = 0.8
"""Share of the joint action of three groups or more that one step must be like."""
MATTER_MOST = 16
"""Groups of which all triples are looked at."""
EXPECTED_Z = 2.0
"""How many standard errors a candidate's joint action should be."""


class Candidate(NamedTuple):
    """A set that is expected to stand out, and the step that it is most like."""

    groups: tuple[int, ...]
    least: int
    """How many of the groups the step takes."""


def find_candidates(average: Average, error: float) -> list[Candidate]:
    """The sets that are expected to stand out.

    Args:
        average: a posterior, averaged as the rows are on which candidates are to be estimated.
        error: standard deviation that an estimate from those rows has of the joint action's root
            mean square: of what the posterior leaves of an output, over the root of their number.
    """
    reach = EXPECTED_Z * error
    strength = np.abs(pair_effects(average)) * np.sqrt(_weight(average.contexts, 2))
    seeds = _strongest_pairs(strength, reach) + _pure_triples(average, strength, reach)
    found: list[Candidate] = []
    for seed in seeds:
        if not any(set(seed) < set(larger.groups) for larger in found):
            found.append(_grown(average, seed, strength, reach))
    return [each for each in dict.fromkeys(found) if not _is_part_of_another(each, found)]


def _is_part_of_another(candidate: Candidate, found: list[Candidate]) -> bool:
    return any(set(candidate.groups) < set(other.groups) for other in found)


def _grown(
    average: Average,
    seed: tuple[int, ...],
    strength: Float[np.ndarray, "g g"],
    reach: float,
) -> Candidate:
    """The largest set that the seed grows to."""
    groups, least = seed, int(_fits(average, np.array([seed])).least[0])
    while len(groups) < LARGEST_SET:
        sets = np.array(_larger(groups, strength), int).reshape(-1, len(groups) + 1)
        fits = _fits(average, sets)
        good = np.flatnonzero((fits.share >= COHERENT) & (fits.variance > reach**2))
        if not len(good):
            break
        best = good[fits.variance[good].argmax()]
        groups, least = tuple(sets[best].tolist()), int(fits.least[best])
    return Candidate(groups, least)


def _strongest_pairs(strength: Float[np.ndarray, "g g"], reach: float) -> list[tuple[int, ...]]:
    first, second = np.nonzero(np.triu(strength, 1) > reach)
    order = np.argsort(-strength[first, second])[:MOST_PAIRS]
    return list(zip(first[order].tolist(), second[order].tolist(), strict=True))


def _pure_triples(
    average: Average, strength: Float[np.ndarray, "g g"], reach: float
) -> list[tuple[int, ...]]:
    """Of groups that are relevant to some part, those whose pairs do not stand out."""
    relevance = np.asarray(average.fitted.covariance.relevance).max(0)
    most = np.sort(np.argsort(-relevance)[:MATTER_MOST])
    triples = np.array(list(combinations(most, 3)), int).reshape(-1, 3)
    effects = np.abs(joint_effects(average, triples))
    first, second, third = triples.T
    silent = np.maximum.reduce(
        [strength[first, second], strength[first, third], strength[second, third]]
    )
    found = triples[(effects * np.sqrt(_weight(average.contexts, 3)) > reach) & (silent < reach)]
    return [tuple(each) for each in found.tolist()]


def _weight(contexts: Contexts, size: int) -> float:
    return float(set_weight(size, contexts.kept.mean(1), contexts.share)[0])


def _larger(groups: tuple[int, ...], strength: Float[np.ndarray, "g g"]) -> list[list[int]]:
    """With one group more, of those with the strongest pairs."""
    shared = np.square(strength[list(groups)]).sum(0)
    shared[list(groups)] = -1
    nearest = np.argsort(-shared)[:NEIGHBOURS]
    return [sorted([*groups, int(other)]) for other in nearest if shared[other] > 0]


def _fits(average: Average, sets: Int[np.ndarray, "n k"]) -> ShapeFit:
    contexts = average.contexts
    return fit_shapes(
        subset_effects(average, sets), sets.shape[1], contexts.kept.mean(1), contexts.share
    )
