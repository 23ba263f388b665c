"""How sure the effect of each group is: cross-fitted estimates, intervals, false discoveries.

The effect of a group on a target is its average marginal effect: the mean output of members that
keep it less that of members that drop it, all other groups drawn as the design draws them. It is
defined whatever the true function of the mask is, additive or not.

With masks drawn independently, group j kept with probability alpha, it is E[(z_j - alpha) y] /
(alpha (1 - alpha)). The same mean of what a datamodel of *other* rows leaves of y, plus that
datamodel's weight, has the same expectation and less variance (Robins, Rotnitzky & Zhao 1994 with
known propensities; cross-fitted as by Chernozhukov et al. 2018; with the lasso a debiased lasso,
Javanmard & Montanari 2014, whose covariance is known exactly). So a row's score is

    w_j + (z_j - alpha) (y - b - (z - alpha)' w) / (alpha (1 - alpha)),

the estimate is its mean, and its spread over rows gives the standard error.

Masks of one fixed size have another covariance: keeping one group leaves less room for each other
one. The same scores then estimate the effect of a group in place of another, and instead of w_j
stands w_j less the mean of the others' weights.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from datamodels import ridge
from datamodels.additive import (
    LAM_FRACTIONS,
    PATH_TOLERANCE,
    Penalty,
    Prepared,
    choose,
    lasso_errors,
    prepare,
)
from datamodels.checks import warn_of_inseparable
from datamodels.estimates import Effects
from datamodels.folds import Fold, Folds, following
from datamodels.inputs import as_masks, as_outputs, require_choice, require_finite, require_rows
from datamodels.moments import Moments
from datamodels.scores import Alpha, Sampling, Scores, sampling
from datamodels.solver import largest_lam, solve, target_blocks


def effects(
    masks: Bool[np.ndarray, "m g"],
    outputs: Float[np.ndarray, "m t"],
    *,
    alpha: Alpha = None,
    fixed_size: bool = False,
    penalty: Penalty = "lasso",
    folds: int = 5,
    replicate_of: Int[np.ndarray, " m"] | None = None,
) -> Effects:
    """Average marginal effects with standard errors, for masks that were drawn by a known coin.

    The penalty of a fold's datamodel is chosen without the fold, so that nothing the scores are
    taken from has chosen anything.

    Args:
        masks: True = kept; each group kept or dropped independently of the others.
        outputs: finite, of the same members.
        alpha: the probability that a group is kept: one for all; one a row (m,); or one a row and
            group (m, g), given whatever else is known of the row. The effects are means over rows,
            without those where the alpha of a group is 0 or 1. None: estimated, group by group.
        fixed_size: the masks all keep the same number of groups, every such mask equally likely.
            An effect is then that of keeping a group in place of another one: the mean output of
            members that keep it less that of those that drop it and keep one more of the others.
        penalty: of the datamodels, as in `fit`. The effects are the same with either; their errors
            are the smaller, the better it predicts.
        folds: of the cross-fitting, at least 3.
        replicate_of: rows with the same number are one draw: retrains of one mask, or (with alpha
            1/2) of a mask and its complement. None: each row has a mask of its own.

    Raises:
        ValueError: as `fit`, and where the masks contradict alpha, independence or fixed size.
    """
    masks, outputs = as_masks(masks), as_outputs(outputs)
    require_finite(masks, outputs)
    prepared = prepare(masks, folds=folds, replicate_of=replicate_of)
    found = prepare_effects(prepared, alpha=alpha, fixed_size=fixed_size, penalty=penalty)
    warn_of_inseparable(masks)
    parts = [found.effects(outputs[:, own]) for own in target_blocks(outputs.shape[1])]
    return jax.tree.map(lambda *values: np.concatenate(values, axis=1), *parts)


@dataclass(frozen=True)
class PreparedEffects:
    """What the effects on any number of targets share; for a block of targets at a time."""

    folds: Folds
    sampling: Sampling
    penalty: Penalty

    def effects(self, outputs: Float[np.ndarray, "m t"]) -> Effects:
        """The effects on some targets; all rows must be finite."""
        require_finite(self.folds.masks, outputs)
        if self.penalty == "ridge":
            by_fold = _by_ridge(self.folds, self._ridges, outputs)
        else:
            by_fold = _by_lasso(self.folds, outputs)
        found = []
        for fold, weights, residual in by_fold:
            own = self.sampling.scores(fold.rows, residual)
            share = _in_place(weights) if self.sampling.fixed_size else weights
            found.append(own._replace(total=own.rows * share + own.total))
        return averaged(reduce(Scores.plus, found), self.folds.masks)

    @cached_property
    def _ridges(self) -> list["_Ridge"]:
        after = following(self.folds.parts)
        return [
            _Ridge(ridge.spectrum(fold.others.gram), ridge.LeftOut.of(chooser.masks, inner))
            for fold, inner, chooser in zip(
                self.folds.parts, self.folds.without_two, after, strict=True
            )
        ]


class _Ridge(NamedTuple):
    """What ridge regressions that predict a fold have in common."""

    own: ridge.Spectrum
    """Of all rows but the fold's."""
    chooser: ridge.LeftOut
    """The next fold, predicted by all rows but both folds'."""


class _OfFold(NamedTuple):
    """What additive datamodels of the other rows say of a fold's."""

    fold: Fold
    weights: Float[np.ndarray, "g t"]
    residual: Float[np.ndarray, "r t"]


class _Split(NamedTuple):
    """A fold, and what may predict it."""

    fold: Fold
    problem: Moments
    """Of all other rows."""
    inner: Moments
    """Of all rows but the fold's and those of the next one, which chooses the penalty."""
    chooser: Fold


def _splits(folds: Folds, outputs: Float[np.ndarray, "m t"]) -> Iterable[_Split]:
    products = folds.multiply(outputs)
    rest, nested = folds.problems(products), folds.nested_problems(products)
    return map(_Split, folds.parts, rest, nested, following(folds.parts))


def _by_lasso(folds: Folds, outputs: Float[np.ndarray, "m t"]) -> Iterator[_OfFold]:
    """Every fold predicted from the others by the lasso."""
    for split in _splits(folds, outputs):
        top = largest_lam(split.inner)
        errors = lasso_errors([split.chooser], [split.inner], outputs, top)
        position, _ = choose(errors, "best")
        lam = LAM_FRACTIONS[position] * top
        weights = solve(split.problem, lam, tolerance=PATH_TOLERANCE).weights
        yield _of_fold(split, weights, outputs)


def _by_ridge(
    folds: Folds, ridges: list[_Ridge], outputs: Float[np.ndarray, "m t"]
) -> Iterator[_OfFold]:
    """Every fold predicted from the others by ridge regression."""
    for split, (own, chooser) in zip(_splits(folds, outputs), ridges, strict=True):
        tried = ridge.penalties(split.inner.masks, len(outputs))
        errors = chooser.errors(split.inner, outputs[split.chooser.rows], tried)
        position, _ = choose(errors[None], "best")
        yield _of_fold(split, ridge.solve(split.problem, own, tried[position]), outputs)


def _of_fold(
    split: _Split, weights: Float[np.ndarray, "g t"], outputs: Float[np.ndarray, "m t"]
) -> _OfFold:
    """The fold, predicted: other rows' mean and masks' mean, as neither has seen the fold."""
    fold, problem = split.fold, split.problem
    residual = outputs[fold.rows] - problem.mean_output
    residual -= fold.masks @ weights - problem.masks.mean_mask @ weights
    return _OfFold(fold, weights, residual)


def left_out(folds: Folds, outputs: Float[np.ndarray, "m t"]) -> Float[np.ndarray, "m t"]:
    """Outputs less their prediction by additive datamodels, of the lasso, of other folds."""
    residual = np.empty(outputs.shape)
    for own in _by_lasso(folds, outputs):
        residual[own.fold.rows] = own.residual
    return residual


def prepare_effects(
    prepared: Prepared,
    *,
    alpha: Alpha = None,
    fixed_size: bool = False,
    penalty: Penalty = "lasso",
) -> PreparedEffects:
    """Begin the effects of any number of targets, on the folds of a fit.

    Arguments and errors as of `effects`.
    """
    require_choice("penalty", penalty, Penalty)
    folds = prepared.folds
    if len(folds.parts) < 3:
        raise ValueError(
            f"effects need at least 3 folds, one to estimate on and one to choose by; here are "
            f"{len(folds.parts)}, of {len(np.unique(prepared.number))} distinct masks"
        )
    drawn = sampling(folds.masks, alpha, fixed_size=fixed_size, replicate_of=prepared.number)
    return PreparedEffects(folds, drawn, penalty)


def averaged(sums: Scores, masks: Bool[np.ndarray, "m g"]) -> Effects:
    """Effects from sums over rows; none of groups that never vary."""
    varies = np.asarray(masks.any(0) & ~masks.all(0))[:, None] & (sums.rows > 0)
    count = np.where(varies, sums.rows, 1)
    error = np.where(varies, np.sqrt(sums.variance) / count, np.nan)
    return Effects(np.where(varies, sums.total / count, 0), error)


def average_marginal_effects(
    masks: Bool[np.ndarray, "m g"],
    outputs: Float[np.ndarray, "m t"],
    *,
    alpha: Alpha = None,
    fixed_size: bool = False,
    replicate_of: Int[np.ndarray, " m"] | None = None,
) -> Effects:
    """The same quantities as `effects` without any fit (Lin et al. 2022): quick, and less exact.

    The mean of (z - alpha) (y - mean y) / (alpha (1 - alpha)) over rows: all that other groups do
    is noise to it. Arguments and errors as of `effects`.
    """
    masks, outputs = as_masks(masks), as_outputs(outputs)
    require_finite(masks, outputs)
    require_rows(len(masks))
    drawn = sampling(masks, alpha, fixed_size=fixed_size, replicate_of=replicate_of)
    warn_of_inseparable(masks)
    found = drawn.scores(np.arange(len(masks)), outputs - outputs.mean(0, dtype=np.float64))
    return averaged(found, masks)


def banzhaf(
    masks: Bool[np.ndarray, "m g"],
    outputs: Float[np.ndarray, "m t"],
    *,
    replicate_of: Int[np.ndarray, " m"] | None = None,
) -> Effects:
    """Data Banzhaf values (Wang & Jia 2023), for masks of fair coins.

    The mean change of the output by a group over all sets of others, each set counting the same:
    the average marginal effect at alpha = 1/2. Every member serves every group (their estimator of
    maximum sample reuse).

    Raises:
        ValueError: as `effects`; masks of another alpha.
    """
    return average_marginal_effects(masks, outputs, alpha=0.5, replicate_of=replicate_of)


def _in_place(weights: Float[np.ndarray, "g t"]) -> Float[np.ndarray, "g t"]:
    """Each group's weight less the mean of all others'."""
    return weights - (weights.sum(0) - weights) / (len(weights) - 1)
