"""What a member costs, counted from its model."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jaxtyping import Array, Float

from training.sweep import Task
from training.train import make_evaluate, make_train


def member_flops(task: Task) -> int:
    """FLOP of all matrix products and convolutions of one member: its training, its targets.

    A multiplication and an addition are two. Everything elementwise is left out, as is usual, so
    it says what a machine's matrix units have to do.
    """
    return program_flops(member_jaxpr(task))


def member_jaxpr(task: Task) -> ClosedJaxpr:
    """The program of one member, whatever the layout."""

    def member(key: Array, mask: Array) -> Float[Array, " t"]:
        state = make_train(task.recipe, task.model, task.examples)(key, mask)
        return make_evaluate(task.recipe, task.model, task.targets, task.output)(state)

    key = jax.eval_shape(lambda: jax.random.key(0))
    mask = jax.ShapeDtypeStruct((len(task.examples),), jnp.bool_)
    return jax.make_jaxpr(member)(key, mask)


def program_flops(program: ClosedJaxpr) -> int:
    """FLOP of the matrix products and convolutions of a program; 1 if it has none.

    The body of a loop counts once a turn; of a loop whose length is not known in advance, once.
    """
    return max(1, _flops(program.jaxpr))


def _flops(jaxpr: Jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: JaxprEqn) -> int:
    match equation.primitive.name:
        case "dot_general":
            ((contracted, _), _) = equation.params["dimension_numbers"]
            left = _array(equation.invars[0]).shape
            return 2 * _array(equation.outvars[0]).size * math.prod(left[i] for i in contracted)
        case "conv_general_dilated":
            kernel = _array(equation.invars[1])
            outputs = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
            return 2 * _array(equation.outvars[0]).size * kernel.size // outputs
        case "cond":
            return max(map(_flops, _inner(equation.params["branches"])))
    turns = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
    return turns * sum(map(_flops, _inner(equation.params.values())))


def _array(variable: Any) -> Any:
    """Shape and size of what a variable of a jaxpr holds."""
    return variable.aval


def _inner(values: Iterable[Any]) -> Iterator[Jaxpr]:
    """The jaxprs among the parameters of an equation."""
    for value in values:
        if isinstance(value, Jaxpr):
            yield value
        elif isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, tuple | list):
            yield from _inner(value)
