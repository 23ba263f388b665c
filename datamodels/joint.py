"""Joint datamodels: how groups act together, of any order."""

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.stats import norm

from datamodels.covariance import Covariance, Inputs, between
from datamodels.evidence import Known, learn, posterior, unseen_errors
from datamodels.inputs import as_masks, as_outputs, finite_rows, masks_of, require_rows

PARTS = 3
"""Parts of the covariance that act jointly, each with relevances of its own."""
MOST_STEPS = 20
"""Steps that may learn the relevances."""
PAIR_STEPS = 6
"""Steps more once pairs that stand out have been found."""
MOST_PAIRS = 64
"""Of one target."""
CHANCE = 0.05
"""How many pairs of a target are expected to stand out by chance."""
FEWEST_RETRAINS = 30
"""Degrees of freedom of retrains of one mask from which they alone decide the noise."""
FIRST_NOISE = 0.2
"""Share of the variance that is taken as noise to begin with, where nothing is known of it."""
BEGIN = 31_415_927
"""Seed of the relevances that the steps begin from, as parts must differ to become different, and
of the halves that judge one another."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class JointDiagnostics:
    """How the fit of each target went."""

    left_out_r2: Float[np.ndarray, " t"]
    """R2 of each mask's output predicted from all others: optimistic, as they were all used to
    learn the covariance. NaN for a constant output."""
    own_mains: Bool[np.ndarray, " t"]
    """Whether main effects have a variance each, as predicts better where few groups matter."""
    constant: Bool[np.ndarray, " t"]
    """Targets whose output never varies."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class JointDatamodel:
    """Predicts the outputs of any mask, by all orders of how groups act together."""

    masks: Bool[np.ndarray, "m g"]
    """Distinct, of the fit."""
    covariance: Covariance
    """Of each target, stacked; for outputs divided by `scale`."""
    pairs: Int[np.ndarray, "t p 2"]
    """The groups of each pair."""
    coefficients: Float[np.ndarray, "t m"]
    mean: Float[np.ndarray, " t"]
    scale: Float[np.ndarray, " t"]
    """Standard deviation of each target's outputs."""
    noise_variance: Float[np.ndarray, " t"]
    """Over seeds at a fixed mask, as known or as estimated; in squared output units."""
    diagnostics: JointDiagnostics

    def predict(self, masks: Bool[np.ndarray, "k g"]) -> Float[np.ndarray, "k t"]:
        """Predicted outputs, float32.

        Raises:
            ValueError: masks that are not zeros and ones, or of other groups.
        """
        left, right = _signs(masks_of(self.masks.shape[1], masks)), _signs(self.masks)
        found = [
            _predicted(*each, left, right)
            for each in zip(_unstacked(self.covariance), self.pairs, self.coefficients, strict=True)
        ]
        return self.mean + self.scale * np.stack(found, axis=1)


class _Bank(NamedTuple):
    """Distinct masks with the mean outputs of their members."""

    masks: Bool[np.ndarray, "d g"]
    outputs: Float[np.ndarray, "d t"]
    members: Int[np.ndarray, " d"]
    within: Float[np.ndarray, " t"]
    """Squared deviations of members from their mask's mean, added up."""


def fit_joint(
    masks: Bool[np.ndarray, "m g"],
    outputs: Float[np.ndarray, "m t"],
    *,
    noise_variance: Float[np.ndarray, " t"] | None = None,
) -> JointDatamodel:
    """Joint datamodels: each target with its own covariance (`datamodels.covariance`).

    The prediction is the posterior mean of a Gaussian process whose covariance is learned by
    marginal likelihood (`datamodels.evidence`). Pairs that stand out of what it leaves get a term
    of their own. Costs memory of m^2 numbers, and time of m^3 a target.

    Args:
        masks: True = kept. Rows are members. Retrains of one mask count as one, of less noise.
        outputs: of the same members.
        noise_variance: of each target over seeds at a fixed mask, in squared output units
            (`metrics.noise_variance`). None: from retrains of one mask, where there are enough
            of them, else estimated with the covariance.

    Raises:
        ValueError: as `fit`; a noise variance that is below 0, or not one a target.
    """
    masks, outputs = as_masks(masks), as_outputs(outputs)
    usable = finite_rows(masks, outputs)
    bank = _distinct(masks[usable], outputs[usable])
    require_rows(len(bank.masks))
    known = _known_noise(bank, noise_variance)
    constant = (outputs[usable] == outputs[usable][:1]).all(0)
    mean = bank.outputs.mean(0)
    scale = np.where(constant, 1, bank.outputs.std(0))
    fits = [
        _fit_target(
            bank,
            (bank.outputs[:, target] - mean[target]) / scale[target],
            None if known is None else known[target] / scale[target] ** 2,
        )
        for target in range(outputs.shape[1])
    ]
    covariance = jax.tree.map(lambda *parts: np.stack(parts), *(fit.covariance for fit in fits))
    diagnostics = JointDiagnostics(
        left_out_r2=np.where(constant, np.nan, [fit.left_out_r2 for fit in fits]),
        own_mains=np.array([fit.own_mains for fit in fits]),
        constant=constant,
    )
    return JointDatamodel(
        masks=bank.masks,
        covariance=covariance,
        pairs=np.stack([fit.pairs for fit in fits]),
        coefficients=np.stack([fit.coefficients for fit in fits]),
        mean=mean.astype(np.float32),
        scale=scale.astype(np.float32),
        noise_variance=covariance.noise * scale**2 if known is None else known,
        diagnostics=diagnostics,
    )


def _distinct(masks: Bool[np.ndarray, "m g"], outputs: Float[np.ndarray, "m t"]) -> _Bank:
    _, first, number, members = np.unique(
        np.packbits(masks, axis=1),
        axis=0,
        return_index=True,
        return_inverse=True,
        return_counts=True,
    )
    total = np.zeros((len(first), outputs.shape[1]))
    np.add.at(total, number.ravel(), outputs)
    mean = total / members[:, None]
    within = np.square(outputs - mean[number.ravel()]).sum(0)
    return _Bank(masks[first], mean, members, within)


def _known_noise(
    bank: _Bank, given: Float[np.ndarray, " t"] | None
) -> Float[np.ndarray, " t"] | None:
    """The variance over seeds of each target; None: to be estimated.

    Raises:
        ValueError: one that was given and cannot be.
    """
    targets = bank.outputs.shape[1]
    if given is not None:
        given = np.asarray(given, np.float64)
        if given.shape != (targets,) or not (given >= 0).all():
            raise ValueError(
                f"noise_variance must be one number of at least 0 for each of the {targets} "
                f"targets, got {given}"
            )
        return given
    freedom = int((bank.members - 1).sum())
    return bank.within / freedom if freedom >= FEWEST_RETRAINS else None


class _TargetFit(NamedTuple):
    covariance: Covariance
    pairs: Int[np.ndarray, "p 2"]
    coefficients: Float[np.ndarray, " m"]
    left_out_r2: float
    own_mains: bool


class _Trial(NamedTuple):
    """A way to learn a covariance, and how well it predicts masks that it was not learned from."""

    error: float
    steps: int
    own_mains: bool
    start: Covariance


def _fit_target(bank: _Bank, outputs: Float[np.ndarray, " d"], noise: float | None) -> _TargetFit:
    """Fit one target, of variance 1."""
    signs, known_noise = _signs(bank.masks), noise is not None
    known = Known(
        Inputs(signs, signs[:, :0]),
        jnp.asarray(outputs, jnp.float32),
        jnp.asarray(1 / bank.members, jnp.float32),
    )
    best = _best_trial(known, FIRST_NOISE if noise is None else noise, known_noise)
    found = learn(
        best.start, known, steps=best.steps, own_mains=best.own_mains, known_noise=known_noise
    )
    said = posterior(found, known)
    pairs, count = _outstanding_pairs(np.asarray(signs), np.asarray(said.left_out))
    if count:
        known = known._replace(inputs=_inputs(signs, pairs))
        pair = jnp.where(jnp.arange(MOST_PAIRS) < count, 1 / signs.shape[1], 0)
        found = learn(
            found._replace(pair=pair),
            known,
            steps=PAIR_STEPS,
            own_mains=best.own_mains,
            known_noise=known_noise,
        )
        said = posterior(found, known)
    return _TargetFit(
        jax.tree.map(np.asarray, _padded(found)),
        pairs,
        np.asarray(said.coefficients),
        1 - float(jnp.square(said.left_out).mean()) / max(float(outputs.var()), 1e-30),
        best.own_mains,
    )


def _padded(covariance: Covariance) -> Covariance:
    """With all the parts and pairs that a target may have, those it lacks of variance 0."""
    parts, pairs = len(covariance.amplitude), len(covariance.pair)
    return covariance._replace(
        pair=jnp.pad(covariance.pair, (0, MOST_PAIRS - pairs)),
        relevance=jnp.pad(covariance.relevance, ((0, PARTS - parts), (0, 0))),
        amplitude=jnp.pad(covariance.amplitude, (0, PARTS - parts)),
    )


def _best_trial(known: Known, noise: float, known_noise: bool) -> _Trial:
    """Learn from half of the masks, and judge by the others.

    Where groups only add up, the trials without parts that act jointly win.
    """
    order = np.random.default_rng(BEGIN).permutation(len(known.outputs))
    own, other = (_rows(known, rows) for rows in np.array_split(order, 2))
    trials = []
    for own_mains, joint in itertools.product((False, True), (False, True)):
        start = _begin(known.inputs.signs.shape[1], noise, joint)
        errors = unseen_errors(
            start,
            own,
            other,
            steps=MOST_STEPS + 1,
            own_mains=own_mains,
            known_noise=known_noise,
        )
        steps = int(np.argmin(errors))
        trials.append(_Trial(errors[steps], steps, own_mains, start))
    return min(trials, key=lambda trial: trial.error)


def _rows(known: Known, rows: Int[np.ndarray, " r"]) -> Known:
    return jax.tree.map(lambda part: part[rows], known)


def _begin(groups: int, noise: float, joint: bool) -> Covariance:
    parts = PARTS if joint else 0
    spread = np.random.default_rng(BEGIN).uniform(0.2, 1.8, (parts, groups))
    return Covariance(
        main=jnp.full(groups, 0.3 / groups),
        pair=jnp.zeros(0),
        relevance=jnp.asarray(1.5 / groups * spread, jnp.float32),
        amplitude=jnp.full(parts, 1 / PARTS),
        noise=jnp.float32(noise),
    )


def _outstanding_pairs(
    signs: Float[np.ndarray, "m g"], left: Float[np.ndarray, " m"]
) -> tuple[Int[np.ndarray, "p 2"], int]:
    """Pairs whose product goes with what is left of the output, and how many they are.

    One matrix product screens all pairs; no pair is stored but those.
    """
    groups = signs.shape[1]
    score = np.triu((signs.T * left) @ signs, 1) / max(float(np.sqrt(left @ left)), 1e-30)
    threshold = norm.isf(CHANCE / 2 / max(groups * (groups - 1) / 2, 1))
    first, second = np.nonzero(np.abs(score) > threshold)
    order = np.argsort(-np.abs(score[first, second]))[:MOST_PAIRS]
    pairs = np.zeros((MOST_PAIRS, 2), int)
    pairs[: len(order)] = np.stack([first, second], axis=1)[order]
    return pairs, len(order)


def _signs(masks: Bool[np.ndarray, "m g"]) -> Float[Array, "m g"]:
    return jnp.asarray(2 * masks.astype(np.float32) - 1)


def _inputs(signs: Float[Array, "m g"], pairs: Int[np.ndarray, "p 2"]) -> Inputs:
    return Inputs(signs, signs[:, pairs[:, 0]] * signs[:, pairs[:, 1]])


def _unstacked(covariance: Covariance) -> list[Covariance]:
    """Of each target."""
    return [
        Covariance(*parts) for parts in zip(*(np.asarray(part) for part in covariance), strict=True)
    ]


@jax.jit
def _predict(
    covariance: Covariance, left: Inputs, right: Inputs, coefficients: Float[Array, " m"]
) -> Float[Array, " k"]:
    return between(covariance, left, right) @ coefficients


def _predicted(
    covariance: Covariance,
    pairs: Int[np.ndarray, "p 2"],
    coefficients: Float[np.ndarray, " m"],
    left: Float[Array, "k g"],
    right: Float[Array, "m g"],
) -> Float[np.ndarray, " k"]:
    inputs = _inputs(left, pairs), _inputs(right, pairs)
    return np.asarray(_predict(jax.tree.map(jnp.asarray, covariance), *inputs, coefficients))
