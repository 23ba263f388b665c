"""Joint effects of a Gaussian process's posterior mean, in closed form.

The joint effect of a set S of groups is the alternating sum of the output over the 2^|S| cells of
S kept or dropped, all others averaged: each group kept with its own probability. On a product
kernel prod_i k_i(z_i, z'_i) that is a product as well: of the difference of k_i between kept and
dropped for groups in S, and of its mean for all others. A joint part of the covariance is a mean
of product kernels over x (`datamodels.covariance`), taken here by the midpoint rule, whose error
falls exponentially once x = sinh u makes the integrand vanish quickly (Trefethen & Weideman 2014,
section 14). So every joint effect, of any order and at any probabilities, is a short sum of sums
over the rows of the fit.
"""

from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.special import comb

from datamodels.covariance import Covariance
from datamodels.shapes import MOST_ORDER, has

NODES = 14
"""Error of 1 / sqrt(1 + 2 D) below 1e-5 up to D = 32."""
END = 2.4
"""Of u, where the integrand has vanished."""
_U = (np.arange(NODES) + 0.5) * END / NODES
X = np.sinh(_U)
WEIGHT = 2 / np.sqrt(2 * np.pi) * np.exp(-(X**2) / 2) * np.cosh(_U) * END / NODES
SET_WIDTH = 4
"""Groups that sets are filled up to."""
LARGEST_EXPONENT = 80.0
"""Of a number that float32 has, as well as one over it."""
BLOCK = 512
"""Sets at a time."""
SIZES = (4, 8, 16)
"""Groups that sets are filled up to whose subsets are wanted, for few shapes to compile."""
SETS = 4
"""Of them at a time."""


class Fitted(NamedTuple):
    """A posterior mean: the covariance with the rows of the fit times coefficients, and weights."""

    covariance: Covariance
    signs: Float[Array, "m g"]
    pairs: Int[Array, "p 2"]
    """The groups of each pair."""
    coefficients: Float[Array, " m"]
    weights: Float[Array, " g"]
    """What each group adds besides where it is kept."""


class Contexts(NamedTuple):
    """What all groups outside a set are averaged over: a mixture of independent draws."""

    kept: Float[np.ndarray, "l g"]
    """The probability that each group is kept, from 0 to 1, in each part of the mixture."""
    share: Float[np.ndarray, " l"]
    """Of each part."""

    def of(self, groups: Int[np.ndarray, " k"]) -> "Contexts":
        """Some groups alone."""
        return self._replace(kept=self.kept[:, groups])


class _Kernels(NamedTuple):
    """The joint parts of a posterior mean as sums over product kernels."""

    variance: Float[Array, " n"]
    unlike: Float[Array, "n g"]
    """How alike two masks are taken to be that differ in one group."""
    level: Float[Array, "n m"]
    """Logarithm of the kernel at each row of the fit, all groups averaged."""


class _Linear(NamedTuple):
    """What the constant, main effects and outstanding pairs give to joint effects."""

    none: float
    """The mean output."""
    one: Float[np.ndarray, " g"]
    two: Float[np.ndarray, "g g"]


class _Part(NamedTuple):
    """A posterior mean averaged over one part of a mixture."""

    kept: Float[Array, " g"]
    kernels: _Kernels
    linear: _Linear


class Average(NamedTuple):
    """A posterior mean that is averaged over contexts, but for the groups that are asked for."""

    fitted: Fitted
    contexts: Contexts
    parts: tuple[_Part, ...]

    def mean(self, of_parts: list[np.ndarray]) -> np.ndarray:
        """Over the mixture."""
        return np.tensordot(self.contexts.share, np.stack(of_parts).astype(np.float64), 1)


def average(fitted: Fitted, contexts: Contexts, *, order: int = MOST_ORDER) -> Average:
    """What joint effects are read from.

    Args:
        fitted: of one target.
        contexts: what all groups outside a set are averaged over.
        order: of the largest joint effect that will be asked for.
    """
    parts = []
    for kept in contexts.kept:
        probability = jnp.asarray(kept, jnp.float32)
        kernels = _kernels(fitted, probability, size=max(order, SET_WIDTH))
        parts.append(_Part(probability, kernels, _linear(fitted, kept)))
    return Average(fitted, contexts, tuple(parts))


@jax.jit(static_argnames="size")
def _kernels(fitted: Fitted, kept: Float[Array, " g"], *, size: int) -> _Kernels:
    """For sets of at most `size` groups.

    Masks that are hardly alike at all are taken as a little more so, for as far as products over
    that many groups need it to stay numbers.
    """
    covariance = fitted.covariance
    squares = jnp.asarray(X**2, jnp.float32)[None, :, None]
    exponent = 2 * covariance.relevance[:, None] * squares
    unlike = jnp.exp(-jnp.minimum(exponent, LARGEST_EXPONENT / size))
    unlike = unlike.reshape(-1, covariance.relevance.shape[1])
    variance = (covariance.amplitude[:, None] * jnp.asarray(WEIGHT, jnp.float32)[None]).reshape(-1)
    # Of a group, the logarithm of its mean is linear in the row's sign.
    other = 1 - kept[None]
    if_kept = jnp.log(kept[None] + other * unlike)
    if_dropped = jnp.log(other + kept[None] * unlike)
    level = (if_kept + if_dropped).sum(1, keepdims=True) / 2
    return _Kernels(variance, unlike, level + (if_kept - if_dropped) / 2 @ fitted.signs.T)


def _linear(fitted: Fitted, kept: Float[np.ndarray, " g"]) -> _Linear:
    covariance, coefficients = fitted.covariance, np.asarray(fitted.coefficients, np.float64)
    signs, (first, second) = np.asarray(fitted.signs), np.asarray(fitted.pairs).T
    main = np.asarray(covariance.main) * (coefficients @ signs)
    own = np.asarray(covariance.pair) * (coefficients @ (signs[:, first] * signs[:, second]))
    pair = np.zeros((len(main), len(main)))
    np.add.at(pair, (first, second), own)
    np.add.at(pair, (second, first), own)
    mean = 2 * kept - 1
    weights = np.asarray(fitted.weights, np.float64)
    none = coefficients.sum() + main @ mean + mean @ pair @ mean / 2 + weights @ kept
    return _Linear(float(none), 2 * (main + pair @ mean) + weights, 4 * pair)


def joint_effects(average: Average, sets: Int[np.ndarray, "s k"]) -> Float[np.ndarray, " s"]:
    """The joint effect of each set, in the posterior's unit.

    Args:
        average: of at least the order of the sets.
        sets: the groups of each, then -1 up to the longest one's length. The joint effect of an
            empty set is the mean output.
    """
    # Few shapes, as each is compiled.
    width = max(sets.shape[1], SET_WIDTH)
    padded = np.full((max(1, -(-len(sets) // BLOCK)) * BLOCK, width), -1)
    padded[: len(sets), : sets.shape[1]] = sets
    found = []
    for part in average.parts:
        blocks = [
            _of_sets(average.fitted, part.kept, part.kernels, jnp.asarray(block))
            for block in padded.reshape(-1, BLOCK, width)
        ]
        joint = np.concatenate([np.asarray(block) for block in blocks])[: len(sets)]
        found.append(joint + _linear_effects(part.linear, sets))
    return average.mean(found)


def _linear_effects(linear: _Linear, sets: Int[np.ndarray, "s k"]) -> Float[np.ndarray, " s"]:
    ordered = -np.sort(-np.pad(sets, ((0, 0), (0, 2)), constant_values=-1), axis=1)
    first, second = ordered.T[:2]
    size = (sets >= 0).sum(1)
    one, two = linear.one[first], linear.two[first, second]
    return np.select([size == 0, size == 1, size == 2], [np.full(len(sets), linear.none), one, two])


def _factors(
    signs: Float[Array, "m *g"], kept: Float[Array, "*g"], unlike: Float[Array, "*g"]
) -> tuple[Float[Array, "m *g"], Float[Array, "m *g"]]:
    """The mean of each group's kernel, and its difference between kept and dropped over it."""
    same = jnp.where(signs > 0, kept[None], 1 - kept[None])
    mean = same + (1 - same) * unlike[None]
    return mean, signs * (1 - unlike[None]) / mean


@jax.jit
def _of_sets(
    fitted: Fitted, kept: Float[Array, " g"], kernels: _Kernels, sets: Int[Array, "s k"]
) -> Float[Array, " s"]:
    def add(total: Float[Array, " s"], kernel: _Kernels) -> tuple[Float[Array, " s"], None]:
        _, factor = _factors(fitted.signs, kept, kernel.unlike)
        ones = jnp.ones((len(factor), 1))
        product = jnp.concatenate([factor, ones], axis=1)[:, sets].prod(-1)
        return total + _weight(fitted, kernel) @ product, None

    return jax.lax.scan(add, jnp.zeros(len(sets)), kernels)[0]


def _weight(fitted: Fitted, kernel: _Kernels) -> Float[Array, " m"]:
    """Of each row, all groups averaged."""
    return kernel.variance * fitted.coefficients * jnp.exp(kernel.level)


def pair_effects(average: Average) -> Float[np.ndarray, "g g"]:
    """The joint effects of all pairs; the diagonal is 0."""
    found = [
        np.asarray(_of_pairs(average.fitted, part.kept, part.kernels)) + part.linear.two
        for part in average.parts
    ]
    groups = average.contexts.kept.shape[1]
    return average.mean(found) * (1 - np.eye(groups))


@jax.jit
def _of_pairs(fitted: Fitted, kept: Float[Array, " g"], kernels: _Kernels) -> Float[Array, "g g"]:
    def add(total: Float[Array, "g g"], kernel: _Kernels) -> tuple[Float[Array, "g g"], None]:
        _, factor = _factors(fitted.signs, kept, kernel.unlike)
        return total + factor.T @ (_weight(fitted, kernel)[:, None] * factor), None

    groups = fitted.signs.shape[1]
    return jax.lax.scan(add, jnp.zeros((groups, groups)), kernels)[0]


def subset_effects(average: Average, sets: Int[np.ndarray, "n k"]) -> Float[np.ndarray, "n b"]:
    """The joint effects of the subsets of each set, as `shapes.subsets` has them.

    A subset of four is two pairs, so one matrix product of all pairs with all pairs gives all.

    Args:
        average: over the contexts of all groups outside each subset.
        sets: all of one size, at most the last of `SIZES`.
    """
    size = sets.shape[1]
    width = _width(size)
    padded = np.zeros((max(1, -(-len(sets) // SETS)) * SETS, width), int)
    padded[: len(sets), :size] = sets
    left, right = _places(size, width)
    held = has(size)
    found = []
    for part in average.parts:
        blocks = [
            np.asarray(_of_products(average.fitted, part.kept, part.kernels, jnp.asarray(block)))
            for block in padded.reshape(-1, SETS, width)
        ]
        effects = np.concatenate(blocks)[: len(sets), left, right].astype(np.float64)
        linear, order = part.linear, held.sum(1)
        effects[:, order == 0] += linear.none
        effects[:, order == 1] += linear.one[sets]
        first, second = np.array(list(combinations(range(size), 2)), int).reshape(-1, 2).T
        effects[:, order == 2] += linear.two[sets[:, first], sets[:, second]]
        found.append(effects)
    return average.mean(found)


def _width(size: int) -> int:
    """Of `SIZES`, the one that sets of so many groups are filled up to."""
    return next(width for width in SIZES if width >= size)


@lru_cache
def _places(size: int, width: int) -> tuple[Int[np.ndarray, " b"], Int[np.ndarray, " b"]]:
    """The two products that make each subset, of nothing, of single groups, and of pairs."""
    pairs = list(combinations(range(width), 2))
    products: list[tuple[int, ...]] = [(), *((each,) for each in range(width)), *pairs]
    place = {product: number for number, product in enumerate(products)}
    groups = [tuple(np.flatnonzero(row).tolist()) for row in has(size)]
    return (
        np.array([place[each[:2]] for each in groups]),
        np.array([place[each[2:]] for each in groups]),
    )


@jax.jit
def _of_products(
    fitted: Fitted, kept: Float[Array, " g"], kernels: _Kernels, sets: Int[Array, "s k"]
) -> Float[Array, "s v v"]:
    """The mean of the products of every two of: nothing, single groups, and pairs, of each set."""
    first, second = np.array(list(combinations(range(sets.shape[1]), 2))).T
    signs = fitted.signs[:, sets].swapaxes(0, 1)

    def add(total: Float[Array, "s v v"], kernel: _Kernels) -> tuple[Float[Array, "s v v"], None]:
        _, factor = jax.vmap(_factors)(signs, kept[sets], kernel.unlike[sets])
        ones, pairs = jnp.ones((*factor.shape[:2], 1)), factor[..., first] * factor[..., second]
        products = jnp.concatenate([ones, factor, pairs], axis=2)
        weighted = products * _weight(fitted, kernel)[None, :, None]
        return total + weighted.swapaxes(1, 2) @ products, None

    count = 1 + sets.shape[1] + len(first)
    return jax.lax.scan(add, jnp.zeros((len(sets), count, count)), kernels)[0]


def response(average: Average, groups: tuple[int, ...]) -> Float[np.ndarray, " levels"]:
    """The mean output with none, one, two, ... of the groups kept, over all ways to choose them.

    The mean over ways is an elementary symmetric polynomial of each kernel's values.

    Args:
        average: over the contexts of all other groups.
        groups: at most the last of `SIZES`.
    """
    size = len(groups)
    padded = np.full(_width(size), -1)
    padded[:size] = groups
    found = []
    for part in average.parts:
        total = _of_counts(average.fitted, part.kept, part.kernels, jnp.asarray(padded))
        ways = comb(size, np.arange(size + 1))
        joint = np.asarray(total)[: size + 1] / ways
        found.append(joint + _linear_response(part, np.array(groups)))
    return average.mean(found)


def _linear_response(part: _Part, groups: Int[np.ndarray, " k"]) -> Float[np.ndarray, " levels"]:
    """What constant, main effects and pairs give, with none, one, ... of the groups kept."""
    size, linear = len(groups), part.linear
    mean = 2 * np.asarray(part.kept, np.float64)[groups] - 1
    sign = 2 * np.arange(size + 1) / size - 1
    inside = linear.two[np.ix_(groups, groups)] / 4
    both = inside.sum() / 2
    # With c of k signs +1, the mean product of two of them.
    product = (np.square(size * sign) - size) / max(size * (size - 1), 1)
    # Main effects with all others averaged, less what the groups themselves give to one another.
    alone = linear.one[groups] / 2 - inside @ mean
    none = linear.none - alone @ mean - mean @ inside @ mean / 2
    return none + sign * alone.sum() + product * both


@jax.jit
def _of_counts(
    fitted: Fitted, kept: Float[Array, " g"], kernels: _Kernels, groups: Int[Array, " k"]
) -> Float[Array, " levels"]:
    """The mean output over all other groups, added up over all ways to keep so many of these."""
    signs, real = fitted.signs[:, groups], (groups >= 0)[None]

    def add(
        total: Float[Array, " levels"], kernel: _Kernels
    ) -> tuple[Float[Array, " levels"], None]:
        unlike = kernel.unlike[groups]
        mean, _ = _factors(signs, kept[groups], unlike)
        others = kernel.level - jnp.where(real, jnp.log(mean), 0).sum(1)
        weight = kernel.variance * fitted.coefficients * jnp.exp(others)
        if_kept = jnp.where(real, jnp.where(signs > 0, 1, unlike[None]), 0)
        if_dropped = jnp.where(real, jnp.where(signs > 0, unlike[None], 1), 1)

        def with_group(
            ways: Float[Array, "m levels"], values: tuple[Float[Array, " m"], Float[Array, " m"]]
        ) -> tuple[Float[Array, "m levels"], None]:
            one_more = jnp.pad(ways[:, :-1], ((0, 0), (1, 0)))
            return ways * values[1][:, None] + one_more * values[0][:, None], None

        none = jnp.zeros((len(signs), len(groups) + 1)).at[:, 0].set(1)
        ways, _ = jax.lax.scan(with_group, none, (if_kept.T, if_dropped.T))
        return total + weight @ ways, None

    return jax.lax.scan(add, jnp.zeros(len(groups) + 1), kernels)[0]
