"""How alike the outputs of two masks are expected to be: the prior of a joint datamodel.

Masks are taken as signs z, +1 kept and -1 dropped. The output is a Gaussian process (Rasmussen &
Williams 2006) over them, a sum of independent parts with the covariances

    sum_i main_i z_i z'_i                            main effects of single groups,
    sum_(i, j) pair_ij z_i z_j z'_i z'_j             pairs that stand out,
    sum_c amplitude_c / sqrt(1 + 2 D_c(z, z'))       whatever acts together, of any order,

where D_c(z, z') = sum_i relevance_ci (1 - z_i z'_i) counts the groups that differ, each by its
relevance to part c. As 1 / sqrt(1 + 2 D) is the mean of exp(-D x^2) over standard normal x, each
such part is a mean of product kernels prod_i exp(-r_i x^2) (cosh r_i x^2 + z_i z'_i sinh r_i x^2),
whose variance for every set of groups is known in closed form: all orders, on all scales at once.
Several parts have relevances of their own, as one part of the output may follow some groups and
another part others.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class Covariance(NamedTuple):
    """The parameters of one target, whose outputs have variance 1; none is below 0."""

    main: Float[Array, " g"]
    pair: Float[Array, " p"]
    relevance: Float[Array, "c g"]
    amplitude: Float[Array, " c"]
    noise: Float[Array, ""]
    """Variance over seeds, of one member."""


class Inputs(NamedTuple):
    """Masks as a covariance reads them."""

    signs: Float[Array, "m g"]
    pairs: Float[Array, "m p"]
    """The products of the signs of each pair."""


CONSTANT = 1.0
"""Variance of the output's mean, of the order of the outputs' own."""


def alike(
    relevance: Float[Array, " g"], left: Float[Array, "m g"], right: Float[Array, "k g"]
) -> Float[Array, "m k"]:
    """1 / sqrt(1 + 2 D) of two sets of masks, as signs."""
    apart = relevance.sum() - (left * relevance[None]) @ right.T
    return 1 / jnp.sqrt(1 + 2 * jnp.maximum(apart, 0))


def joint_kernels(
    covariance: Covariance, left: Inputs, right: Inputs
) -> tuple[Float[Array, "m k"], ...]:
    """Of the parts that act jointly, each of amplitude 1."""
    return tuple(alike(each, left.signs, right.signs) for each in covariance.relevance)


def total(
    covariance: Covariance,
    left: Inputs,
    right: Inputs,
    kernels: tuple[Float[Array, "m k"], ...],
) -> Float[Array, "m k"]:
    """Covariance of the outputs of two sets of masks, from its parts that act jointly."""
    mains = (left.signs * covariance.main[None]) @ right.signs.T
    pairs = (left.pairs * covariance.pair[None]) @ right.pairs.T
    joint = sum(covariance.amplitude[part] * kernel for part, kernel in enumerate(kernels))
    return CONSTANT + mains + pairs + joint


def between(covariance: Covariance, left: Inputs, right: Inputs) -> Float[Array, "m k"]:
    """Covariance of the outputs of two sets of masks, without the noise of seeds."""
    return total(covariance, left, right, joint_kernels(covariance, left, right))
