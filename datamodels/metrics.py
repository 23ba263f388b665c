"""How good a datamodel is, beside how good it could be."""

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

Outputs = Float[np.ndarray, "k t"]
PerTarget = Float[np.ndarray, " t"]


def r2(predicted: Outputs, actual: Outputs) -> PerTarget:
    """Share of the variance over masks that is predicted, per target; NaN where there is none."""
    total = np.square(actual - actual.mean(0)).sum(0, dtype=np.float64)
    error = np.square(actual - predicted).sum(0, dtype=np.float64)
    return 1 - error / np.where(total > 0, total, np.nan)


def lds(predicted: Outputs, actual: Outputs) -> PerTarget:
    """Linear datamodeling score (Park et al. 2023, definition 2.3), per target.

    Spearman correlation of predicted and actual outputs over held-out masks; 0 where one of the
    two is constant, since a constant ranks nothing.
    """
    ranks_predicted = _centred_ranks(predicted)
    ranks_actual = _centred_ranks(actual)
    scale = np.sqrt(np.square(ranks_predicted).sum(0) * np.square(ranks_actual).sum(0))
    product = (ranks_predicted * ranks_actual).sum(0)
    return np.divide(product, scale, out=np.zeros_like(product), where=scale > 0)


def _centred_ranks(values: Outputs) -> Float[np.ndarray, "k t"]:
    ranks = rankdata(values, axis=0)
    return ranks - ranks.mean(0)


def noise_variance(replicates: Float[np.ndarray, "r s t"]) -> PerTarget:
    """Variance over seeds at a fixed mask, per target.

    Args:
        replicates: outputs of r masks, each retrained with s >= 2 seeds. A NaN is a member
            left out.
    """
    return np.nanmean(np.nanvar(replicates, axis=1, ddof=1, dtype=np.float64), axis=0)


def ceiling(outputs: Outputs, replicates: Float[np.ndarray, "r s t"]) -> PerTarget:
    """Share of the output variance that any function of the mask can explain, per target.

    1 - (variance over seeds at a fixed mask) / (total variance over members); in R2. The ceiling
    of the LDS is about its square root.

    Args:
        outputs: one member a mask, for the total variance.
        replicates: as in `noise_variance`, of the same design.
    """
    total = outputs.var(0, ddof=1, dtype=np.float64)
    return 1 - noise_variance(replicates) / np.where(total > 0, total, np.nan)
