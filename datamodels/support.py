"""Groups that support one another and nothing that is known to be clean, as a trigger does it.

Poisoned examples that share a trigger raise each other's outputs, as nothing else teaches it. So do
clean examples that are alike, and of those there are more. Khaddaj et al. (2023, "Rethinking
Backdoor Attacks") search for the set of examples that support one another most, which finds a
trigger where it is the strongest feature of the data. Here what a set does for *clean targets* is
taken off: what clean examples have in common, some clean targets have too, in proportion, and are
supported as much; a trigger none has. With W the datamodel weights of n groups on each other as
targets, C those on clean targets, and S a set of k groups,

    support   the sum of W_ij over i and j in S, i not j, over k
    clean     sum_i in S C_it, the mean over the (k / n)th part of clean targets t with most of it
    hidden    k (support - clean) (1 - clean / support)

the last being what S does for its own groups beyond what it does for as many clean targets, by the
share of its support that they do not explain. Sets are of one class: that of a trigger's target.

What such a search finds by chance is seen where groups are given the rows of W and C of others of
their class: rows and columns are as they were, and who supports whom is not. The large weights of
a trigger make much by chance, too, so what counts is the median over all classes, and their spread.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, UInt32
from scipy.stats import norm

LEAST_SIZE = 4
GROWTH = 1.3
"""Of the sizes of sets, from one to the next."""
MOST_SHARE = 0.1
"""Of all groups, in a set; which is also at most half of its class."""
STARTS = 512
"""Groups of a class from which sets are grown."""
WORK = 400_000
"""Starts times groups of the largest class: of larger ones there are fewer starts."""
STEPS = 12
"""Sets that a start leads to, one after the other, of which the best counts."""
KEPT = 12
"""Sets of one size and class that are looked at further."""
MOST_SETS = 10
EXCHANGES = 30
"""Of rows, over all classes."""
SPREADS = 4.0
"""Robust standard deviations above their median that the best set of an exchange hardly is."""
STEP = 2.5
"""Times the hidden support of all that follow, from which sets are outstanding."""
WEAK = 0.5
"""Groups with less than this share of the support of their set's mean group are left out."""


class HiddenSet(NamedTuple):
    """Groups that support one another, in units of weights."""

    groups: tuple[int, ...]
    """Those that the others support most come first."""
    support: float
    """Of a group by the others, added up; the mean over the groups."""
    clean: float
    """The same of as large a share of the clean targets: those with most of it."""

    @property
    def hidden(self) -> float:
        """What the set does for its groups and for no clean target, added up."""
        excess = self.support - self.clean
        share = 1 - max(self.clean, 0) / self.support if excess > 0 else 1
        return len(self.groups) * excess * share


class Hidden(NamedTuple):
    """What the weights on each other show of all groups."""

    score: Float[np.ndarray, " g"]
    """The hidden support of the outstanding set that the group is in, less where it is supported
    less than the others; 0 in none."""
    sets: tuple[HiddenSet, ...]
    """The most hidden first; of sets with most groups in common one."""
    chance: float
    """Hidden support that sets hardly have by chance."""

    @property
    def beyond_chance(self) -> tuple[HiddenSet, ...]:
        """The sets that have more than that."""
        return tuple(one for one in self.sets if one.hidden > self.chance)


def hidden_support(
    own: Float[np.ndarray, "g g"],
    clean: Float[np.ndarray, "g t"],
    classes: Int[np.ndarray, " g"],
    *,
    seed: int = 0,
) -> Hidden:
    """Search every class for sets that support one another and no clean targets.

    A set is grown from each of many groups: from those that it supports most, and then again and
    again from those that the set supports most beyond what they do for the clean targets that it
    and the sets before helped most. The best of these counts.

    Args:
        own: datamodel weight of keeping each group (row) on each group as a target (column), in
            output units, signed so that a high output is good; the diagonal is not read.
        clean: weights on clean targets.
        classes: the label of each group; those of fewer than 8 groups are not searched.
        seed: of the exchange of rows that chance is taken from.

    Raises:
        ValueError: arrays of other shapes, or without clean targets.
    """
    groups, rng = len(own), np.random.default_rng(seed)
    if own.shape != (groups, groups) or len(clean) != groups or classes.shape != (groups,):
        raise ValueError(
            f"own must be (g, g), clean (g, t) and classes (g,), got {own.shape}, {clean.shape} "
            f"and {classes.shape}"
        )
    if not clean.shape[1]:
        raise ValueError("clean has no targets, so nothing can be told from what they share")
    searched = [np.flatnonzero(classes == label) for label in np.unique(classes)]
    searched = [rows for rows in searched if len(rows) >= 2 * LEAST_SIZE]
    widest = max((len(rows) for rows in searched), default=0)
    by_chance, found = [], []
    for rows in searched:
        within, targets = np.array(own[np.ix_(rows, rows)], np.float32), clean[rows]
        np.fill_diagonal(within, 0)
        sets = _searched(within, targets, widest, groups)
        found += [one._replace(groups=tuple(rows[list(one.groups)].tolist())) for one in sets]
        for _ in range(math.ceil(EXCHANGES / len(searched))):
            order = rng.permutation(len(rows))
            mixed = _searched(within[order], targets[order], widest, groups)
            by_chance.append(max((one.hidden for one in mixed), default=0.0))
    chance = _hardly(by_chance) if by_chance else 0.0
    hidden = Hidden(np.zeros(groups), _different([one for one in found if one.hidden > 0]), chance)
    outstanding = _outstanding(hidden.beyond_chance, chance)
    return hidden._replace(score=_score(own, outstanding))


def _hardly(values: Sequence[float]) -> float:
    """What a further value of the same distribution hardly exceeds."""
    middle = np.median(values)
    spread = np.median(np.abs(np.asarray(values) - middle)) / norm.ppf(0.75)
    return float(middle + SPREADS * spread)


def _outstanding(named: Sequence[HiddenSet], chance: float) -> Sequence[HiddenSet]:
    """The sets before the largest step down to the next one, or to chance; none if it is small.

    Rare kinds of clean examples follow one another closely.
    """
    hidden = [*(one.hidden for one in named), max(chance, 1e-30)]
    steps = [more / fewer for more, fewer in pairwise(hidden)]
    if not steps or max(steps) < STEP:
        return ()
    return named[: int(np.argmax(steps)) + 1]


def _score(own: Float[np.ndarray, "g g"], sets: Sequence[HiddenSet]) -> Float[np.ndarray, " g"]:
    score = np.zeros(len(own))
    for one in sets:
        rows = np.array(one.groups)
        received = _support(own[np.ix_(rows, rows)]).sum(1)
        part = np.clip(received / received.mean(), 0, 1)
        score[rows] = np.maximum(score[rows], one.hidden * part)
    return score


def _support(own: Float[np.ndarray, "c c"]) -> Float[np.ndarray, "c c"]:
    """Of each by each other, the mean of both ways."""
    support = (own + own.T) / 2
    np.fill_diagonal(support, 0)
    return support


def _searched(
    own: Float[np.ndarray, "c c"], clean: Float[np.ndarray, "c t"], widest: int, groups: int
) -> list[HiddenSet]:
    """The sets of a class, of all sizes."""
    support, found = _support(own), []
    for sets, hidden in _sizes(support, clean, widest, groups):
        # Most starts end in the same sets.
        _, first = np.unique(np.packbits(sets, axis=1), axis=0, return_index=True)
        for at in first[np.argsort(-hidden[first], kind="stable")][:KEPT]:
            trimmed = _trimmed(support, clean, np.flatnonzero(sets[at]), groups)
            found += [] if trimmed is None else [trimmed]
    return found


def _sizes(
    support: Float[np.ndarray, "c c"],
    clean: Float[np.ndarray, "c t"],
    widest: int,
    groups: int,
) -> Iterator[tuple[Bool[np.ndarray, "s c"], Float[np.ndarray, " s"]]]:
    """Grow sets of every size. Classes are padded to one width, so that one program serves all.

    Returns:
        Of each size the sets that were grown from each start, and their hidden support.
    """
    count = len(support)
    pad = widest - count
    padded = jnp.asarray(np.pad(support, ((0, pad), (0, pad))))
    targets = jnp.asarray(np.pad(clean, ((0, pad), (0, 0))), jnp.float32)
    there = jnp.arange(widest) < count
    # Those whose closest groups support them most; of a small class all, some of them again.
    near = np.sort(support, axis=0)[-LEAST_SIZE:].sum(0)
    starts = np.resize(
        np.argsort(-near, kind="stable"), min(STARTS, widest, math.ceil(WORK / widest))
    )
    most = max(LEAST_SIZE, round(MOST_SHARE * groups))
    for size in _ladder(min(count // 2, most)):
        counted = _counted(size, clean.shape[1], groups)
        sets, hidden = _grow(padded, targets, there, jnp.asarray(starts), size, counted)
        yield np.asarray(sets)[:, :count], np.asarray(hidden)


def _counted(size: int, targets: int, groups: int) -> int:
    """Of the clean targets, as large a share as a set is of all groups; one at least."""
    return max(1, round(size * targets / groups))


def _ladder(most: int) -> list[int]:
    """Sizes from the least to the most."""
    sizes = [LEAST_SIZE]
    while sizes[-1] < most:
        sizes.append(min(round(GROWTH * sizes[-1]), most))
    return sizes


class _Growth(NamedTuple):
    """Sets in the making, and the best of each so far."""

    sets: Bool[Array, "s c"]
    against: Float[Array, "s c"]
    """What each group adds to the clean targets that were helped most: the mean over the steps."""
    best: Bool[Array, "s c"]
    hidden: Float[Array, " s"]
    """Hidden support of the best."""


@jax.jit
def _grow(
    support: Float[Array, "c c"],
    clean: Float[Array, "c t"],
    there: Bool[Array, " c"],
    starts: Int[Array, " s"],
    size: Int[Array, ""] | int,
    counted: Int[Array, ""] | int,
) -> tuple[Bool[Array, "s c"], Float[Array, " s"]]:
    """A game of sets against clean targets, in which sets answer the mean of what the targets chose
    before, as in fictitious play (Brown 1951): answers to the last choice go back and forth."""

    def grown(values: Float[Array, "s c"]) -> Bool[Array, "s c"]:
        return largest(jnp.where(there[None], values, -jnp.inf), size)

    def step(number: Int[Array, ""], state: _Growth) -> _Growth:
        one = state.sets.astype(jnp.float32)
        given, within = one @ clean, one @ support
        helped = largest(given, counted)
        mean = (within * one).sum(1) / size
        taken = jnp.where(helped, given, 0).sum(1) / counted
        excess = mean - taken
        alone = jnp.where(excess > 0, 1 - jnp.maximum(taken, 0) / jnp.maximum(mean, 1e-30), 1)
        hidden = size * excess * alone
        better = hidden > state.hidden
        now = helped.astype(jnp.float32) @ clean.T / counted
        against = state.against + (now - state.against) / (number + 1).astype(jnp.float32)
        return _Growth(
            # Half of what each group adds to size (support - clean).
            grown(within - size / 2 * against),
            against,
            jnp.where(better[:, None], state.sets, state.best),
            jnp.where(better, hidden, state.hidden),
        )

    first = grown(support[starts])
    start = _Growth(first, jnp.zeros(first.shape), first, jnp.full(len(first), -jnp.inf))
    end = jax.lax.fori_loop(0, STEPS, step, start)
    return end.best, end.hidden


def largest(values: Float32[Array, "s c"], count: Int[Array, ""] | int) -> Bool[Array, "s c"]:
    """The largest of each row, as many as `count`, at most c; of equal ones the first.

    By bisection over the bits of the last of them: sorting the rows would take most of a search.
    """
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    # Whole numbers in the order of the floats.
    order = jnp.where(bits >= sign, ~bits, bits | sign)

    def decide(place: Int[Array, ""], last: UInt32[Array, " s"]) -> UInt32[Array, " s"]:
        raised = last | (sign >> place.astype(jnp.uint32))
        enough = (order >= raised[:, None]).sum(1) >= count
        return jnp.where(enough, raised, last)

    last = jax.lax.fori_loop(0, 32, decide, jnp.zeros(len(values), jnp.uint32))[:, None]
    above, equal = order > last, order == last
    return above | (equal & (jnp.cumsum(equal, 1) <= count - above.sum(1, keepdims=True)))


def _trimmed(
    support: Float[np.ndarray, "c c"],
    clean: Float[np.ndarray, "c t"],
    rows: Int[np.ndarray, " k"],
    groups: int,
) -> HiddenSet | None:
    """A set of a class without its weak groups; None if too few are left.

    What is left stands in the order of what it receives from what is left.
    """
    received = support[np.ix_(rows, rows)].sum(1)
    rows = rows[received >= WEAK * received.mean()]
    if len(rows) < LEAST_SIZE:
        return None
    rows = rows[np.argsort(-support[np.ix_(rows, rows)].sum(1), kind="stable")]
    counted = _counted(len(rows), clean.shape[1], groups)
    given = np.sort(clean[rows].sum(0))[::-1][:counted].mean()
    mean = support[np.ix_(rows, rows)].sum() / len(rows)
    return HiddenSet(tuple(rows.tolist()), float(mean), float(given))


def _different(sets: list[HiddenSet]) -> tuple[HiddenSet, ...]:
    """The most hidden first; none that shares half of its groups, or of theirs, with one before."""
    chosen: list[HiddenSet] = []
    for one in sorted(sets, key=lambda one: (-one.hidden, one.groups)):
        smaller = [min(len(one.groups), len(other.groups)) for other in chosen]
        common = [len(set(one.groups) & set(other.groups)) for other in chosen]
        if all(2 * both <= fewer for both, fewer in zip(common, smaller, strict=True)):
            chosen.append(one)
    return tuple(chosen[:MOST_SETS])
