"""What a bank says of each example without any fit: members with it against members without."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float


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


def marginal(masks: Bool[np.ndarray, "m n"], outputs: Float[np.ndarray, "m n"]) -> Marginal:
    """Compare members with and without each example.

    Args:
        masks: True = the member trained on example j.
        outputs: output of example j, as a target, in the same member.
    """
    inside_mean, inside_error = _mean(masks, outputs)
    outside_mean, outside_error = _mean(~masks, outputs)
    return Marginal(
        Estimate(outside_mean, outside_error),
        Estimate(inside_mean - outside_mean, np.hypot(inside_error, outside_error)),
    )


def _mean(
    chosen: Bool[np.ndarray, "m n"], outputs: Float[np.ndarray, "m n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Mean of the chosen entries of each column, and its standard error."""
    count = chosen.sum(0)
    some, several = np.where(count > 0, count, np.nan), np.where(count > 1, count, np.nan)
    mean = np.where(chosen, outputs, 0).sum(0, dtype=np.float64) / some
    squares = np.where(chosen, np.square(outputs - mean), 0).sum(0, dtype=np.float64)
    return mean, np.sqrt(squares / (several - 1) / several)
