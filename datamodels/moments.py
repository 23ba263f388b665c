"""What a regression needs of masks and outputs: their second moments, in float64.

They are sums over rows, so those of some rows less those of others are those of the rest, and rows
need never be in memory all at once: masks may be a memory-mapped array.

Masks are zeros and ones, so a product of masks with masks is a count: whole numbers, which float32
adds exactly, twice as fast as float64, as long as they stay below 2^24.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.sparse.linalg import LinearOperator, eigsh

ROW_BLOCK = 512
"""Rows that are multiplied with outputs at once: bounds memory."""
COUNT_BLOCK = 4096
"""Rows that are counted at once: the same, and keeps counts exact in float32."""
BLOCK_NUMBERS = 1 << 24
"""Numbers of such a block: 67 MB in float32."""
WIDEST_GRAM = 12_000
"""Groups beyond which no groups x groups matrix is written out: 1.2 GB in float64."""


@dataclass(frozen=True, eq=False)
class Factored:
    """The Gram matrix of some rows of masks that is not written out.

    Several of them, of different rows, share the masks, in memory and on the device: nothing of the
    size of rows times groups is copied, as float or otherwise, but for a block of rows at a time.
    """

    shared: "SharedMasks"
    chosen: Bool[np.ndarray, " m"]
    """The rows that count."""
    mean: Float[np.ndarray, " g"]
    """Of the masks, over those rows."""

    @property
    def rows(self) -> int:
        """How many count."""
        return int(self.chosen.sum())

    def __matmul__(self, weights: Float[np.ndarray, "g k"]) -> Float[np.ndarray, "g k"]:
        total = np.zeros(weights.shape)
        for rows in row_blocks(len(self.chosen), block_rows(len(self.mean))):
            centred = self.shared.masks[rows] - self.mean
            total += centred.T @ ((centred @ weights) * self.chosen[rows, None])
        return total / self.rows

    def centred_rows(self) -> Float[np.ndarray, "r g"]:
        """The rows that count, less their mean, over the root of their number; all at once."""
        return (self.shared.masks[self.chosen] - self.mean) / np.sqrt(self.rows)

    def on_device(self) -> "DeviceFactored":
        """The same in float32, where JAX computes."""
        blocks = self.shared.blocks
        chosen = np.zeros(blocks.shape[0] * blocks.shape[1], np.float32)
        chosen[: len(self.chosen)] = self.chosen / np.sqrt(self.rows)
        return DeviceFactored(
            blocks,
            jnp.asarray(chosen.reshape(blocks.shape[:2])),
            jnp.asarray(self.mean, jnp.float32),
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class DeviceFactored:
    """`Factored` in float32, on the device."""

    blocks: Bool[Array, "n b g"]
    scale: Float[Array, "n b"]
    """One over the root of the number of rows that count; 0 for those that do not."""
    mean: Float[Array, " g"]

    def __matmul__(self, weights: Float[Array, "g k"]) -> Float[Array, "g k"]:
        def add(
            total: Float[Array, "g k"], block: tuple[Array, Array]
        ) -> tuple[Float[Array, "g k"], None]:
            masks, scale = block
            rows = (masks.astype(jnp.float32) - self.mean[None]) * scale[:, None]
            return total + rows.T @ (rows @ weights), None

        return jax.lax.scan(add, jnp.zeros_like(weights), (self.blocks, self.scale))[0]


@dataclass(frozen=True, eq=False)
class SharedMasks:
    """Masks that several `Factored` are of."""

    masks: Bool[np.ndarray, "m g"]

    @cached_property
    def blocks(self) -> Bool[Array, "n b g"]:
        """In blocks of rows on the device, filled up with rows that never count."""
        members, groups = self.masks.shape
        size = min(few_rows(members), block_rows(groups))
        count = math.ceil(members / size)
        padded = np.zeros((count * size, groups), bool)
        padded[:members] = self.masks
        return jnp.asarray(padded.reshape(count, size, groups))


def block_rows(groups: int) -> int:
    """Rows of a block that is held as floats."""
    return max(1, BLOCK_NUMBERS // groups)


Gram = Float[np.ndarray, "g g"] | Factored
DeviceGram = Float[Array, "g g"] | DeviceFactored
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


def few_rows(count: int) -> int:
    """The next number with three binary digits: at most a quarter more."""
    scale = 1 << max(count.bit_length() - 3, 0)
    return math.ceil(count / scale) * scale


def is_factored(rows: int, groups: int) -> bool:
    """Whether the Gram matrix of so many rows is not written out."""
    return 2 * rows < groups or groups > WIDEST_GRAM


def regressors(masks: Bool[np.ndarray, "m g"]) -> Regressors:
    """What the masks give, once for any number of targets."""
    if not is_factored(*masks.shape):
        return from_counts(count(masks))
    return of_rows(SharedMasks(masks), np.ones(len(masks), bool))


def of_rows(
    shared: SharedMasks, chosen: Bool[np.ndarray, " m"], whole: Regressors | None = None
) -> Regressors:
    """The same of some rows, without a Gram matrix.

    Args:
        shared: all masks.
        chosen: the rows that count.
        whole: of all rows, if they are known. What some rows add up to is no more than what all do,
            so their largest eigenvalue follows but for the number of rows.
    """
    mean = shared.masks.mean(0, dtype=np.float64, where=chosen[:, None])
    gram = Factored(shared, chosen, mean)
    device_gram = gram.on_device()
    if whole is None:
        return Regressors(mean, gram, device_gram, step_size(device_gram))
    return Regressors(mean, gram, device_gram, whole.step * gram.rows / len(chosen))


def from_counts(counts: Counts) -> Regressors:
    """The same from the sums."""
    mean = np.diag(counts.together) / counts.rows
    gram = counts.together / counts.rows
    gram -= np.outer(mean, mean)
    device_gram = jnp.asarray(gram, jnp.float32)
    return Regressors(mean, gram, device_gram, step_size(np.asarray(device_gram)))


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


def step_size(gram: Float[np.ndarray, "g g"] | DeviceFactored) -> float:
    """One over the largest eigenvalue of the Gram matrix, with 1 % of margin."""
    deviations = gram.mean * (1 - gram.mean) if isinstance(gram, DeviceFactored) else gram
    groups = len(deviations)
    if not deviations.any():  # no mask ever varies: any step will do
        return 1.0
    if groups < 3:  # too small for Lanczos
        whole = np.asarray(gram @ jnp.eye(groups)) if isinstance(gram, DeviceFactored) else gram
        largest = float(np.linalg.eigvalsh(whole)[-1])
    else:
        start = np.random.default_rng(0).standard_normal(groups)
        largest = float(
            eigsh(
                _operator(gram, groups),
                k=1,
                v0=start,
                tol=1e-3,  # pyright: ignore[reportArgumentType]  (scipy declares int)
                return_eigenvectors=False,
            )[0]
        )
    return 1 / (1.01 * largest)


def _operator(gram: Float[np.ndarray, "g g"] | DeviceFactored, groups: int) -> Any:
    if not isinstance(gram, DeviceFactored):
        return gram

    def product(column: np.ndarray) -> np.ndarray:
        return np.asarray(_times(gram, jnp.asarray(column.reshape(-1, 1), jnp.float32)))

    return LinearOperator((groups, groups), product, dtype=np.float64)  # pyright: ignore


@jax.jit
def _times(gram: DeviceFactored, column: Float[Array, "g 1"]) -> Float[Array, "g 1"]:
    # The masks are an argument: within a closure they would be constants, compiled and kept anew
    # for every part of the rows.
    return gram @ column
