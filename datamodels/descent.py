"""Proximal gradient for many targets at once: one matrix product an iteration for all of them.

First steps as long as the curvature along the last step allows (the spectral step of Barzilai and
Borwein 1988, for the lasso Wright, Nowak & Figueiredo 2009): on random masks they need a third of
the iterations, but nothing promises that they end. What they leave is finished by accelerated steps
of a safe length (FISTA, Beck & Teboulle 2009, with the gradient restart of O'Donoghue & Candes
2015). A target is solved by its duality gap, never by a number of iterations.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from datamodels.moments import DeviceGram

SPECTRAL = 100
"""Iterations with spectral steps. Masks at random need fewer; on correlated ones the steps may go
on for ever, and a hundred are a fifth of what FISTA needs there."""
LONGEST = 100.0
"""The longest spectral step, as a multiple of the safe one."""
EASY = 8
"""Iterations of a small problem before solved targets leave: a shorter solve is over before a
narrower program is compiled."""
LARGE = 1 << 27
"""Groups squared times targets from which they leave at once."""
NARROWEST = 32
"""Targets of the narrowest program: fewer would take as long, and a program more to compile."""
NARROW = 128
"""Targets of a program that gains little from being narrower."""
ROUNDING = 1e-6
"""Of an objective in float32, for outputs of unit energy."""


class Task(NamedTuple):
    """What one program solves, in float32 and in units of each target's standard deviation."""

    correlation: Float[Array, "g t"]
    energy: Float[Array, " t"]
    l1: Float[Array, " t"]
    l2: Float[Array, " t"]


class Point(NamedTuple):
    """Where the targets are."""

    weights: Float[Array, "g t"]
    product: Float[Array, "g t"]
    """gram @ weights"""
    length: Float[Array, " t"]
    """Of the next spectral step."""


class Sums(NamedTuple):
    """What the duality gap of each target needs of its weights and of the slope at them."""

    fit: Any
    """weights'correlation"""
    along: Any
    """weights'slope"""
    steepest: Any
    """The largest of the slope, without its sign."""
    size: Any
    """Of the weights, without their signs, added up."""


class _Spectral(NamedTuple):
    point: Point
    gap: Float[Array, " t"]
    bound: Float[Array, " t"]
    """The objective at the start, above which no step may end."""
    iteration: Int[Array, ""]


class _Accelerated(NamedTuple):
    point: Point
    gap: Float[Array, " t"]
    ahead: Point
    """The extrapolated point."""
    inertia: Float[Array, " t"]
    iteration: Int[Array, ""]


_State = _Spectral | _Accelerated


@jax.jit
def ahead(
    point: Point,
    before: Point,
    l1: Float[Array, " t"],
    l1_point: Float[Array, " t"],
    l1_before: Float[Array, " t"],
) -> Point:
    """Where to begin with the next penalty: on the line through the last two solutions."""
    usable = (l1_before > l1_point) & (l1_point > 0)  # there were two
    share = jnp.where(usable, (l1_point - l1) / jnp.where(usable, l1_before - l1_point, 1), 0)
    return Point(
        point.weights + share[None] * (point.weights - before.weights),
        point.product + share[None] * (point.product - before.product),
        point.length,
    )


def solve_block(
    gram: DeviceGram,
    task: Task,
    point: Point,
    step: Float[Array, ""],
    tolerance: float,
    max_iterations: int,
) -> tuple[Point, int]:
    """Where the targets end, and the iterations of the slowest. Those that are solved leave."""
    everyone = targets = np.arange(len(task.l1))
    easy = EASY if len(task.correlation) ** 2 * len(targets) < LARGE else 0
    taken = 0
    for begin, iterate, limit in (
        (_begin_spectral, _spectral_step, min(SPECTRAL, max_iterations)),
        (_begin_accelerated, _accelerated_step, max_iterations),
    ):
        start = point if targets is everyone else pick(point, targets)
        state = begin(task, start, jnp.int32(taken))
        while True:
            # Narrow programs gain little from narrower ones.
            leaving = taken >= easy and len(targets) > NARROW
            leave = _worth_leaving(len(targets)) if leaving else 0
            until = limit if taken >= easy else min(easy, limit)
            state = _advance(iterate, gram, task, state, step, tolerance, leave, until)
            point = state.point if targets is everyone else _put(point, targets, state.point)
            taken = int(state.iteration)
            unsolved = np.flatnonzero(~(np.asarray(state.gap) <= tolerance))
            if not unsolved.size:
                return point, taken
            if 2 * few_widths(unsolved.size) <= len(targets):
                unsolved = _padded(unsolved)
                targets = targets[unsolved]
                task, state = pick((task, state), unsolved)
            if taken >= limit:
                break
    return point, taken


@jax.jit
def pick(tree: Any, targets: Int[Array, " k"]) -> Any:
    """Some of the targets, the last axis of every array that has one."""
    return jax.tree.map(lambda part: part[..., targets] if part.ndim else part, tree)


@jax.jit
def _put(tree: Any, targets: Int[Array, " k"], values: Any) -> Any:
    """The opposite of `pick`; as reads, which are faster than writes to where targets say."""

    def put(part: Array, new: Array) -> Array:
        came = jnp.full(part.shape[-1], -1).at[targets].set(jnp.arange(len(targets)))
        here = jnp.broadcast_to(came >= 0, part.shape)
        return jnp.where(here, new[..., jnp.maximum(came, 0)], part)

    return jax.tree.map(put, tree, values)


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


def duality_gap(xp: Any, sums: Sums, energy: Any, l1: Any) -> Any:
    """Relative duality gap; the same formula in numpy (float64) and in JAX (float32).

    Outputs are scaled to unit energy, or 0 when constant, so that the floors below are harmless.
    With the residual r = y - Z w, the dual point is s r / m, where s <= 1 makes it feasible. The
    ridge is a lasso with sqrt(m l2) I below the masks and zeros below the outputs.
    """
    # w'(gram + l2) w = w'correlation - w'slope
    residual = xp.maximum(energy - sums.fit - sums.along, 0)
    scale = xp.minimum(1, l1 / xp.maximum(sums.steepest, 1e-30))
    primal = residual / 2 + l1 * sums.size
    dual = scale * (energy - sums.fit) - scale**2 * residual / 2
    return (primal - dual) / xp.maximum(energy / 2, 1e-30)


def _slope(task: Task, point: Point) -> Float[Array, "g t"]:
    """Of the smooth part of the objective, downhill."""
    return task.correlation - point.product - task.l2[None] * point.weights


def _objective(task: Task, point: Point) -> Float[Array, " t"]:
    """But for the energy, which does not change."""
    smooth = (point.weights * (task.correlation + _slope(task, point))).sum(0) / 2
    return task.l1 * jnp.abs(point.weights).sum(0) - smooth


def _gap_at(task: Task, point: Point) -> Float[Array, " t"]:
    weights, slope = point.weights, _slope(task, point)
    sums = Sums(
        fit=(weights * task.correlation).sum(0),
        along=(weights * slope).sum(0),
        steepest=jnp.abs(slope).max(0),
        size=jnp.abs(weights).sum(0),
    )
    return duality_gap(jnp, sums, task.energy, task.l1)


def _moved(
    gram: DeviceGram, task: Task, point: Point, length: Float[Array, " t"]
) -> tuple[Float[Array, "g t"], Float[Array, "g t"]]:
    """A proximal step from a point: weights, and the Gram matrix times them."""
    target = point.weights + length[None] * _slope(task, point)
    weights = jnp.sign(target) * jnp.maximum(jnp.abs(target) - (length * task.l1)[None], 0)
    return weights, gram @ weights


def _safe_length(task: Task, step: Float[Array, ""]) -> Float[Array, " t"]:
    """One over the largest curvature."""
    return 1 / (1 / step + task.l2)


@jax.jit
def _begin_spectral(task: Task, start: Point, iteration: Int[Array, ""]) -> _Spectral:
    bound = _objective(task, start) + ROUNDING
    return _Spectral(start, _gap_at(task, start), bound, iteration)


def _spectral_step(
    gram: DeviceGram, task: Task, state: _Spectral, step: Float[Array, ""]
) -> _Spectral:
    """A step that would end above the start is not taken: the next one then has the safe length."""
    here, safe = state.point, _safe_length(task, step)
    weights, product = _moved(gram, task, here, here.length)
    change = weights - here.weights
    curvature = (change * (product - here.product + task.l2[None] * change)).sum(0)
    length = jnp.square(change).sum(0) / jnp.where(curvature > 0, curvature, jnp.inf)
    there = Point(weights, product, jnp.clip(length, safe, LONGEST * safe))
    taken = _objective(task, there) <= state.bound
    point = Point(
        jnp.where(taken[None], weights, here.weights),
        jnp.where(taken[None], product, here.product),
        jnp.where(taken, there.length, safe),
    )
    return _Spectral(point, _gap_at(task, point), state.bound, state.iteration + 1)


@jax.jit
def _begin_accelerated(task: Task, start: Point, iteration: Int[Array, ""]) -> _Accelerated:
    gap = _gap_at(task, start)
    return _Accelerated(start, gap, start, jnp.ones_like(gap), iteration)


def _accelerated_step(
    gram: DeviceGram, task: Task, state: _Accelerated, step: Float[Array, ""]
) -> _Accelerated:
    here, ahead = state.point, state.ahead
    weights, product = _moved(gram, task, ahead, _safe_length(task, step))
    # Momentum of a target starts anew when it points uphill.
    change = weights - here.weights
    uphill = ((ahead.weights - weights) * change).sum(0) > 0
    inertia = jnp.where(uphill, 1.0, state.inertia)
    next_inertia = (1 + jnp.sqrt(1 + 4 * inertia**2)) / 2
    push = ((inertia - 1) / next_inertia)[None]
    point = Point(weights, product, here.length)
    ahead = Point(weights + push * change, product + push * (product - here.product), here.length)
    return _Accelerated(point, _gap_at(task, point), ahead, next_inertia, state.iteration + 1)


@partial(jax.jit, static_argnames="iterate")
def _advance(
    iterate: Callable[..., _State],
    gram: DeviceGram,
    task: Task,
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
