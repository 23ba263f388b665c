"""The joint datamodels of a run: on which targets, how good they are, and their terms."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

import datamodels
from datamodels.terms import Term
from influence.experiment import Targets
from influence.quality import FALSE_DISCOVERIES, Quality
from influence.regression import Regression
from training.errors import UserError

MOST_MEMBERS = 10_000
"""Members beyond which none is fitted, which takes memory of the square of their number."""
MOST_GROUPS = 512
"""Groups beyond which no joint datamodel is fitted: what few of many examples do together is less
than the noise of a few thousand retrains."""
DESIGNS = ("bernoulli", "pairs")
"""Designs that keep groups independently, as joint effects need it."""


class JointFit(NamedTuple):
    """What joint datamodels say of a run."""

    targets: Int[np.ndarray, " t"]
    """On which they were fitted, by the experiment's order."""
    terms: list[Term]
    """Of a false discovery rate over all of them; a term's target is its position in `targets`."""
    summary: dict[str, Any]
    """The `joint` part of the `fit` section of audit.json."""


def reason_against(design: str, members: int, groups: int, targets: int) -> str | None:
    """Why a run has no joint datamodels, of so many targets; None where it has."""
    if not targets:
        return "fit.joint_targets = 0"
    if design not in DESIGNS:
        return f"sweep.design = {design!r} does not keep groups independently"
    if members > MOST_MEMBERS:
        return f"{members:,} members are more than {MOST_MEMBERS:,}, which would take much memory"
    if groups > MOST_GROUPS:
        return (
            f"masks have {groups:,} groups, more than {MOST_GROUPS}: joint effects of so many do "
            f'not stand out; sweep groups of examples (groups.by = "cluster") into another --out'
        )
    return None


def choose_targets(targets: Targets, quality: Quality, count: int) -> Int[np.ndarray, " t"]:
    """The incident's targets, then clean ones of which the additive datamodel leaves most.

    Of every class the worst one, then of every class the next: those of one class are mostly
    acted on by the same groups.

    Args:
        targets: of the run.
        quality: of the additive datamodels.
        count: how many at most.
    """
    explainable = np.where(np.isfinite(quality.ceiling), quality.ceiling, 1).mean(0)
    left = explainable - np.where(np.isfinite(quality.r2), quality.r2, np.inf).mean(0)
    clean = np.arange(targets.clean.start, targets.clean.stop)
    clean = clean[np.argsort(-left[clean], kind="stable")]
    labels = np.asarray(targets.examples.labels)[clean]
    place = np.zeros(len(clean), int)
    for label in np.unique(labels):
        place[labels == label] = np.arange((labels == label).sum())
    incident = np.arange(targets.incident.start, targets.incident.stop)
    return np.concatenate([incident, clean[np.argsort(place, kind="stable")]])[:count]


def fit(regression: Regression, targets: Int[np.ndarray, " t"], quality: Quality) -> JointFit:
    """Fit and judge joint datamodels, and find their terms.

    Raises:
        UserError: too few masks, too many alphas, or members were lost depending on their masks.
    """
    fitted = regression.fitted
    outputs = _columns(fitted.outputs, targets)
    alpha = np.squeeze(fitted.alpha)
    try:
        model = datamodels.fit_joint(
            fitted.masks,
            outputs,
            alpha=float(alpha) if alpha.ndim == 0 else alpha,
            noise_variance=_noise(regression, targets),
            replicate_of=fitted.draws,
        )
        terms = model.terms(q=FALSE_DISCOVERIES)
    except ValueError as error:
        raise UserError(f"nothing can be said of joint effects: {error}") from error
    by_arm = {}
    for number, (arm, held_out) in enumerate(
        zip(regression.arms, regression.held_out, strict=True)
    ):
        actual = _columns(held_out.outputs, targets)
        by_arm[arm.name] = {
            "alpha": arm.alpha,
            "r2": float(datamodels.r2(model.predict(held_out.masks), actual).mean()),
            "additive_r2": float(quality.r2[number, targets].mean()),
            "ceiling": float(quality.ceiling[number, targets].mean()),
        }
    summary = {
        "targets": len(targets),
        "terms": len(terms),
        "false_discovery_rate": FALSE_DISCOVERIES,
        "by_arm": by_arm,
    }
    return JointFit(targets, terms, summary)


def _columns(outputs: Any, targets: Int[np.ndarray, " t"]) -> Float[np.ndarray, "m t"]:
    """Of targets that stand anywhere."""
    return np.concatenate([outputs(slice(t, t + 1)) for t in targets.tolist()], axis=1)


def _noise(
    regression: Regression, targets: Int[np.ndarray, " t"]
) -> Float[np.ndarray, " t"] | None:
    """Variance over seeds, the mean over arms; None where it was not measured."""
    found = []
    for arm in range(len(regression.arms)):
        for target in targets.tolist():
            part = regression.replicates(arm, slice(target, target + 1))
            if part is None:
                return None
            found.append(float(datamodels.noise_variance(part.outputs)[0]))
    variance = np.array(found).reshape(len(regression.arms), -1).mean(0)
    return variance if np.isfinite(variance).all() else None
