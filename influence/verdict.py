"""The verdict on what is suspicious, by retraining without it and without as much that is random.

Examples: all suspects are left out together, so that none backs another, and the margin of each is
then that of models that saw neither it nor its like. Twice as often, random examples of the same
labels are left out. Where the suspects are as random ones, an example's margin has any place among
those of the random, with equal probability (a conformal p-value; Vovk, Gammerman & Shafer 2005);
over all suspects, false discoveries are held (Benjamini & Hochberg 1995). It is a mean over seeds,
which is hardly ever as low as the lowest of single models, which those of the random are: so the
test is careful. What is found so is contradicted more than examples that nobody suspects are. So
are hard clean ones, and suspects are the hardest: the test alone confirms nothing.

Sets that support one another: what their inputs have in common (`pattern`) is put on clean targets
of other classes. Its transfer is the share of them that models give the set's class, with more than
half of the probability, less the share that models give it which did not see the set. A trigger
transfers; what a rare kind of clean example has in common does not suffice for its class. Beside it
the same for random examples of the same labels: Student's test of the difference, with the same
training seeds, over all sets (Holm 1979).

Confirmed is what passes its test and rather looks planted than like what clean data has
(`calibration`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import false_discovery_control
from scipy.stats import t as student

from influence import calibration
from influence.counterfactual import (
    RANDOM_SETS,
    RANDOM_SUSPECTS,
    Interval,
    interval,
    random_like,
    share_positive,
)

LEVEL = 0.05
"""False discoveries among suspects (of what is contradicted more than random examples are), and
probability of any among sets, beside the random examples that were drawn for each."""
DRAWS = 2
"""Random removals for each seed: of fewer than 1 / LEVEL in all, one bad example alone could not be
told from the lowest of the random ones."""
BACKED = 1 / 3
"""Share of a set that is flagged from which all of it is suspect: of what is mislabelled in one way
some are backed by the others. Of natural kinds, whose rare examples any model without them
contradicts, fewer are flagged."""
EXCESS = 3.0
"""Times the flagged share of all examples that it must be as well. So must that of a cluster among
other labels, since some kinds of examples stand among those of another class."""
MOST_OF_LABEL = 0.5
"""Share of a label beyond which its suspects are not judged by themselves: models that saw none of
them hardly know the label, and contradict the right ones as well."""
LEAST_UNIT = 1.0
"""Logits that margins are measured in at the least: of a model that hardly knows the clean targets,
whose median margin may be 0 or below, a margin near 0 says nothing."""


class Candidates(NamedTuple):
    """What is retrained."""

    suspects: Bool[np.ndarray, " n"]
    """Training examples that are judged one by one (`suspects_of`)."""
    sets: tuple[Int[np.ndarray, " _"], ...]
    """Training examples that support one another, as rows."""
    random: tuple[Int[np.ndarray, " _"], ...]
    """For each set as many random examples of the same labels."""
    sameness: tuple[float, ...]
    """How equal what each set has in common is in all of its examples (`pattern`)."""
    disputed: tuple[float, ...]
    """Share of the examples of each set that models of the bank which did not see them contradict:
    so they do those of a trigger with wrong labels, although they saw half of the others."""


class ExampleVerdicts(NamedTuple):
    """Of every training example; NaN where it is no suspect."""

    margin: Float[np.ndarray, " n"]
    """Its mean margin, in logits, in models trained without any suspect."""
    q: Float[np.ndarray, " n"]
    """The smallest false discovery rate at which it is lower than that of random examples."""
    probability: Float[np.ndarray, " n"]
    """That it is planted, by its margin."""
    confirmed: Bool[np.ndarray, " n"]


class SetVerdict(NamedTuple):
    """Of a set."""

    rows: Int[np.ndarray, " k"]
    given: tuple[float, float]
    """Share of clean targets of other classes that are given the set's class, with more than half
    of the probability (a margin above 0), once its pattern is put on them: by models that saw the
    set, and by models that did not."""
    transfer: Interval
    """The difference, over seeds."""
    random_transfer: Interval
    """The same of random examples of the same labels."""
    sameness: float
    """How equal the pattern is in all of its examples, from 0 to 1."""
    disputed: float
    """Share of its examples that models of the bank which did not see them contradict."""
    p: float
    """Of a transfer no larger than that of random examples, over all sets (Holm)."""
    probability: float
    """That it is planted, by its transfer, its sameness and how much of it is disputed."""
    loss: Float[np.ndarray, " k"]
    """How much the margin of each of its examples is lower in models that did not see the set."""

    @property
    def confirmed(self) -> bool:
        """Whether it passes the test, and rather looks planted."""
        return self.p <= LEVEL and self.probability >= calibration.EVEN


class Verdicts(NamedTuple):
    """What the retrains show."""

    examples: ExampleVerdicts
    sets: tuple[SetVerdict, ...]
    """In the order of the candidates."""
    unit: float
    """The clean targets' median margin, in logits, which probabilities of examples go by; at least
    `LEAST_UNIT`."""

    @property
    def probability(self) -> Float[np.ndarray, " n"]:
        """That each is planted, by itself or with its set; NaN where neither was judged."""
        found = self.examples.probability.copy()
        for one in self.sets:
            found[one.rows] = np.fmax(found[one.rows], one.probability)
        return found

    @property
    def support(self) -> Float[np.ndarray, " n"]:
        """What its set does for each example of a confirmed one, in logits; NaN for all others."""
        found = np.full(len(self.examples.margin), np.nan)
        for one in self.sets:
            if one.confirmed:
                found[one.rows] = np.fmax(found[one.rows], one.loss)
        return found

    @property
    def confirmed(self) -> Bool[np.ndarray, " n"]:
        """Examples that are, by themselves or in a set."""
        found = self.examples.confirmed.copy()
        for one in self.sets:
            found[one.rows] |= one.confirmed
        return found


class Cells(NamedTuple):
    """Examples that are kept, cell by cell; each is retrained with the same seeds."""

    everything: Bool[np.ndarray, "s n"]
    without_suspects: Bool[np.ndarray, "s n"]
    without_random: tuple[Bool[np.ndarray, "s n"], ...]
    without_set: tuple[Bool[np.ndarray, "s n"], ...]
    without_random_set: tuple[Bool[np.ndarray, "s n"], ...]

    def all(self) -> list[Bool[np.ndarray, "s n"]]:
        """In the order in which they are retrained."""
        first = [self.everything, self.without_suspects, *self.without_random]
        return [*first, *self.without_set, *self.without_random_set]


def suspects_of(
    flagged: Bool[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    sets: Sequence[Int[np.ndarray, " _"]],
    strangers: Sequence[Int[np.ndarray, " _"]] = (),
) -> Bool[np.ndarray, " n"]:
    """The flagged, sets of which many are, and clusters among other labels of which some are.

    None of a label of which they are more than `MOST_OF_LABEL`.
    """
    suspects, least = flagged.copy(), EXCESS * flagged.mean()
    for rows in sets:
        suspects[rows] |= flagged[rows].mean() >= max(BACKED, least)
    for rows in strangers:
        suspects[rows] |= flagged[rows].mean() >= least
    share = np.bincount(labels, suspects) / np.maximum(np.bincount(labels), 1)
    return suspects & (share[labels] <= MOST_OF_LABEL)


def random_sets(
    labels: Int[np.ndarray, " n"], sets: Sequence[Int[np.ndarray, " _"]], seed: int
) -> list[Int[np.ndarray, " _"]]:
    """For each set as many random examples of the same labels."""
    drawn = [
        random_like(labels, _mask(rows, len(labels)), 1, (seed, RANDOM_SETS, number))
        for number, rows in enumerate(sets)
    ]
    return [np.flatnonzero(found[0]) for found in drawn]


def cells_of(labels: Int[np.ndarray, " n"], candidates: Candidates, seeds: int, seed: int) -> Cells:
    """What is retrained, with so many seeds a cell; `seed` decides random examples."""
    count = len(labels)

    def without(removed: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, "s n"]:
        return np.tile(~removed, (seeds, 1))

    random = ~random_like(labels, candidates.suspects, DRAWS * seeds, (seed, RANDOM_SUSPECTS))
    return Cells(
        np.ones((seeds, count), bool),
        without(candidates.suspects),
        tuple(np.split(random, DRAWS)),
        tuple(without(_mask(rows, count)) for rows in candidates.sets),
        tuple(without(_mask(rows, count)) for rows in candidates.random),
    )


def _mask(rows: Int[np.ndarray, " k"], count: int) -> Bool[np.ndarray, " n"]:
    return np.isin(np.arange(count), rows)


class Margins(NamedTuple):
    """Of every member, cell by cell, in logits; NaN for members that are not finite, of which every
    cell has two others."""

    train: Float[np.ndarray, "m n"]
    clean: Float[np.ndarray, "m t"]
    with_pattern: tuple[Float[np.ndarray, "m _"], ...]
    """Of clean targets of other classes with the pattern of each set, for the set's class."""
    with_random_pattern: tuple[Float[np.ndarray, "m _"], ...]
    """The same with those of the random examples."""


def judge(candidates: Candidates, cells: Cells, margins: Margins) -> Verdicts:
    """What the retrains show."""
    count, first = len(cells.all()), 2 + DRAWS
    train = np.split(margins.train, count)
    # Of models that lack as many examples as those by which suspects are judged.
    _, _, random, *_ = np.split(margins.clean, count)
    unit = max(float(np.nanmedian(random)), LEAST_UNIT)
    sets = [
        _judge_set(
            rows,
            candidates.sameness[at],
            candidates.disputed[at],
            train[0][:, rows] - train[first + at][:, rows],
            _given(margins.with_pattern[at], count, first + at),
            _given(margins.with_random_pattern[at], count, first + len(candidates.sets) + at),
            max(margins.with_pattern[at].shape[1], 1),
        )
        for at, rows in enumerate(candidates.sets)
    ]
    controls = [
        margin[~kept] for margin, kept in zip(train[2:first], cells.without_random, strict=True)
    ]
    examples = _judge_examples(candidates.suspects, train[1], np.concatenate(controls), unit)
    return Verdicts(examples, _over_all(sets), unit)


def _judge_examples(
    suspects: Bool[np.ndarray, " n"],
    without: Float[np.ndarray, "s n"],
    controls: Float[np.ndarray, " c"],
    unit: float,
) -> ExampleVerdicts:
    margin, q = np.full((2, len(suspects)), np.nan)
    margin[suspects] = np.nanmean(without[:, suspects], 0)
    q[suspects] = false_discovery_control(
        conformal_p_values(margin[suspects], controls[np.isfinite(controls)])
    )
    probability = calibration.of_example(margin / unit)
    confirmed = (q <= LEVEL) & (probability >= calibration.EVEN)
    return ExampleVerdicts(margin, q, probability, confirmed)


def conformal_p_values(
    values: Float[np.ndarray, " k"], controls: Float[np.ndarray, " c"]
) -> Float[np.ndarray, " k"]:
    """Of each value being as the controls are, against its being lower.

    Valid where it would be exchangeable with them: P(p <= x) <= x.
    """
    lower = np.searchsorted(np.sort(controls), values, side="right")
    return (1 + lower) / (1 + len(controls))


def _given(margins: Float[np.ndarray, "m t"], cells: int, without: int) -> Float[np.ndarray, "2 s"]:
    """The share of inputs given the class, by models that saw what is left out in a cell, and by
    those that did not; by seed."""
    parts = np.split(margins, cells)
    return np.stack([share_positive(parts[0]), share_positive(parts[without])])


def _judge_set(
    rows: Int[np.ndarray, " k"],
    sameness: float,
    disputed: float,
    loss: Float[np.ndarray, "s k"],
    given: Float[np.ndarray, "2 s"],
    random: Float[np.ndarray, "2 s"],
    inputs: int,
) -> SetVerdict:
    transfer, random_transfer = given[0] - given[1], random[0] - random[1]
    saw, did_not = np.nanmean(given, 1).tolist()
    return SetVerdict(
        rows,
        (saw, did_not),
        interval(transfer),
        interval(random_transfer),
        sameness,
        disputed,
        _p_value(transfer - random_transfer, 1 / inputs),
        calibration.of_set(float(np.nanmean(transfer)), sameness, disputed),
        np.nanmean(loss, 0),
    )


def _p_value(differences: Float[np.ndarray, " s"], resolution: float) -> float:
    """Of a mean that is not above 0, by Student's test; members left out are NaN.

    That several seeds give the same share of few inputs is no certainty: deviations are at least
    the step by which shares differ.
    """
    known = differences[np.isfinite(differences)]
    if len(known) < 2:
        return 1.0
    error = max(float(known.std(ddof=1)), resolution) / np.sqrt(len(known))
    return float(student.sf(known.mean() / error, len(known) - 1))


def _over_all(sets: Sequence[SetVerdict]) -> tuple[SetVerdict, ...]:
    """With p-values over all: the smallest counts for all, the next for one fewer (Holm 1979)."""
    found, adjusted = list(sets), 0.0
    for place, at in enumerate(np.argsort([one.p for one in sets]).tolist()):
        adjusted = max(adjusted, min(1.0, (len(sets) - place) * sets[at].p))
        found[at] = sets[at]._replace(p=adjusted)
    return tuple(found)
