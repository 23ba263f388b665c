"""Scores of rows: (z - alpha) y / (alpha (1 - alpha)), whose mean is an average marginal effect.

Rows that were drawn together (retrains of a mask, complementary masks) are one draw: only draws are
independent of one another, so the spread over them gives standard errors.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from datamodels.checks import check_fixed_size, check_independent
from datamodels.inputs import mask_numbers
from datamodels.moments import block_rows, row_blocks

Alpha = float | Float[np.ndarray, "*rows"] | None


@dataclass(frozen=True)
class Sampling:
    """How masks were drawn."""

    masks: Bool[np.ndarray, "m g"]
    draw: Int[np.ndarray, " m"]
    """The number of each row's draw, from 0."""
    first_row: Int[np.ndarray, " d"]
    """Of each draw."""
    sign: Float[np.ndarray, " m"]
    """-1 where a row is the complement of the first of its draw, else 1."""
    alpha: Float[np.ndarray, "#m #g"]
    """The probability that a group is kept in a row."""
    fixed_size: bool

    def scores(self, rows: Int[np.ndarray, " r"], residual: Float[np.ndarray, "r t"]) -> "Scores":
        """The scores of some rows, whole draws of them."""
        own, position, count = np.unique(self.draw[rows], return_inverse=True, return_counts=True)
        added = np.zeros((len(own), residual.shape[1]))
        # A complement's deviation from 1/2 is that of its mask, turned around.
        np.add.at(added, position, residual * self.sign[rows, None])
        first = self.first_row[own]
        return scores(self.masks[first], added, count, _of_rows(self.alpha, first))


def sampling(
    masks: Bool[np.ndarray, "m g"],
    alpha: Alpha,
    *,
    fixed_size: bool,
    replicate_of: Int[np.ndarray, " m"] | None,
) -> Sampling:
    """Compare masks with how they are said to be drawn; arguments as of `effects`.

    Raises:
        ValueError: the masks contradict alpha, independence, fixed size or `replicate_of`.
    """
    first_row, draw, sign = _find_draws(masks, mask_numbers(replicate_of, len(masks)))
    known = _probabilities(masks, alpha, fixed_size, bool((sign < 0).any()))
    if fixed_size:
        check_fixed_size(masks[first_row])
    else:
        check_independent(masks[first_row], None if known is None else _of_rows(known, first_row))
    if known is None:
        known = masks.mean(0, dtype=np.float64)[None]
    return Sampling(masks, draw, first_row, sign, known, fixed_size)


def _probabilities(
    masks: Bool[np.ndarray, "m g"], alpha: Alpha, fixed_size: bool, pairs: bool
) -> Float[np.ndarray, "#m #g"] | None:
    """The probability that each group is kept in each row; None: to be estimated.

    Raises:
        ValueError: alpha is no probability, has another shape, or is given where it follows.
    """
    if fixed_size:
        if alpha is not None:
            raise ValueError("with fixed_size = True alpha follows from the masks; leave it out")
        return np.full((1, 1), masks[0].mean())
    if alpha is None:
        return np.full((1, 1), 0.5) if pairs else None
    value = np.asarray(alpha, np.float64)
    if value.shape not in ((), (len(masks),), masks.shape):
        raise ValueError(
            f"alpha must be one number, one a row {(len(masks),)} or one a row and group "
            f"{masks.shape}, got {value.shape}"
        )
    inside = (value > 0) & (value < 1) if value.ndim < 2 else (value >= 0) & (value <= 1)
    if not inside.all():
        raise ValueError(f"alpha = {value[~inside].flat[0]:g} must lie strictly between 0 and 1")
    if pairs and (value != 0.5).any():
        raise ValueError("complementary masks share a number, which takes alpha = 0.5")
    return value if value.ndim == 2 else value.reshape(-1, 1)


def _of_rows(
    alpha: Float[np.ndarray, "#m #g"], rows: Int[np.ndarray, " d"]
) -> Float[np.ndarray, "#d #g"]:
    return alpha if len(alpha) == 1 else alpha[rows]


def _find_draws(
    masks: Bool[np.ndarray, "m g"], number: Int[np.ndarray, " m"]
) -> tuple[Int[np.ndarray, " d"], Int[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """The first row of each draw; the draw of each row; -1 where it is that row's complement.

    Raises:
        ValueError: rows of one number are neither the same nor complementary.
    """
    _, first, draw = np.unique(number, return_index=True, return_inverse=True)
    other = masks[:, 0] != masks[first[draw], 0]
    apart = (masks != (masks[first[draw]] ^ other[:, None])).any(1)
    if apart.any():
        row = int(np.argmax(apart))
        raise ValueError(
            f"rows {first[draw[row]]} and {row} have the same number in replicate_of, and masks "
            f"that are neither the same nor complementary"
        )
    return first, draw, np.where(other, -1.0, 1.0)


class Scores(NamedTuple):
    """Sums over the draws in which a group may have been kept or dropped."""

    rows: Float[np.ndarray, "g 1"]
    """How many rows those draws have."""
    total: Float[np.ndarray, "g t"]
    """Of (z - alpha) residual / (alpha (1 - alpha))."""
    variance: Float[np.ndarray, "g t"]
    """Of that sum, from its spread over draws."""

    def plus(self, others: "Scores") -> "Scores":
        """Over both parts of the draws."""
        return Scores(*(one + other for one, other in zip(self, others, strict=True)))


def scores(
    masks: Bool[np.ndarray, "d g"],
    residual: Float[np.ndarray, "d t"],
    count: Int[np.ndarray, " d"],
    alpha: Float[np.ndarray, "#d #g"],
) -> Scores:
    """The scores of some draws.

    Args:
        masks: of each draw.
        residual: of its rows, added up: retrains are no draws of their own.
        count: how many rows it has.
        alpha: the probability that each group is kept in it.
    """
    total = np.zeros((masks.shape[1], residual.shape[1]))
    square = np.zeros_like(total)
    rows, draws = np.zeros((len(total), 1)), np.zeros((len(total), 1))
    for part in row_blocks(len(masks), block_rows(masks.shape[1])):
        own = alpha if len(alpha) == 1 else alpha[part]
        variance = own * (1 - own)
        open_to = np.broadcast_to(
            (variance > 0).astype(np.float64), (len(count[part]), own.shape[1])
        )
        scale = np.divide(1, variance, out=np.zeros_like(variance), where=variance > 0)
        centred = (masks[part] - own) * scale
        total += centred.T @ residual[part]
        square += np.square(centred).T @ np.square(residual[part])
        rows += (open_to.T @ count[part].astype(np.float64))[:, None]
        draws += open_to.sum(0)[:, None]
    # A single draw shows no spread: then its square, which is too much rather than too little.
    several = draws > 1
    mean = np.where(several, np.square(total) / np.maximum(draws, 1), 0)
    freedom = np.where(several, draws / np.maximum(draws - 1, 1), 1)
    return Scores(rows, total, np.maximum(square - mean, 0) * freedom)
