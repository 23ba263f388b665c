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

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from datamodels.covariance import Covariance

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
"""Sets, or cells, at a time."""


class Fitted(NamedTuple):
    """A posterior mean: the covariance with the rows of the fit times coefficients."""

    covariance: Covariance
    signs: Float[Array, "m g"]
    pairs: Int[Array, "p 2"]
    """The groups of each pair."""
    coefficients: Float[Array, " m"]


class Contexts(NamedTuple):
    """What all groups outside a set are averaged over: a mixture of independent draws."""

    kept: Float[np.ndarray, "l g"]
    """The probability that each group is kept, from 0 to 1, in each part of the mixture."""
    share: Float[np.ndarray, " l"]
    """Of each part."""


class _Node(NamedTuple):
    """A product kernel of a joint part, at the rows of the fit."""

    weight: Float[Array, "*n m"]
    """The coefficients times the mean of the kernel over all groups."""
    factor: Float[Array, "*n m g"]
    """What takes a group from its mean to its difference between kept and dropped."""


def joint_effects(
    fitted: Fitted, sets: Int[np.ndarray, "s k"], contexts: Contexts
) -> Float[np.ndarray, " s"]:
    """The joint effect of each set, in the posterior's unit.

    Args:
        fitted: of one target.
        sets: the groups of each, then -1 up to the longest one's length. The joint effect of an
            empty set is the mean output.
        contexts: of all other groups.
    """
    # Few shapes, as each is compiled.
    width = max(sets.shape[1], SET_WIDTH)
    padded = np.full((-len(sets) % BLOCK + len(sets), width), -1)
    padded[: len(sets), : sets.shape[1]] = sets
    total = np.zeros(len(padded))
    for kept, share in zip(contexts.kept, contexts.share, strict=True):
        probability = jnp.asarray(kept, jnp.float32)
        for begin in range(0, len(padded), BLOCK):
            rows = slice(begin, begin + BLOCK)
            total[rows] += share * np.asarray(
                _of_sets(fitted, jnp.asarray(padded[rows]), probability)
            )
    return total[: len(sets)]


def pair_effects(fitted: Fitted, contexts: Contexts) -> Float[np.ndarray, "g g"]:
    """The joint effects of all pairs; the diagonal is 0."""
    groups = fitted.signs.shape[1]
    total = np.zeros((groups, groups))
    for kept, share in zip(contexts.kept, contexts.share, strict=True):
        total += share * np.asarray(_of_pairs(fitted, jnp.asarray(kept, jnp.float32)))
    return total * (1 - np.eye(groups))


@jax.jit
def _of_pairs(fitted: Fitted, kept: Float[Array, " g"]) -> Float[Array, "g g"]:
    def add(total: Float[Array, "g g"], node: _Node) -> tuple[Float[Array, "g g"], None]:
        weight, factor = node
        return total + factor.T @ (weight[:, None] * factor), None

    groups = fitted.signs.shape[1]
    joint, _ = jax.lax.scan(add, jnp.zeros((groups, groups)), _nodes(fitted, kept, size=2))
    first, second = fitted.pairs.T
    own = 4 * fitted.covariance.pair * (_products(fitted) @ fitted.coefficients)
    return joint.at[first, second].add(own).at[second, first].add(own)


def _nodes(fitted: Fitted, kept: Float[Array, " g"], *, size: int) -> _Node:
    """For sets of at most `size` groups."""
    weight, unlike = _products_of_parts(fitted.covariance, size)
    same = jnp.where(fitted.signs > 0, kept[None], 1 - kept[None])[None]
    mean = same + (1 - same) * unlike[:, None]
    whole = jnp.exp(jnp.log(mean).sum(-1)) * weight[:, None] * fitted.coefficients[None]
    return _Node(whole, fitted.signs[None] * (1 - unlike[:, None]) / mean)


def _products_of_parts(
    covariance: Covariance, size: int
) -> tuple[Float[Array, " n"], Float[Array, "n g"]]:
    """The product kernels that the joint parts are means of.

    Masks that are hardly alike at all are taken as a little more so, for as far as products over
    `size` groups need it to stay numbers.

    Returns:
        The variance of each, and how alike it takes two masks to be that differ in one group.
    """
    squares = jnp.asarray(X**2, jnp.float32)[None, :, None]
    most = LARGEST_EXPONENT / max(size, 4)
    unlike = jnp.exp(-jnp.minimum(2 * covariance.relevance[:, None] * squares, most))
    weight = covariance.amplitude[:, None] * jnp.asarray(WEIGHT, jnp.float32)[None]
    return weight.reshape(-1), unlike.reshape(-1, covariance.relevance.shape[1])


@jax.jit
def _of_sets(
    fitted: Fitted, sets: Int[Array, "s k"], kept: Float[Array, " g"]
) -> Float[Array, " s"]:
    def add(total: Float[Array, " s"], node: _Node) -> tuple[Float[Array, " s"], None]:
        weight, factor = node
        return total + weight @ _product(factor, sets), None

    nodes = _nodes(fitted, kept, size=sets.shape[1])
    joint, _ = jax.lax.scan(add, jnp.zeros(len(sets)), nodes)
    return joint + _linear(fitted, sets, kept)


def _product(values: Float[Array, "m g"], sets: Int[Array, "s k"]) -> Float[Array, "m s"]:
    """Over the groups of each set."""
    ones = jnp.ones((len(values), 1))
    return jnp.concatenate([values, ones], axis=1)[:, sets].prod(-1)


def _linear(
    fitted: Fitted, sets: Int[Array, "s k"], kept: Float[Array, " g"]
) -> Float[Array, " s"]:
    """What the constant, main effects and outstanding pairs give to sets of at most two groups."""
    covariance, coefficients = fitted.covariance, fitted.coefficients
    first, second = fitted.pairs.T
    mean = 2 * kept - 1
    main = covariance.main * (coefficients @ fitted.signs)
    pair = covariance.pair * (_products(fitted) @ coefficients)
    groups = jnp.arange(fitted.signs.shape[1])
    within = (sets[:, :, None] == groups[None, None]).any(1).astype(jnp.float32)
    size = (sets >= 0).sum(1)
    one = within @ main
    one += (within[:, first] * (pair * mean[second])[None]).sum(1)
    one += (within[:, second] * (pair * mean[first])[None]).sum(1)
    two = (within[:, first] * within[:, second]) @ pair
    none = coefficients.sum() + main @ mean + (pair * mean[first] * mean[second]).sum()
    return jnp.select([size == 0, size == 1, size == 2], [none, 2 * one, 4 * two], 0.0)


def _products(fitted: Fitted) -> Float[Array, "p m"]:
    """The products of the signs of each pair."""
    first, second = fitted.pairs.T
    return (fitted.signs[:, first] * fitted.signs[:, second]).T


def mean_outputs(
    fitted: Fitted, fixed: Float[np.ndarray, "c g"], contexts: Contexts
) -> Float[np.ndarray, " c"]:
    """The mean output with some groups kept or dropped and all others averaged.

    Args:
        fitted: of one target.
        fixed: 1 for groups that are kept, 0 for those that are dropped, NaN for all others.
        contexts: of those.
    """
    kept = np.where(np.isnan(fixed), contexts.kept[:, None], fixed[None]).reshape(
        -1, fixed.shape[1]
    )
    padded = np.full((-len(kept) % BLOCK + len(kept), kept.shape[1]), 0.5)
    padded[: len(kept)] = kept
    blocks = [padded[begin : begin + BLOCK] for begin in range(0, len(padded), BLOCK)]
    found = [np.asarray(_of_cells(fitted, jnp.asarray(each, jnp.float32))) for each in blocks]
    return contexts.share @ np.concatenate(found)[: len(kept)].reshape(-1, len(fixed))


@jax.jit
def _of_cells(fitted: Fitted, kept: Float[Array, "c g"]) -> Float[Array, " c"]:
    covariance, signs, coefficients = fitted.covariance, fitted.signs, fitted.coefficients

    def add(
        total: Float[Array, " c"], node: tuple[Float[Array, ""], Float[Array, " g"]]
    ) -> tuple[Float[Array, " c"], None]:
        weight, row = node
        unlike = row[None]
        if_kept, if_dropped = jnp.log(kept + (1 - kept) * unlike), jnp.log(1 - kept + kept * unlike)
        # The logarithm of each factor is linear in the row's sign.
        level, slope = (if_kept + if_dropped).sum(1) / 2, (if_kept - if_dropped) / 2
        factors = jnp.exp(level[:, None] + slope @ signs.T)
        return total + weight * (factors @ coefficients), None

    joint, _ = jax.lax.scan(add, jnp.zeros(len(kept)), _products_of_parts(covariance, 1))
    mean = 2 * kept - 1
    first, second = fitted.pairs.T
    pair = covariance.pair * (_products(fitted) @ coefficients)
    main = covariance.main * (coefficients @ signs)
    return joint + coefficients.sum() + mean @ main + (mean[:, first] * mean[:, second]) @ pair
