"""Additive datamodels: output = intercept + one weight a kept group (Ilyas et al. 2022)."""

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Bool, Float

from datamodels.metrics import r2
from datamodels.moments import Regressors, moments, regressors, select
from datamodels.solver import largest_lam, solve

LAM_FRACTIONS = np.geomspace(1.0, 0.03, 16)
"""The path of penalties tried, as shares of each target's largest useful one."""
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
    """Chosen penalty, in output units."""
    relative_gap: Float[np.ndarray, " t"]
    """Duality gap over half the output variance, in float64; certified below 1e-5."""
    validation_r2: Float[np.ndarray, " t"]
    """R2 of the chosen penalty on the masks that chose it: optimistic."""


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
        """Predicted outputs, float32."""
        return masks.astype(np.float32) @ self.weights + self.intercept


def fit(
    masks: Bool[np.ndarray, "m g"],
    outputs: Float[np.ndarray, "m t"],
    *,
    validation_share: float = 0.2,
) -> AdditiveDatamodel:
    """Lasso datamodels of all targets at once, each with its own penalty.

    The last `validation_share` of the rows chooses lam on a path of 16 values; the weights are
    then fitted on all rows at the chosen lam.

    Args:
        masks: True = kept. Rows are members; give each mask once.
        outputs: finite outputs of the same members.
        validation_share: between 0 and 1; at least 2 rows choose, and at least 2 are fitted.

    Raises:
        ValueError: shapes that do not match, too few rows, outputs that are not finite.
    """
    masks, outputs = np.asarray(masks), np.asarray(outputs)
    _check_shapes(masks, outputs)
    return prepare(masks, validation_share=validation_share).fit(outputs)


@dataclass(frozen=True)
class Prepared:
    """What any number of targets share: the masks, and all that follows from them alone.

    For outputs that do not fit into memory, a block of targets at a time.
    """

    masks: Bool[np.ndarray, "m g"]
    held: int
    """Rows, the last ones, that choose lam."""
    choosing: Regressors
    """Of the other rows."""
    whole: Regressors

    def fit(self, outputs: Float[np.ndarray, "m t"]) -> AdditiveDatamodel:
        """The datamodels of some targets; errors as in `datamodels.fit`."""
        _check_shapes(self.masks, outputs)
        _check_finite(outputs)
        fraction, start, validation_r2 = _choose(self, outputs)
        problem = moments(self.whole, outputs)
        lam = fraction * largest_lam(problem)
        tolerance = CERTIFIED / 2
        solution = solve(problem, lam, start=start, tolerance=tolerance, step=self.whole.step)
        intercept = problem.mean_output - problem.mean_mask @ solution.weights
        diagnostics = FitDiagnostics(lam, solution.relative_gap, validation_r2)
        return AdditiveDatamodel(intercept.astype(np.float32), solution.weights, diagnostics)


def prepare(masks: Bool[np.ndarray, "m g"], *, validation_share: float = 0.2) -> Prepared:
    """Begin a fit of any number of targets; arguments and errors as of `fit`."""
    if masks.dtype != np.bool_:
        raise ValueError(f"masks must be bool (True = kept), got {masks.dtype}")
    if len(masks) < 4 or not 0 < validation_share < 1:
        raise ValueError(
            f"{len(masks)} rows and validation_share = {validation_share}; at least 4 rows and a "
            f"share between 0 and 1 are needed"
        )
    held = int(np.clip(round(validation_share * len(masks)), 2, len(masks) - 2))
    return Prepared(masks, held, regressors(masks[:-held]), regressors(masks))


def _check_shapes(masks: np.ndarray, outputs: np.ndarray) -> None:
    if masks.ndim != 2 or outputs.ndim != 2 or len(masks) != len(outputs):
        raise ValueError(
            f"masks (m, g) and outputs (m, t) must share m, got {masks.shape}, {outputs.shape}"
        )
    if masks.shape[1] == 0 or outputs.shape[1] == 0:
        raise ValueError(
            f"masks {masks.shape} and outputs {outputs.shape} need at least one group and target"
        )


def _check_finite(outputs: np.ndarray) -> None:
    finite = np.isfinite(outputs)
    if not finite.all():
        row, target = np.argwhere(~finite)[0]
        raise ValueError(
            f"outputs hold {outputs[row, target]} in row {row}, target {target}; leave members "
            f"that are not finite out"
        )


def _choose(
    prepared: Prepared, outputs: Float[np.ndarray, "m t"]
) -> tuple[Float[np.ndarray, " t"], Float[np.ndarray, "g t"], Float[np.ndarray, " t"]]:
    """Per target: best share of the largest lam, the weights there, and their validation R2.

    A target leaves the path once several penalties in a row did not help it: small ones are by far
    the dearest to solve, above all with fewer masks than groups, and few targets need them.
    """
    held = prepared.held
    problem = moments(prepared.choosing, outputs[:-held])
    unseen = prepared.masks[-held:] - problem.mean_mask.astype(np.float32)
    actual = outputs[-held:] - problem.mean_output.astype(np.float32)
    step, top = prepared.choosing.step, largest_lam(problem)
    best_error = np.full(outputs.shape[1], np.inf)
    best_position = np.zeros(outputs.shape[1], np.int64)
    best_weights = np.zeros(problem.correlation.shape, np.float32)
    weights = best_weights.copy()
    for position, fraction in enumerate(LAM_FRACTIONS):
        patience = np.where(best_position == 0, FIRST_PATIENCE, PATIENCE)
        active = np.flatnonzero(position - best_position <= patience)
        if not active.size:
            break
        weights[:, active] = solve(
            select(problem, active),
            fraction * top[active],
            start=weights[:, active],
            tolerance=PATH_TOLERANCE,
            step=step,
        ).weights
        error = np.square(actual[:, active] - unseen @ weights[:, active]).sum(0)
        better = active[error < best_error[active]]
        best_error[active] = np.minimum(error, best_error[active])
        best_position[better] = position
        best_weights[:, better] = weights[:, better]
    return LAM_FRACTIONS[best_position], best_weights, r2(unseen @ best_weights, actual)
