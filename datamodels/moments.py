"""What a sparse regression needs of masks and outputs: their second moments, in float64.

Masks are zeros and ones, so a product of masks with masks is a count: whole numbers, which float32
adds exactly, twice as fast as float64, as long as they stay below 2^24.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.sparse.linalg import eigsh

ROW_BLOCK = 2048
"""Rows that are worked on at once: bounds memory, and keeps counts exact in float32."""
WIDEST_GRAM = 12_000
"""Groups beyond which no groups x groups matrix is written out: 1.2 GB in float64."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Factored:
    """A Gram matrix that is not written out: rows' rows."""

    rows: Float[np.ndarray, "m g"] | Float[Array, "m g"]

    def __matmul__(self, weights: Any) -> Any:
        return self.rows.T @ (self.rows @ weights)


Gram = Float[np.ndarray, "g g"] | Factored


class Regressors(NamedTuple):
    """All that a regression needs of the masks, whatever the outputs."""

    masks: Bool[np.ndarray, "m g"]
    mean_mask: Float[np.ndarray, " g"]
    """float64"""
    gram: Gram
    """Z'Z/m of the centred masks Z, in float64. Factored where the masks are fewer than half the
    groups, as that is cheaper, and where the groups are more than `WIDEST_GRAM`."""
    step: float
    """From `step_size`."""


class Moments(NamedTuple):
    """All that a regression needs of masks and outputs, in float64."""

    gram: Gram
    """As in `Regressors`."""
    correlation: Float[np.ndarray, "g t"]
    """Z'y/m"""
    energy: Float[np.ndarray, " t"]
    """y'y/m of the centred outputs y."""
    mean_mask: Float[np.ndarray, " g"]
    mean_output: Float[np.ndarray, " t"]


def regressors(masks: Bool[np.ndarray, "m g"]) -> Regressors:
    """What the masks give, once for any number of targets."""
    members, groups = masks.shape
    mean = masks.mean(0, dtype=np.float64)
    if 2 * members < groups or groups > WIDEST_GRAM:
        gram: Gram = Factored((masks - mean) / np.sqrt(members))
    else:
        gram = kept_together(masks)
        gram /= members
        gram -= np.outer(mean, mean)
    return Regressors(masks, mean, gram, step_size(gram))


def kept_together(masks: Bool[np.ndarray, "m g"]) -> Float[np.ndarray, "g g"]:
    """How many members keep both of two groups: whole numbers, exact, in float64."""
    groups = masks.shape[1]
    counts = np.zeros((groups, groups))
    for rows in row_blocks(len(masks)):
        kept = masks[rows].astype(np.float32)
        counts += kept.T @ kept
    return counts


def row_blocks(rows: int) -> Iterator[slice]:
    """Parts of the rows that are worked on one after the other."""
    for first in range(0, rows, ROW_BLOCK):
        yield slice(first, min(first + ROW_BLOCK, rows))


def moments(masks: Regressors, outputs: Float[np.ndarray, "m t"]) -> Moments:
    """Centred second moments, accumulated in float64."""
    mean_output = outputs.mean(0, dtype=np.float64)
    # Of a constant output rounding would leave noise that a solver takes for a signal.
    constant = (outputs == outputs[0]).all(0)
    correlation = np.zeros((masks.masks.shape[1], outputs.shape[1]))
    energy = np.zeros(outputs.shape[1])
    for rows in row_blocks(len(outputs)):
        centred = np.where(constant, 0, outputs[rows] - mean_output)
        # The centred outputs add up to nothing, so the masks need not be centred.
        correlation += masks.masks[rows].astype(np.float64).T @ centred
        energy += np.square(centred).sum(0)
    members = len(outputs)
    return Moments(
        masks.gram, correlation / members, energy / members, masks.mean_mask, mean_output
    )


def select(problem: Moments, targets: Int[np.ndarray, " k"]) -> Moments:
    """The problem of some of the targets."""
    return problem._replace(
        correlation=problem.correlation[:, targets],
        energy=problem.energy[targets],
        mean_output=problem.mean_output[targets],
    )


def step_size(gram: Gram) -> float:
    """One over the largest eigenvalue of the Gram matrix, with 1 % of margin."""
    if isinstance(gram, Factored):  # rows rows' has the same eigenvalues besides zeros
        gram = np.asarray(gram.rows @ gram.rows.T)
    if not gram.any():  # no mask ever varies: any step will do
        return 1.0
    if len(gram) < 3:  # too small for Lanczos
        return 1 / (1.01 * float(np.linalg.eigvalsh(gram)[-1]))
    start = np.random.default_rng(0).standard_normal(len(gram))
    largest = eigsh(
        gram,
        k=1,
        v0=start,
        tol=1e-3,  # pyright: ignore[reportArgumentType]  (scipy declares int)
        return_eigenvectors=False,
    )[0]
    return 1 / (1.01 * float(largest))
