"""From a bank to a regression: which members are fitted, and which judge."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

import datamodels
from datamodels.additive import Prepared
from influence.arms import Arms
from influence.config import FitConfig
from influence.members import Members, join
from training.errors import UserError

FEWEST_DRAWS = 6
"""Masks below which nothing can be estimated on some and chosen by others."""


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

    def replicates(self, arm: int, block: slice) -> Float[np.ndarray, "r s b"] | None:
        """Outputs of an arm's masks that were retrained and have two members left, if it has any.

        NaN where a member is not finite.
        """
        members = self.arms[arm].replicates
        if members is None:
            return None
        outputs = np.where(members.usable[:, None], members.outputs(block), np.nan)
        several = members.usable.reshape(-1, self.seeds).sum(1) >= 2
        return outputs.reshape(-1, self.seeds, outputs.shape[1])[several]


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
    lost, joined = int((~usable).sum()), join(fitted)
    if (
        2 * lost > len(usable)
        or min(len(part.masks) for part in held_out) < 2
        or len(np.unique(joined.draws)) < FEWEST_DRAWS
    ):
        raise UserError(
            f"{lost} of {len(usable)} members are not finite, too many to fit; lower "
            f"optim.learning_rate and sweep into another --out"
        )
    prepared = datamodels.prepare(joined.masks, folds=config.folds, replicate_of=joined.draws)
    return Regression(arms, joined, held_out, prepared, config, seeds)
