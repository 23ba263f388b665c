"""What a bank says of each example without any fit: members with it against members without."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from datamodels.checks import check_distinct, warn_of_inseparable
from datamodels.estimates import Effects
from datamodels.inputs import as_masks, as_outputs, require_finite, require_rows
from datamodels.moments import ROW_BLOCK, row_blocks


class Estimate(NamedTuple):
    """A mean and its standard error, both in output units; NaN where no member qualifies."""

    value: Float[np.ndarray, " n"]
    standard_error: Float[np.ndarray, " n"]


class Marginal(NamedTuple):
    """Outputs of every example on itself, by whether the member trained on it."""

    out_of_bag: Estimate
    """Mean output of the members that did not train on the example."""
    memorisation: Estimate
    """Mean output with the example minus mean output without it (Feldman & Zhang 2020, eq. 1).
    Positive: training on the example raises its own output."""


def marginal(
    masks: Bool[np.ndarray, "m n"],
    outputs: Float[np.ndarray, "m n"],
    counted: Bool[np.ndarray, "#m #n"] | None = None,
) -> Marginal:
    """Compare members with and without each example.

    Members of one alpha alone: of several, those without an example come from the smaller ones, and
    lack other examples, too.

    Args:
        masks: True = the member trained on example j.
        outputs: output of example j, as a target, in the same member.
        counted: the members that count for example j; None: all.
    """
    counts = np.ones((1, 1), bool) if counted is None else counted
    inside_mean, inside_error = _mean(masks & counts, outputs)
    outside_mean, outside_error = _mean(~masks & counts, outputs)
    return Marginal(
        Estimate(outside_mean, outside_error),
        Estimate(inside_mean - outside_mean, np.hypot(inside_error, outside_error)),
    )


def influence(masks: Bool[np.ndarray, "m g"], outputs: Float[np.ndarray, "m t"]) -> Effects:
    """Mean output of members that keep a group less that of members that drop it.

    The influence of Feldman & Zhang (2020, eq. 2) for every group and target, without any fit. What
    other groups do is noise to it. Rows count as independent draws: leave out retrains of a mask.

    Args:
        masks: True = kept.
        outputs: finite, of the same members.

    Returns:
        NaN for groups that no member keeps, or none drops.

    Raises:
        ValueError: shapes that do not match, masks that are not zeros and ones, infinite outputs,
            too few rows, retrains of a mask.
    """
    masks, outputs = as_masks(masks), as_outputs(outputs)
    require_finite(masks, outputs)
    require_rows(len(masks))
    check_distinct(masks, masks.mean(0)[None])
    warn_of_inseparable(masks)
    shift = outputs.mean(0, dtype=np.float64)
    inside_sum, inside_square = _sums(masks, outputs, shift)
    all_sum, all_square = _sums(np.ones((len(masks), 1), bool), outputs, shift)
    inside = _Part.of(masks.sum(0)[:, None], inside_sum, inside_square)
    outside = _Part.of((~masks).sum(0)[:, None], all_sum - inside_sum, all_square - inside_square)
    return Effects(inside.mean - outside.mean, np.sqrt(inside.variance + outside.variance))


class _Part(NamedTuple):
    """Some members, for each group and target."""

    mean: Float[np.ndarray, "g t"]
    variance: Float[np.ndarray, "g t"]
    """Of the mean."""

    @classmethod
    def of(
        cls,
        count: Int[np.ndarray, "g 1"],
        first: Float[np.ndarray, "g t"],
        second: Float[np.ndarray, "g t"],
    ) -> "_Part":
        """From the sums of outputs and of their squares over `count` members."""
        some, several = np.where(count > 0, count, np.nan), np.where(count > 1, count, np.nan)
        spread = np.maximum(second - np.square(first) / some, 0)
        return cls(first / some, spread / (several - 1) / several)


def _sums(
    masks: Bool[np.ndarray, "m g"],
    outputs: Float[np.ndarray, "m t"],
    shift: Float[np.ndarray, " t"],
) -> tuple[Float[np.ndarray, "g t"], Float[np.ndarray, "g t"]]:
    """Sums over the members that keep a group, of shifted outputs and of their squares."""
    first = np.zeros((masks.shape[1], outputs.shape[1]))
    second = np.zeros_like(first)
    for rows in row_blocks(len(masks), ROW_BLOCK):
        shifted, kept = outputs[rows] - shift, masks[rows].astype(np.float64).T
        first += kept @ shifted
        second += kept @ np.square(shifted)
    return first, second


def _mean(
    chosen: Bool[np.ndarray, "m n"], outputs: Float[np.ndarray, "m n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Mean of the chosen entries of each column, and its standard error."""
    count = chosen.sum(0)
    some, several = np.where(count > 0, count, np.nan), np.where(count > 1, count, np.nan)
    mean = np.where(chosen, outputs, 0).sum(0, dtype=np.float64) / some
    squares = np.where(chosen, np.square(outputs - mean), 0).sum(0, dtype=np.float64)
    return mean, np.sqrt(squares / (several - 1) / several)
