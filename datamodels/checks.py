"""Whether masks are what their design says, and which groups they cannot tell apart."""

import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

CONTRADICTION = 6.0
"""Standard errors between masks and their design beyond which one of the two is wrong."""


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
    shape = np.broadcast_shapes(probability.shape, (members, groups))
    wide = np.broadcast_to(probability, (shape[0], probability.shape[1]))
    times = groups // probability.shape[1]
    expected = times * wide.sum(1)
    variance = times * (wide * (1 - wide)).sum(1)
    off = (kept - expected).sum() / np.sqrt(max(variance.sum(), 1e-12))
    if abs(off) > CONTRADICTION:
        raise ValueError(
            f"alpha = {np.mean(expected) / groups:.3g}, but the masks keep "
            f"{kept.mean() / groups:.3g} of the groups; give the alpha that drew them"
        )
    # Of a binomial with many trials, a squared deviation over its variance has mean 1, variance 2.
    ratio = np.square(kept - expected).mean() / max(variance.mean(), 1e-12)
    if groups > 1 and abs(ratio - 1) > CONTRADICTION * np.sqrt(2 / members):
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
