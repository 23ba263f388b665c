"""Whether masks are what their design says, and which groups they cannot tell apart."""

import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import chi2

UNLIKELY = 1e-9
"""Probability of masks under their design below which one of the two is wrong."""


class Separation(NamedTuple):
    """Groups of which masks say nothing, or nothing apart from another group."""

    constant: Int[np.ndarray, " c"]
    """Kept in every row, or in none."""
    twins: Int[np.ndarray, "p 2"]
    """(first, later) groups that are kept together in every row, or never together."""

    def notes(self) -> list[str]:
        """One sentence for each trouble."""
        found = []
        if len(self.constant):
            found.append(
                f"{len(self.constant)} groups (first: {self.constant[0]}) are kept in every row or "
                f"in none, so nothing is known of them and their weights are zero; draw more masks"
            )
        if len(self.twins):
            one, other = self.twins[0]
            found.append(
                f"{len(self.twins)} groups cannot be told from another one (first: {one} and "
                f"{other}, kept together in every row or in turn), so their weights are arbitrary "
                f"shares of one effect; join them to one group, or draw more masks"
            )
        return found


def separation(masks: Bool[np.ndarray, "m g"]) -> Separation:
    """Which groups the masks cannot speak of, or not one by one."""
    kept = masks.any(0)
    constant = ~kept | masks.all(0)
    # Flipped so that the first row is dropped everywhere: a group equals its complement.
    bits = np.packbits(masks.T ^ masks[:1].T, axis=1)
    varying = np.flatnonzero(~constant)
    _, first, group_of = np.unique(bits[varying], axis=0, return_index=True, return_inverse=True)
    leader = varying[first[group_of.ravel()]]
    later = leader != varying
    return Separation(np.flatnonzero(constant), np.stack([leader, varying], axis=1)[later])


def warn_of_inseparable(masks: Bool[np.ndarray, "m g"]) -> None:
    """Warn of groups of which the masks say nothing, or nothing apart from another group."""
    for note in separation(masks).notes():
        warnings.warn(note, stacklevel=3)


def check_independent(
    masks: Bool[np.ndarray, "m g"], alpha: Float[np.ndarray, "#m #g"] | None
) -> None:
    """Compare masks, one a draw, with groups that are kept independently.

    Args:
        masks: True = kept.
        alpha: the probability that each group is kept in each row; None: one for all, whatever the
            masks show.

    Raises:
        ValueError: the masks are not such masks.
    """
    members, groups = masks.shape
    kept = masks.sum(1)
    probability = np.full((1, 1), kept.mean() / groups) if alpha is None else alpha
    if (masks & (probability == 0)).any():
        row, group = np.argwhere(masks & (probability == 0))[0]
        raise ValueError(f"row {row} keeps group {group}, whose alpha is 0 there")
    wide = np.broadcast_to(probability, (members, probability.shape[1]))
    times = groups // probability.shape[1]
    spread = wide * (1 - wide)
    expected, variance = times * wide.sum(1), times * spread.sum(1)
    off = abs(float((kept - expected).sum()))
    # Bernstein's (1924) bound of how likely a sum of independent coins is off by so much.
    if off > 1e-6 and np.exp(-(off**2) / 2 / (variance.sum() + off / 3)) < UNLIKELY:
        raise ValueError(
            f"alpha = {np.mean(expected) / groups:.3g}, but the masks keep "
            f"{kept.mean() / groups:.3g} of the groups; give the alpha that drew them"
        )
    drawn = variance > 0
    if groups == 1 or not drawn.any():
        return
    ratio = float((np.square(kept - expected)[drawn] / variance[drawn]).mean())
    peak = times * (spread * (1 - 6 * spread)).sum(1)[drawn] / np.square(variance[drawn])
    if _tail(ratio, variance[drawn], peak) < UNLIKELY:
        remedy = (
            "fixed_size = True takes masks that all keep the same number"
            if np.ptp(kept) == 0
            else "masks of several alphas need one alpha a row"
        )
        raise ValueError(
            f"the number of groups that a mask keeps varies {ratio:.2g} times as much as with "
            f"independent groups; effects need masks whose groups are kept independently, and "
            f"{remedy}"
        )


def _tail(ratio: float, variance: Float[np.ndarray, " m"], peak: Float[np.ndarray, " m"]) -> float:
    """How likely squared deviations over their variance are as far from 1, in the mean, as this.

    Args:
        ratio: that mean, over some rows.
        variance: of the number that each row keeps.
        peak: its excess kurtosis.
    """
    # The chi-squared distribution of the same variance.
    spread = 2 + float(peak.mean())
    if spread < 1e-9:  # one fair coin a row: its squared deviation is always the same
        return 1.0
    freedom = 2 * len(variance) / spread
    low, high = chi2.cdf(ratio * freedom, freedom), chi2.sf(ratio * freedom, freedom)
    # Whole numbers may all be what is expected: with about this probability.
    exact = -0.5 * float(np.log(2 * np.pi * variance + 1).sum())
    return float(min(max(low, np.exp(exact)), high))


def check_fixed_size(masks: Bool[np.ndarray, "m g"]) -> None:
    """Refuse masks that do not all keep the same number of groups.

    Raises:
        ValueError: naming two numbers.
    """
    kept = masks.sum(1)
    if np.ptp(kept):
        raise ValueError(
            f"fixed_size = True, but masks keep from {kept.min()} to {kept.max()} groups; leave it "
            f"out for groups that are kept independently"
        )
