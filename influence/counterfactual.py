"""Verification: retrain without some examples, and without as many random ones."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.stats import norm
from scipy.stats import t as student

from datamodels.design import Listed

COMPARED = ("before", "after", "after_random")
"""Cells of the verification, each retrained with the same seeds:

before         every example kept
after          all but the confirmed
after_random   all but as many random ones of the same labels, drawn anew for each seed

then THINNED: all but the redundant half, and all but as many random ones of the same labels, drawn
anew for each seed; and, for the change that a datamodel predicts, WITHOUT_FLAGGED and for each
design two more (`context_cells`): the others as the design keeps them, the flagged all kept, or all
dropped.
"""
THINNED = ("thinned", "thinned_random")
WITHOUT_FLAGGED = "without flagged"
"""The cell of all but the flagged."""

RANDOM_CONFIRMED, RANDOM_TRACED, RANDOM_SETS, RANDOM_SUSPECTS, RANDOM_REDUNDANT = range(2, 7)
"""What random examples are drawn beside: the second number of their stream, after the seed."""

Interval = tuple[float, float, float]
"""(mean, low, high): 95 % over seeds."""


def context_cells(context: str) -> tuple[str, str]:
    """The two cells of a context, by name: the flagged kept, and dropped."""
    return f"{context}, kept", f"{context}, dropped"


def cell_names(contexts: Sequence[str]) -> list[str]:
    """All cells, in their order."""
    return [
        *COMPARED,
        *THINNED,
        WITHOUT_FLAGGED,
        *(cell for context in contexts for cell in context_cells(context)),
    ]


class Change(NamedTuple):
    """Change of every target's output without the flagged: predicted, and with each seed."""

    predicted: Float[np.ndarray, " t"]
    """Minus the sum of the removed weights."""
    contexts: dict[str, Float[np.ndarray, "s t"]]
    """By name; measured with the others as a design keeps them: what a datamodel estimates."""
    all_kept: Float[np.ndarray, "s t"]
    """Measured with all others kept: for the datamodel an extrapolation."""


def random_like(
    labels: Int[np.ndarray, " n"],
    removed: Bool[np.ndarray, " n"],
    seeds: int,
    stream: Sequence[int],
    among: Bool[np.ndarray, " n"] | None = None,
) -> Bool[np.ndarray, "s n"]:
    """For every seed, as many random examples of each class as were removed of it.

    Where a class has too few to draw from, the rest are of other classes; of fewer in all, all.

    Args:
        labels: of all examples.
        removed: what the random ones are to be like.
        seeds: how many draws; each has a stream of its own, so that more leave the first the same.
        stream: numbers that decide them.
        among: what they are drawn from; by default all that were not removed.
    """
    found, among = np.zeros((seeds, len(labels)), bool), ~removed if among is None else among
    for row in range(seeds):
        rng = np.random.default_rng([*stream, row])
        for label in np.unique(labels[removed]):
            others = np.flatnonzero((labels == label) & among)
            count = min(int((labels[removed] == label).sum()), len(others))
            found[row, rng.choice(others, count, replace=False)] = True
        left = np.flatnonzero(among & ~found[row])
        lacking = min(int(removed.sum() - found[row].sum()), len(left))
        found[row, rng.choice(left, lacking, replace=False)] = True
    return found


def plan(
    labels: Int[np.ndarray, " n"],
    confirmed: Bool[np.ndarray, " n"],
    redundant: Bool[np.ndarray, " n"],
    flagged: Bool[np.ndarray, " n"],
    contexts: Mapping[str, Bool[np.ndarray, "s n"]],
    seed: int,
) -> Listed:
    """The masks to retrain, one a seed in every cell, cell by cell.

    Args:
        labels: of all examples.
        confirmed: the examples that a user removes.
        redundant: those that the others replace.
        flagged: those whose removal is predicted.
        contexts: by name, examples kept with each seed.
        seed: decides the random removals.
    """
    seeds = len(next(iter(contexts.values())))
    everything = np.ones((seeds, len(labels)), bool)
    cells = {
        "before": everything,
        "after": everything & ~confirmed,
        "after_random": ~random_like(labels, confirmed, seeds, (seed, RANDOM_CONFIRMED)),
        "thinned": everything & ~redundant,
        # Half of all: beside it there is no other half that were random.
        "thinned_random": ~random_like(
            labels, redundant, seeds, (seed, RANDOM_REDUNDANT), everything[0]
        ),
        WITHOUT_FLAGGED: everything & ~flagged,
    }
    for name, kept in contexts.items():
        cells |= zip(context_cells(name), (kept | flagged, kept & ~flagged), strict=True)
    masks = np.concatenate([cells[cell] for cell in cell_names(list(contexts))])
    return Listed(masks, np.tile(np.arange(seeds), len(cells)))


def by_cell(
    members: Shaped[np.ndarray, "m ..."], contexts: Sequence[str]
) -> dict[str, Shaped[np.ndarray, "s ..."]]:
    """Whatever the planned members have, cell by cell."""
    names = cell_names(contexts)
    return dict(zip(names, np.split(members, len(names)), strict=True))


def fewest_seeds(usable: Bool[np.ndarray, " m"], contexts: Sequence[str]) -> int:
    """With how many seeds at least a cell has a usable member, or both of two that are compared."""
    cells = by_cell(usable, contexts)
    pairs = [("before", "after"), ("before", WITHOUT_FLAGGED), *map(context_cells, contexts)]
    both = [cells[one] & cells[other] for one, other in pairs]
    return min(int(seeds.sum()) for seeds in [*cells.values(), *both])


def change(
    cells: dict[str, Float[np.ndarray, "s t"]],
    predicted: Float[np.ndarray, " t"],
    contexts: Sequence[str],
) -> Change:
    """Predicted beside measured change of each target."""
    measured = {}
    for name in contexts:
        kept, dropped = context_cells(name)
        measured[name] = cells[dropped] - cells[kept]
    return Change(predicted, measured, cells[WITHOUT_FLAGGED] - cells["before"])


def share_positive(values: Float[np.ndarray, "m k"]) -> Float[np.ndarray, " m"]:
    """Of each member, the share of inputs whose margin or lead is above 0: that get their label.

    NaN where the member is not finite; 0 of no inputs.
    """
    share = (values > 0).sum(1) / max(values.shape[1], 1)
    return np.where(np.isnan(values).any(1), np.nan, share)


def share_interval(per_seed: Float[np.ndarray, " s"], inputs: int) -> Interval:
    """As `interval`, of a share of `inputs` inputs: within 0 and 1, and never without width.

    Where all seeds agree, Student's interval is a point, though other inputs might differ: then
    it is Wilson's (1927) interval for the share of so many inputs.
    """
    mean, low, high = interval(per_seed)
    if low == high:
        z = float(norm.ppf(0.975))
        centre = (mean + z**2 / (2 * inputs)) / (1 + z**2 / inputs)
        half = (
            z
            / (1 + z**2 / inputs)
            * float(np.sqrt(mean * (1 - mean) / inputs + (z / (2 * inputs)) ** 2))
        )
        low, high = centre - half, centre + half
    # The rounding of Wilson's formula may leave the mean just outside.
    return mean, min(mean, max(0.0, low)), max(mean, min(1.0, high))


def interval(per_seed: Float[np.ndarray, " s"]) -> Interval:
    """Mean and 95 % Student interval over seeds; members left out are NaN."""
    values = per_seed[np.isfinite(per_seed)]
    if len(values) < 2:
        return float("nan"), float("nan"), float("nan")
    mean = float(values.mean())
    half = float(student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half
