"""Learns the parameters of a covariance from the outputs, by their marginal likelihood.

With K the covariance of the outputs (noise included) and a = K^-1 y, raising a parameter theta
whose part of K is theta P raises the likelihood where a'P a exceeds tr(K^-1 P): what the data show
of the part, and what they would show if the covariance were right. Each step multiplies every
parameter by the quotient of the two (the fixed point of MacKay 1992, for parts of a covariance), so
that none is ever below 0, and those of groups that do not matter vanish. It is stopped early: a few
steps take relevances to where they predict best, more fit them to noise.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_factor, cho_solve
from jaxtyping import Array, Bool, Float

from datamodels.covariance import Covariance, Inputs, between, joint_kernels, total

MOST = 5.0
"""The most that one step multiplies a parameter by, or divides it."""
PATIENCE = 4
"""Steps that errors on unseen outputs may rise before they are taken to go on rising."""
NEGLIGIBLE = 1e-5
"""Relevances below which a group is out."""
LEAST_NOISE = 1e-3
"""Of the variance of outputs: what float32 needs to invert the covariance of thousands of masks."""


class Known(NamedTuple):
    """Outputs that are known, of one target: of mean 0 and a variance of about 1."""

    inputs: Inputs
    """Of m distinct masks."""
    outputs: Float[Array, " m"]
    """Of each mask the mean over its members."""
    share: Float[Array, " m"]
    """One over the number of those members."""


class Posterior(NamedTuple):
    """What outputs say, given a covariance."""

    coefficients: Float[Array, " m"]
    """Predictions are the covariance with the masks of the fit times these."""
    left_out: Float[Array, " m"]
    """Each output less its prediction from all others."""


class _Solved(NamedTuple):
    """What a step reads, of a covariance and what is known."""

    kernels: tuple[Float[Array, "m m"], ...]
    """Of each joint part, of amplitude 1."""
    inverse: Float[Array, "m m"]
    coefficients: Float[Array, " m"]


def posterior(covariance: Covariance, known: Known) -> Posterior:
    """What is known says of what is not."""
    solved = _solve(covariance, known)
    return Posterior(solved.coefficients, solved.coefficients / jnp.diag(solved.inverse))


def _solve(covariance: Covariance, known: Known) -> _Solved:
    """In programs of their own: XLA on CPU takes half as long again for both in one."""
    kernels, whole = _covariances(covariance, known)
    return _Solved(kernels, *_inverse(whole, known.outputs))


@jax.jit
def _covariances(
    covariance: Covariance, known: Known
) -> tuple[tuple[Float[Array, "m m"], ...], Float[Array, "m m"]]:
    """Of the joint parts, and of the outputs with their noise."""
    kernels = joint_kernels(covariance, known.inputs, known.inputs)
    noise = jnp.maximum(covariance.noise, LEAST_NOISE)
    without = total(covariance, known.inputs, known.inputs, kernels)
    return kernels, without + jnp.diag(noise * known.share)


@jax.jit
def _inverse(
    matrix: Float[Array, "m m"], outputs: Float[Array, " m"]
) -> tuple[Float[Array, "m m"], Float[Array, " m"]]:
    """And its product with the outputs."""
    inverse = cho_solve(cho_factor(matrix, lower=True), jnp.eye(len(matrix)))
    return inverse, inverse @ outputs


def learn(
    start: Covariance,
    known: Known,
    *,
    steps: int,
    own_mains: bool,
    known_noise: bool,
) -> Covariance:
    """Take some steps towards the largest marginal likelihood.

    Args:
        start: where to begin; what is 0 stays 0.
        known: what to learn from.
        steps: how many.
        own_mains: every main effect has a variance of its own (few groups matter), or all have one.
        known_noise: the noise stays as it is.
    """
    found = start
    for _ in range(steps):
        found = _stepped(found, known, _solve(found, known), own_mains, known_noise)
    return found


class Tried(NamedTuple):
    """A covariance, and how well it predicts."""

    covariance: Covariance
    error: float
    """Mean squared, on unseen outputs."""


def steps_tried(
    start: Covariance,
    known: Known,
    unseen: Known,
    *,
    steps: int,
    own_mains: bool,
    known_noise: bool,
) -> list[Tried]:
    """The covariance before each step, until errors on unseen outputs rise.

    Arguments as of `learn`.
    """
    found, tried = start, []
    for _ in range(steps):
        solved = _solve(found, known)
        error = float(_error(found, known, solved.coefficients, unseen))
        tried.append(Tried(found, error))
        if len(tried) - 1 - np.argmin([each.error for each in tried]) >= PATIENCE:
            break
        found = _stepped(found, known, solved, own_mains, known_noise)
    return tried


def unseen_error(covariance: Covariance, known: Known, unseen: Known) -> float:
    """Mean squared error on unseen outputs."""
    coefficients = _solve(covariance, known).coefficients
    return float(_error(covariance, known, coefficients, unseen))


@jax.jit
def _error(
    covariance: Covariance, known: Known, coefficients: Float[Array, " m"], unseen: Known
) -> Float[Array, ""]:
    predicted = between(covariance, unseen.inputs, known.inputs) @ coefficients
    return jnp.square(unseen.outputs - predicted).mean()


@jax.jit
def _stepped(
    covariance: Covariance,
    known: Known,
    solved: _Solved,
    own_mains: Bool[Array, ""] | bool,
    known_noise: Bool[Array, ""] | bool,
) -> Covariance:
    a, inverse, inputs, share = solved.coefficients, solved.inverse, known.inputs, known.share
    seen, chance = _linear(inputs.signs, solved)
    main = jnp.where(
        own_mains, _ratio(seen, chance), _ratio(covariance.main @ seen, covariance.main @ chance)
    )
    relevance, amplitude = covariance.relevance, covariance.amplitude
    outer = a[:, None] * a[None]
    for part, kernel in enumerate(solved.kernels):
        # Its slope along a relevance, with the kernel's sum over differing groups held.
        slope = kernel**3
        shown = inputs.signs * ((outer * slope) @ inputs.signs)
        expected = inputs.signs * ((inverse * slope) @ inputs.signs)
        grown = relevance[part] * _ratio(
            amplitude[part] * shown.sum(0), amplitude[part] * expected.sum(0)
        )
        relevance = relevance.at[part].set(jnp.where(grown < NEGLIGIBLE, 0, grown))
        amplitude = amplitude.at[part].multiply(
            _ratio((outer * kernel).sum(), (inverse * kernel).sum())
        )
    noise = covariance.noise * _ratio((share * a**2).sum(), (share * jnp.diag(inverse)).sum())
    return Covariance(
        main=covariance.main * main,
        pair=covariance.pair * _ratio(*_linear(inputs.pairs, solved)),
        relevance=relevance,
        amplitude=amplitude,
        noise=jnp.where(known_noise, covariance.noise, noise),
    )


def _linear(
    features: Float[Array, "m f"], solved: _Solved
) -> tuple[Float[Array, " f"], Float[Array, " f"]]:
    """a'P a and tr(K^-1 P) of parts P that are products of one feature of both masks."""
    seen = jnp.square(features.T @ solved.coefficients)
    return seen, (features * (solved.inverse @ features)).sum(0)


def _ratio(seen: Float[Array, "*f"], chance: Float[Array, "*f"]) -> Float[Array, "*f"]:
    """Within bounds, also where rounding takes one of the two to 0 or below."""
    least = jnp.finfo(jnp.float32).tiny
    quotient = jnp.maximum(seen, least) / jnp.maximum(chance, least)
    return jnp.clip(quotient, 1 / MOST, MOST)
