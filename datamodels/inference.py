"""How sure the effect of each group is: cross-fitted estimates, intervals, false discoveries.

The effect of a group on a target is its average marginal effect: the mean output of members that
keep it less that of members that drop it, all other groups drawn as the design draws them. It is
defined whatever the true function of the mask is, additive or not.

With masks drawn independently, group j kept with probability alpha, it is E[(z_j - alpha) y] /
(alpha (1 - alpha)). The same mean of what a datamodel of *other* rows leaves of y, plus that
datamodel's weight, has the same expectation and less variance (Robins, Rotnitzky & Zhao 1994 with
known propensities; cross-fitted as by Chernozhukov et al. 2018; a debiased lasso, Javanmard &
Montanari 2014, whose covariance is known exactly). So a row's score is

    w_j + (z_j - alpha) (y - b - (z - alpha)' w) / (alpha (1 - alpha)),

the estimate is its mean, and its spread over rows gives the standard error.
"""

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import false_discovery_control, norm

from datamodels.additive import LAM_FRACTIONS, PATH_TOLERANCE, choose, fit, lasso_errors, prepare
from datamodels.folds import Fold, following
from datamodels.inputs import as_masks, as_outputs, mask_numbers, require_finite
from datamodels.moments import ROW_BLOCK, row_blocks
from datamodels.solver import largest_lam, solve

COPIES = 7_205_759
"""Part of the seed of knockoffs."""
CONTRADICTION = 6.0
"""Standard errors between masks and their design beyond which one of the two is wrong."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Effects:
    """Average marginal effects of every group on every target, in output units.

    Positive: keeping the group raises the output.
    """

    estimate: Float[np.ndarray, "g t"]
    standard_error: Float[np.ndarray, "g t"]
    """Over masks and training seeds; NaN where the group never varies."""

    def interval(
        self, level: float = 0.95
    ) -> tuple[Float[np.ndarray, "g t"], Float[np.ndarray, "g t"]]:
        """Lower and upper ends of normal intervals, each for itself."""
        reach = norm.ppf((1 + level) / 2) * self.standard_error
        return self.estimate - reach, self.estimate + reach

    def z(self) -> Float[np.ndarray, "g t"]:
        """Estimates in standard errors; 0 where there is none."""
        known = self.standard_error > 0
        return np.divide(
            self.estimate, self.standard_error, out=np.zeros_like(self.estimate), where=known
        )

    def p_values(self) -> Float[np.ndarray, "g t"]:
        """Two-sided, of no effect."""
        return 2 * norm.sf(np.abs(self.z()))

    def q_values(self) -> Float[np.ndarray, "g t"]:
        """The smallest false discovery rate at which each group of a target is found.

        Of each target for itself (Benjamini & Hochberg 1995). Groups with q <= .1 are, in
        expectation, at most a tenth false, for each target.
        """
        return false_discovery_control(self.p_values(), axis=0)

    def e_values(self, spread: float = 3.0) -> Float[np.ndarray, "g t"]:
        """Evidence against no effect: its expectation is at most 1 where there is none.

        The likelihood ratio of an effect that is normal with `spread` standard errors.
        """
        share = spread**2 / (1 + spread**2)
        exponent = np.minimum(share * np.square(self.z()) / 2, 700)
        return np.exp(exponent) / np.sqrt(1 + spread**2)

    def found_pooled(self, q: float = 0.1) -> Bool[np.ndarray, "g t"]:
        """Groups and targets found with a false discovery rate of q over all targets together.

        By e-values (e-BH, Wang & Ramdas 2022), since targets share members and so their noise:
        it holds however they depend on one another, and finds less than `q_values` would.
        """
        evidence = self.e_values().ravel()
        order = np.argsort(-evidence)
        enough = evidence[order] * np.arange(1, len(order) + 1) >= len(order) / q
        found = np.zeros(len(order), bool)
        found[order[: np.flatnonzero(enough)[-1] + 1 if enough.any() else 0]] = True
        return found.reshape(self.estimate.shape)


def effects(
    masks: Bool[np.ndarray, "m g"],
    outputs: Float[np.ndarray, "m t"],
    *,
    alpha: float | Float[np.ndarray, " m"] | None = None,
    folds: int = 5,
    replicate_of: Int[np.ndarray, " m"] | None = None,
) -> Effects:
    """Average marginal effects with standard errors, for masks whose groups are independent.

    The penalty of a fold's datamodel is chosen without the fold, so that nothing the scores are
    taken from has chosen anything.

    Args:
        masks: True = kept; each group kept or dropped independently of the others.
        outputs: finite, of the same members.
        alpha: the probability that a group is kept, one for all rows or one a row (then the
            effects are means over the rows' alphas); None: estimated, group by group.
        folds: of the cross-fitting, at least 3.
        replicate_of: rows with the same number are retrains of one mask, and count as one draw;
            None: each row has a mask of its own.

    Raises:
        ValueError: as `fit`, and where the masks contradict alpha or independence.
    """
    masks, outputs = as_masks(masks), as_outputs(outputs)
    require_finite(masks, outputs)
    if folds < 3:
        raise ValueError(f"folds = {folds} must be at least 3: one is estimated on, one chooses")
    check_design(masks, alpha)
    number = mask_numbers(replicate_of, len(masks))
    kept = masks.mean(0, dtype=np.float64)[None] if alpha is None else np.reshape(alpha, (-1, 1))
    prepared = prepare(masks, folds=folds, replicate_of=number).folds
    if len(prepared.parts) < 3:
        raise ValueError(f"{len(np.unique(number))} distinct masks are too few; 6 are needed")
    products = prepared.multiply(outputs)
    rest, nested = prepared.problems(products), prepared.nested_problems(products)
    total = np.zeros((masks.shape[1], outputs.shape[1]))
    variance = np.zeros_like(total)
    parts = prepared.parts
    for fold, problem, inner, after in zip(parts, rest, nested, following(parts), strict=True):
        top = largest_lam(inner)
        position, _ = choose(lasso_errors([after], [inner], outputs, top), "best")
        weights = solve(problem, LAM_FRACTIONS[position] * top, tolerance=PATH_TOLERANCE).weights
        # Other rows' mean and masks' mean: neither has seen the fold.
        residual = outputs[fold.rows] - problem.mean_output
        residual -= fold.masks @ weights - problem.masks.mean_mask @ weights
        alphas = kept[fold.rows] if len(kept) > 1 else kept
        first, spread = _scores(fold, residual, alphas, number[fold.rows])
        share = len(fold.rows) / len(masks)
        total += share * (weights + first)
        variance += share**2 * spread
    varies = np.asarray(masks.any(0) & ~masks.all(0))[:, None]
    error = np.where(varies, np.sqrt(variance), np.nan)
    return Effects(np.where(varies, total, 0), error)


def _scores(
    fold: Fold,
    residual: Float[np.ndarray, "r t"],
    alpha: Float[np.ndarray, "#r #g"],
    number: Int[np.ndarray, " r"],
) -> tuple[Float[np.ndarray, "g t"], Float[np.ndarray, "g t"]]:
    """The mean of (z - alpha) residual / (alpha (1 - alpha)) over rows, and its variance.

    Retrains of a mask are one draw: their residuals are added, as their masks are the same.
    """
    _, first_row, draw = np.unique(number, return_index=True, return_inverse=True)
    added = np.zeros((len(first_row), residual.shape[1]))
    np.add.at(added, draw, residual)
    alpha = np.broadcast_to(alpha, fold.masks.shape)
    mean = np.zeros((fold.masks.shape[1], residual.shape[1]))
    square = np.zeros_like(mean)
    for rows in row_blocks(len(first_row), ROW_BLOCK):
        own = alpha[first_row[rows]]
        variance = own * (1 - own)
        scale = np.divide(1, variance, out=np.zeros_like(variance), where=variance > 0)
        centred = (fold.masks[first_row[rows]] - own) * scale
        mean += centred.T @ added[rows]
        square += np.square(centred).T @ np.square(added[rows])
    draws, rows = len(first_row), len(number)
    spread = np.maximum(square - np.square(mean) / draws, 0) * draws / (draws - 1)
    return mean / rows, spread / rows**2


def check_design(
    masks: Bool[np.ndarray, "m g"], alpha: float | Float[np.ndarray, " m"] | None
) -> None:
    """Compare masks with independent groups that are kept with probability alpha.

    Raises:
        ValueError: alpha is no probability, or the masks are not such masks.
    """
    members, groups = masks.shape
    kept = masks.sum(1)
    if alpha is None:
        expected = np.full(members, kept.mean())
    else:
        if np.ndim(alpha) > 1 or (np.ndim(alpha) == 1 and len(np.asarray(alpha)) != members):
            raise ValueError(f"alpha must be one number or one a row, got {np.shape(alpha)}")
        row_alpha = np.broadcast_to(np.asarray(alpha, np.float64), (members,))
        if not ((row_alpha > 0) & (row_alpha < 1)).all():
            raise ValueError(f"alpha = {alpha} must lie strictly between 0 and 1")
        expected = groups * row_alpha
    variance = expected * (1 - expected / groups)
    off = (kept - expected).sum() / np.sqrt(max(variance.sum(), 1e-12))
    if abs(off) > CONTRADICTION:
        raise ValueError(
            f"alpha = {np.mean(expected) / groups:.3g}, but the masks keep "
            f"{kept.mean() / groups:.3g} of the groups; give the alpha that drew them"
        )
    # Of a binomial with many trials, a squared deviation over its variance has mean 1, variance 2.
    ratio = np.square(kept - expected).mean() / max(variance.mean(), 1e-12)
    if groups > 1 and abs(ratio - 1) > CONTRADICTION * np.sqrt(2 / members):
        raise ValueError(
            f"the number of groups that a mask keeps varies {ratio:.2g} times as much as with "
            f"independent groups; effects need masks whose groups are kept independently, and "
            f"masks of several alphas need one alpha a row"
        )


def knockoffs(
    masks: Bool[np.ndarray, "m g"],
    outputs: Float[np.ndarray, "m t"],
    *,
    seed: int,
    alpha: float,
    q: float = 0.1,
    replicate_of: Int[np.ndarray, " m"] | None = None,
) -> Bool[np.ndarray, "g t"]:
    """Groups found with a false discovery rate of q for each target, by model-X knockoffs.

    Fresh copies of the masks, drawn by the same coin, are exact knockoffs of independent groups
    (Candes et al. 2018; for subsets of training data Lin et al. 2022). A group is found where its
    weight stands out from those of the copies; nothing is assumed of the noise. A cross-check
    of `Effects.q_values`, with less power.

    Args:
        masks: as in `effects`.
        outputs: as in `effects`.
        seed: draws the copies.
        alpha: the probability that a group is kept.
        q: the false discovery rate.
        replicate_of: as in `effects`; retrains share their mask's copy.

    Raises:
        ValueError: as in `effects`.
    """
    masks, outputs = as_masks(masks), as_outputs(outputs)
    check_design(masks, alpha)
    number = mask_numbers(replicate_of, len(masks))
    distinct, draw = np.unique(number, return_inverse=True)
    coin = np.random.default_rng([COPIES, seed])  # that nobody else draws masks with
    fresh = coin.random((len(distinct), masks.shape[1])) < alpha
    both = np.hstack([masks, fresh[draw]])
    size = np.abs(fit(both, outputs, replicate_of=number).weights)
    groups = masks.shape[1]
    lead = size[:groups] - size[groups:]
    return np.stack([_stands_out(column, q) for column in lead.T], axis=1)


def _stands_out(lead: Float[np.ndarray, " g"], q: float) -> Bool[np.ndarray, " g"]:
    """The knockoff+ filter (Barber & Candes 2015, eq. 1.9)."""
    for threshold in np.unique(np.abs(lead[lead != 0])):
        found = lead >= threshold
        if (1 + (lead <= -threshold).sum()) / max(found.sum(), 1) <= q:
            return found
    return np.zeros(len(lead), bool)
