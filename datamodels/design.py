"""Designs: which groups each member keeps, as a function of (root key, row) alone.

What each can and cannot estimate, with figures: docs/designs.md.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

MASK_TAG = 0
"""`training.seeds` draws training keys from the same root with the tag 1."""


@dataclass(frozen=True, kw_only=True)
class Drawn(ABC):
    """Masks that are drawn at random, row by row.

    With replicates r, members i*r to i*r + r - 1 share the mask of row i and differ in their
    training key.
    """

    replicates: int = 1

    def __post_init__(self) -> None:
        if self.replicates < 1:
            raise ValueError(f"replicates = {self.replicates} must be at least 1")

    def rows(self, members: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        """The mask row of each member."""
        return members // self.replicates

    def replicate_of(self, members: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        """Which retrain of its row each member is, from 0."""
        return members % self.replicates

    def draws(self, members: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        """A number for each member; those of one number were drawn together, others apart."""
        return self.rows(members)

    def masks(
        self, root: Key[Array, ""], members: Int[np.ndarray, " m"], groups: int
    ) -> Bool[np.ndarray, "m g"]:
        """The masks of these members, True = kept."""
        return self._masks_of_rows(root, self.rows(members), groups)

    @abstractmethod
    def _masks_of_rows(
        self, root: Key[Array, ""], rows: Int[np.ndarray, " m"], groups: int
    ) -> Bool[np.ndarray, "m g"]: ...

    def probabilities(
        self, root: Key[Array, ""], members: Int[np.ndarray, " m"], groups: int
    ) -> Float[np.ndarray, "#m #g"]:
        """What `effects` takes as alpha: the probability that a group is kept, given its row."""
        del root, members, groups
        return np.full((1, 1), self.describe()["alpha"])

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What a bank records of the design; `alpha` is the probability that a group is kept."""


@dataclass(frozen=True)
class Bernoulli(Drawn):
    """Every group is kept with probability `alpha`, independently.

    The covariance of the mask is known exactly, alpha (1 - alpha) times the identity; every main
    effect can be estimated, and every joint effect of few groups. A redundancy of k copies has
    variance P (1 - P) with P = 1 - (1 - alpha)^k, so large ones need a small alpha. Several arms
    of different alphas in one bank see both.
    """

    alpha: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_probability("alpha", self.alpha)

    def _masks_of_rows(
        self, root: Key[Array, ""], rows: Int[np.ndarray, " m"], groups: int
    ) -> Bool[np.ndarray, "m g"]:
        return np.asarray(_bernoulli_rows(root, rows, self.alpha, groups))

    def describe(self) -> dict[str, Any]:
        """What a bank records of the design."""
        return {"kind": "bernoulli", "alpha": self.alpha, "replicates": self.replicates}


@dataclass(frozen=True)
class FixedSize(Drawn):
    """Exactly a share `alpha` of the groups is kept (rounded), every such mask equally likely.

    The number of kept groups is the same in every row, so what all groups do alike cannot be
    told: an effect is that of a group in place of another one. Removing many is an extrapolation.
    What it is for: data sets of one size, when size itself matters.
    """

    alpha: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_probability("alpha", self.alpha)

    def size(self, groups: int) -> int:
        """How many of so many groups are kept: at least one, and never all.

        Raises:
            ValueError: a single group, which could only always be kept.
        """
        if groups < 2:
            raise ValueError(f"masks of fixed size need at least 2 groups, got {groups}")
        return int(np.clip(round(self.alpha * groups), 1, groups - 1))

    def _masks_of_rows(
        self, root: Key[Array, ""], rows: Int[np.ndarray, " m"], groups: int
    ) -> Bool[np.ndarray, "m g"]:
        return np.asarray(_fixed_size_rows(root, rows, self.size(groups), groups))

    def describe(self) -> dict[str, Any]:
        """What a bank records of the design."""
        return {"kind": "fixed_size", "alpha": self.alpha, "replicates": self.replicates}


@dataclass(frozen=True)
class Pairs(Drawn):
    """Complementary pairs: rows 2i and 2i + 1 split the groups between them, by fair coins.

    Within a row, groups are independent and kept with probability 1/2, as with `Bernoulli(.5)`.
    Half the difference of a pair's outputs has the odd orders alone (main effects, triples), half
    the sum the even ones (pairs): each is estimated without the other as noise. That pays where
    main effects are dense and groups are nearly as many as masks. The two rows have training keys
    of their own. Any other alpha is impossible.
    """

    def draws(self, members: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        """The pair of each member."""
        return self.rows(members) // 2

    def _masks_of_rows(
        self, root: Key[Array, ""], rows: Int[np.ndarray, " m"], groups: int
    ) -> Bool[np.ndarray, "m g"]:
        first = np.asarray(_bernoulli_rows(root, rows // 2, 0.5, groups))
        return first ^ (rows % 2 == 1)[:, None]

    def describe(self) -> dict[str, Any]:
        """What a bank records of the design."""
        return {"kind": "pairs", "alpha": 0.5, "replicates": self.replicates}


@dataclass(frozen=True)
class TwoLevel(Drawn):
    """Clusters first, then groups: a cluster is chosen with probability `outer`, and each group of
    a chosen one is kept with probability `inner`; all others are dropped.

    For a search from coarse to fine. What a whole cluster does is seen at `outer`, however many
    groups share the work. Given its cluster, a group is independent of all others, so its effect
    where the cluster is chosen can be estimated; where it is not chosen, nothing is learnt of it.
    """

    outer: float
    inner: float
    clusters: tuple[int, ...]
    """The cluster of each group, counted from 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_probability("outer", self.outer)
        _require_probability("inner", self.inner)

    def chosen(
        self, root: Key[Array, ""], members: Int[np.ndarray, " m"]
    ) -> Bool[np.ndarray, "m g"]:
        """For every group, whether its cluster is chosen."""
        clusters = np.array(self.clusters)
        # Streams of their own: a cluster's coin is not that of the group of the same number.
        root = jax.random.fold_in(root, MASK_TAG + 2)
        rows = self.rows(members)
        coins = np.asarray(_bernoulli_rows(root, rows, self.outer, int(clusters.max()) + 1))
        return coins[:, clusters]

    def probabilities(
        self, root: Key[Array, ""], members: Int[np.ndarray, " m"], groups: int
    ) -> Float[np.ndarray, "m g"]:
        """`inner` for groups of chosen clusters, 0 for the others."""
        del groups
        return self.inner * self.chosen(root, members)

    def _masks_of_rows(
        self, root: Key[Array, ""], rows: Int[np.ndarray, " m"], groups: int
    ) -> Bool[np.ndarray, "m g"]:
        if groups != len(self.clusters):
            raise ValueError(f"clusters are given of {len(self.clusters)} groups, not {groups}")
        within = np.asarray(_bernoulli_rows(root, rows, self.inner, groups))
        return within & self.chosen(root, rows * self.replicates)

    def describe(self) -> dict[str, Any]:
        """What a bank records of the design."""
        return {
            "kind": "two_level",
            "alpha": self.outer * self.inner,
            "outer": self.outer,
            "inner": self.inner,
            "clusters": list(self.clusters),
            "replicates": self.replicates,
        }


def from_description(description: Mapping[str, Any]) -> Drawn:
    """The design that `Drawn.describe` describes.

    Raises:
        ValueError: of another kind.
    """
    replicates = description["replicates"]
    match description["kind"]:
        case "bernoulli":
            return Bernoulli(description["alpha"], replicates=replicates)
        case "fixed_size":
            return FixedSize(description["alpha"], replicates=replicates)
        case "pairs":
            return Pairs(replicates=replicates)
        case "two_level":
            clusters = tuple(description["clusters"])
            outer, inner = description["outer"], description["inner"]
            return TwoLevel(outer, inner, clusters, replicates=replicates)
    raise ValueError(f"no design is drawn by the kind {description['kind']!r}")


def _require_probability(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} = {value} must lie strictly between 0 and 1")


@partial(jax.jit, static_argnames=("alpha", "groups"))
def _bernoulli_rows(
    root: Key[Array, ""], rows: Int[Array, " m"], alpha: float, groups: int
) -> Bool[Array, "m g"]:
    return _each_row(root, rows, lambda key: jax.random.bernoulli(key, alpha, (groups,)))


@partial(jax.jit, static_argnames=("size", "groups"))
def _fixed_size_rows(
    root: Key[Array, ""], rows: Int[Array, " m"], size: int, groups: int
) -> Bool[Array, "m g"]:
    first = jnp.arange(groups) < size
    return _each_row(root, rows, lambda key: jax.random.permutation(key, first))


def _each_row(
    root: Key[Array, ""],
    rows: Int[Array, " m"],
    draw: Callable[[Key[Array, ""]], Bool[Array, " g"]],
) -> Bool[Array, "m g"]:
    base = jax.random.fold_in(root, MASK_TAG)
    return jax.vmap(lambda row: draw(jax.random.fold_in(base, row)))(rows)


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
