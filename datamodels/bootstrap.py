"""How sure the metrics are: the same over masks drawn again with replacement (Efron 1979).

Targets share masks, so a draw of masks is one for all targets: the mean of a metric over targets
has the mean of the draws, and an interval of its own.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import rankdata

from datamodels.metrics import per_mask_variance
from datamodels.moments import shift_of

RESAMPLED = 1_618_034
"""Part of the seed of draws."""
DRAWS = 400
"""Enough for the ends of a 95 % interval to be within a tenth of its width."""

Draws = Float[np.ndarray, "b t"]
"""A metric of every target in each draw."""
Counts = Int[np.ndarray, "b k"]
"""How often each draw has each mask."""


class Interval(NamedTuple):
    """A value with the ends of its interval."""

    value: float
    low: float
    high: float


def resamples(rows: int, *, seed: int = 0, draws: int = DRAWS) -> Counts:
    """How often each of so many masks is drawn, in each draw of as many."""
    rng = np.random.default_rng([RESAMPLED, seed])
    return rng.multinomial(rows, np.full(rows, 1 / rows), draws)


def resample_together(
    numbers: Int[np.ndarray, " k"], *, seed: int = 0, draws: int = DRAWS
) -> Counts:
    """How often each row is drawn, where rows of one number are drawn together."""
    distinct, position = np.unique(numbers, return_inverse=True)
    return resamples(len(distinct), seed=seed, draws=draws)[:, position]


def r2_draws(
    predicted: Float[np.ndarray, "k t"], actual: Float[np.ndarray, "k t"], counts: Counts
) -> Draws:
    """`metrics.r2` in each draw; NaN where the outputs do not vary."""
    shifted = actual - shift_of(actual)
    error = counts @ np.square(actual.astype(np.float64) - predicted)
    return 1 - error / _varying(_spread(shifted, counts), shifted)


def ceiling_draws(
    outputs: Float[np.ndarray, "m t"],
    replicates: Float[np.ndarray, "r s t"],
    counts: Counts,
    replicate_counts: Int[np.ndarray, "b r"],
) -> Draws:
    """`metrics.ceiling` in each draw of masks, those of members and those that were retrained."""
    noise = per_mask_variance(replicates)
    known = np.isfinite(noise)
    several = replicate_counts @ known.astype(np.float64)
    mean_noise = replicate_counts @ np.where(known, noise, 0)
    mean_noise /= np.where(several > 0, several, np.nan)
    shifted = outputs - shift_of(outputs)
    total = _spread(shifted, counts) / (counts.sum(1, keepdims=True) - 1)
    return 1 - mean_noise / _varying(total, shifted)


def lds_draws(
    predicted: Float[np.ndarray, "k t"], actual: Float[np.ndarray, "k t"], counts: Counts
) -> Draws:
    """`metrics.lds` in each draw."""
    one, other = _Ranked.of(predicted), _Ranked.of(actual)
    found = np.empty((len(counts), predicted.shape[1]))
    for draw, count in enumerate(counts):
        left, right = one.ranks(count), other.ranks(count)
        weight = count[:, None]
        product = (weight * left * right).sum(0)
        scale = np.sqrt((weight * left**2).sum(0) * (weight * right**2).sum(0))
        found[draw] = np.divide(product, scale, out=np.zeros_like(product), where=scale > 1e-9)
    return found


class _Ranked(NamedTuple):
    """Values in order, so that ranks in a draw are sums along that order."""

    order: Int[np.ndarray, "k t"]
    first: Int[np.ndarray, "k t"]
    """For each place in the order, the first and the last place of the same value."""
    last: Int[np.ndarray, "k t"]

    @classmethod
    def of(cls, values: Float[np.ndarray, "k t"]) -> "_Ranked":
        order = np.argsort(values, axis=0, kind="stable")
        place = {
            method: np.take_along_axis(rankdata(values, method, axis=0), order, 0).astype(int) - 1
            for method in ("min", "max")
        }
        return cls(order, place["min"], place["max"])

    def ranks(self, count: Int[np.ndarray, " k"]) -> Float[np.ndarray, "k t"]:
        """Mid-ranks less their mean, where mask i is there count[i] times; in the values' order."""
        drawn = count[self.order]
        until = np.cumsum(drawn, axis=0)
        before = until - drawn
        middle = np.take_along_axis(before, self.first, 0) + np.take_along_axis(until, self.last, 0)
        ranks = np.empty(middle.shape)
        np.put_along_axis(ranks, self.order, middle / 2, 0)
        return ranks - count.sum() / 2


def _spread(shifted: Float[np.ndarray, "k t"], counts: Counts) -> Draws:
    """Sum of squares about the mean, in each draw."""
    mean = counts @ shifted / counts.sum(1, keepdims=True)
    return counts @ np.square(shifted) - counts.sum(1, keepdims=True) * np.square(mean)


def _varying(spread: Draws, shifted: Float[np.ndarray, "k t"]) -> Draws:
    """NaN where a target does not vary in a draw, but for rounding."""
    return np.where(spread > 1e-9 * np.square(shifted).mean(0), spread, np.nan)


def interval(value: float, draws: Float[np.ndarray, " b"], level: float = 0.95) -> Interval:
    """The value with the quantiles of its draws; NaN where too few draws have it.

    Draws repeat masks, which ties ranks and shrinks variances: they are moved so that
    their mean is the value.
    """
    known = draws[np.isfinite(draws)]
    if len(known) < len(draws) / 2:
        return Interval(value, float("nan"), float("nan"))
    ends = np.quantile(known, [(1 - level) / 2, (1 + level) / 2]) - known.mean() + value
    return Interval(value, *ends.tolist())
