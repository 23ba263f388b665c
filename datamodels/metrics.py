"""How good a datamodel is, beside how good it could be."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from datamodels.inputs import as_replicates, require_same_shape

Outputs = Float[np.ndarray, "k t"]
PerTarget = Float[np.ndarray, " t"]


def r2(predicted: Outputs, actual: Outputs) -> PerTarget:
    """Share of the variance over masks that is predicted, per target; NaN where there is none.

    Raises:
        ValueError: predictions of another shape.
    """
    require_same_shape(predicted, actual)
    actual = actual.astype(np.float64)
    total = np.square(actual - actual.mean(0)).sum(0)
    error = np.square(actual - predicted).sum(0)
    return 1 - error / np.where(_is_constant(actual), np.nan, total)


def lds(predicted: Outputs, actual: Outputs) -> PerTarget:
    """Linear datamodeling score (Park et al. 2023, definition 2.3), per target.

    Spearman correlation of predicted and actual outputs over held-out masks; 0 where one of the
    two is constant, since a constant ranks nothing; NaN where a value is NaN.

    Raises:
        ValueError: predictions of another shape.
    """
    require_same_shape(predicted, actual)
    ranks_predicted = _centred_ranks(predicted)
    ranks_actual = _centred_ranks(actual)
    scale = np.sqrt(np.square(ranks_predicted).sum(0) * np.square(ranks_actual).sum(0))
    product = (ranks_predicted * ranks_actual).sum(0)
    return np.divide(product, scale, out=np.zeros_like(product), where=scale != 0)


def _centred_ranks(values: Outputs) -> Float[np.ndarray, "k t"]:
    ranks = rankdata(values, axis=0)
    return ranks - ranks.mean(0)


def noise_variance(replicates: Float[np.ndarray, "r s t"]) -> PerTarget:
    """Variance over seeds at a fixed mask, per target.

    Args:
        replicates: outputs of r masks, each retrained with s >= 2 seeds. A NaN is a member
            left out; a mask with fewer than 2 members left says nothing.

    Raises:
        ValueError: replicates of another shape, or of one seed.
    """
    variance = per_mask_variance(as_replicates(replicates))
    known = np.isfinite(variance)
    return np.where(known, variance, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)


def per_mask_variance(replicates: Float[np.ndarray, "r s t"]) -> Float[np.ndarray, "r t"]:
    """Variance over the seeds of each mask; NaN where fewer than 2 members are left."""
    count = np.isfinite(replicates).sum(1, keepdims=True)
    several = np.where(count >= 2, replicates.astype(np.float64), np.nan)
    mean = np.nansum(several, 1, keepdims=True) / np.maximum(count, 1)
    freedom = np.maximum(count[:, 0] - 1, 1)
    variance = np.nansum(np.square(several - mean), 1) / freedom
    return np.where(count[:, 0] >= 2, variance, np.nan)


def ceiling(outputs: Outputs, replicates: Float[np.ndarray, "r s t"]) -> PerTarget:
    """Share of the output variance that any function of the mask can explain, per target.

    1 - (variance over seeds at a fixed mask) / (total variance over members); in R2. The ceiling
    of the LDS is about its square root.

    Args:
        outputs: one member a mask, for the total variance.
        replicates: as in `noise_variance`, of the same design.

    Raises:
        ValueError: as `noise_variance`, or replicates of other targets.
    """
    if np.ndim(outputs) != 2 or outputs.shape[1] != np.shape(replicates)[-1]:
        raise ValueError(
            f"outputs (members, targets) and replicates (masks, seeds, targets) must share their "
            f"targets, got {np.shape(outputs)} and {np.shape(replicates)}"
        )
    total = outputs.var(0, ddof=1, dtype=np.float64)
    return 1 - noise_variance(replicates) / np.where(_is_constant(outputs), np.nan, total)


class Calibration(NamedTuple):
    """Measured changes against predicted ones: measured = intercept + slope predicted.

    Slope 1 and intercept 0: what is predicted happens. A slope above 1: more happens.
    """

    slope: float
    intercept: float
    correlation: float
    error: float
    """Root of the mean squared difference, less what the measurement's own noise adds; in output
    units."""


def calibration(
    predicted: Float[np.ndarray, " t"], measured: Float[np.ndarray, "s t"]
) -> Calibration:
    """Compare predicted changes of outputs with those that retraining measured.

    Args:
        predicted: of each target.
        measured: of each target with each seed; at least two seeds.

    Returns:
        NaN for slope and correlation where all targets have one prediction.

    Raises:
        ValueError: fewer than two seeds, or other targets.
    """
    if np.ndim(measured) != 2 or len(measured) < 2 or measured.shape[1:] != np.shape(predicted):
        raise ValueError(
            f"measured must be of shape (seeds, targets), at least 2 seeds of the targets of "
            f"predicted, got {np.shape(measured)} beside {np.shape(predicted)}"
        )
    mean = measured.mean(0, dtype=np.float64)
    noise = measured.var(0, ddof=1, dtype=np.float64) / len(measured)
    left, right = predicted - predicted.mean(dtype=np.float64), mean - mean.mean()
    square, product = float(left @ left), float(left @ right)
    slope = product / square if square else float("nan")
    scale = float(np.sqrt(square * (right @ right)))
    return Calibration(
        slope,
        float(mean.mean() - slope * predicted.mean(dtype=np.float64)),
        product / scale if scale else float("nan"),
        float(np.sqrt(max((np.square(mean - predicted) - noise).mean(), 0))),
    )


def _is_constant(outputs: Outputs) -> Bool[np.ndarray, " t"]:
    """Targets without any variation; a computed variance would be rounding noise above 0."""
    return (outputs == outputs[:1]).all(0)
