"""What a regression needs of masks and outputs: their second moments, in float64.

They are sums over rows, so those of some rows less those of others are those of the rest, and rows
need never be in memory all at once: masks may be a memory-mapped array.

Masks are zeros and ones, so a product of masks with masks is a count: whole numbers, which float32
adds exactly, twice as fast as float64, as long as they stay below 2^24.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.sparse.linalg import eigsh

ROW_BLOCK = 2048
"""Rows that are multiplied with outputs at once: bounds memory."""
COUNT_BLOCK = 16_384
"""Rows that are counted at once: the same, and keeps counts exact in float32."""
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
DeviceGram = Float[Array, "g g"] | Factored
"""In float32, where JAX computes."""


class Counts(NamedTuple):
    """Sums over rows of masks."""

    rows: int
    together: Float[np.ndarray, "g g"]
    """How many rows keep both of two groups."""

    def plus(self, others: "Counts") -> "Counts":
        """Of both parts of the rows."""
        return Counts(self.rows + others.rows, self.together + others.together)

    def less(self, others: "Counts") -> "Counts":
        """Of the rest of the rows."""
        return Counts(self.rows - others.rows, self.together - others.together)


class Products(NamedTuple):
    """Sums over rows of masks and outputs, less a shift that all parts share."""

    rows: int
    first: Float[np.ndarray, " t"]
    second: Float[np.ndarray, " t"]
    with_masks: Float[np.ndarray, "g t"]

    def plus(self, others: "Products") -> "Products":
        """Of both parts of the rows."""
        return Products(
            self.rows + others.rows,
            self.first + others.first,
            self.second + others.second,
            self.with_masks + others.with_masks,
        )

    def less(self, others: "Products") -> "Products":
        """Of the rest of the rows."""
        return Products(
            self.rows - others.rows,
            self.first - others.first,
            self.second - others.second,
            self.with_masks - others.with_masks,
        )


class Regressors(NamedTuple):
    """All that a regression needs of the masks, whatever the outputs."""

    mean_mask: Float[np.ndarray, " g"]
    """float64"""
    gram: Gram
    """Z'Z/m of the centred masks Z, in float64. Factored where the masks are fewer than half the
    groups, as that is cheaper, and where the groups are more than `WIDEST_GRAM`."""
    device_gram: DeviceGram
    step: float
    """From `step_size`."""


class Moments(NamedTuple):
    """All that a regression needs of masks and outputs, in float64."""

    masks: Regressors
    correlation: Float[np.ndarray, "g t"]
    """Z'y/m of the centred masks and outputs."""
    energy: Float[np.ndarray, " t"]
    """y'y/m"""
    mean_output: Float[np.ndarray, " t"]


def is_factored(rows: int, groups: int) -> bool:
    """Whether the Gram matrix of so many rows is not written out."""
    return 2 * rows < groups or groups > WIDEST_GRAM


def regressors(masks: Bool[np.ndarray, "m g"]) -> Regressors:
    """What the masks give, once for any number of targets."""
    if not is_factored(*masks.shape):
        return from_counts(count(masks))
    mean = masks.mean(0, dtype=np.float64)
    return _regressors(mean, Factored((masks - mean) / np.sqrt(len(masks))))


def from_counts(counts: Counts) -> Regressors:
    """The same from the sums."""
    mean = np.diag(counts.together) / counts.rows
    gram = counts.together / counts.rows
    gram -= np.outer(mean, mean)
    return _regressors(mean, gram)


def _regressors(mean: Float[np.ndarray, " g"], gram: Gram) -> Regressors:
    on_device = jax.tree.map(lambda part: jnp.asarray(part, jnp.float32), gram)
    return Regressors(mean, gram, on_device, step_size(gram))


def count(masks: Bool[np.ndarray, "m g"]) -> Counts:
    """Exact, as whole numbers in float64."""
    groups = masks.shape[1]
    together = np.zeros((groups, groups))
    for rows in row_blocks(len(masks), COUNT_BLOCK):
        kept = masks[rows].astype(np.float32)
        together += kept.T @ kept
    return Counts(len(masks), together)


def multiply(
    masks: Bool[np.ndarray, "m g"],
    outputs: Float[np.ndarray, "m t"],
    shift: Float[np.ndarray, " t"],
) -> Products:
    """Accumulated in float64. A shift near the outputs' means keeps the digits that matter."""
    targets = outputs.shape[1]
    first, second = np.zeros(targets), np.zeros(targets)
    with_masks = np.zeros((masks.shape[1], targets))
    for rows in row_blocks(len(outputs), ROW_BLOCK):
        shifted = outputs[rows] - shift
        first += shifted.sum(0)
        second += np.square(shifted).sum(0)
        with_masks += masks[rows].astype(np.float64).T @ shifted
    return Products(len(outputs), first, second, with_masks)


def centred(masks: Regressors, products: Products, shift: Float[np.ndarray, " t"]) -> Moments:
    """The centred moments from the sums of the same rows."""
    mean = products.first / products.rows
    correlation = products.with_masks / products.rows - masks.mean_mask[:, None] * mean
    energy = np.maximum(products.second / products.rows - np.square(mean), 0)
    return Moments(masks, correlation, energy, shift + mean)


def shift_of(outputs: Float[np.ndarray, "m t"]) -> Float[np.ndarray, " t"]:
    """The means; of a constant output its value, as rounding would look like a signal."""
    constant = (outputs == outputs[0]).all(0)
    return np.where(constant, outputs[0], outputs.mean(0, dtype=np.float64)).astype(np.float64)


def moments(
    masks: Bool[np.ndarray, "m g"], own: Regressors, outputs: Float[np.ndarray, "m t"]
) -> Moments:
    """The centred moments of masks, of which `own` are the regressors, and outputs."""
    shift = shift_of(outputs)
    return centred(own, multiply(masks, outputs, shift), shift)


def row_blocks(rows: int, size: int) -> Iterator[slice]:
    """Parts of the rows that are worked on one after the other."""
    for first in range(0, rows, size):
        yield slice(first, min(first + size, rows))


def select(problem: Moments, targets: Int[np.ndarray, " k"]) -> Moments:
    """The problem of some of the targets."""
    return problem._replace(
        correlation=problem.correlation[:, targets],
        energy=problem.energy[targets],
        mean_output=problem.mean_output[targets],
    )


def deviation(problem: Moments) -> Float[np.ndarray, " t"]:
    """The standard deviation of each target; 1 where it is constant."""
    return np.sqrt(np.where(problem.energy > 0, problem.energy, 1))


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
