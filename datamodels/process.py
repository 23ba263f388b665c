"""Fits the Gaussian process of one target: learns its covariance, and what the outputs then say."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.stats import norm

from datamodels.covariance import Covariance, Inputs, between
from datamodels.evidence import Known, learn, posterior, steps_tried, unseen_error

PARTS = 3
"""Parts of the covariance that act jointly, each with relevances of its own."""
MOST_STEPS = 20
"""Steps that may learn the relevances."""
PAIR_STEPS = 6
"""Steps more once pairs that stand out have been found."""
MOST_LEARNED = 1500
"""Masks that the covariance is learned from; what it then predicts is said by all."""
MOST_PAIRS = 64
"""Of one target."""
CHANCE = 0.05
"""How many pairs of a target are expected to stand out by chance."""
FIRST_NOISE = 0.2
"""Share of the variance that is taken as noise to begin with, where nothing is known of it."""
NOISE_FACTORS = (1.0, 1.5, 2.0, 3.0)
"""Of the learned noise, of which one is chosen."""
BEGIN = 31_415_927
"""Seed of the relevances that the steps begin from, as parts must differ to become different, and
of the halves of which one judges the other."""


class Bank(NamedTuple):
    """Distinct masks with the mean outputs of their members."""

    masks: Bool[np.ndarray, "d g"]
    outputs: Float[np.ndarray, "d t"]
    members: Int[np.ndarray, " d"]
    within: Float[np.ndarray, " t"]
    """Squared deviations of members from their mask's mean, added up."""


def distinct(masks: Bool[np.ndarray, "m g"], outputs: Float[np.ndarray, "m t"]) -> Bank:
    """Retrains of one mask as one row."""
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
    return Bank(masks[first], mean, members, within)


class Settings(NamedTuple):
    """A way to learn a covariance."""

    steps: int
    own_mains: bool
    """Every main effect has a variance of its own."""
    joint: bool
    """There are parts that act jointly."""
    noise: float | None
    """Share of the variance; None: learned."""
    noise_factor: float = 1.0
    """Times the learned noise is what predicts best: some of it is learned as what masks do."""

    def noisier(self, covariance: Covariance) -> Covariance:
        """What was learned, with the noise that predicts best."""
        return covariance._replace(noise=covariance.noise * self.noise_factor)


class Process(NamedTuple):
    """A posterior of one target, of mean 0 and variance 1 over the rows of the fit."""

    covariance: Covariance
    """With all the parts and pairs that a target may have; those it lacks are of variance 0."""
    pairs: Int[np.ndarray, "p 2"]
    """The groups of each pair."""
    coefficients: Float[np.ndarray, " m"]
    left_out: Float[np.ndarray, " m"]
    """Each output less its prediction from all others."""


def choose_settings(bank: Bank, outputs: Float[np.ndarray, " d"], noise: float | None) -> Settings:
    """Learn from half of the masks in several ways, and judge by the others.

    Where groups only add up, the ways without parts that act jointly win.

    Args:
        bank: the masks.
        outputs: of one target, of mean 0 and variance 1.
        noise: share of their variance, if it is known.
    """
    known = _known(bank, outputs)
    own, other = (_rows(known, rows) for rows in np.array_split(_learned_from(len(outputs)), 2))
    trials = []
    for own_mains, joint in itertools.product((False, True), (False, True)):
        tried = steps_tried(
            _begin(bank.masks.shape[1], noise, joint),
            own,
            other,
            steps=MOST_STEPS + 1,
            own_mains=own_mains,
            known_noise=noise is not None,
        )
        steps = int(np.argmin([each.error for each in tried]))
        trials.append((tried[steps], Settings(steps, own_mains, joint, noise)))
    best, settings = min(trials, key=lambda trial: trial[0].error)
    if noise is not None:
        return settings

    def error(factor: float) -> float:
        noisier = settings._replace(noise_factor=factor).noisier(best.covariance)
        return unseen_error(noisier, own, other)

    return settings._replace(noise_factor=min(NOISE_FACTORS, key=error))


def fit_process(bank: Bank, outputs: Float[np.ndarray, " d"], settings: Settings) -> Process:
    """Learn a covariance from all masks; outputs as of `choose_settings`."""
    known, chosen = _known(bank, outputs), _learned_from(len(outputs))

    def steps(start: Covariance, count: int) -> Covariance:
        return learn(
            start,
            _rows(known, chosen),
            steps=count,
            own_mains=settings.own_mains,
            known_noise=settings.noise is not None,
        )

    groups = bank.masks.shape[1]
    found = steps(_begin(groups, settings.noise, settings.joint), settings.steps)
    said = posterior(settings.noisier(found), known)
    pairs, count = _outstanding_pairs(np.asarray(known.inputs.signs), np.asarray(said.left_out))
    if count:
        known = known._replace(inputs=inputs_of(known.inputs.signs, pairs))
        pair = jnp.where(jnp.arange(MOST_PAIRS) < count, 1 / groups, 0)
        found = steps(found._replace(pair=pair), PAIR_STEPS)
        said = posterior(settings.noisier(found), known)
    return Process(
        jax.tree.map(np.asarray, _padded(settings.noisier(found))),
        pairs,
        np.asarray(said.coefficients),
        np.asarray(said.left_out),
    )


def predict(
    process: Process, masks: Bool[np.ndarray, "m g"], unseen: Bool[np.ndarray, "k g"]
) -> Float[np.ndarray, " k"]:
    """Outputs of unseen masks, in units of the fit's; `masks` are those of the fit."""
    left, right = (inputs_of(signs_of(each), process.pairs) for each in (unseen, masks))
    covariance = jax.tree.map(jnp.asarray, process.covariance)
    return np.asarray(_predict(covariance, left, right, jnp.asarray(process.coefficients)))


@jax.jit
def _predict(
    covariance: Covariance, left: Inputs, right: Inputs, coefficients: Float[Array, " m"]
) -> Float[Array, " k"]:
    return between(covariance, left, right) @ coefficients


def _known(bank: Bank, outputs: Float[np.ndarray, " d"]) -> Known:
    signs = signs_of(bank.masks)
    return Known(
        Inputs(signs, signs[:, :0]),
        jnp.asarray(outputs, jnp.float32),
        jnp.asarray(1 / bank.members, jnp.float32),
    )


def _learned_from(rows: int) -> Int[np.ndarray, " r"]:
    return np.random.default_rng(BEGIN).permutation(rows)[:MOST_LEARNED]


def _rows(known: Known, rows: Int[np.ndarray, " r"]) -> Known:
    return jax.tree.map(lambda part: part[rows], known)


def _begin(groups: int, noise: float | None, joint: bool) -> Covariance:
    parts = PARTS if joint else 0
    spread = np.random.default_rng(BEGIN).uniform(0.2, 1.8, (parts, groups))
    return Covariance(
        main=jnp.full(groups, 0.3 / groups),
        pair=jnp.zeros(0),
        relevance=jnp.asarray(1.5 / groups * spread, jnp.float32),
        amplitude=jnp.full(parts, 1 / PARTS),
        noise=jnp.float32(FIRST_NOISE if noise is None else noise),
    )


def _padded(covariance: Covariance) -> Covariance:
    parts, pairs = len(covariance.amplitude), len(covariance.pair)
    return covariance._replace(
        pair=jnp.pad(covariance.pair, (0, MOST_PAIRS - pairs)),
        relevance=jnp.pad(covariance.relevance, ((0, PARTS - parts), (0, 0))),
        amplitude=jnp.pad(covariance.amplitude, (0, PARTS - parts)),
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


def signs_of(masks: Bool[np.ndarray, "m g"]) -> Float[Array, "m g"]:
    """+1 kept, -1 dropped."""
    return jnp.asarray(2 * masks.astype(np.float32) - 1)


def inputs_of(signs: Float[Array, "m g"], pairs: Int[np.ndarray, "p 2"]) -> Inputs:
    """Masks as a covariance with these pairs reads them."""
    return Inputs(signs, signs[:, pairs[:, 0]] * signs[:, pairs[:, 1]])
