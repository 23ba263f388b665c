"""Groups that support one another and nothing that is known to be clean, as a trigger does it.

Poisoned examples that share a trigger raise each other's outputs, as nothing else teaches it. So do
clean examples that are alike, and of those there are more. Khaddaj et al. (2023, "Rethinking
Backdoor Attacks") search for the set whose members support one another most, which finds a trigger
where it is the strongest feature of the data. Here what a set does for *clean targets* is taken
off: what clean examples have in common, some clean targets have too, in proportion, and are
supported as much; a trigger none has. With W the datamodel weights of n groups on each other as
targets, C those on clean targets, and S a set of k groups,

    support   the sum of W_ij over i and j in S, i not j, over k
    clean     sum_i in S C_it, the mean over the (k / n)th part of clean targets t with most of it
    hidden    k (support - clean)

the last being what S does for its own members beyond what it does for as many clean targets. Sets
are of one class: that of a trigger's target.

What such a search finds by chance is seen where groups are given the rows of W and C of others of
their class: rows and columns are as they were, and who supports whom is not. The large weights of
a trigger make much by chance, too, so what counts is the median over all classes, and their spread.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.stats import norm

LEAST_SIZE = 4
GROWTH = 1.3
"""Of the sizes of sets, from one to the next."""
MOST_SHARE = 0.1
"""Of all groups, in a set."""
STARTS = 512
"""Groups of a class from which a set is grown."""
STEPS = 30
"""Exchanges of members after which a set that still changes is left."""
KEPT = 8
"""Sets of one size and class that are looked at further."""
MOST_SETS = 10
EXCHANGES = 3
"""Of rows, in each class."""
SPREADS = 4.0
"""Robust standard deviations above their median that the best set of an exchange hardly is."""
WEAK = 0.5
"""Members with less than this share of the mean member's support are left out."""


class HiddenSet(NamedTuple):
    """A set whose members support one another, in units of weights."""

    groups: tuple[int, ...]
    support: float
    """Of a member by the others, added up; the mean over members."""
    clean: float
    """The same of as large a share of the clean targets: those with most of it."""

    @property
    def hidden(self) -> float:
        """What the set does for its members beyond what it does for clean targets, added up."""
        return len(self.groups) * (self.support - self.clean)


class Hidden(NamedTuple):
    """What the weights on each other show of all groups."""

    score: Float[np.ndarray, " g"]
    """The most hidden support of a set with the group in it, less where the group is supported
    less than the others in it."""
    sets: tuple[HiddenSet, ...]
    """Those beyond chance, the most hidden first; of sets with most groups in common one."""
    chance: float
    """Hidden support that sets hardly have by chance."""


class _Grown(NamedTuple):
    """Sets of one size that were grown in one class."""

    members: Bool[Array, "k c"]
    """Of those with the most hidden support."""
    score: Float[Array, " c"]
    """Over all sets."""


def hidden_support(
    own: Float[np.ndarray, "g g"],
    clean: Float[np.ndarray, "g t"],
    classes: Int[np.ndarray, " g"],
    *,
    seed: int = 0,
) -> Hidden:
    """Search every class for sets that support one another and no clean targets.

    A set is grown from each of many groups: from those that it supports most, and then again and
    again from those that the set supports most, until it stays the same.

    Args:
        own: datamodel weight of keeping each group (row) on each group as a target (column), in
            output units; the diagonal is not read.
        clean: weights on clean targets.
        classes: the label of each group; those of few groups are not searched.
        seed: of the exchange of rows that chance is taken from.
    """
    groups, rng = len(own), np.random.default_rng(seed)
    members = [np.flatnonzero(classes == label) for label in np.unique(classes)]
    members = [each for each in members if len(each) >= 2 * LEAST_SIZE]
    widest = max((len(each) for each in members), default=0)
    score, by_chance, found = np.zeros(groups), [], []
    for each in members:
        within, targets = np.array(own[np.ix_(each, each)], np.float32), clean[each]
        np.fill_diagonal(within, 0)
        scores, sets = _searched(within, targets, widest, groups)
        score[each] = scores
        found += [one._replace(groups=tuple(each[list(one.groups)].tolist())) for one in sets]
        for _ in range(EXCHANGES):
            order = rng.permutation(len(each))
            _, mixed = _searched(within[order], targets[order], widest, groups)
            by_chance.append(max((one.hidden for one in mixed), default=0.0))
    chance = 0.0
    if by_chance:
        spread = np.median(np.abs(by_chance - np.median(by_chance))) / norm.ppf(0.75)
        chance = float(np.median(by_chance) + SPREADS * spread)
    return Hidden(score, _different([one for one in found if one.hidden > chance]), chance)


def _searched(
    own: Float[np.ndarray, "c c"], clean: Float[np.ndarray, "c t"], widest: int, groups: int
) -> tuple[Float[np.ndarray, " c"], list[HiddenSet]]:
    """The score of every group of a class, and its sets of all sizes."""
    support, score, sets = (own + own.T) / 2, np.zeros(len(own)), []
    np.fill_diagonal(support, 0)
    for grown in _sizes(support, clean, widest, groups):
        score = np.maximum(score, np.asarray(grown.score)[: len(own)])
        for one in np.asarray(grown.members):
            trimmed = _trimmed(support, clean, np.flatnonzero(one), groups)
            sets += [] if trimmed is None else [trimmed]
    return score, sets


def _sizes(
    support: Float[np.ndarray, "c c"],
    clean: Float[np.ndarray, "c t"],
    widest: int,
    groups: int,
) -> Iterator[_Grown]:
    """Grow sets of every size. Classes are padded to one width, so that one program serves all."""
    count = len(support)
    pad = widest - count
    padded = jnp.asarray(np.pad(support, ((0, pad), (0, pad))))
    targets = jnp.asarray(np.pad(clean, ((0, pad), (0, 0))))
    there = jnp.arange(widest) < count
    # Those whose closest groups support them most; of a small class all, some of them again.
    near = np.sort(support, axis=0)[-LEAST_SIZE:].sum(0)
    starts = np.resize(np.argsort(-near, kind="stable")[:STARTS], min(STARTS, widest))
    most = max(LEAST_SIZE, round(MOST_SHARE * groups))
    for size in _ladder(min(count // 2, most)):
        share = max(1, round(size * clean.shape[1] / groups))
        yield _grow(padded, targets, there, jnp.asarray(starts), size, share, min(most, widest))


def _ladder(most: int) -> list[int]:
    """Sizes from the least to the most."""
    sizes = [LEAST_SIZE]
    while sizes[-1] < most:
        sizes.append(min(round(GROWTH * sizes[-1]), most))
    return sizes


@partial(jax.jit, static_argnames="most")
def _grow(
    support: Float[Array, "c c"],
    clean: Float[Array, "c t"],
    there: Bool[Array, " c"],
    starts: Int[Array, " s"],
    size: Int[Array, ""] | int,
    share: Int[Array, ""] | int,
    most: int,
) -> _Grown:
    def largest(values: Float[Array, "c s"]) -> Bool[Array, "c s"]:
        _, first = jax.lax.top_k(jnp.where(there[None], values.T, -jnp.inf), most)
        taken = jnp.broadcast_to(jnp.arange(most)[None] < size, first.shape)
        column = jnp.broadcast_to(jnp.arange(len(first))[:, None], first.shape)
        return jnp.zeros(values.shape, bool).at[first, column].set(taken)

    def step(
        state: tuple[Bool[Array, "c s"], Bool[Array, ""], Int[Array, ""]],
    ) -> tuple[Bool[Array, "c s"], Bool[Array, ""], Int[Array, ""]]:
        members, _, count = state
        again = largest(support @ members.astype(jnp.float32))
        return again, (again != members).any(), count + 1

    first = largest(support[:, starts])
    members, *_ = jax.lax.while_loop(
        lambda state: state[1] & (state[2] < STEPS),
        step,
        (first, jnp.array(True), jnp.array(0)),
    )
    one = members.astype(jnp.float32)
    received = support @ one
    total = (received * one).sum(0)
    given = jnp.sort(one.T @ clean, axis=1)[:, ::-1]
    counted = jnp.arange(clean.shape[1])[None] < share
    hidden = total - size * jnp.where(counted, given, 0).sum(1) / share
    mean = jnp.maximum(total / size, 1e-9)
    part = jnp.clip(received / mean[None], 0, 1) * one
    part = jnp.where(part >= WEAK, part, 0)
    score = (part * jnp.maximum(hidden, 0)[None]).max(1)
    best = jnp.argsort(-hidden)[:KEPT]
    return _Grown(members[:, best].T, score)


def _trimmed(
    support: Float[np.ndarray, "c c"],
    clean: Float[np.ndarray, "c t"],
    members: Int[np.ndarray, " k"],
    groups: int,
) -> HiddenSet | None:
    """A set of a class without its weak members; None if too few are left."""
    received = support[np.ix_(members, members)].sum(1)
    members = members[received >= WEAK * received.mean()]
    if len(members) < LEAST_SIZE:
        return None
    share = max(1, round(len(members) * clean.shape[1] / groups))
    given = np.sort(clean[members].sum(0))[::-1][:share].mean()
    mean = support[np.ix_(members, members)].sum() / len(members)
    return HiddenSet(tuple(members.tolist()), float(mean), float(given))


def _different(sets: list[HiddenSet]) -> tuple[HiddenSet, ...]:
    """The most hidden first; none that shares half of its groups, or of theirs, with one before."""
    chosen: list[HiddenSet] = []
    for one in sorted(sets, key=lambda one: (-one.hidden, one.groups)):
        smaller = [min(len(one.groups), len(other.groups)) for other in chosen]
        common = [len(set(one.groups) & set(other.groups)) for other in chosen]
        if all(2 * both <= fewer for both, fewer in zip(common, smaller, strict=True)):
            chosen.append(one)
    return tuple(chosen[:MOST_SETS])
