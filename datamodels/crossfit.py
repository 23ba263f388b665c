"""Joint effects with standard errors: each half of the draws, with a posterior of the other half.

With masks drawn independently, group j kept with probability a_j, the joint effect of a set S is
E[y prod_{j in S} h_j], h_j = (z_j - a_j) / (a_j (1 - a_j)). As for single groups
(`datamodels.inference`), the same mean of what a posterior of *other* rows leaves of y, plus that
posterior's own joint effect, has the same expectation whatever the posterior is, and less variance
the better it predicts. Its spread over draws gives the standard error. (How a covariance is learned
was chosen once, from all rows.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from datamodels.background import Background, background, others
from datamodels.closed_form import Average, Contexts, Fitted, average, joint_effects
from datamodels.process import (
    Bank,
    Process,
    Settings,
    distinct,
    fit_process,
    predict,
    signs_of,
)
from datamodels.scores import Sampling
from datamodels.shapes import MOST_ORDER

MOST_ALPHAS = 16
"""Different mixtures of alphas over rows, each of which costs its own closed form."""
SPLIT = 27_182_818
"""Seed of the halves."""


class Estimate(NamedTuple):
    """Of some functionals of one target, in output units."""

    value: Float[np.ndarray, " q"]
    standard_error: Float[np.ndarray, " q"]
    """Over draws of masks and seeds; NaN where nothing shows it: a single draw, or a group that
    never varies, of which the value says what the posterior happens to say."""


@dataclass(frozen=True)
class Half:
    """Rows on which to estimate, and what other rows say of the target."""

    fitted: Fitted
    """Of the other rows, over `groups` alone."""
    groups: Int[np.ndarray, " k"]
    """That may act jointly, as far as the other rows say."""
    weights: Float[np.ndarray, " g"]
    """Of the additive part, in output units."""
    unit: float
    """Of the fitted outputs, in those of the target."""
    mean: float
    """Output with all of `groups` left out, and all others averaged."""
    error: float
    """Standard deviation of what the posterior leaves of its own rows, left out one by one."""
    masks: Bool[np.ndarray, "r g"]
    alpha: Float[np.ndarray, "r #g"]
    """The probability that each group was kept."""
    residual: Float[np.ndarray, " r"]
    """What the posterior leaves of the outputs."""
    draw: Int[np.ndarray, " r"]

    @cached_property
    def average(self) -> Average:
        """What the other rows say, in these rows' contexts."""
        return self._average(MOST_ORDER)

    def _average(self, order: int) -> Average:
        contexts = contexts_of(self.alpha, self.masks.shape[1])
        return average(self.fitted, contexts.of(self.groups), order=order)

    def estimate(self, sets: Int[np.ndarray, "s k"], weights: Float[np.ndarray, "q s"]) -> Estimate:
        """Weighted sums of the joint effects of sets.

        Args:
            sets: the groups of each, then -1.
            weights: of each sum.
        """
        order = sets.shape[1]
        own = self.average if order <= MOST_ORDER else self._average(order)
        # Only these groups' columns are looked at; that of -1 is the last, and of ones.
        used, place = np.unique(np.append(sets.ravel(), -1), return_inverse=True)
        place = (place[:-1].reshape(sets.shape) - 1) % len(used)
        alpha = np.broadcast_to(self.alpha, self.masks.shape)[:, used[1:]]
        variance = alpha * (1 - alpha)
        # Of a group that is always kept, or never, nothing is known.
        closed = np.append((variance == 0).all(0), False)
        unknown = (weights != 0) @ closed[place].any(1)
        scale = np.divide(1, variance, out=np.zeros_like(variance), where=variance > 0)
        centred = (self.masks[:, used[1:]] - alpha) * scale
        wide = np.concatenate([centred, np.ones((len(centred), 1))], axis=1)
        score = (wide[:, place].prod(2) @ weights.T) * self.residual[:, None]
        _, draw = np.unique(self.draw, return_inverse=True)
        total = np.zeros((draw.max() + 1, len(weights)))
        np.add.at(total, draw, score)
        mean = total.sum(0) / len(score)
        share = np.bincount(draw)[:, None] / len(score)
        spread = np.square(total / len(score) - share * mean).sum(0)
        several = len(total) > 1
        freedom = len(total) / (len(total) - 1) if several else np.nan
        return Estimate(
            mean
            + weights @ said_of(own, self.groups, sets, self.unit, self.weights)
            + (self.mean * weights @ (sets < 0).all(1)),
            np.where(unknown, np.nan, np.sqrt(spread * freedom)),
        )


def said_of(
    average: Average,
    groups: Int[np.ndarray, " k"],
    sets: Int[np.ndarray, "s w"],
    unit: float,
    weights: Float[np.ndarray, " g"],
) -> Float[np.ndarray, " s"]:
    """The joint effects of sets in output units, as a posterior over some groups has them.

    Other groups only add up: a single one has its weight, and all with them have nothing.

    Args:
        average: of the posterior.
        groups: that it is over, in order.
        sets: of any groups, then -1.
        unit: of the posterior.
        weights: of all groups, in output units.
    """
    inside = np.isin(sets, [-1, *groups]).all(1)
    first = sets.max(1)
    found = np.where((sets >= 0).sum(1) == 1, weights[first], 0.0)
    place = np.where(sets[inside] < 0, -1, np.searchsorted(groups, sets[inside]))
    found[inside] = unit * joint_effects(average, place)
    return found


def contexts_of(alpha: Float[np.ndarray, "#r #g"], groups: int) -> Contexts:
    """What rows of these probabilities average so many groups over."""
    kept, count = np.unique(alpha, axis=0, return_counts=True)
    return Contexts(np.broadcast_to(kept, (len(kept), groups)), count / count.sum())


def pooled(estimates: list[Estimate], rows: list[int]) -> Estimate:
    """Of several halves, by the number of their rows."""
    share = np.array(rows) / sum(rows)
    values = np.stack([each.value for each in estimates])
    errors = np.stack([each.standard_error for each in estimates])
    return Estimate(share @ values, np.sqrt(np.square(share) @ np.square(errors)))


class Side(NamedTuple):
    """Half of the draws, to estimate on, and what is common to all targets in the other half."""

    sampling: Sampling
    own: Bool[np.ndarray, " m"]
    outputs: Float[np.ndarray, "m t"]
    bank: Bank
    """Of the other rows."""
    background: Background

    def learn(self, target: int, settings: Settings, scale: float) -> Process:
        """Of one target, from the other rows, as settings say for outputs over a scale."""
        bank, unit = self._learned_from(target)
        if settings.noise is not None:
            settings = settings._replace(noise=settings.noise * (scale / unit) ** 2)
        return fit_process(bank, bank.outputs[:, 0] / unit, settings)

    def half(self, target: int, process: Process) -> Half:
        """Of one target, with what was learned of it."""
        parts, own, groups = self.background, self.own, self.background.groups[target]
        bank, unit = self._learned_from(target)
        masks, sampling = self.sampling.masks[own], self.sampling
        alpha = sampling.alpha if len(sampling.alpha) == 1 else sampling.alpha[own]
        alpha = np.broadcast_to(alpha, (len(masks), alpha.shape[1]))
        additive = parts.intercept[target] + masks @ parts.weights[:, target]
        joint = predict(process, bank.masks, masks[:, groups]).astype(np.float64)
        kept, weights = np.broadcast_to(alpha.mean(0), masks.shape[1]), parts.weights[:, target]
        return Half(
            fitted=fitted(process, bank.masks, weights[groups] / unit),
            groups=groups,
            weights=weights,
            unit=unit,
            mean=others(float(parts.intercept[target]), weights, groups, kept),
            error=unit * float(np.sqrt(np.square(process.left_out).mean())),
            masks=masks,
            alpha=alpha,
            residual=self.outputs[own, target] - additive - unit * joint,
            draw=sampling.draw[own],
        )

    def _learned_from(self, target: int) -> tuple[Bank, float]:
        """What is left of a target in the other rows, and its unit."""
        bank = self.background.of_target(self.bank, target)
        return bank, max(float(bank.outputs.std()), 1e-30)


class Refit(NamedTuple):
    """Targets that were learned anew, from each half of the draws."""

    sides: tuple[Side, Side]
    learned: list[tuple[Process, Process]]
    """Of each target, on each side."""

    def halves(self, target: int) -> tuple[Half, Half]:
        """Of one target."""
        (one, other), (of_one, of_other) = self.sides, self.learned[target]
        return one.half(target, of_one), other.half(target, of_other)


def refit_halves(
    both: tuple[Side, Side], settings: Sequence[Settings], scale: Float[np.ndarray, " t"]
) -> Refit:
    """Learn every target of the sides, each as its settings say for outputs over its scale."""
    learned = [
        (both[0].learn(target, own, float(over)), both[1].learn(target, own, float(over)))
        for target, (own, over) in enumerate(zip(settings, scale, strict=True))
    ]
    return Refit(both, learned)


def sides(
    sampling: Sampling, outputs: Float[np.ndarray, "m t"], *, seed: int = SPLIT
) -> tuple[Side, Side]:
    """Split the draws at random, as the seed says, and begin each half of every target.

    Raises:
        ValueError: alphas that differ from row to row, as those of two levels; a group that may
            vary in some rows alone.
    """
    alphas = len(np.unique(sampling.alpha, axis=0))
    if alphas > MOST_ALPHAS:
        raise ValueError(
            f"rows have {alphas} different alphas, and joint effects average other groups over "
            f"each of them; at most {MOST_ALPHAS} can be taken, as of several arms"
        )
    never_varies = sampling.alpha * (1 - sampling.alpha) == 0
    if (never_varies.any(0) & ~never_varies.all(0)).any():
        raise ValueError(
            "alpha is 0 or 1 for a group in some rows and not in others; joint effects need every "
            "group to be open in all rows, so leave such rows out"
        )
    draws = len(sampling.first_row)
    second = np.zeros(draws, bool)
    second[np.random.default_rng(seed).permutation(draws)[draws // 2 :]] = True
    here = second[sampling.draw]
    return _side(sampling, outputs, here), _side(sampling, outputs, ~here)


def _side(
    sampling: Sampling, outputs: Float[np.ndarray, "m t"], own: Bool[np.ndarray, " m"]
) -> Side:
    bank = distinct(sampling.masks[~own], outputs[~own])
    return Side(sampling, own, outputs, bank, background(bank))


def fitted(
    process: Process, masks: Bool[np.ndarray, "m g"], weights: Float[np.ndarray, " g"]
) -> Fitted:
    """The posterior of a process, and weights in its unit, as joint effects are read of them."""
    return Fitted(
        jax.tree.map(jnp.asarray, process.covariance),
        signs_of(masks),
        jnp.asarray(process.pairs),
        jnp.asarray(process.coefficients),
        jnp.asarray(weights, jnp.float32),
    )
