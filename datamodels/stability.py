"""Whether a fit would find the same groups with other masks."""

import numpy as np
from jaxtyping import Bool, Float, Int

from datamodels.additive import CERTIFIED, fit
from datamodels.bootstrap import resample_together
from datamodels.inputs import as_masks, as_outputs, mask_numbers, require_finite
from datamodels.moments import moments, regressors
from datamodels.solver import solve


def stability(
    masks: Bool[np.ndarray, "m g"],
    outputs: Float[np.ndarray, "m t"],
    *,
    draws: int = 50,
    seed: int = 0,
    replicate_of: Int[np.ndarray, " m"] | None = None,
) -> Float[np.ndarray, "g t"]:
    """How steadily the lasso finds each group: its mean sign over bootstraps of the masks.

    1: a positive weight in every draw; -1: a negative one; near 0: none, or now this, now that.
    The penalty is that of the fit to all rows. A share of draws, not a probability of being
    right: a wrong group that is strongly correlated with a right one is found steadily, too.

    Args:
        masks: True = kept.
        outputs: finite, of the same members.
        draws: how many bootstraps; each costs a fit without cross-validation.
        seed: decides them.
        replicate_of: rows with the same number are drawn together.

    Raises:
        ValueError: as `fit`; outputs that are not finite; no draws.
    """
    if draws < 1:
        raise ValueError(f"draws = {draws} must be at least 1")
    masks, outputs = as_masks(masks), as_outputs(outputs)
    require_finite(masks, outputs)
    number = mask_numbers(replicate_of, len(masks))
    lam = fit(masks, outputs, replicate_of=replicate_of).diagnostics.lam
    signs = np.zeros((masks.shape[1], outputs.shape[1]))
    for count in resample_together(number, seed=seed, draws=draws):
        rows = np.repeat(np.arange(len(masks)), count)
        drawn = masks[rows]
        problem = moments(drawn, regressors(drawn), outputs[rows])
        signs += np.sign(solve(problem, lam, tolerance=CERTIFIED).weights)
    return signs / draws
