"""How good datamodels are, how good they could be, and how sure that is."""

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

import datamodels
from datamodels.additive import CERTIFIED, AdditiveDatamodel, FitDiagnostics
from datamodels.bootstrap import (
    ceiling_draws,
    interval,
    lds_draws,
    r2_draws,
    resample_together,
)
from datamodels.estimates import Effects
from datamodels.planning import FEWEST_MASKS
from influence.experiment import Targets
from influence.members import target_blocks
from influence.regression import Regression

CURVE_TARGETS = 50
"""Clean targets of the learning curve, the first ones: enough for its mean."""
CURVE_FOLDS = 3
"""Of the cross-validation behind the learning curve."""
SHARES = (0.7, 0.8, 0.9)
"""Of the ceiling, for which the members needed are foretold."""
FALSE_DISCOVERIES = 0.1
"""The rate at which groups count as found."""
TOP = 10
"""Effects of a target whose intervals count: its largest."""


class Quality(NamedTuple):
    """How well each target is predicted on masks that no fit saw, and how well it could be.

    By the arm of the masks: over several alphas at once it would look too good.
    """

    r2: Float[np.ndarray, "a t"]
    lds: Float[np.ndarray, "a t"]
    ceiling: Float[np.ndarray, "a t"]
    """In R2; the ceiling of the LDS is about its square root. NaN where it was not measured."""


def known_mean(values: Float[np.ndarray, " k"]) -> float:
    """The mean of what has a value, as the R2 of a constant target has none; NaN of nothing."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def judge(regression: Regression, model: AdditiveDatamodel, block: slice) -> Quality:
    """The quality of the datamodels of a block of targets."""
    columns = []
    for arm, held_out in enumerate(regression.held_out):
        actual, predicted = held_out.outputs(block), model.predict(held_out.masks)
        main = regression.arms[arm].main
        repeated = regression.replicates(arm, block)
        columns.append(
            Quality(
                datamodels.r2(predicted, actual),
                datamodels.lds(predicted, actual),
                np.full(actual.shape[1], np.nan)
                if repeated is None
                else datamodels.ceiling(main.outputs(block)[main.usable], repeated.outputs),
            )
        )
    return Quality(*(np.stack(values) for values in zip(*columns, strict=True)))


MEASURES = ("r2", "lds", "ceiling", "lds_ceiling", "share_of_ceiling")
"""What `Sums.measures` gives, in this order."""

Predict = Callable[[Bool[np.ndarray, "k g"], slice], Float[np.ndarray, "k b"]]
"""The datamodels' predictions of some masks for a block of targets."""


class Sums(NamedTuple):
    """Of `Quality` and of the root of the ceiling over targets, row by row (arms, or draws)."""

    total: Float[np.ndarray, "4 k"]
    targets: Int[np.ndarray, "4 k"]
    """How many have the value."""

    @classmethod
    def of(cls, quality: Quality) -> "Sums":
        """Over the targets of a quality."""
        values = np.stack([*quality, np.sqrt(np.maximum(quality.ceiling, 0))])
        known = np.isfinite(values)
        return cls(np.where(known, values, 0).sum(2), known.sum(2))

    def plus(self, other: "Sums") -> "Sums":
        """Over both blocks of targets."""
        return Sums(self.total + other.total, self.targets + other.targets)

    def measures(self) -> dict[str, Float[np.ndarray, " k"]]:
        """Means over targets, and the share of the ceiling; NaN where no target has the value."""
        r2, lds, ceiling, lds_ceiling = self.total / np.where(
            self.targets > 0, self.targets, np.nan
        )
        share = np.divide(r2, ceiling, out=np.full_like(r2, np.nan), where=ceiling > 0)
        return dict(zip(MEASURES, (r2, lds, ceiling, lds_ceiling, share), strict=True))


def draws(regression: Regression, arm: int, predict: Predict, targets: slice) -> Sums:
    """The quality of some targets over masks of an arm that are drawn again, a row a draw."""
    held_out, main = regression.held_out[arm], regression.arms[arm].main
    judging = resample_together(held_out.draws)
    everyone = resample_together(main.draws[main.usable], seed=1)
    parts = []
    for block in target_blocks(targets):
        actual, predicted = held_out.outputs(block), predict(held_out.masks, block)
        repeated = regression.replicates(arm, block)
        ceiling = np.full((len(judging), actual.shape[1]), np.nan)
        if repeated is not None:
            outputs, again = (
                main.outputs(block)[main.usable],
                resample_together(repeated.draws, seed=2),
            )
            ceiling = ceiling_draws(outputs, repeated.outputs, everyone, again)
        r2, lds = (draw(predicted, actual, judging) for draw in (r2_draws, lds_draws))
        parts.append(Sums.of(Quality(r2, lds, ceiling)))
    return reduce(Sums.plus, parts)


def summary(
    regression: Regression,
    diagnostics: FitDiagnostics,
    quality: Quality,
    predict: Predict,
    targets: Targets,
) -> dict[str, Any]:
    """The `fit` section of audit.json, without effects: the clean targets, then arm by arm."""
    kinds = {"train": targets.train, "clean": targets.clean, "incident": targets.incident}
    by_arm = {}
    for number, arm in enumerate(regression.arms):
        by_targets = {}
        for kind, block in kinds.items():
            if block.stop == block.start:
                continue
            own = Quality(*(values[number : number + 1, block] for values in quality))
            means = {name: float(value[0]) for name, value in Sums.of(own).measures().items()}
            by_targets[kind] = means
            if kind != "train":  # the largest block, and the one that nobody is judged by
                again = draws(regression, number, predict, block).measures()
                by_targets[kind] |= {
                    "intervals": {name: interval(means[name], again[name]) for name in MEASURES}
                }
        by_arm[arm.name] = {"alpha": arm.alpha, "by_targets": by_targets}
    clean = [arm["by_targets"]["clean"] for arm in by_arm.values()]
    gap = diagnostics.relative_gap
    everyone = [part for arm in regression.arms for part in (arm.main, arm.replicates) if part]
    return {
        **{name: float(np.mean([part[name] for part in clean])) for name in MEASURES},
        "by_arm": by_arm,
        "certified": float((gap <= CERTIFIED).mean()),
        "largest_relative_gap": float(gap.max()),
        "constant_targets": int(diagnostics.constant.sum()),
        "members": sum(len(arm.main.usable) for arm in regression.arms),
        "not_finite": sum(int((~part.usable).sum()) for part in everyone),
    }


class Found(NamedTuple):
    """What the effects on each target show."""

    groups_found: Int[np.ndarray, " t"]
    """At a false discovery rate of `FALSE_DISCOVERIES`."""
    top_width: Float[np.ndarray, " t"]
    """The widest 95 % interval of the `TOP` largest effects."""


def found_in(effects: Effects) -> Found:
    """What the effects on some targets show."""
    found = (effects.q_values() <= FALSE_DISCOVERIES).sum(0)
    return Found(found, datamodels.top_width(effects, top=TOP))


def effects_summary(found: Found) -> dict[str, Any]:
    """Means over the clean and the incident targets."""
    return {
        "false_discovery_rate": FALSE_DISCOVERIES,
        "groups_found": float(found.groups_found.mean()),
        "top": TOP,
        "top_width": float(np.nanmean(found.top_width)),
    }


def members_needed(
    regression: Regression, targets: Targets, quality: Quality
) -> dict[str, Any] | None:
    """Members of the first arm with which clean targets reach shares of their ceiling, foretold.

    Args:
        regression: of the fit.
        targets: of the run.
        quality: whose ceiling in the first arm counts; 1 where it was not measured.

    Returns:
        None where there are too few masks for a learning curve. A share that is never reached has
        None.
    """
    members = regression.arms[0].main.take(regression.arms[0].main.usable)
    if len(np.unique(members.draws)) < FEWEST_MASKS:
        return None
    first = slice(targets.clean.start, min(targets.clean.start + CURVE_TARGETS, targets.clean.stop))
    curve = datamodels.learning_curve(
        members.masks,
        members.outputs(first),
        penalty=regression.config.penalty,
        choice=regression.config.choice,
        folds=CURVE_FOLDS,
        replicate_of=members.draws,
    )
    mean, ceiling = curve.mean(), quality.ceiling[0, first]
    reachable = float(np.nanmean(ceiling)) if np.isfinite(ceiling).any() else 1.0
    needed = {share: float(mean.members_for(share * reachable)[0]) for share in SHARES}
    return {
        "members": curve.members.tolist(),
        "r2": mean.r2[:, 0].tolist(),
        "limit": float(1 - mean.floor[0]),
        "for_share_of_ceiling": {
            f"{share:g}": int(count) if np.isfinite(count) else None
            for share, count in needed.items()
        },
    }
