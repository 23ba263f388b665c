"""Terms: which sets of groups act together on a target, of what kind, and how sure that is."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import norm

from datamodels.candidates import Candidate, find_candidates
from datamodels.closed_form import Average, Contexts, response, subset_effects
from datamodels.crossfit import Estimate, Half, pooled
from datamodels.estimates import Effects
from datamodels.shapes import (
    MOST_ORDER,
    along_steps,
    has,
    mixed_step,
    subset_weights,
    subsets,
)

Kind = Literal["redundancy", "synergy", "threshold", "conflict"]
REVERSES = 0.5
"""An output turns around where its ends differ by less than this share of how far it moves."""
OPPOSES = 0.1
"""Groups push against each other where one's effect is more than this share of the opposite one,
and of how far the output moves."""


@dataclass(frozen=True)
class Term:
    """A set of groups that acts jointly on a target; effects in output units.

    Positive: keeping groups raises the output.
    """

    target: int
    groups: tuple[int, ...]
    kind: Kind
    least: int
    """How many of the groups must be kept for the output to turn."""
    joint_effect: float
    """The alternating sum of the output over the cells of the groups kept or dropped, all others
    averaged as the masks were drawn. Of more than `shapes.MOST_ORDER` groups, whose 2^k cells no
    bank shows: how much more all of them do together than each alone, added up (as it is for two
    groups), by the step which their smaller subsets show."""
    low: float
    high: float
    """95 % interval of the joint effect, over masks and seeds."""
    group_effect: float
    """All of them kept less all dropped, as the datamodel predicts."""
    response: tuple[float, ...]
    """Mean output with none, one, ... all of them kept, as the datamodel predicts."""
    p_value: float
    """That some group of the set takes no part in any joint action with the others."""
    q_value: float
    """The smallest false discovery rate at which the term is found, among those of one call."""
    halves: int
    """In how many halves of the masks the set was found, each time tested on the other half."""

    @property
    def order(self) -> int:
        """How many groups."""
        return len(self.groups)


class Assessed(NamedTuple):
    """A candidate of one half or of both, on the rows that did not propose it."""

    groups: tuple[int, ...]
    joint: Estimate
    """Of its joint effect."""
    p_value: float
    halves: int


def assess(halves: tuple[Half, Half]) -> list[Assessed]:
    """Candidates of each half's posterior, tested on the half's rows, which it has not seen."""
    found: dict[tuple[int, ...], list[tuple[Estimate, float, int]]] = {}
    for half in halves:
        for candidate in proposed(half):
            joint, p_value = _test(half, candidate)
            found.setdefault(candidate.groups, []).append((joint, p_value, len(half.masks)))
    return [
        Assessed(
            groups,
            pooled([each[0] for each in parts], [each[2] for each in parts]),
            # Either half may have found it: the smaller of two p-values, of two.
            min(1.0, 2 * min(each[1] for each in parts)),
            len(parts),
        )
        for groups, parts in found.items()
    ]


def proposed(half: Half) -> list[Candidate]:
    """The sets that the other rows' posterior proposes to the half."""
    error = half.error / half.unit / np.sqrt(len(half.masks))
    return [
        candidate._replace(groups=tuple(half.groups[list(candidate.groups)].tolist()))
        for candidate in find_candidates(half.average, error)
    ]


def _test(half: Half, candidate: Candidate) -> tuple[Estimate, float]:
    """The joint effect, and how unlikely it is if some group took no part.

    For every group, the joint action that it takes part in is measured along the candidate's step,
    and all of them have to show.
    """
    size = len(candidate.groups)
    kept, share = half.average.contexts.kept.mean(1), half.average.contexts.share
    step = mixed_step(size, candidate.least, kept, share)
    weight = subset_weights(size, kept, share) * step
    held = has(size)
    with_group = held.T * weight
    with_group /= (with_group @ step)[:, None]
    if size <= MOST_ORDER:
        whole = np.asarray(held.all(1), np.float64)
    else:
        whole = weight * (_beyond_sum(size, candidate.least) / float(np.dot(weight, step)))
    estimate = half.estimate(
        subsets(np.array([candidate.groups]))[0], np.concatenate([whole[None], with_group])
    )
    z = Effects(estimate.value[1:, None], estimate.standard_error[1:, None]).z()
    joint = Estimate(estimate.value[:1], estimate.standard_error[:1])
    return joint, float(2 * norm.sf(np.abs(z).min()))


def _beyond_sum(size: int, least: int) -> float:
    """All together less each alone, on an output of 1 where `least` of them are kept, else 0."""
    return 1.0 - size if least == 1 else 1.0


def without_overlaps(found: list[Assessed]) -> list[Assessed]:
    """Surest first; without those that mostly are a surer one, or a part of it."""
    kept: list[Assessed] = []
    for each in sorted(found, key=lambda each: (each.p_value, each.groups)):
        own = set(each.groups)
        if not any(
            own < set(surer.groups) or mostly_same(each.groups, surer.groups) for surer in kept
        ):
            kept.append(each)
    return kept


def mostly_same(one: Iterable[Hashable], other: Iterable[Hashable]) -> bool:
    """Whether two sets share more than half of what they have together."""
    first, second = set(one), set(other)
    return 2 * len(first & second) > len(first | second)


class Described(NamedTuple):
    """What a posterior says of a set."""

    kind: Kind
    least: int
    """How many of the groups must be kept for the output to turn."""
    response: tuple[float, ...]


def describe(average: Average, groups: tuple[int, ...]) -> Described:
    """Kind and response of a set, in the posterior's unit."""
    outputs = response(average, groups)
    change = outputs[-1] - outputs[0]
    effects = subset_effects(average, np.array([groups]))[0]
    least = _turns_at(effects, len(groups), change, average.contexts)
    single = effects[1 : len(groups) + 1]
    moves = float(np.ptp(outputs))
    if abs(change) < REVERSES * moves or _oppose(single, moves):
        kind: Kind = "conflict"
    elif least == 1:
        kind = "redundancy"
    else:
        kind = "synergy" if least == len(groups) else "threshold"
    return Described(kind, least, tuple(outputs.tolist()))


def _turns_at(
    effects: Float[np.ndarray, " b"], size: int, change: float, contexts: Contexts
) -> int:
    """How many of the groups the step takes that their joint action is most like.

    Of steps that go where the output goes: of two groups, both steps are equally like it but for
    their sign.
    """
    along = along_steps(effects[None], size, contexts.kept.mean(1), contexts.share)[0]
    return int(np.argmax(along * np.sign(change))) + 1


def _oppose(single: Float[np.ndarray, " k"], moves: float) -> bool:
    up, down = max(single.max(), 0), max(-single.min(), 0)
    return bool(min(up, down) > OPPOSES * max(up, down, moves))
