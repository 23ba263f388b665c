"""Learns the parameters of a covariance from the outputs, by their marginal likelihood.

With K the covariance of the outputs (noise included) and a = K^-1 y, raising a parameter theta
whose part of K is theta P raises the likelihood where a'P a exceeds tr(K^-1 P): what the data show
of the part, and what they would show if the covariance were right. Each step multiplies every
parameter by the quotient of the two (the fixed point of MacKay 1992, for parts of a covariance), so
that none is ever below 0, and those of groups that do not matter vanish. It is stopped early: a few
steps take relevances to where they predict best, more fit them to noise.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from datamodels.covariance import Covariance, Inputs, alike, between

MOST = 5.0
"""The most that one step multiplies a parameter by, or divides it."""
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


class _Inverse(NamedTuple):
    matrix: Float[Array, "m m"]
    coefficients: Float[Array, " m"]


@jax.jit
def posterior(covariance: Covariance, known: Known) -> Posterior:
    """What is known says of what is not."""
    inverse = _invert(covariance, known)
    return Posterior(inverse.coefficients, inverse.coefficients / jnp.diag(inverse.matrix))


def _invert(covariance: Covariance, known: Known) -> _Inverse:
    noise = jnp.maximum(covariance.noise, LEAST_NOISE)
    whole = between(covariance, known.inputs, known.inputs) + jnp.diag(noise * known.share)
    factor = jax.scipy.linalg.cho_factor(whole, lower=True)
    matrix = jax.scipy.linalg.cho_solve(factor, jnp.eye(len(whole)))
    return _Inverse(matrix, matrix @ known.outputs)


@partial(jax.jit, static_argnames="known_noise")
def learn(
    start: Covariance,
    known: Known,
    *,
    steps: Int[Array, ""] | int,
    own_mains: Bool[Array, ""] | bool,
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

    def step(_: Int[Array, ""], covariance: Covariance) -> Covariance:
        return _stepped(covariance, known, _invert(covariance, known), own_mains, known_noise)

    return jax.lax.fori_loop(0, steps, step, start)


@partial(jax.jit, static_argnames=("steps", "known_noise"))
def unseen_errors(
    start: Covariance,
    known: Known,
    unseen: Known,
    *,
    steps: int,
    own_mains: Bool[Array, ""] | bool,
    known_noise: bool,
) -> Float[Array, " steps"]:
    """Mean squared errors on unseen outputs before each step; arguments as of `learn`."""

    def step(covariance: Covariance, _: None) -> tuple[Covariance, Float[Array, ""]]:
        inverse = _invert(covariance, known)
        predicted = between(covariance, unseen.inputs, known.inputs) @ inverse.coefficients
        error = jnp.square(unseen.outputs - predicted).mean()
        return _stepped(covariance, known, inverse, own_mains, known_noise), error

    return jax.lax.scan(step, start, None, length=steps)[1]


def _stepped(
    covariance: Covariance,
    known: Known,
    inverse: _Inverse,
    own_mains: Bool[Array, ""] | bool,
    known_noise: bool,
) -> Covariance:
    a, matrix, inputs, share = inverse.coefficients, inverse.matrix, known.inputs, known.share
    seen, chance = _linear(inputs.signs, inverse)
    main = jnp.where(
        own_mains, _ratio(seen, chance), _ratio(covariance.main @ seen, covariance.main @ chance)
    )
    relevances, amplitudes = [], []
    for part, amplitude in enumerate(covariance.amplitude):
        relevance = covariance.relevance[part]
        kernel = alike(relevance, inputs.signs, inputs.signs)
        # Its slope along a relevance, with the kernel's sum over differing groups held.
        slope = amplitude * kernel**3
        shown = slope * a[:, None] * a[None]
        ratio = _ratio(
            (inputs.signs * (shown @ inputs.signs)).sum(0),
            (inputs.signs * ((matrix * slope) @ inputs.signs)).sum(0),
        )
        grown = relevance * ratio
        relevances.append(jnp.where(grown < NEGLIGIBLE, 0, grown))
        amplitudes.append(amplitude * _ratio(a @ kernel @ a, (matrix * kernel).sum()))
    noise = covariance.noise * _ratio((share * a**2).sum(), (share * jnp.diag(matrix)).sum())
    return Covariance(
        main=covariance.main * main,
        pair=covariance.pair * _ratio(*_linear(inputs.pairs, inverse)),
        relevance=jnp.stack(relevances),
        amplitude=jnp.stack(amplitudes),
        noise=covariance.noise if known_noise else noise,
    )


def _linear(
    features: Float[Array, "m f"], inverse: _Inverse
) -> tuple[Float[Array, " f"], Float[Array, " f"]]:
    """a'P a and tr(K^-1 P) of parts P that are products of one feature of both masks."""
    seen = jnp.square(features.T @ inverse.coefficients)
    return seen, (features * (inverse.matrix @ features)).sum(0)


def _ratio(seen: Float[Array, "*f"], chance: Float[Array, "*f"]) -> Float[Array, "*f"]:
    """Within bounds, also where rounding takes one of the two to 0 or below."""
    least = jnp.finfo(jnp.float32).tiny
    quotient = jnp.maximum(seen, least) / jnp.maximum(chance, least)
    return jnp.clip(quotient, 1 / MOST, MOST)
