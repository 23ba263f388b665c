"""Joint effects with standard errors: each half of the draws, with a posterior of the other half.

With masks drawn independently, group j kept with probability a_j, the joint effect of a set S is
E[y prod_{j in S} h_j], h_j = (z_j - a_j) / (a_j (1 - a_j)). As for single groups
(`datamodels.inference`), the same mean of what a posterior of *other* rows leaves of y, plus that
posterior's own joint effect, has the same expectation whatever the posterior is, and less variance
the better it predicts. Its spread over draws gives the standard error. (How a covariance is learned
was chosen once, from all rows.)
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from datamodels.closed_form import Average, Contexts, Fitted, average, joint_effects
from datamodels.process import Process, Settings, distinct, fit_process, predict, signs_of
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
    """Of the other rows."""
    unit: float
    """Of the fitted outputs, in those of the target."""
    mean: float
    """Of the other rows' outputs."""
    error: float
    """Standard deviation of what the posterior leaves of its own rows, left out one by one."""
    masks: Bool[np.ndarray, "r g"]
    alpha: Float[np.ndarray, "#r #g"]
    """The probability that each group was kept."""
    residual: Float[np.ndarray, " r"]
    """What the posterior leaves of the outputs."""
    draw: Int[np.ndarray, " r"]

    @cached_property
    def contexts(self) -> Contexts:
        """What the rows average other groups over."""
        return contexts_of(self.alpha, self.masks.shape[1])

    @cached_property
    def average(self) -> Average:
        """What the other rows say, in these rows' contexts."""
        return average(self.fitted, self.contexts)

    def estimate(self, sets: Int[np.ndarray, "s k"], weights: Float[np.ndarray, "q s"]) -> Estimate:
        """Weighted sums of the joint effects of sets.

        Args:
            sets: the groups of each, then -1.
            weights: of each sum.
        """
        order = sets.shape[1]
        own = self.average
        if order > MOST_ORDER:
            own = average(self.fitted, self.contexts, order=order)
        variance = self.alpha * (1 - self.alpha)
        # Of a group that is always kept, or never, nothing is known.
        closed = np.zeros(self.masks.shape[1] + 1, bool)
        closed[:-1] = (variance == 0).all(0)
        unknown = (weights != 0) @ closed[sets].any(1)
        scale = np.divide(1, variance, out=np.zeros_like(variance), where=variance > 0)
        centred = (self.masks - self.alpha) * scale
        wide = np.concatenate([centred, np.ones((len(centred), 1))], axis=1)
        score = (wide[:, sets].prod(2) @ weights.T) * self.residual[:, None]
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
            + self.unit * weights @ joint_effects(own, sets)
            + (self.mean * weights @ (sets < 0).all(1)),
            np.where(unknown, np.nan, np.sqrt(spread * freedom)),
        )


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


def cross_fit(
    sampling: Sampling, outputs: Float[np.ndarray, " m"], settings: Settings
) -> tuple[Half, Half]:
    """Split the draws of one target at random, and fit each half.

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
    second[np.random.default_rng(SPLIT).permutation(draws)[draws // 2 :]] = True
    here = second[sampling.draw]
    return _half(sampling, outputs, settings, here), _half(sampling, outputs, settings, ~here)


def _half(
    sampling: Sampling,
    outputs: Float[np.ndarray, " m"],
    settings: Settings,
    own: Bool[np.ndarray, " m"],
) -> Half:
    """Estimates on its own rows, and learns from the others."""
    bank = distinct(sampling.masks[~own], outputs[~own, None])
    mean = float(bank.outputs.mean())
    unit = max(float(bank.outputs.std()), 1e-30)
    process = fit_process(bank, (bank.outputs[:, 0] - mean) / unit, settings)
    masks = sampling.masks[own]
    alpha = sampling.alpha if len(sampling.alpha) == 1 else sampling.alpha[own]
    predicted = mean + unit * predict(process, bank.masks, masks).astype(np.float64)
    return Half(
        fitted=fitted(process, bank.masks),
        unit=unit,
        mean=mean,
        error=unit * float(np.sqrt(np.square(process.left_out).mean())),
        masks=masks,
        alpha=np.broadcast_to(alpha, (len(masks), alpha.shape[1])),
        residual=outputs[own] - predicted,
        draw=sampling.draw[own],
    )


def fitted(process: Process, masks: Bool[np.ndarray, "m g"]) -> Fitted:
    """The posterior of a process as its joint effects are read."""
    return Fitted(
        jax.tree.map(jnp.asarray, process.covariance),
        signs_of(masks),
        jnp.asarray(process.pairs),
        jnp.asarray(process.coefficients),
    )
