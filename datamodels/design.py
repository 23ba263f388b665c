"""Designs: which groups each member keeps, as a function of (root key, row) alone."""

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Int, Key

MASK_TAG = 0
"""`training.seeds` draws training keys from the same root with the tag 1."""


@dataclass(frozen=True)
class Bernoulli:
    """Every group is kept with probability `alpha`, independently.

    With replicates r, members i*r to i*r + r - 1 share the mask of row i and differ in their
    training key. The covariance of the mask is known exactly, alpha (1 - alpha) times the
    identity; every main effect can be estimated. A redundancy of k copies has variance
    P (1 - P) with P = 1 - (1 - alpha)^k, so large ones need a small alpha.
    """

    alpha: float
    replicates: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha = {self.alpha} must lie strictly between 0 and 1")
        if self.replicates < 1:
            raise ValueError(f"replicates = {self.replicates} must be at least 1")

    def rows(self, members: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        """The mask row of each member."""
        return members // self.replicates

    def replicate_of(self, members: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        """Which retrain of its row each member is, from 0."""
        return members % self.replicates

    def masks(
        self, root: Key[Array, ""], members: Int[np.ndarray, " m"], groups: int
    ) -> Bool[np.ndarray, "m g"]:
        """The masks of these members, True = kept."""
        return np.asarray(_bernoulli_rows(root, self.rows(members), self.alpha, groups))

    def describe(self) -> dict[str, Any]:
        """What a bank records of the design."""
        return {"kind": "bernoulli", "alpha": self.alpha, "replicates": self.replicates}


@partial(jax.jit, static_argnames=("alpha", "groups"))
def _bernoulli_rows(
    root: Key[Array, ""], rows: Int[Array, " m"], alpha: float, groups: int
) -> Bool[Array, "m g"]:
    base = jax.random.fold_in(root, MASK_TAG)

    def one(row: Int[Array, ""]) -> Bool[Array, " g"]:
        return jax.random.bernoulli(jax.random.fold_in(base, row), alpha, (groups,))

    return jax.vmap(one)(rows)


@dataclass(frozen=True, eq=False)
class Listed:
    """Masks that the caller lists, for removals that were decided beforehand.

    Nothing is random in the masks, so no main effect can be estimated from them alone: they
    compare chosen cells. Members with the same row number share their training key, which
    pairs the cells seed by seed.
    """

    listed: Bool[np.ndarray, "m g"]
    row_numbers: Int[np.ndarray, " m"]

    def rows(self, members: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        """The row number of each member, which decides its training key."""
        return self.row_numbers[members]

    def replicate_of(self, members: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        """Always 0: a listed member is no retrain of another."""
        return np.zeros_like(members)

    def masks(
        self, root: Key[Array, ""], members: Int[np.ndarray, " m"], groups: int
    ) -> Bool[np.ndarray, "m g"]:
        """The listed masks of these members; the root does not matter."""
        del root
        if self.listed.shape[1] != groups:
            raise ValueError(f"listed masks have {self.listed.shape[1]} groups, not {groups}")
        return self.listed[members]

    def describe(self) -> dict[str, Any]:
        """What a bank records of the design."""
        digest = hashlib.sha256(str(self.listed.shape).encode())
        digest.update(np.packbits(self.listed, axis=1).tobytes())
        digest.update(self.row_numbers.astype("<i8").tobytes())
        return {"kind": "listed", "sha256": digest.hexdigest()}
