"""The lasso for many targets at once, on the Gram matrix, with a certificate.

For every target, with centred masks Z (m, g) in mask units (dropped to kept = 1) and centred
outputs y (m,), the problem is

    minimise over w:  |y - Z w|^2 / (2 m) + lam |w|_1,

which is `sklearn.linear_model.Lasso(alpha=lam)`. Only Z'Z/m, Z'y/m and y'y/m enter. The solver
is accelerated proximal gradient (FISTA, Beck & Teboulle 2009) with the gradient restart of
O'Donoghue & Candes (2015), one matrix product an iteration for all targets. A solution is
judged by its duality gap, never by a number of iterations.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.sparse.linalg import eigsh

TARGET_BLOCK = 1024
"""Targets solved in one program: bounds memory."""
WIDTH_STEP = 128
"""Programs are compiled for multiples of this many targets, and for fewer at powers of two."""
EASY = 50
"""Iterations before solved targets leave: a shorter solve is over before a narrower program is
compiled."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Factored:
    """A Gram matrix that is not written out: rows' rows, where there are few rows."""

    rows: Float[np.ndarray, "m g"] | Float[Array, "m g"]

    def __matmul__(self, weights: Any) -> Any:
        return self.rows.T @ (self.rows @ weights)


Gram = Float[np.ndarray, "g g"] | Factored


class Regressors(NamedTuple):
    """All that the lasso needs of the masks, whatever the outputs, in float64."""

    centred: Float[np.ndarray, "m g"]
    """Z/sqrt(m)"""
    mean_mask: Float[np.ndarray, " g"]
    gram: Gram
    """Z'Z/m; factored where the masks are fewer than half the groups, as that is cheaper."""
    step: float
    """From `step_size`."""


class Moments(NamedTuple):
    """All that the lasso needs of masks and outputs, in float64."""

    gram: Gram
    """As in `Regressors`."""
    correlation: Float[np.ndarray, "g t"]
    """Z'y/m"""
    energy: Float[np.ndarray, " t"]
    """y'y/m"""
    mean_mask: Float[np.ndarray, " g"]
    mean_output: Float[np.ndarray, " t"]


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
    lam: Float[Array, " t"]


class _State(NamedTuple):
    weights: Float[Array, "g t"]
    product: Float[Array, "g t"]
    """gram @ weights"""
    ahead: Float[Array, "g t"]
    """The extrapolated point."""
    ahead_product: Float[Array, "g t"]
    inertia: Float[Array, " t"]
    gap: Float[Array, " t"]
    iteration: Int[Array, ""]


def regressors(masks: Bool[np.ndarray, "m g"]) -> Regressors:
    """What the masks give, once for any number of targets."""
    mean = masks.mean(0, dtype=np.float64)
    centred = (masks - mean) / np.sqrt(len(masks))
    few = 2 * len(masks) < masks.shape[1]
    gram = Factored(centred) if few else centred.T @ centred
    return Regressors(centred, mean, gram, step_size(gram))


def moments(masks: Regressors, outputs: Float[np.ndarray, "m t"]) -> Moments:
    """Centred second moments, accumulated in float64."""
    mean_output = outputs.mean(0, dtype=np.float64)
    # Of a constant output rounding would leave noise that the solver takes for a signal.
    constant = (outputs == outputs[0]).all(0)
    centred_outputs = np.where(constant, 0, outputs - mean_output) / np.sqrt(len(outputs))
    return Moments(
        masks.gram,
        masks.centred.T @ centred_outputs,
        np.square(centred_outputs).sum(0),
        masks.mean_mask,
        mean_output,
    )


def select(problem: Moments, targets: Int[np.ndarray, " k"]) -> Moments:
    """The problem of some of the targets."""
    return problem._replace(
        correlation=problem.correlation[:, targets],
        energy=problem.energy[targets],
        mean_output=problem.mean_output[targets],
    )


def largest_lam(problem: Moments) -> Float[np.ndarray, " t"]:
    """The smallest lam of each target for which every weight is zero."""
    return np.abs(problem.correlation).max(0)


def step_size(gram: Gram) -> float:
    """One over the largest eigenvalue of the Gram matrix, with 1 % of margin."""
    if isinstance(gram, Factored):  # rows rows' has the same eigenvalues besides zeros
        gram = np.asarray(gram.rows @ gram.rows.T)
    if not gram.any():  # no mask ever varies: any step will do
        return 1.0
    if len(gram) < 3:  # too small for Lanczos
        return 1 / (1.01 * float(np.linalg.eigvalsh(gram)[-1]))
    start = np.random.default_rng(0).standard_normal(len(gram))
    largest = eigsh(
        gram,
        k=1,
        v0=start,
        tol=1e-3,  # pyright: ignore[reportArgumentType]  (scipy declares int)
        return_eigenvectors=False,
    )[0]
    return 1 / (1.01 * float(largest))


def relative_gap(
    weights: Float[np.ndarray, "g t"], problem: Moments, lam: Float[np.ndarray, " t"]
) -> Float[np.ndarray, " t"]:
    """The certificate: relative duality gap of each target, evaluated in float64."""
    unit = _unit(problem)
    scaled = weights.astype(np.float64) / unit
    product = problem.gram @ scaled
    correlation, energy = problem.correlation / unit, problem.energy / unit**2
    return np.asarray(_gap(np, scaled, product, correlation, energy, lam / unit))


def solve(
    problem: Moments,
    lam: Float[np.ndarray, " t"],
    *,
    start: Float[np.ndarray, "g t"] | None = None,
    tolerance: float = 1e-5,
    max_iterations: int = 3000,
    step: float | None = None,
) -> Solution:
    """Solve for all targets, iterating in float32; the gap is then evaluated in float64.

    Args:
        problem: from `moments`.
        lam: one a target, in output units.
        start: weights to start from.
        tolerance: relative duality gap to reach; float32 reaches about 1e-6.
        max_iterations: a bound for degenerate problems; the returned gap says what was reached.
        step: from `step_size`, when it is known already.
    """
    step = step_size(problem.gram) if step is None else step
    if start is None:
        start = np.zeros(problem.correlation.shape, np.float32)
    unit = _unit(problem)
    gram = jax.tree.map(lambda part: jnp.asarray(part, jnp.float32), problem.gram)
    weights, iterations = np.empty_like(start), 0
    targets = np.arange(len(unit))
    for first in range(0, len(unit), TARGET_BLOCK):
        block = _padded(targets[first : first + TARGET_BLOCK])
        task = _Task(
            jnp.asarray(problem.correlation[:, block] / unit[block], jnp.float32),
            jnp.asarray(problem.energy[block] / unit[block] ** 2, jnp.float32),
            jnp.asarray(lam[block] / unit[block], jnp.float32),
        )
        scaled, taken = _solve_block(
            gram,
            task,
            jnp.asarray(start[:, block] / unit[block], jnp.float32),
            jnp.float32(step),
            tolerance,
            max_iterations,
        )
        weights[:, block] = scaled * unit[block]
        iterations = max(iterations, taken)
    return Solution(weights, relative_gap(weights, problem, lam), iterations)


def _solve_block(
    gram: Float[Array, "g g"] | Factored,
    task: _Task,
    start: Float[Array, "g t"],
    step: Float[Array, ""],
    tolerance: float,
    max_iterations: int,
) -> tuple[Float[np.ndarray, "g t"], int]:
    """Weights, and the iterations of the slowest target. Targets that are solved leave."""
    state = _begin(gram, task, start)
    state = _advance(gram, task, state, step, tolerance, 0, min(EASY, max_iterations))
    weights = np.array(state.weights)
    targets = np.arange(len(task.lam))
    while True:
        unsolved = np.flatnonzero(np.asarray(state.gap) > tolerance)
        if not unsolved.size or state.iteration >= max_iterations:
            return weights, int(state.iteration)
        if 2 * unsolved.size <= len(targets):
            unsolved = _padded(unsolved)
            targets = targets[unsolved]
            task, state = _pick((task, state), unsolved)
        # Narrow programs gain little from narrower ones.
        leave = len(targets) // 2 if len(targets) > WIDTH_STEP else 0
        state = _advance(gram, task, state, step, tolerance, leave, max_iterations)
        weights[:, targets] = state.weights


def _pick(tree: Any, targets: Int[np.ndarray, " k"]) -> Any:
    """Some of the targets, the last axis of every array that has one."""
    return jax.tree.map(lambda part: part[..., targets] if part.ndim else part, tree)


def _padded(targets: Int[np.ndarray, " k"]) -> Int[np.ndarray, " n"]:
    """Filled up with repetitions to one of few widths, as each width has to be compiled."""
    count = len(targets)
    if count <= WIDTH_STEP:
        return np.resize(targets, 1 << (count - 1).bit_length())
    return np.resize(targets, math.ceil(count / WIDTH_STEP) * WIDTH_STEP)


def _unit(problem: Moments) -> Float[np.ndarray, " t"]:
    """The standard deviation of each target: in this unit float32 neither over- nor underflows."""
    return np.sqrt(np.where(problem.energy > 0, problem.energy, 1))


def _gap(np_or_jnp, weights, product, correlation, energy, lam):  # noqa: ANN001, ANN202
    """Relative duality gap; the same formula in numpy (float64) and in JAX (float32).

    Outputs are scaled to unit energy, or 0 when constant, so that the floors below are harmless.
    With the residual r = y - Z w, the dual point is s r / m, where s <= 1 makes it feasible.
    """
    xp = np_or_jnp
    slope = correlation - product
    fit = (weights * correlation).sum(0)
    residual = xp.maximum(energy - 2 * fit + (weights * product).sum(0), 0)
    scale = xp.minimum(1, lam / xp.maximum(xp.abs(slope).max(0), 1e-30))
    primal = residual / 2 + lam * xp.abs(weights).sum(0)
    dual = scale * (energy - fit) - scale**2 * residual / 2
    return (primal - dual) / xp.maximum(energy / 2, 1e-30)


@jax.jit
def _begin(gram: Float[Array, "g g"] | Factored, task: _Task, start: Float[Array, "g t"]) -> _State:
    product = gram @ start
    return _State(
        start,
        product,
        start,
        product,
        jnp.ones_like(task.lam),
        _gap(jnp, start, product, *task),
        jnp.int32(0),
    )


@jax.jit
def _advance(
    gram: Float[Array, "g g"] | Factored,
    task: _Task,
    state: _State,
    step: Float[Array, ""],
    tolerance: Float[Array, ""],
    leave: Int[Array, ""],
    limit: Int[Array, ""],
) -> _State:
    """Iterate until at most `leave` targets are unsolved, or up to iteration `limit`."""

    def go_on(state: _State) -> Bool[Array, ""]:
        return ((state.gap > tolerance).sum() > leave) & (state.iteration < limit)

    def iterate(state: _State) -> _State:
        moved = state.ahead + step * (task.correlation - state.ahead_product)
        weights = jnp.sign(moved) * jnp.maximum(jnp.abs(moved) - step * task.lam[None], 0)
        product = gram @ weights
        # Momentum of a target starts anew when it points uphill.
        change = weights - state.weights
        uphill = ((state.ahead - weights) * change).sum(0) > 0
        inertia = jnp.where(uphill, 1.0, state.inertia)
        next_inertia = (1 + jnp.sqrt(1 + 4 * inertia**2)) / 2
        push = ((inertia - 1) / next_inertia)[None]
        return _State(
            weights,
            product,
            weights + push * change,
            product + push * (product - state.product),
            next_inertia,
            _gap(jnp, weights, product, *task),
            state.iteration + 1,
        )

    return jax.lax.while_loop(go_on, iterate, state)
