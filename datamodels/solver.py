"""Lasso and elastic net for many targets at once, on the Gram matrix, with a certificate.

For every target, with centred masks Z (m, g) in mask units (dropped to kept = 1) and centred
outputs y (m,), the problem is

    minimise over w:  |y - Z w|^2 / (2 m) + l1 |w|_1 + l2 |w|^2 / 2,

where l1 = lam * l1_ratio and l2 = lam * (1 - l1_ratio) / sd(y), so that a solution scales with the
outputs. With l1_ratio = 1 it is `sklearn.linear_model.Lasso(alpha=lam)`. Only Z'Z/m, Z'y/m and
y'y/m enter, and the ridge only adds l2 to the diagonal of Z'Z/m. How it is solved: `descent`.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy import sparse

from datamodels.descent import Point, Sums, Task, ahead, duality_gap, pick, solve_block
from datamodels.moments import Factored, Moments, deviation, select

TARGET_BLOCK = 1024
"""Targets solved in one program: bounds memory."""
SPARSE = 0.02
"""Share of weights that are not zero below which a sparse product is faster than a dense one."""


class Solution(NamedTuple):
    """Weights of all targets, and how far each is from the optimum."""

    weights: Float[np.ndarray, "g t"]
    """float32, in output units per mask unit."""
    relative_gap: Float[np.ndarray, " t"]
    """(primal - dual) / (y'y / 2m), in float64; 0 at the optimum."""
    iterations: int
    """Of the block of targets that took most."""


def largest_lam(problem: Moments, l1_ratio: float = 1.0) -> Float[np.ndarray, " t"]:
    """The smallest lam of each target for which every weight is zero."""
    return np.abs(problem.correlation).max(0) / l1_ratio


def relative_gap(
    weights: Float[np.ndarray, "g t"],
    problem: Moments,
    lam: Float[np.ndarray, " t"],
    *,
    l1_ratio: float = 1.0,
) -> Float[np.ndarray, " t"]:
    """The certificate: relative duality gap of each target, evaluated in float64."""
    weights, gram = weights.astype(np.float64), problem.masks.gram
    if isinstance(gram, Factored) or np.count_nonzero(weights) > SPARSE * weights.size:
        slope = gram @ weights
    else:
        slope = np.ascontiguousarray((sparse.csr_array(weights.T) @ gram).T)
    unit = deviation(problem)
    l1, l2 = _penalties(lam, unit, l1_ratio)
    np.subtract(problem.correlation, slope, out=slope)
    if l2.any():
        slope -= l2 * weights
    sums = Sums(
        fit=_along(weights, problem.correlation) / unit**2,
        along=_along(weights, slope) / unit**2,
        steepest=np.maximum(slope.max(0), -slope.min(0)) / unit,
        size=np.abs(weights).sum(0) / unit,
    )
    return np.asarray(duality_gap(np, sums, problem.energy / unit**2, l1))


def _along(
    weights: Float[np.ndarray, "g t"], direction: Float[np.ndarray, "g t"]
) -> Float[np.ndarray, " t"]:
    """Their product, target by target."""
    return np.einsum("gt,gt->t", weights, direction)


def solve(
    problem: Moments,
    lam: Float[np.ndarray, " t"],
    *,
    l1_ratio: float = 1.0,
    start: Float[np.ndarray, "g t"] | None = None,
    tolerance: float = 1e-5,
    max_iterations: int = 3000,
) -> Solution:
    """Solve for all targets, iterating in float32; the gap is then evaluated in float64.

    Args:
        problem: from `moments`.
        lam: one a target, in output units.
        l1_ratio: above 0, at most 1; below 1 correlated groups share their weight.
        start: weights to start from.
        tolerance: relative duality gap to reach; float32 reaches about 1e-6.
        max_iterations: a bound for degenerate problems; the returned gap says what was reached.
    """
    found, iterations = [], 0
    for own in target_blocks(len(problem.energy)):
        path = Path(
            select(problem, own),
            l1_ratio=l1_ratio,
            start=None if start is None else start[:, own],
            max_iterations=max_iterations,
        )
        path.advance(lam[own], tolerance)
        found.append(path.weights())
        iterations = max(iterations, path.iterations)
    weights = np.concatenate(found, axis=1)
    gap = relative_gap(weights, problem, lam, l1_ratio=l1_ratio)
    return Solution(weights, gap, iterations)


def solve_path(
    problem: Moments,
    lams: Float[np.ndarray, "p t"],
    *,
    l1_ratio: float = 1.0,
    tolerance: float = 1e-5,
) -> list[Solution]:
    """Solve for one penalty after the other, each from the solutions before; as in `solve`.

    Args:
        problem: from `moments`.
        lams: p penalties a target, from large to small.
        l1_ratio: as in `solve`.
        tolerance: for each penalty.
    """
    paths = [
        (own, Path(select(problem, own), l1_ratio=l1_ratio))
        for own in target_blocks(len(problem.energy))
    ]
    found = []
    for lam in lams:
        for own, path in paths:
            path.advance(lam[own], tolerance)
        weights = np.concatenate([path.weights() for _, path in paths], axis=1)
        found.append((weights, max(path.iterations for _, path in paths)))
    # All certificates together: threads of NumPy's products and of XLA's wait for one another.
    return [
        Solution(weights, relative_gap(weights, problem, lam, l1_ratio=l1_ratio), iterations)
        for (weights, iterations), lam in zip(found, lams, strict=True)
    ]


def target_blocks(count: int) -> list[Int[np.ndarray, " b"]]:
    """Parts of the targets that are solved one after the other."""
    return np.split(np.arange(count), range(TARGET_BLOCK, count, TARGET_BLOCK))


class Path:
    """Solutions of one problem, each penalty's from those before.

    They stay on the device, in units of each target's standard deviation: in these, float32 neither
    over- nor underflows.
    """

    def __init__(
        self,
        problem: Moments,
        *,
        l1_ratio: float = 1.0,
        start: Float[np.ndarray, "g t"] | None = None,
        max_iterations: int = 3000,
    ):
        """Arguments as of `solve`.

        Raises:
            ValueError: an l1_ratio that is no share above 0.
        """
        if not 0 < l1_ratio <= 1:
            raise ValueError(f"l1_ratio = {l1_ratio} must be above 0 and at most 1")
        self.iterations = 0
        """Of the last penalty, for the target that took most."""
        self._gram, self._step = problem.masks.device_gram, jnp.float32(problem.masks.step)
        self._l1_ratio, self._max_iterations = l1_ratio, max_iterations
        self._unit = deviation(problem)
        self._correlation = jnp.asarray(problem.correlation / self._unit, jnp.float32)
        self._energy = jnp.asarray(problem.energy / self._unit**2, jnp.float32)
        length = jnp.full(len(self._unit), 2 * self._step)
        weights = product = jnp.zeros(problem.correlation.shape)
        if start is not None:
            weights = jnp.asarray(start / self._unit, jnp.float32)
            product = self._gram @ weights
        self._point = self._before = Point(weights, product, length)
        # Of the last two solutions; 0 where there is none.
        self._l1 = self._l1_before = jnp.zeros(len(self._unit))

    def advance(self, lam: Float[np.ndarray, " t"], tolerance: float) -> None:
        """Solve for the next penalty, to a gap that float32 arithmetic sees."""
        l1, l2 = _penalties(lam, self._unit, self._l1_ratio)
        l1, l2 = jnp.asarray(l1, jnp.float32), jnp.asarray(l2, jnp.float32)
        task = Task(self._correlation, self._energy, l1, l2)
        start = ahead(self._point, self._before, l1, self._l1, self._l1_before)
        self._before, self._l1_before = self._point, self._l1
        self._point, self.iterations = solve_block(
            self._gram, task, start, self._step, tolerance, self._max_iterations
        )
        self._l1 = l1

    def scaled(self) -> Float[Array, "g t"]:
        """The last solution, in units of the targets' deviations, on the device."""
        return self._point.weights

    def weights(self) -> Float[np.ndarray, "g t"]:
        """The last solution, in output units."""
        return np.asarray(self._point.weights) * self._unit.astype(np.float32)

    def keep(self, targets: Int[np.ndarray, " k"]) -> None:
        """Go on with some of the targets."""
        self._unit = self._unit[targets]
        parts = (self._correlation, self._energy, self._point, self._before)
        self._correlation, self._energy, self._point, self._before = pick(parts, targets)
        self._l1, self._l1_before = pick((self._l1, self._l1_before), targets)


def _penalties(
    lam: Float[np.ndarray, " t"], unit: Float[np.ndarray, " t"], l1_ratio: float
) -> tuple[Float[np.ndarray, " t"], Float[np.ndarray, " t"]]:
    """l1 and l2 for outputs of unit energy."""
    return lam / unit * l1_ratio, lam / unit * (1 - l1_ratio)
