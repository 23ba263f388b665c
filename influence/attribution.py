"""From a bank to datamodels: which rows may be used, the fit, and how good it is."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

import datamodels
from datamodels.additive import CERTIFIED, AdditiveDatamodel
from influence.config import FitConfig
from influence.experiment import Targets
from training.arm import Rows
from training.errors import UserError


class Quality(NamedTuple):
    """How well each target is predicted on masks that no fit saw, and how well it could be."""

    r2: Float[np.ndarray, " t"]
    lds: Float[np.ndarray, " t"]
    ceiling: Float[np.ndarray, " t"]
    """In R2; the ceiling of the LDS is about its square root."""


class Parts(NamedTuple):
    """The usable members of the main arm: those that may be fitted, and those held out."""

    fitted: Rows
    held_out: Rows


def divide(main: Rows, config: FitConfig) -> Parts:
    """The first `held_out` members are held out; members that are not finite are left out.

    Raises:
        UserError: more than half of the members are not finite, or too few are left.
    """
    first = np.arange(len(main.usable)) < config.held_out
    held, rest = main.take(first & main.usable), main.take(~first & main.usable)
    lost = int((~main.usable).sum())
    if 2 * lost > len(main.usable) or len(held.masks) < 2 or len(rest.masks) < 4:
        raise UserError(
            f"{lost} of {len(main.usable)} members are not finite, too many to fit; lower "
            f"optim.learning_rate and sweep into another --out"
        )
    return Parts(fitted=rest, held_out=held)


def fit(parts: Parts, config: FitConfig) -> AdditiveDatamodel:
    """The additive datamodels of all targets."""
    return datamodels.fit(
        parts.fitted.masks, parts.fitted.outputs, validation_share=config.validation_share
    )


def judge(model: AdditiveDatamodel, parts: Parts, replicates: Rows | None, seeds: int) -> Quality:
    """R2 and LDS on the held-out members, and the ceiling from the replicates.

    Args:
        model: fitted on `parts.fitted`.
        parts: of the main arm.
        replicates: `seeds` members a mask, one mask after the other; None where all members share
            one training key, so that there is no seed noise and no ceiling (NaN).
        seeds: retrains of each mask.
    """
    actual = parts.held_out.outputs
    predicted = model.predict(parts.held_out.masks)
    return Quality(
        datamodels.r2(predicted, actual),
        datamodels.lds(predicted, actual),
        _ceiling(parts, replicates, seeds),
    )


def _ceiling(parts: Parts, replicates: Rows | None, seeds: int) -> Float[np.ndarray, " t"]:
    total = np.concatenate([parts.fitted.outputs, parts.held_out.outputs])
    if replicates is None:
        return np.full(total.shape[1], np.nan)
    outputs = np.where(replicates.usable[:, None], replicates.outputs, np.nan)
    repeated = outputs.reshape(-1, seeds, outputs.shape[1])
    several = replicates.usable.reshape(-1, seeds).sum(1) >= 2
    return datamodels.ceiling(total, repeated[several])


def summary(
    model: AdditiveDatamodel,
    quality: Quality,
    targets: Targets,
    main: Rows,
    replicates: Rows | None,
) -> dict[str, Any]:
    """The `fit` section of audit.json: means over the clean targets, then over each block."""
    gap = model.diagnostics.relative_gap
    blocks = {"train": targets.train, "clean": targets.clean, "incident": targets.incident}
    return {
        **_means(quality, targets.clean),
        "by_targets": {
            name: _means(quality, block)
            for name, block in blocks.items()
            if block.stop > block.start
        },
        "certified": float((gap <= CERTIFIED).mean()),
        "largest_relative_gap": float(gap.max()),
        "members": len(main.usable),
        "not_finite": sum(int((~arm.usable).sum()) for arm in (main, replicates) if arm),
    }


def _means(quality: Quality, block: slice) -> dict[str, float]:
    r2, lds, ceiling = (_mean(values[block]) for values in quality)
    return {
        "lds": lds,
        "r2": r2,
        "ceiling": ceiling,
        "lds_ceiling": _mean(np.sqrt(np.maximum(quality.ceiling[block], 0))),
        "share_of_ceiling": r2 / ceiling if ceiling > 0 else float("nan"),
    }


def _mean(values: Float[np.ndarray, " t"]) -> float:
    """Of the targets that have the value; NaN if none has."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
