"""Several targets as one: noise that they share, taken out before they are pooled."""

import numpy as np
from jaxtyping import Float
from scipy.linalg import helmert
from sklearn.covariance import ledoit_wolf

from datamodels.inputs import as_replicates


def whitening(replicates: Float[np.ndarray, "r s t"]) -> Float[np.ndarray, "t t"]:
    """A matrix W with which outputs @ W have seed noise of variance 1, independent over targets.

    Targets of one member share its training seed, and so their noise: what stands out against it
    does so in all of them at once. In units of each target's own noise it is the symmetric one of
    all such matrices (ZCA), which moves targets least. The covariance is shrunk as far as Ledoit &
    Wolf (2004) find best, since targets may be more than retrains.

    Args:
        replicates: outputs of r masks, each retrained with s >= 2 seeds; all finite.

    Raises:
        ValueError: fewer than 2 seeds, outputs that are not finite, or a target without noise.
    """
    _, seeds, targets = as_replicates(replicates).shape
    if not np.isfinite(replicates).all():
        raise ValueError("replicates hold values that are not finite; leave their masks out")
    # Orthonormal contrasts of the seeds of a mask: as many as there are degrees of freedom, and
    # independent, as shrinking by the number of rows takes them to be.
    noise = np.einsum("cs,rst->rct", helmert(seeds), replicates.astype(np.float64))
    deviation = np.sqrt(np.square(noise).mean((0, 1)))
    constant = (replicates == replicates[:, :1]).all((0, 1))
    if constant.any():
        first = int(np.argmax(constant))
        raise ValueError(f"target {first} is the same with every seed; leave it out")
    # Correlations are shrunk, so that the units of targets do not matter.
    correlation, _ = ledoit_wolf((noise / deviation).reshape(-1, targets), assume_centered=True)
    values, vectors = np.linalg.eigh(correlation)
    return (vectors / np.sqrt(values)) @ vectors.T / deviation[:, None]
