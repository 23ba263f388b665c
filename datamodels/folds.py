"""Cross-validation: rows in folds, and the regression problem of all rows but those of each fold.

Second moments are sums over rows, so those without a fold are those of all rows less its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

from datamodels.moments import (
    Counts,
    Factored,
    Moments,
    Products,
    Regressors,
    SharedMasks,
    centred,
    count,
    from_counts,
    is_factored,
    multiply,
    of_rows,
    regressors,
    shift_of,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Fold:
    """Some rows, and what the masks of all others give."""

    rows: Int[np.ndarray, " r"]
    masks: Bool[np.ndarray, "r g"]
    """Of the rows."""
    others: Regressors


@dataclass(frozen=True)
class Folds:
    """All rows in folds; rows of the same mask are in the same one."""

    masks: Bool[np.ndarray, "m g"]
    whole: Regressors
    parts: tuple[Fold, ...]

    def multiply(self, outputs: Float[np.ndarray, "m t"]) -> "FoldProducts":
        """Every fold's products with outputs."""
        shift = shift_of(outputs)
        own = [multiply(fold.masks, outputs[fold.rows], shift) for fold in self.parts]
        return FoldProducts(shift, own, reduce(Products.plus, own))

    def problem(self, products: "FoldProducts") -> Moments:
        """The problem of all rows."""
        return centred(self.whole, products.total, products.shift)

    def problems(self, products: "FoldProducts") -> list[Moments]:
        """Those without each fold."""
        return [
            centred(fold.others, products.total.less(own), products.shift)
            for fold, own in zip(self.parts, products.own, strict=True)
        ]

    def nested_problems(self, products: "FoldProducts") -> list[Moments]:
        """Those without each fold and the next one, which may choose what the first must not."""
        return [
            centred(masks, products.total.less(own).less(after), products.shift)
            for masks, own, after in zip(
                self.without_two, products.own, following(products.own), strict=True
            )
        ]

    @cached_property
    def without_two(self) -> list[Regressors]:
        """What the masks give without each fold and the next one."""
        found = []
        for fold, after in zip(self.parts, following(self.parts), strict=True):
            left_out = np.concatenate([fold.rows, after.rows])
            found.append(_without(self.whole, self.masks, left_out))
        return found


def _without(
    whole: Regressors, masks: Bool[np.ndarray, "m g"], rows: Int[np.ndarray, " r"]
) -> Regressors:
    """What the masks give without some rows."""
    if not isinstance(whole.gram, Factored):
        return regressors(np.delete(masks, rows, axis=0))
    chosen = np.ones(len(masks), bool)
    chosen[rows] = False
    return of_rows(whole.gram.shared, chosen, whole)


class FoldProducts(NamedTuple):
    """Products with outputs, less a shift."""

    shift: Float[np.ndarray, " t"]
    own: list[Products]
    """Of each fold."""
    total: Products


def following(parts: Sequence[T]) -> list[T]:
    """For each fold the next one; for the last the first."""
    return [*parts[1:], parts[0]]


def fold_numbers(replicate_of: Int[np.ndarray, " m"], folds: int) -> Int[np.ndarray, " m"]:
    """The fold of every row: distinct masks take turns, in the order of their numbers."""
    return np.unique(replicate_of, return_inverse=True)[1] % folds


def divide(
    masks: Bool[np.ndarray, "m g"], folds: int, replicate_of: Int[np.ndarray, " m"]
) -> Folds:
    """Put the rows into folds.

    Args:
        masks: True = kept.
        folds: how many; at most as many as there are distinct masks.
        replicate_of: rows with the same number are retrains of one mask.

    Raises:
        ValueError: fewer than 2 folds, or more than distinct masks.
    """
    distinct = len(np.unique(replicate_of))
    if not 2 <= folds <= distinct:
        raise ValueError(
            f"folds = {folds} must be from 2 to the number of distinct masks, {distinct}"
        )
    number = fold_numbers(replicate_of, folds)
    rows = [np.flatnonzero(number == fold) for fold in range(folds)]
    parts = [masks[own] for own in rows]
    if is_factored(len(masks) - max(map(len, rows)), masks.shape[1]):
        whole = of_rows(SharedMasks(masks), np.ones(len(masks), bool))
        others = [_without(whole, masks, own) for own in rows]
    else:
        counts = [count(part) for part in parts]
        total = reduce(Counts.plus, counts)
        others = [from_counts(total.less(own)) for own in counts]
        whole = from_counts(total)
    return Folds(masks, whole, tuple(map(Fold, rows, parts, others)))
