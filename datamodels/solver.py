"""Lasso and elastic net for many targets at once, on the Gram matrix, with a certificate.

For every target, with centred masks Z (m, g) in mask units (dropped to kept = 1) and centred
outputs y (m,), the problem is

    minimise over w:  |y - Z w|^2 / (2 m) + l1 |w|_1 + l2 |w|^2 / 2,

where l1 = lam * l1_ratio and l2 = lam * (1 - l1_ratio) / sd(y), so that a solution scales with the
outputs. With l1_ratio = 1 it is `sklearn.linear_model.Lasso(alpha=lam)`. Only Z'Z/m, Z'y/m and
y'y/m enter, and the ridge only adds l2 to the diagonal of Z'Z/m.

Two ways of proximal gradient, one matrix product an iteration for all targets. First steps as long
as the curvature along the last step allows (the spectral step of Barzilai and Borwein 1988, for the
lasso Wright, Nowak & Figueiredo 2009): on random masks they need a third of the iterations, but
nothing promises that they end. What they leave is finished by accelerated steps of a safe length
(FISTA, Beck & Teboulle 2009, with the gradient restart of O'Donoghue & Candes 2015). A solution is
judged by its duality gap, never by a number of iterations.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy import sparse

from datamodels.moments import DeviceGram, Factored, Moments, deviation, select

TARGET_BLOCK = 1024
"""Targets solved in one program: bounds memory."""
SPECTRAL = 100
"""Iterations with spectral steps. Masks at random need fewer; on correlated ones the steps may go
on for ever, and a hundred are a fifth of what FISTA needs there."""
LONGEST = 100.0
"""The longest spectral step, as a multiple of the safe one."""
EASY = 8
"""Iterations before solved targets leave: a shorter solve is over before a narrower program is
compiled."""
NARROWEST = 32
"""Targets of the narrowest program: fewer would take as long, and a program more to compile."""
NARROW = 128
"""Targets of a program that gains little from being narrower."""
SPARSE = 0.03
"""Share of weights that are not zero below which a sparse product is faster than a dense one."""
ROUNDING = 1e-6
"""Of an objective in float32, for outputs of unit energy."""


class Solution(NamedTuple):
    """Weights of all targets, and how far each is from the optimum."""

    weights: Float[np.ndarray, "g t"]
    """float32, in output units per mask unit."""
    relative_gap: Float[np.ndarray, " t"]
    """(primal - dual) / (y'y / 2m), in float64; 0 at the optimum."""
    iterations: int
    """Of the block of targets that took most."""


class _Task(NamedTuple):
    """What one program solves, in float32 and in units of each target's standard deviation."""

    correlation: Float[Array, "g t"]
    energy: Float[Array, " t"]
    l1: Float[Array, " t"]
    l2: Float[Array, " t"]


class _Point(NamedTuple):
    """Where the targets are."""

    weights: Float[Array, "g t"]
    product: Float[Array, "g t"]
    """gram @ weights"""
    length: Float[Array, " t"]
    """Of the next spectral step."""


class _Spectral(NamedTuple):
    point: _Point
    gap: Float[Array, " t"]
    bound: Float[Array, " t"]
    """The objective at the start, above which no step may end."""
    iteration: Int[Array, ""]


class _Accelerated(NamedTuple):
    point: _Point
    gap: Float[Array, " t"]
    ahead: _Point
    """The extrapolated point."""
    inertia: Float[Array, " t"]
    iteration: Int[Array, ""]


_State = _Spectral | _Accelerated


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
    unit = deviation(problem)
    l1, l2 = _penalties(lam, unit, l1_ratio)
    scaled, gram = weights / unit, problem.masks.gram
    if isinstance(gram, Factored) or np.count_nonzero(scaled) > SPARSE * scaled.size:
        product = gram @ scaled
    else:
        product = (sparse.csr_array(scaled.T) @ gram).T
    correlation, energy = problem.correlation / unit, problem.energy / unit**2
    return np.asarray(_gap(np, scaled, product, correlation, energy, l1, l2))


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
        self._point = self._before = _Point(weights, product, length)
        # Of the last two solutions; 0 where there is none.
        self._l1 = self._l1_before = jnp.zeros(len(self._unit))

    def advance(self, lam: Float[np.ndarray, " t"], tolerance: float) -> None:
        """Solve for the next penalty, to a gap that float32 arithmetic sees."""
        l1, l2 = _penalties(lam, self._unit, self._l1_ratio)
        l1, l2 = jnp.asarray(l1, jnp.float32), jnp.asarray(l2, jnp.float32)
        task = _Task(self._correlation, self._energy, l1, l2)
        start = _ahead(self._point, self._before, l1, self._l1, self._l1_before)
        self._before, self._l1_before = self._point, self._l1
        self._point, self.iterations = _solve_block(
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
        self._correlation, self._energy, self._point, self._before = _pick(parts, targets)
        self._l1, self._l1_before = _pick((self._l1, self._l1_before), targets)


@jax.jit
def _ahead(
    point: _Point,
    before: _Point,
    l1: Float[Array, " t"],
    l1_point: Float[Array, " t"],
    l1_before: Float[Array, " t"],
) -> _Point:
    usable = (l1_before > l1_point) & (l1_point > 0)  # there were two
    share = jnp.where(usable, (l1_point - l1) / jnp.where(usable, l1_before - l1_point, 1), 0)
    return _Point(
        point.weights + share[None] * (point.weights - before.weights),
        point.product + share[None] * (point.product - before.product),
        point.length,
    )


def _solve_block(
    gram: DeviceGram,
    task: _Task,
    point: _Point,
    step: Float[Array, ""],
    tolerance: float,
    max_iterations: int,
) -> tuple[_Point, int]:
    """Where the targets end, and the iterations of the slowest. Those that are solved leave."""
    everyone = targets = np.arange(len(task.l1))
    taken = 0
    for begin, iterate, limit in (
        (_begin_spectral, _spectral_step, min(SPECTRAL, max_iterations)),
        (_begin_accelerated, _accelerated_step, max_iterations),
    ):
        start = point if targets is everyone else _pick(point, targets)
        state = begin(task, start, jnp.int32(taken))
        leave, until = 0, min(taken + EASY, limit)
        while True:
            state = _advance(iterate, gram, task, state, step, tolerance, leave, until)
            point = state.point if targets is everyone else _put(point, targets, state.point)
            taken = int(state.iteration)
            unsolved = np.flatnonzero(~(np.asarray(state.gap) <= tolerance))
            if not unsolved.size:
                return point, taken
            if 2 * few_widths(unsolved.size) <= len(targets):
                unsolved = _padded(unsolved)
                targets = targets[unsolved]
                task, state = _pick((task, state), unsolved)
            if taken >= limit:
                break
            # Narrow programs gain little from narrower ones.
            leave, until = _worth_leaving(len(targets)) if len(targets) > NARROW else 0, limit
    return point, taken


def _pick(tree: Any, targets: Int[np.ndarray, " k"]) -> Any:
    """Some of the targets, the last axis of every array that has one."""
    return jax.tree.map(lambda part: part[..., targets] if part.ndim else part, tree)


def _put(tree: Any, targets: Int[np.ndarray, " k"], values: Any) -> Any:
    """The opposite of `_pick`."""
    return jax.tree.map(lambda part, new: part.at[..., targets].set(new), tree, values)


def _padded(targets: Int[np.ndarray, " k"]) -> Int[np.ndarray, " n"]:
    """Filled up with repetitions to one of few widths, as each width has to be compiled."""
    return np.resize(targets, few_widths(len(targets)))


def _worth_leaving(count: int) -> int:
    """The most unsolved targets of so many for which a program of half the width is there."""
    halves = range(count // 2, 0, -1)
    return next((few for few in halves if 2 * few_widths(few) <= count), 0)


def few_widths(count: int) -> int:
    """The next of few widths: powers of two, then multiples of `NARROW`."""
    if count <= NARROW:
        return max(NARROWEST, 1 << (count - 1).bit_length())
    return math.ceil(count / NARROW) * NARROW


def _penalties(
    lam: Float[np.ndarray, " t"], unit: Float[np.ndarray, " t"], l1_ratio: float
) -> tuple[Float[np.ndarray, " t"], Float[np.ndarray, " t"]]:
    """l1 and l2 for outputs of unit energy."""
    return lam / unit * l1_ratio, lam / unit * (1 - l1_ratio)


def _gap(
    xp: Any, weights: Any, product: Any, correlation: Any, energy: Any, l1: Any, l2: Any
) -> Any:
    """Relative duality gap; the same formula in numpy (float64) and in JAX (float32).

    Outputs are scaled to unit energy, or 0 when constant, so that the floors below are harmless.
    With the residual r = y - Z w, the dual point is s r / m, where s <= 1 makes it feasible. The
    ridge is a lasso with sqrt(m l2) I below the masks and zeros below the outputs.
    """
    slope = correlation - product - l2[None] * weights
    fit = (weights * correlation).sum(0)
    # w'(gram + l2) w = w'correlation - w'slope
    residual = xp.maximum(energy - fit - (weights * slope).sum(0), 0)
    scale = xp.minimum(1, l1 / xp.maximum(xp.abs(slope).max(0), 1e-30))
    primal = residual / 2 + l1 * xp.abs(weights).sum(0)
    dual = scale * (energy - fit) - scale**2 * residual / 2
    return (primal - dual) / xp.maximum(energy / 2, 1e-30)


def _slope(task: _Task, point: _Point) -> Float[Array, "g t"]:
    """Of the smooth part of the objective, downhill."""
    return task.correlation - point.product - task.l2[None] * point.weights


def _objective(task: _Task, point: _Point) -> Float[Array, " t"]:
    """But for the energy, which does not change."""
    smooth = (point.weights * (task.correlation + _slope(task, point))).sum(0) / 2
    return task.l1 * jnp.abs(point.weights).sum(0) - smooth


def _gap_at(task: _Task, point: _Point) -> Float[Array, " t"]:
    return _gap(jnp, point.weights, point.product, *task)


def _moved(
    gram: DeviceGram, task: _Task, point: _Point, length: Float[Array, " t"]
) -> tuple[Float[Array, "g t"], Float[Array, "g t"]]:
    """A proximal step from a point: weights, and the Gram matrix times them."""
    target = point.weights + length[None] * _slope(task, point)
    weights = jnp.sign(target) * jnp.maximum(jnp.abs(target) - (length * task.l1)[None], 0)
    return weights, gram @ weights


def _safe_length(task: _Task, step: Float[Array, ""]) -> Float[Array, " t"]:
    """One over the largest curvature."""
    return 1 / (1 / step + task.l2)


@jax.jit
def _begin_spectral(task: _Task, start: _Point, iteration: Int[Array, ""]) -> _Spectral:
    bound = _objective(task, start) + ROUNDING
    return _Spectral(start, _gap_at(task, start), bound, iteration)


def _spectral_step(
    gram: DeviceGram, task: _Task, state: _Spectral, step: Float[Array, ""]
) -> _Spectral:
    """A step that would end above the start is not taken: the next one then has the safe length."""
    here, safe = state.point, _safe_length(task, step)
    weights, product = _moved(gram, task, here, here.length)
    change = weights - here.weights
    curvature = (change * (product - here.product + task.l2[None] * change)).sum(0)
    length = jnp.square(change).sum(0) / jnp.where(curvature > 0, curvature, jnp.inf)
    there = _Point(weights, product, jnp.clip(length, safe, LONGEST * safe))
    taken = _objective(task, there) <= state.bound
    point = _Point(
        jnp.where(taken[None], weights, here.weights),
        jnp.where(taken[None], product, here.product),
        jnp.where(taken, there.length, safe),
    )
    return _Spectral(point, _gap_at(task, point), state.bound, state.iteration + 1)


@jax.jit
def _begin_accelerated(task: _Task, start: _Point, iteration: Int[Array, ""]) -> _Accelerated:
    gap = _gap_at(task, start)
    return _Accelerated(start, gap, start, jnp.ones_like(gap), iteration)


def _accelerated_step(
    gram: DeviceGram, task: _Task, state: _Accelerated, step: Float[Array, ""]
) -> _Accelerated:
    here, ahead = state.point, state.ahead
    weights, product = _moved(gram, task, ahead, _safe_length(task, step))
    # Momentum of a target starts anew when it points uphill.
    change = weights - here.weights
    uphill = ((ahead.weights - weights) * change).sum(0) > 0
    inertia = jnp.where(uphill, 1.0, state.inertia)
    next_inertia = (1 + jnp.sqrt(1 + 4 * inertia**2)) / 2
    push = ((inertia - 1) / next_inertia)[None]
    point = _Point(weights, product, here.length)
    ahead = _Point(weights + push * change, product + push * (product - here.product), here.length)
    return _Accelerated(point, _gap_at(task, point), ahead, next_inertia, state.iteration + 1)


@partial(jax.jit, static_argnames="iterate")
def _advance(
    iterate: Callable[..., _State],
    gram: DeviceGram,
    task: _Task,
    state: _State,
    step: Float[Array, ""],
    tolerance: Float[Array, ""],
    leave: Int[Array, ""],
    limit: Int[Array, ""],
) -> _State:
    """Iterate until at most `leave` targets are unsolved, or up to iteration `limit`."""

    def go_on(state: _State) -> Bool[Array, ""]:
        unsolved = ~(state.gap <= tolerance)  # also where it is NaN
        return (unsolved.sum() > leave) & (state.iteration < limit)

    return jax.lax.while_loop(go_on, lambda state: iterate(gram, task, state, step), state)
