"""Whether masks are what their design says, and which groups they cannot tell apart."""

import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import gammaln
from scipy.stats import chi2, poisson

from datamodels.inputs import as_masks

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
    """Which groups the masks cannot speak of, or not one by one.

    Raises:
        ValueError: masks that are not zeros and ones.
    """
    masks = as_masks(masks)
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
    if alpha is not None:
        _check_each_group(masks, wide)
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
    check_distinct(masks, masks.mean(0)[None] if alpha is None else alpha)


def _check_each_group(
    masks: Bool[np.ndarray, "m g"], probability: Float[np.ndarray, "m #g"]
) -> None:
    """Compare how often each group is kept with its probabilities.

    Raises:
        ValueError: naming the group that is furthest off.
    """
    kept = masks.sum(0)
    expected, variance = probability.sum(0), (probability * (1 - probability)).sum(0)
    off = np.abs(kept - expected)
    far = np.square(off) / 2 / (variance + off / 3 + 1e-9)
    group = int(np.argmax(far))
    if off[group] > 1e-6 and np.exp(-far[group]) < UNLIKELY / len(kept):
        said = np.broadcast_to(expected, kept.shape)[group] / len(masks)
        raise ValueError(
            f"group {group} is kept in {kept[group] / len(masks):.3g} of the rows, but its alpha "
            f"is {said:.3g}; give the alpha that drew it"
        )


def check_distinct(masks: Bool[np.ndarray, "m g"], probability: Float[np.ndarray, "#m #g"]) -> None:
    """Refuse rows that are the same, or complementary, more often than by chance.

    Args:
        masks: one a draw.
        probability: that each group is kept in each row.

    Raises:
        ValueError: naming two such rows.
    """
    members, groups = masks.shape
    same = np.square(probability) + np.square(1 - probability)
    chance = np.log(same).sum(1) * (groups // probability.shape[1])
    if len(chance) == 1:
        chance = np.full(members, chance[0])
    # No two rows are alike with more than the root of the product of these (Cauchy and Schwarz).
    _refuse_alike(masks, float(np.square(np.exp(chance / 2).sum()) / 2))


def _refuse_alike(masks: Bool[np.ndarray, "m g"], expected: float) -> None:
    """Refuse more pairs of rows that are the same, or complementary, than chance makes."""
    members = len(masks)
    for kind, flipped in (("the same", np.zeros(members, bool)), ("complementary", masks[:, 0])):
        bits = np.packbits(masks ^ flipped[:, None], axis=1)
        _, first, number = np.unique(bits, axis=0, return_index=True, return_inverse=True)
        number = number.ravel()
        alike = members - len(first)
        if alike and poisson.sf(alike - 1, 2 * expected) < UNLIKELY:
            later = int(np.argmax(first[number] != np.arange(members)))
            raise ValueError(
                f"{alike} rows have a mask that is {kind} as that of another one (first: "
                f"{first[number[later]]} and {later}), which chance does not explain; give rows "
                f"that were drawn together one number in replicate_of"
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
    members, groups = masks.shape
    sets = gammaln(groups + 1) - gammaln(kept[0] + 1) - gammaln(groups - kept[0] + 1)
    _refuse_alike(masks, members**2 / 2 * float(np.exp(-sets)))
