"""What joint datamodels take for granted where groups or masks are many: an additive datamodel.

The covariance of a joint datamodel costs the cube of the masks and, at every step that learns it,
their square times the groups. Of up to `MOST_GROUPS` groups and `MOST_MASKS` masks all is left to
it. Beyond, an additive datamodel of all groups and masks comes first. What it leaves is given to
the covariance on some of the masks, and on those groups of each target that stand out: half by
their weight, half by the largest product with any other group that goes with what is left (one
matrix product a target screens all pairs; no pair is kept).

What is left of a mask is that of an additive datamodel of other masks: of its own it would be too
little.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from datamodels.additive import prepare
from datamodels.inference import left_out
from datamodels.process import Bank
from datamodels.solver import target_blocks

MOST_GROUPS = 256
"""Of a target, that the covariance is over."""
MOST_MASKS = 3000
"""That the covariance predicts from."""
SCREENED = 2500
"""Masks that pairs are screened on."""
SCREEN_BLOCK = 1024
"""Groups whose pairs are looked at together."""
ORDER = 57_721_566
"""Seed of which masks are taken."""
FOLDS = 5
"""Of the additive datamodel."""
FEWEST_MASKS = 4 * FOLDS
"""Below which it is no use."""


class Background(NamedTuple):
    """An additive part of each target's outputs, and what is left of them."""

    intercept: Float[np.ndarray, " t"]
    weights: Float[np.ndarray, "g t"]
    """Of keeping a group; 0 where all is left to the covariance."""
    rows: Int[np.ndarray, " r"]
    """Masks that the covariance is learned from."""
    left: Float[np.ndarray, "r t"]
    """Of their outputs."""
    groups: Int[np.ndarray, "t k"]
    """Those that the covariance of each target is over, in their order."""

    def of_target(self, bank: Bank, target: int) -> Bank:
        """The masks and groups that a target's covariance is over, and what is left there."""
        rows, left = self.rows, self.left[:, [target]]
        masks = bank.masks[rows][:, self.groups[target]]
        return Bank(masks, left, bank.members[rows], bank.within)


def others(
    intercept: float,
    weights: Float[np.ndarray, " g"],
    groups: Int[np.ndarray, " k"],
    kept: Float[np.ndarray, " g"],
) -> float:
    """What the constant and all groups but some add to a mean output, each kept so often."""
    without = np.delete(np.arange(len(weights)), groups)
    return float(intercept + kept[without] @ weights[without])


def background(bank: Bank) -> Background:
    """The additive part of all targets of a bank."""
    masks, outputs = bank.masks, bank.outputs
    groups, targets = masks.shape[1], outputs.shape[1]
    few = groups <= MOST_GROUPS and len(masks) <= MOST_MASKS
    if few or len(masks) < FEWEST_MASKS:
        intercept = outputs.mean(0)
        return Background(
            intercept,
            np.zeros((groups, targets), np.float32),
            np.arange(len(masks)),
            outputs - intercept,
            np.tile(np.arange(groups), (targets, 1)),
        )
    # Not in order: distinct masks are sorted, and some are cut off again.
    rows = np.random.default_rng(ORDER).permutation(len(masks))[:MOST_MASKS]
    prepared = prepare(masks, folds=FOLDS)
    intercept, weights, left, chosen = [], [], [], []
    for own in target_blocks(targets):
        additive = prepared.fit(outputs[:, own])
        residual = left_out(prepared.folds, outputs[:, own])
        intercept.append(additive.intercept)
        weights.append(additive.weights)
        left.append(residual[rows])
        chosen.append(_standing_out(masks[rows], residual[rows], additive.weights))
    return Background(
        np.concatenate(intercept),
        np.concatenate(weights, axis=1),
        rows,
        np.concatenate(left, axis=1),
        np.concatenate(chosen),
    )


def _standing_out(
    masks: Bool[np.ndarray, "r g"],
    left: Float[np.ndarray, "r t"],
    weights: Float[np.ndarray, "g t"],
) -> Int[np.ndarray, "t k"]:
    """The groups of each target that may act jointly."""
    groups = masks.shape[1]
    if groups <= MOST_GROUPS:
        return np.tile(np.arange(groups), (left.shape[1], 1))
    spread = masks.std(0)
    centred = jnp.asarray((masks - masks.mean(0)) / np.where(spread > 0, spread, 1), jnp.float32)
    found = []
    for target in range(left.shape[1]):
        own = jnp.asarray(left[:SCREENED, target], jnp.float32)
        with_others = np.asarray(_largest_products(centred[:SCREENED], own))
        by_weight = np.argsort(-np.abs(weights[:, target]) * spread, kind="stable")
        by_pairs = np.argsort(-with_others, kind="stable")
        # In turn, the first of each ranking, until there are enough.
        both = np.stack([by_weight, by_pairs], axis=1).ravel()
        _, first = np.unique(both, return_index=True)
        found.append(np.sort(both[np.sort(first)][:MOST_GROUPS]))
    return np.array(found)


@jax.jit
def _largest_products(masks: Float[Array, "r g"], left: Float[Array, " r"]) -> Float[Array, " g"]:
    """Of each group, the largest mean product with another group and what is left."""
    groups = masks.shape[1]
    padded = jnp.pad(masks, ((0, 0), (0, -groups % SCREEN_BLOCK)))
    number = jnp.arange(padded.shape[1])

    def of_block(begin: Int[Array, ""]) -> Float[Array, " b"]:
        own = jax.lax.dynamic_slice_in_dim(padded, begin, SCREEN_BLOCK, axis=1)
        products = jnp.abs((own * left[:, None]).T @ masks)
        same = number[:groups][None] == (begin + jnp.arange(SCREEN_BLOCK))[:, None]
        return jnp.where(same, 0, products).max(1)

    blocks = jax.lax.map(of_block, jnp.arange(0, padded.shape[1], SCREEN_BLOCK))
    return blocks.ravel()[:groups]
