"""The joint datamodels of a run: on which targets, how good they are, and their terms."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

import datamodels
from datamodels.terms import Term
from influence.attribution import fit as fit_additive
from influence.experiment import Targets
from influence.quality import FALSE_DISCOVERIES, Quality, known_mean
from influence.regression import Regression
from training.errors import UserError

UNDECIDED = 0.5
"""The false discovery rate up to which a set is worth another look, with more members."""


class JointFit(NamedTuple):
    """What joint datamodels say at one level."""

    terms: list[Term]
    """Of all targets, up to a false discovery rate of `UNDECIDED`; surest first."""
    summary: dict[str, Any]
    """The level's part of the `joint` part of the `fit` section of audit.json."""


def choose_targets(
    targets: Targets, quality: Quality, count: int, bad_targets: Sequence[int]
) -> Int[np.ndarray, " t"]:
    """An incident's targets, then clean ones of which the additive datamodel leaves most.

    Of every class the worst one, then of every class the next: those of one class are mostly
    acted on by the same groups.

    Args:
        targets: of the run.
        quality: of the additive datamodels.
        count: how many at most.
        bad_targets: of the incident, as positions; none in a blind audit.
    """
    explainable = np.where(np.isfinite(quality.ceiling), quality.ceiling, 1).mean(0)
    left = explainable - np.where(np.isfinite(quality.r2), quality.r2, np.inf).mean(0)
    clean = np.arange(targets.clean.start, targets.clean.stop)
    clean = clean[np.argsort(-left[clean], kind="stable")]
    labels = np.asarray(targets.examples.labels)[clean]
    place = np.zeros(len(clean), int)
    for label in np.unique(labels):
        place[labels == label] = np.arange((labels == label).sum())
    bad = np.asarray(bad_targets, int)
    return np.concatenate([bad, clean[np.argsort(place, kind="stable")]])[:count]


def fit(regression: Regression) -> JointFit:
    """Fit and judge joint datamodels of all targets of a regression, and find their terms.

    Raises:
        UserError: too few masks, too many alphas, or members were lost depending on their masks.
    """
    fitted = regression.fitted
    outputs = fitted.outputs(EVERY)
    alpha = np.squeeze(fitted.alpha)
    try:
        model = datamodels.fit_joint(
            fitted.masks,
            outputs,
            alpha=float(alpha) if alpha.ndim == 0 else alpha,
            noise_variance=_noise(regression),
            replicate_of=fitted.draws,
        )
        terms = model.terms(q=UNDECIDED)
    except ValueError as error:
        raise UserError(f"nothing can be said of joint effects: {error}") from error
    parts = [quality for _, quality in fit_additive(regression, outputs.shape[1])]
    quality = Quality(*(np.concatenate(values, axis=1) for values in zip(*parts, strict=True)))
    by_arm = {}
    for number, (arm, held_out) in enumerate(
        zip(regression.arms, regression.held_out, strict=True)
    ):
        actual = held_out.outputs(EVERY)
        by_arm[arm.name] = {
            "alpha": arm.alpha,
            "r2": known_mean(datamodels.r2(model.predict(held_out.masks), actual)),
            "additive_r2": known_mean(quality.r2[number]),
            "ceiling": known_mean(quality.ceiling[number]),
        }
    found = sum(term.q_value <= FALSE_DISCOVERIES for term in terms)
    return JointFit(terms, {"groups": fitted.masks.shape[1], "terms": found, "by_arm": by_arm})


EVERY = slice(None)


def _noise(regression: Regression) -> Float[np.ndarray, " t"] | None:
    """Variance over seeds, the mean over arms; None where it was not measured."""
    found = []
    for arm in range(len(regression.arms)):
        part = regression.replicates(arm, EVERY)
        if part is None:
            return None
        found.append(datamodels.noise_variance(part.outputs))
    variance = np.mean(found, axis=0)
    return variance if np.isfinite(variance).all() else None
