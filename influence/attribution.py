"""From a bank to datamodels: which rows may be used, the fit, and how good it is."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

import datamodels
from datamodels.additive import CERTIFIED, AdditiveDatamodel, FitDiagnostics
from influence.config import FitConfig
from influence.experiment import Targets
from influence.members import Members, target_blocks
from training.errors import UserError


class Quality(NamedTuple):
    """How well each target is predicted on masks that no fit saw, and how well it could be."""

    r2: Float[np.ndarray, " t"]
    lds: Float[np.ndarray, " t"]
    ceiling: Float[np.ndarray, " t"]
    """In R2; the ceiling of the LDS is about its square root."""


class Parts(NamedTuple):
    """Which members of the main arm may be fitted, and which are held out; none that is lost."""

    fitted: Bool[np.ndarray, " m"]
    held_out: Bool[np.ndarray, " m"]


def divide(main: Members, config: FitConfig) -> Parts:
    """The first `held_out` members are held out; members that are not finite are left out.

    Raises:
        UserError: more than half of the members are not finite, or too few are left.
    """
    first = np.arange(len(main.usable)) < config.held_out
    held, rest = first & main.usable, ~first & main.usable
    lost = int((~main.usable).sum())
    if 2 * lost > len(main.usable) or held.sum() < 2 or rest.sum() < 4:
        raise UserError(
            f"{lost} of {len(main.usable)} members are not finite, too many to fit; lower "
            f"optim.learning_rate and sweep into another --out"
        )
    return Parts(fitted=rest, held_out=held)


def fit(
    main: Members, replicates: Members | None, targets: int, config: FitConfig, seeds: int
) -> Iterator[tuple[AdditiveDatamodel, Quality]]:
    """The additive datamodels, and how good they are, a block of targets after the other.

    Args:
        main: of which the first are held out, to judge the others' datamodels.
        replicates: `seeds` members a mask, one mask after the other; None where all members share
            one training key, so that there is no seed noise and no ceiling (NaN).
        targets: how many.
        config: of the fit.
        seeds: retrains of each mask of the replicates.

    Raises:
        UserError: as in `divide`.
    """
    parts = divide(main, config)
    prepared = datamodels.prepare(main.masks[parts.fitted], folds=config.folds)
    for block in target_blocks(slice(0, targets)):
        outputs = main.outputs(block)
        model = prepared.fit(outputs[parts.fitted], penalty=config.penalty, choice=config.choice)
        actual = outputs[parts.held_out]
        predicted = model.predict(main.masks[parts.held_out])
        yield (
            model,
            Quality(
                datamodels.r2(predicted, actual),
                datamodels.lds(predicted, actual),
                _ceiling(outputs[main.usable], replicates, seeds, block),
            ),
        )


def _ceiling(
    outputs: Float[np.ndarray, "m b"], replicates: Members | None, seeds: int, block: slice
) -> Float[np.ndarray, " b"]:
    if replicates is None:
        return np.full(outputs.shape[1], np.nan)
    repeated = np.where(replicates.usable[:, None], replicates.outputs(block), np.nan)
    several = replicates.usable.reshape(-1, seeds).sum(1) >= 2
    return datamodels.ceiling(outputs, repeated.reshape(-1, seeds, outputs.shape[1])[several])


def summary(
    diagnostics: FitDiagnostics,
    quality: Quality,
    targets: Targets,
    main: Members,
    replicates: Members | None,
) -> dict[str, Any]:
    """The `fit` section of audit.json: means over the clean targets, then over each block."""
    gap = diagnostics.relative_gap
    kinds = {"train": targets.train, "clean": targets.clean, "incident": targets.incident}
    return {
        **_means(quality, targets.clean),
        "by_targets": {
            name: _means(quality, block)
            for name, block in kinds.items()
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
