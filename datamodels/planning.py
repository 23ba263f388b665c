"""How many more members a question needs, from those that are there."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import nnls
from scipy.stats import norm

from datamodels.additive import Choice, Penalty, prepare
from datamodels.estimates import Effects
from datamodels.inference import effects
from datamodels.inputs import as_masks, as_outputs, mask_numbers, require_finite, require_share
from datamodels.metrics import r2
from datamodels.scores import Alpha

SHARES = (1 / 4, 1 / 2, 1.0)
"""Shares of the masks on which a curve of R2 is taken."""
FEWEST_MASKS = 40
"""Distinct masks below which there is no curve."""
RATES = np.linspace(0.25, 1, 16)
"""Tried as the curve's rate."""
SHUFFLED = 27_182_818
"""Part of the seed of splits."""


class LearningCurve(NamedTuple):
    """R2 on masks that no fit saw, for several numbers of masks fitted on.

    1 - R2 = floor + slope / members ** rate, with one rate for all targets: 1 once there are enough
    members for the groups, less before. A forecast, not a bound.
    """

    members: Int[np.ndarray, " p"]
    r2: Float[np.ndarray, "p t"]
    floor: Float[np.ndarray, " t"]
    """1 - R2 of an additive datamodel of any number of members."""
    slope: Float[np.ndarray, " t"]
    rate: float

    def mean(self) -> "LearningCurve":
        """Of the mean R2 over the targets that have one, as a curve of one target."""
        known = np.isfinite(self.floor)
        return LearningCurve(
            self.members,
            self.r2[:, known].mean(1, keepdims=True),
            self.floor[known].mean(keepdims=True),
            self.slope[known].mean(keepdims=True),
            self.rate,
        )

    def at(self, members: float | Float[np.ndarray, " t"]) -> Float[np.ndarray, " t"]:
        """R2 with so many members to fit on."""
        return 1 - self.floor - self.slope / members**self.rate

    def members_for(self, wanted: Float[np.ndarray, " t"] | float) -> Float[np.ndarray, " t"]:
        """Members to fit on with which R2 reaches a value; infinite where it never does."""
        room = 1 - self.floor - wanted
        share = np.divide(self.slope, room, out=np.full(room.shape, np.inf), where=room > 0)
        return np.where(np.isnan(room), np.nan, np.ceil(share ** (1 / self.rate)))


def how_many_more(
    masks: Bool[np.ndarray, "m g"],
    outputs: Float[np.ndarray, "m t"],
    *,
    width: float | None = None,
    share: float | None = None,
    ceiling: Float[np.ndarray, " t"] | float = 1.0,
    alpha: Alpha = None,
    fixed_size: bool = False,
    replicate_of: Int[np.ndarray, " m"] | None = None,
) -> Float[np.ndarray, " t"]:
    """How many more members each target needs, beyond the m that are there.

    Args:
        masks: True = kept.
        outputs: finite, of the same members.
        width: until the 95 % intervals of its ten largest effects are no wider than this, in output
            units (`members_for_width`).
        share: until the additive datamodel's R2 is this share of the ceiling (`learning_curve`);
            infinite where it never is.
        ceiling: of R2 (`metrics.ceiling`); 1 where there is no seed noise.
        alpha: as in `effects`, for a width.
        fixed_size: as in `effects`, for a width.
        replicate_of: as in `fit`.

    Raises:
        ValueError: not exactly one of width and share; as `effects` and `learning_curve`.
    """
    if width is not None and share is None:
        found = effects(
            masks, outputs, alpha=alpha, fixed_size=fixed_size, replicate_of=replicate_of
        )
        needed = members_for_width(found, len(masks), width)
    elif share is not None and width is None:
        if not 0 < share <= 1 or not (np.asarray(ceiling) <= 1).all():
            raise ValueError(
                f"share = {share} must be above 0 and at most 1, and the ceiling, {ceiling}, at "
                f"most 1"
            )
        curve = learning_curve(masks, outputs, replicate_of=replicate_of)
        if np.shape(ceiling) not in ((), curve.floor.shape):
            raise ValueError(
                f"ceiling must be one number or one a target, got {np.shape(ceiling)} for "
                f"{len(curve.floor)} targets"
            )
        needed = curve.members_for(share * np.asarray(ceiling))
    else:
        raise ValueError("give either width, in output units, or share, of the ceiling")
    return np.maximum(needed - len(masks), 0)


def members_for_width(
    effects: Effects, members: int, width: float, *, top: int = 10, level: float = 0.95
) -> Float[np.ndarray, " t"]:
    """Members with which the intervals of each target's largest effects are no wider than `width`.

    Standard errors fall with the root of the members. They fall a little faster, since the
    datamodel behind them gets better, too; so this is rather too many than too few.

    Args:
        effects: of the members that are there.
        members: how many those are.
        width: from the lower to the upper end, in output units.
        top: how many effects of a target; the largest ones.
        level: of the intervals.

    Raises:
        ValueError: a width that is not above 0.
    """
    if not width > 0:
        raise ValueError(f"width = {width} must be above 0")
    return np.ceil(members * np.square(top_width(effects, top=top, level=level) / width))


def top_width(effects: Effects, *, top: int = 10, level: float = 0.95) -> Float[np.ndarray, " t"]:
    """The widest interval of each target's largest effects, in output units.

    NaN where no group varies; arguments as of `members_for_width`.
    """
    require_share("level", level)
    known = np.isfinite(effects.standard_error)
    size = np.where(known, np.abs(effects.estimate), -1)
    largest = np.argsort(-size, axis=0)[:top]
    error = np.take_along_axis(np.where(known, effects.standard_error, 0), largest, 0).max(0)
    return 2 * norm.ppf((1 + level) / 2) * np.where(known.any(0), error, np.nan)


def learning_curve(
    masks: Bool[np.ndarray, "m g"],
    outputs: Float[np.ndarray, "m t"],
    *,
    penalty: Penalty = "lasso",
    choice: Choice = "best",
    folds: int = 5,
    replicate_of: Int[np.ndarray, " m"] | None = None,
    seed: int = 0,
) -> LearningCurve:
    """R2 of datamodels of a quarter, a half and all of four fifths of the masks, on the last fifth.

    Args:
        masks: True = kept.
        outputs: finite, of the same members.
        penalty: as in `fit`.
        choice: as in `fit`.
        folds: as in `fit`.
        replicate_of: rows with the same number are on one side.
        seed: decides which masks are in which part.

    Raises:
        ValueError: as `fit`; fewer than 40 distinct masks.
    """
    masks, outputs = as_masks(masks), as_outputs(outputs)
    require_finite(masks, outputs)
    number = np.unique(mask_numbers(replicate_of, len(masks)), return_inverse=True)[1]
    distinct = int(number.max()) + 1
    if distinct < FEWEST_MASKS:
        raise ValueError(
            f"{distinct} distinct masks are too few for a curve; {FEWEST_MASKS} are needed"
        )
    order = np.random.default_rng([SHUFFLED, seed]).permutation(distinct)
    unseen, rest = np.split(order, [distinct // 5])
    judged = np.isin(number, unseen)
    sizes, found = [], []
    for share in SHARES:
        rows = np.isin(number, rest[: round(share * len(rest))])
        prepared = prepare(masks[rows], folds=folds, replicate_of=number[rows])
        model = prepared.fit(outputs[rows], penalty=penalty, choice=choice)
        sizes.append(int(rows.sum()))
        found.append(r2(model.predict(masks[judged]), outputs[judged]))
    return _curve(np.array(sizes), np.stack(found))


def _curve(members: Int[np.ndarray, " p"], found: Float[np.ndarray, "p t"]) -> LearningCurve:
    """The curve through some points, by least squares; no floor or slope is below 0."""
    known = np.isfinite(found).all(0)
    lost = np.where(known, 1 - found, 0)
    fits, weight = [], (members / members[-1])[:, None]
    for rate in RATES:
        basis = np.stack([np.ones(len(members)), (members / members[-1]) ** -rate], axis=1)
        # The more members, the nearer to what is to be foretold, and the surer.
        solved = [nnls(weight * basis, weight[:, 0] * target) for target in lost.T]
        fits.append((sum(residual**2 for _, residual in solved), rate, solved))
    _, rate, solved = min(fits, key=lambda fit: fit[0])
    coefficients = np.stack([coefficient for coefficient, _ in solved], axis=1)
    floor, slope = np.where(known, coefficients, np.nan)
    return LearningCurve(members, found, floor, slope * members[-1] ** rate, float(rate))
