"""Ridge regression of many targets at once, by Cholesky's factors.

    minimise over w:  |y - Z w|^2 / (2 m) + r |w|^2 / 2,

with centred masks Z (m, g) in mask units and centred outputs y. Every target has the same
penalty r, which has no unit, so one factor serves them all.
"""

import numpy as np
from jaxtyping import Float
from scipy.linalg import cho_factor, cho_solve

from datamodels.moments import Factored, Moments, Regressors, deviation, select


def penalties(masks: Regressors, rows: int) -> Float[np.ndarray, " p"]:
    """Penalties worth trying, from large to small.

    With weights and noise that are normal, the best penalty is the noise variance over `rows` times
    the variance of a weight: g v / m (1 - R2) / R2 for masks of variance v. These are for R2 from
    0.03 to 0.99.
    """
    variances = masks.mean_mask * (1 - masks.mean_mask)
    return max(float(variances.sum()), 1e-12) / rows * np.geomspace(30, 0.01, 16)


def solve(problem: Moments, penalty: float) -> Float[np.ndarray, "g t"]:
    """The weights, float64."""
    gram, correlation = problem.masks.gram, problem.correlation
    if not isinstance(gram, Factored):
        return cho_solve(_factor(gram, penalty), correlation)
    # (rows'rows + r)^-1 c = (c - rows' (rows rows' + r)^-1 rows c) / r, of the size of the rows.
    rows = gram.centred_rows()
    inner = cho_solve(_factor(rows @ rows.T, penalty), rows @ correlation)
    return (correlation - rows.T @ inner) / penalty


def solve_each(problem: Moments, penalty: Float[np.ndarray, " t"]) -> Float[np.ndarray, "g t"]:
    """The weights of targets with a penalty each, float32."""
    weights = np.empty(problem.correlation.shape, np.float32)
    for value in np.unique(penalty):
        own = penalty == value
        weights[:, own] = solve(select(problem, np.flatnonzero(own)), float(value))
    return weights


def _factor(gram: Float[np.ndarray, "k k"], penalty: float) -> tuple[np.ndarray, bool]:
    return cho_factor(gram + penalty * np.eye(len(gram)), lower=True)


def relative_gap(
    weights: Float[np.ndarray, "g t"], problem: Moments, penalty: Float[np.ndarray, " t"]
) -> Float[np.ndarray, " t"]:
    """How far above the optimum the objective may be at most, over half the output variance.

    The objective curves by `penalty` at least: it is above by |gradient|^2 / (2 penalty) at most.
    """
    slope = problem.correlation - problem.masks.gram @ weights.astype(np.float64)
    slope -= penalty * weights
    return np.square(slope).sum(0) / penalty / np.square(deviation(problem))
