"""Additive datamodels: output = intercept + one weight a kept group (Ilyas et al. 2022)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from datamodels import ridge
from datamodels.checks import warn_of_inseparable
from datamodels.descent import few_widths
from datamodels.folds import Fold, Folds, divide
from datamodels.inputs import (
    as_masks,
    as_outputs,
    finite_rows,
    mask_numbers,
    masks_of,
    require_choice,
    require_finite,
    require_rows,
)
from datamodels.moments import Moments, deviation
from datamodels.solver import Path, largest_lam, solve, target_blocks

Penalty = Literal["lasso", "ridge"]
Choice = Literal["best", "one_se"]

LAM_FRACTIONS = np.geomspace(1.0, 0.03, 16)
"""The path of lasso penalties tried, as shares of each target's largest useful one."""
PATH_TOLERANCE = 1e-4
"""Relative duality gap on the path. Predictions are off by up to its square root times the
standard deviation of the output, so 1e-3 would be felt in the choice of the penalty."""
PATIENCE = 3
"""Penalties in a row that may fail to help before a target leaves the path."""
FIRST_PATIENCE = 8
"""The same before any helped, which takes a target to about 0.15 of its largest penalty."""
CERTIFIED = 1e-5
"""Relative duality gap below which a fit counts as solved."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FitDiagnostics:
    """How the fit of each target was chosen, and how well it is solved."""

    lam: Float[np.ndarray, " t"]
    """Chosen penalty: of the lasso in output units, of ridge without a unit."""
    relative_gap: Float[np.ndarray, " t"]
    """Duality gap over half the output variance, in float64; certified below 1e-5."""
    validation_r2: Float[np.ndarray, " t"]
    """R2 of the chosen penalty on the rows of each fold, predicted from the others: optimistic,
    as they chose it. NaN for a constant output."""
    constant: Bool[np.ndarray, " t"]
    """Targets whose output never varies: their weights are zero, and mean nothing."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AdditiveDatamodel:
    """Predicts the outputs of any mask.

    A positive weight means that keeping the group raises the output; the weight is the change
    from dropped to kept, in output units.
    """

    intercept: Float[np.ndarray, " t"]
    """Predicted output when nothing is kept."""
    weights: Float[np.ndarray, "g t"]
    diagnostics: FitDiagnostics

    def predict(self, masks: Bool[np.ndarray, "k g"]) -> Float[np.ndarray, "k t"]:
        """Predicted outputs, float32.

        Raises:
            ValueError: masks that are not zeros and ones, or of other groups.
        """
        masks = masks_of(len(self.weights), masks)
        return masks.astype(np.float32) @ self.weights + self.intercept


def fit(
    masks: Bool[np.ndarray, "m g"],
    outputs: Float[np.ndarray, "m t"],
    *,
    penalty: Penalty = "lasso",
    folds: int = 5,
    choice: Choice = "best",
    replicate_of: Int[np.ndarray, " m"] | None = None,
) -> AdditiveDatamodel:
    """Datamodels of all targets at once, each with its own penalty, chosen by cross-validation.

    The weights are then fitted on all rows. Warnings tell of rows left out, as an output of theirs
    is not finite, and of groups that the masks cannot tell apart.

    Args:
        masks: True = kept. Rows are members. Zeros and ones are taken too.
        outputs: of the same members.
        penalty: the lasso (few groups matter) or ridge (all matter a little).
        folds: of the cross-validation; fewer where there are fewer distinct masks.
        choice: the penalty with the least error, or the largest one whose error is within one
            standard error of that (over folds), which leaves out more groups.
        replicate_of: rows with the same number are retrains of one mask, and stay in one fold;
            None: each row has a mask of its own.

    Raises:
        ValueError: shapes that do not match, masks that are not zeros and ones, too few rows.
    """
    masks, outputs = as_masks(masks), as_outputs(outputs)
    usable = finite_rows(masks, outputs)
    if not usable.all():
        masks, outputs = masks[usable], outputs[usable]
        replicate_of = None if replicate_of is None else np.asarray(replicate_of)[usable]
    prepared = prepare(masks, folds=folds, replicate_of=replicate_of)
    warn_of_inseparable(masks)
    parts = [
        prepared.fit(outputs[:, own], penalty=penalty, choice=choice)
        for own in target_blocks(outputs.shape[1])
    ]
    return jax.tree.map(lambda *values: np.concatenate(values, axis=-1), *parts)


@dataclass(frozen=True)
class Prepared:
    """What any number of targets share: the masks, and all that follows from them alone.

    For outputs that do not fit into memory, a block of targets at a time.
    """

    folds: Folds
    number: Int[np.ndarray, " m"]
    """Rows with the same number were drawn together."""

    def fit(
        self,
        outputs: Float[np.ndarray, "m t"],
        *,
        penalty: Penalty = "lasso",
        choice: Choice = "best",
    ) -> AdditiveDatamodel:
        """The datamodels of some targets; all rows must be finite. Arguments as of `fit`."""
        require_choice("penalty", penalty, Penalty)
        require_choice("choice", choice, Choice)
        require_finite(self.folds.masks, outputs)
        products = self.folds.multiply(outputs)
        problem, rest = self.folds.problem(products), self.folds.problems(products)
        if penalty == "ridge":
            tried = ridge.penalties(problem.masks, len(outputs))
            position, error = choose(self._ridge_errors(rest, outputs, tried), choice)
            lam = tried[position]
            weights = ridge.solve(problem, self._spectrum, lam)
            gap = ridge.relative_gap(weights, problem, lam)
        else:
            top = largest_lam(problem)
            position, error = choose(lasso_errors(self.folds.parts, rest, outputs, top), choice)
            lam = LAM_FRACTIONS[position] * top
            weights, gap, _ = solve(problem, lam, tolerance=CERTIFIED / 2)
        intercept = problem.mean_output - problem.masks.mean_mask @ weights
        energy = np.where(problem.energy > 0, problem.energy, np.nan)
        diagnostics = FitDiagnostics(lam, gap, 1 - error / energy, problem.energy == 0)
        return AdditiveDatamodel(intercept.astype(np.float32), weights, diagnostics)

    @cached_property
    def _spectrum(self) -> ridge.Spectrum:
        return ridge.spectrum(self.folds.whole.gram)

    @cached_property
    def _left_out(self) -> list[ridge.LeftOut]:
        return [ridge.LeftOut.of(fold.masks, fold.others) for fold in self.folds.parts]

    def _ridge_errors(
        self,
        rest: Sequence[Moments],
        outputs: Float[np.ndarray, "m t"],
        penalties: Float[np.ndarray, " p"],
    ) -> Float[np.ndarray, "f p t"]:
        """Mean squared errors of every fold's rows, which the problem of the rest predicts."""
        parts = zip(self._left_out, rest, self.folds.parts, strict=True)
        return np.stack(
            [
                left_out.errors(problem, outputs[fold.rows], penalties)
                for left_out, problem, fold in parts
            ]
        )


def prepare(
    masks: Bool[np.ndarray, "m g"],
    *,
    folds: int = 5,
    replicate_of: Int[np.ndarray, " m"] | None = None,
) -> Prepared:
    """Begin a fit of any number of targets; arguments and errors as of `fit`."""
    require_rows(len(masks))
    numbers = mask_numbers(replicate_of, len(masks))
    distinct = len(np.unique(numbers))
    if distinct < 4:
        raise ValueError(f"{distinct} distinct masks are too few to fit; at least 4 are needed")
    if folds >= 2:
        folds = min(folds, distinct // 2)
    return Prepared(divide(masks, folds, numbers), numbers)


def lasso_errors(
    parts: Sequence[Fold],
    rest: Sequence[Moments],
    outputs: Float[np.ndarray, "m t"],
    top: Float[np.ndarray, " t"],
) -> Float[np.ndarray, "f p t"]:
    """Mean squared errors of every fold's rows; infinite for penalties that were not tried.

    Args:
        parts: the folds.
        rest: for each, the problem that predicts it.
        outputs: of all rows.
        top: the penalties are `LAM_FRACTIONS` of it.

    A target leaves the path once several penalties in a row did not help it: small ones are by far
    the dearest to solve, above all with fewer masks than groups, and few targets need them.
    """
    errors = np.full((len(parts), len(LAM_FRACTIONS), len(top)), np.inf)
    paths = [Path(problem) for problem in rest]
    unseen = [_Unseen.of(fold, own, outputs) for fold, own in zip(parts, rest, strict=True)]
    active = np.arange(len(top))
    for position, fraction in enumerate(LAM_FRACTIONS):
        if position:
            best = errors[:, :position].mean(0).argmin(0)
            patience = np.where(best == 0, FIRST_PATIENCE, PATIENCE)
            still = np.flatnonzero(position - best[active] <= patience[active])
            if not still.size:
                break
            if 2 * few_widths(still.size) <= len(active):
                still = np.resize(still, few_widths(still.size))
                active = active[still]
                for number, path in enumerate(paths):
                    path.keep(still)
                    unseen[number] = unseen[number].keep(still)
        for number, path in enumerate(paths):
            path.advance(fraction * top[active], PATH_TOLERANCE)
            errors[number, position, active] = unseen[number].error(path.scaled())
    return errors


class _Unseen(NamedTuple):
    """Rows of a fold, on the device, in the units of the path that predicts them."""

    masks: Bool[Array, "r g"]
    mean_mask: Float[Array, " g"]
    actual: Float[Array, "r t"]
    """Less the mean over the other rows."""
    unit: Float[np.ndarray, " t"]

    @classmethod
    def of(cls, fold: Fold, problem: Moments, outputs: Float[np.ndarray, "m t"]) -> "_Unseen":
        unit = deviation(problem)
        actual = (outputs[fold.rows] - problem.mean_output) / unit
        mean = jnp.asarray(problem.masks.mean_mask, jnp.float32)
        return cls(jnp.asarray(fold.masks), mean, jnp.asarray(actual, jnp.float32), unit)

    def keep(self, targets: Int[np.ndarray, " k"]) -> "_Unseen":
        return self._replace(actual=self.actual[:, targets], unit=self.unit[targets])

    def error(self, scaled: Float[Array, "g t"]) -> Float[np.ndarray, " t"]:
        """Mean squared error in output units."""
        return np.asarray(_error(self.masks, self.mean_mask, self.actual, scaled)) * self.unit**2


@jax.jit
def _error(
    masks: Bool[Array, "r g"],
    mean_mask: Float[Array, " g"],
    actual: Float[Array, "r t"],
    weights: Float[Array, "g t"],
) -> Float[Array, " t"]:
    predicted = masks.astype(jnp.float32) @ weights - (mean_mask @ weights)[None]
    return jnp.square(actual - predicted).mean(0)


def choose(
    errors: Float[np.ndarray, "f p t"], choice: Choice
) -> tuple[Int[np.ndarray, " t"], Float[np.ndarray, " t"]]:
    """Of penalties from large to small, the position of each target's choice, and its error.

    Args:
        errors: mean squared errors by fold, penalty and target; infinite where not tried.
        choice: as in `fit`.
    """
    mean = errors.mean(0)
    best = mean.argmin(0)
    targets = np.arange(mean.shape[1])
    if choice == "one_se":
        spread = errors[:, best, targets].std(0, ddof=1) / np.sqrt(len(errors))
        best = (mean <= mean[best, targets] + spread).argmax(0)
    return best, mean[best, targets]
