"""Ridge regression of many targets at once, by the eigenvectors of the Gram matrix.

    minimise over w:  |y - Z w|^2 / (2 m) + r |w|^2 / 2,

with centred masks Z (m, g) in mask units and centred outputs y. With Z'Z / m = B diag(v) B', the
solution is B diag(1 / (v + r)) B' Z'y / m: one decomposition serves all targets and penalties r,
which have no unit.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32
from scipy.linalg import eigh

from datamodels.moments import Factored, Gram, Moments, Regressors, deviation

ROUNDING = 1e-10
"""Of the largest eigenvalue, below which one is none."""


class Spectrum(NamedTuple):
    """A Gram matrix as basis diag(values) basis'."""

    values: Float[np.ndarray, " k"]
    basis: Float32[np.ndarray, "g k"]

    def coordinates(self, problem: Moments) -> Float32[np.ndarray, "k t"]:
        """Of Z'y / m, which has no part outside of the basis, in units of the outputs' deviations:
        in these, float32 neither over- nor underflows."""
        return self.basis.T @ (problem.correlation / deviation(problem)).astype(np.float32)

    def shrunk(
        self, coordinates: Float32[np.ndarray, "k t"], penalty: Float[np.ndarray, " t"] | float
    ) -> Float32[np.ndarray, "k t"]:
        """Coordinates of the weights."""
        return coordinates / (self.values[:, None] + penalty).astype(np.float32)


def spectrum(gram: Gram) -> Spectrum:
    """Decompose a Gram matrix; one that is not written out by its rows."""
    rows = gram.centred_rows() if isinstance(gram, Factored) else None
    values, basis = eigh(gram if rows is None else rows @ rows.T)
    there = values > ROUNDING * values[-1]
    values, basis = values[there], basis[:, there]
    if rows is not None:
        basis = rows.T @ (basis / np.sqrt(values))
    return Spectrum(values, basis.astype(np.float32))


def penalties(masks: Regressors, rows: int) -> Float[np.ndarray, " p"]:
    """Penalties worth trying, from large to small.

    With weights and noise that are normal, the best penalty is the noise variance over `rows` times
    the variance of a weight: g v / m (1 - R2) / R2 for masks of variance v. These are for R2 from
    0.03 to 0.99.
    """
    variances = masks.mean_mask * (1 - masks.mean_mask)
    return max(float(variances.sum()), 1e-12) / rows * np.geomspace(30, 0.01, 16)


def solve(
    problem: Moments, own: Spectrum, penalty: Float[np.ndarray, " t"]
) -> Float32[np.ndarray, "g t"]:
    """The weights of targets with a penalty each; `own` is of the problem's Gram matrix."""
    scaled = own.basis @ own.shrunk(own.coordinates(problem), penalty)
    return scaled * deviation(problem).astype(np.float32)


def relative_gap(
    weights: Float[np.ndarray, "g t"], problem: Moments, penalty: Float[np.ndarray, " t"]
) -> Float[np.ndarray, " t"]:
    """How far above the optimum the objective may be at most, over half the output variance.

    The objective curves by `penalty` at least: it is above by |gradient|^2 / (2 penalty) at most.
    """
    slope = problem.correlation - problem.masks.gram @ weights.astype(np.float64)
    slope -= penalty * weights
    return np.square(slope).sum(0) / penalty / np.square(deviation(problem))


class LeftOut(NamedTuple):
    """The rows of a fold, and what predicts them."""

    own: Spectrum
    """Of all other rows."""
    along: Float32[np.ndarray, "r k"]
    """The fold's masks, less the others' mean, in the coordinates of their basis."""

    @classmethod
    def of(cls, masks: Bool[np.ndarray, "r g"], others: Regressors) -> "LeftOut":
        """Of a fold's masks."""
        own = spectrum(others.gram)
        return cls(own, (masks - others.mean_mask).astype(np.float32) @ own.basis)

    def errors(
        self,
        problem: Moments,
        outputs: Float[np.ndarray, "r t"],
        penalties: Float[np.ndarray, " p"],
    ) -> Float[np.ndarray, "p t"]:
        """Mean squared errors of the fold's rows.

        Args:
            problem: of all other rows.
            outputs: of the fold's.
            penalties: to try.
        """
        unit = deviation(problem)
        actual = ((outputs - problem.mean_output) / unit).astype(np.float32)
        coordinates = self.own.coordinates(problem)
        predictions = (self.along @ self.own.shrunk(coordinates, one) for one in penalties.tolist())
        return np.stack([np.square(actual - found).mean(0) for found in predictions]) * unit**2
