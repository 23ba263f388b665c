"""The datamodels of a bank, and the effects of every group with their errors."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

import datamodels
from datamodels.additive import AdditiveDatamodel
from datamodels.estimates import Effects
from datamodels.inference import PreparedEffects
from influence.members import target_blocks
from influence.quality import Quality, judge
from influence.regression import Regression
from training.errors import UserError


def fit(regression: Regression, targets: int) -> Iterator[tuple[AdditiveDatamodel, Quality]]:
    """The additive datamodels, and how good they are, a block of targets after the other."""
    config = regression.config
    for block in target_blocks(slice(0, targets)):
        outputs = regression.fitted.outputs(block)
        model = regression.prepared.fit(outputs, penalty=config.penalty, choice=config.choice)
        yield model, judge(regression, model, block)


def effects(regression: Regression, prepared: PreparedEffects, targets: slice) -> Iterator[Effects]:
    """Average marginal effects on some targets, a block of them after the other.

    Args:
        regression: of the fit.
        prepared: of it, by `prepare_effects`.
        targets: which.
    """
    for block in target_blocks(targets):
        yield prepared.effects(regression.fitted.outputs(block))


def mean_effects(
    regression: Regression, prepared: PreparedEffects, blocks: Sequence[slice]
) -> Effects:
    """Effects on the mean output of each block of targets; NaN for a block without targets.

    Targets share members and their noise, so the mean is a target of its own: errors of its effects
    do not follow from those of each.
    """
    present = [number for number, own in enumerate(blocks) if own.stop > own.start]
    means = np.stack([_mean_output(regression, blocks[number]) for number in present], axis=1)
    found = prepared.effects(means)
    shape = (len(found.estimate), len(blocks))
    estimate, error = np.full(shape, np.nan), np.full(shape, np.nan)
    estimate[:, present], error[:, present] = found.estimate, found.standard_error
    return Effects(estimate, error)


def _mean_output(regression: Regression, targets: slice) -> Float[np.ndarray, " m"]:
    total = np.zeros(len(regression.fitted.masks))
    for block in target_blocks(targets):
        total += regression.fitted.outputs(block).sum(1, dtype=np.float64)
    return total / (targets.stop - targets.start)


def prepare_effects(regression: Regression, *, fixed_size: bool) -> PreparedEffects:
    """Begin the effects on any targets.

    Args:
        regression: of the fit, whose penalty the effects' datamodels have, too.
        fixed_size: whether the masks all keep the same number of groups.

    Raises:
        UserError: members were lost depending on what they kept.
    """
    alpha = None if fixed_size else np.squeeze(regression.fitted.alpha)
    try:
        return datamodels.prepare_effects(
            regression.prepared,
            alpha=alpha,
            fixed_size=fixed_size,
            penalty=regression.config.penalty,
        )
    except ValueError as error:  # the design is ours, so what is left of it is not
        raise UserError(
            f"members were lost depending on what they kept, as they are not finite, so nothing "
            f"can be said of effects ({error}); lower optim.learning_rate and sweep into another "
            f"--out"
        ) from error
