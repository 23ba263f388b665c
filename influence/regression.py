"""From a bank to a regression: which members are fitted, and which judge."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

import datamodels
from datamodels.additive import Prepared
from influence.arms import Arms
from influence.config import FitConfig
from influence.members import Members, join
from training.errors import UserError

FEWEST_DRAWS = 6
"""Masks below which nothing can be estimated on some and chosen by others."""


class Replicates(NamedTuple):
    """Masks that were retrained with several seeds."""

    outputs: Float[np.ndarray, "r s b"]
    """NaN where a member is not finite."""
    draws: Int[np.ndarray, " r"]
    """Masks of one number were drawn together."""


@dataclass(frozen=True)
class Regression:
    """What all targets share: which members are fitted, which judge, and the fit's folds."""

    arms: Sequence[Arms]
    fitted: Members
    """Of all main arms."""
    held_out: Sequence[Members]
    """Of each main arm; no fit sees them."""
    prepared: Prepared
    config: FitConfig
    seeds: int
    """Retrains of each mask of the replicates."""

    def replicates(self, arm: int, block: slice) -> Replicates | None:
        """An arm's masks that were retrained and have two members left; None if there is none."""
        members = self.arms[arm].replicates
        if members is None:
            return None
        outputs = np.where(members.usable[:, None], members.outputs(block), np.nan)
        several = members.usable.reshape(-1, self.seeds).sum(1) >= 2
        if not several.any():
            return None
        return Replicates(
            outputs.reshape(-1, self.seeds, outputs.shape[1])[several],
            members.draws.reshape(-1, self.seeds)[several, 0],
        )


def divide(arms: Sequence[Arms], config: FitConfig, seeds: int) -> Regression:
    """Hold out the first members of each main arm; members that are not finite are left out.

    Args:
        arms: of every alpha.
        config: of the fit.
        seeds: retrains of each mask of the replicates.

    Raises:
        UserError: more than half of the members are not finite, or too few are left.
    """
    fitted, held_out = [], []
    for arm in arms:
        first = np.arange(len(arm.main.usable)) < config.held_out
        fitted.append(arm.main.take(~first & arm.main.usable))
        held_out.append(arm.main.take(first & arm.main.usable))
    usable = np.concatenate([arm.main.usable for arm in arms])
    lost = int((~usable).sum())
    if config.folds < 3:
        raise UserError(
            f"fit.folds = {config.folds} must be at least 3: effects have a fold to choose by"
        )
    if not lost and len(arms[0].main.usable) - config.held_out < FEWEST_DRAWS:
        raise UserError(
            f"fit.held_out = {config.held_out} leaves fewer than {FEWEST_DRAWS} masks to fit; "
            f"lower it, or add members"
        )
    if (
        2 * lost > len(usable)
        or min(len(part.masks) for part in held_out) < 2
        or min(len(np.unique(part.draws)) for part in fitted) < FEWEST_DRAWS
    ):
        raise UserError(
            f"{lost} of {len(usable)} members are not finite, too many to fit; lower "
            f"optim.learning_rate and sweep into another --out"
        )
    joined = join(fitted)
    prepared = datamodels.prepare(joined.masks, folds=config.folds, replicate_of=joined.draws)
    return Regression(arms, joined, held_out, prepared, config, seeds)
