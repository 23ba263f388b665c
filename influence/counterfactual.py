"""Verification: retrain without what was flagged, and without as many random examples."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.stats import norm
from scipy.stats import t as student

from datamodels.design import Listed

CELLS = ("before", "after", "after_random", "context_kept", "context_dropped")
"""Cells of the verification, each retrained with the same seeds:

before            every example kept
after             all but the flagged
after_random      all but equally many random ones, drawn anew for each seed
context_kept      the others kept with probability alpha, the flagged all kept
context_dropped   the same others, the flagged all dropped
"""

Interval = tuple[float, float, float]
"""(mean, low, high): 95 % over seeds."""


class Change(NamedTuple):
    """Change of every target's output by the removal, predicted and measured (mean of seeds)."""

    predicted: Float[np.ndarray, " t"]
    """Minus the sum of the removed weights."""
    context: Float[np.ndarray, " t"]
    """Measured with the others kept with probability alpha: what a datamodel estimates."""
    context_seeds: Float[np.ndarray, "s t"]
    all_kept: Float[np.ndarray, " t"]
    """Measured with all others kept: for the datamodel an extrapolation."""
    all_kept_seeds: Float[np.ndarray, "s t"]


def plan(flagged: Bool[np.ndarray, " n"], alpha: float, seeds: int, seed: int) -> Listed:
    """The masks to retrain: every cell of `CELLS`, `seeds` members each, cell by cell."""
    count = len(flagged)
    everything = np.ones((seeds, count), bool)
    random, context = everything.copy(), everything.copy()
    for row in range(seeds):
        # A stream for each seed: asking for more seeds leaves the first ones as they are.
        rng = np.random.default_rng([seed, 2, row])
        random[row, rng.choice(count, int(flagged.sum()), replace=False)] = False
        context[row] = rng.random(count) < alpha
    cells = {
        "before": everything,
        "after": everything & ~flagged,
        "after_random": random,
        "context_kept": context | flagged,
        "context_dropped": context & ~flagged,
    }
    return Listed(
        np.concatenate([cells[cell] for cell in CELLS]), np.tile(np.arange(seeds), len(CELLS))
    )


def by_cell(
    members: Shaped[np.ndarray, "m ..."],
) -> dict[str, Shaped[np.ndarray, "s ..."]]:
    """Whatever the planned members have, cell by cell."""
    return dict(zip(CELLS, np.split(members, len(CELLS)), strict=True))


def change(
    cells: dict[str, Float[np.ndarray, "s t"]], predicted: Float[np.ndarray, " t"]
) -> Change:
    """Predicted beside measured change of each target."""
    context = cells["context_dropped"] - cells["context_kept"]
    all_kept = cells["after"] - cells["before"]
    return Change(
        predicted,
        np.nanmean(context, 0),
        context,
        np.nanmean(all_kept, 0),
        all_kept,
    )


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
