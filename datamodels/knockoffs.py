"""Which groups matter, by fresh copies of the masks: a cross-check, whatever the noise."""

import numpy as np
from jaxtyping import Bool, Float, Int

from datamodels.additive import prepare
from datamodels.checks import check_independent
from datamodels.inputs import as_masks, as_outputs, mask_numbers, require_finite, require_share
from datamodels.solver import target_blocks

COPIES = 7_205_759
"""Part of the seed of knockoffs."""


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
    require_finite(masks, outputs)
    require_share("alpha", alpha)
    require_share("q", q)
    number = mask_numbers(replicate_of, len(masks))
    distinct, first, draw = np.unique(number, return_index=True, return_inverse=True)
    check_independent(masks[first], np.full((1, 1), alpha))
    coin = np.random.default_rng([COPIES, seed])  # that nobody else draws masks with
    fresh = coin.random((len(distinct), masks.shape[1])) < alpha
    both = np.hstack([masks, fresh[draw]])
    prepared = prepare(both, replicate_of=number)
    parts = [prepared.fit(outputs[:, own]).weights for own in target_blocks(outputs.shape[1])]
    size = np.abs(np.concatenate(parts, axis=1))
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
