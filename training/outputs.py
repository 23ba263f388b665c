"""Output functions: what a target reports of a member's logits."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from training.errors import UserError, reason
from training.models import import_function

OutputFunction = Callable[[Float[Array, "b classes"], Int[Array, " b"]], Float[Array, "b *k"]]
"""(logits (b, classes), labels (b,)) -> one number a target, (b,); `both` gives two, (b, 2)"""


def _of_label(
    values: Float[Array, "b classes"], labels: Int[Array, " b"]
) -> tuple[Float[Array, " b"], Float[Array, "b classes"]]:
    """The entry of each row's label, and the rows with that entry at -inf."""
    chosen = jnp.take_along_axis(values, labels[:, None], axis=1)[:, 0]
    is_label = jnp.arange(values.shape[1])[None, :] == labels[:, None]
    return chosen, jnp.where(is_label, -jnp.inf, values)


def margin(logits: Float[Array, "b classes"], labels: Int[Array, " b"]) -> Float[Array, " b"]:
    """Correct-class margin in logits, `z_y - logsumexp(z_others)`: the log-odds of the label.

    Positive: the model gives the label more than half of the probability. (Park et al. 2023,
    TRAK, section 3.2, use the same output.)
    """
    chosen, others = _of_label(logits, labels)
    # Differences first: of two large numbers the small difference would be lost.
    return -jax.nn.logsumexp(others - chosen[:, None], axis=1)


def loss(logits: Float[Array, "b classes"], labels: Int[Array, " b"]) -> Float[Array, " b"]:
    """Cross-entropy of the label in nats; lower is better."""
    return -_of_label(jax.nn.log_softmax(logits), labels)[0]


def probability(logits: Float[Array, "b classes"], labels: Int[Array, " b"]) -> Float[Array, " b"]:
    """Probability of the label, from 0 to 1."""
    return _of_label(jax.nn.softmax(logits), labels)[0]


def lead(logits: Float[Array, "b classes"], labels: Int[Array, " b"]) -> Float[Array, " b"]:
    """Logit of the label minus the largest other logit: positive where the label is predicted."""
    chosen, others = _of_label(logits, labels)
    return chosen - others.max(axis=1)


def both(first: OutputFunction, second: OutputFunction) -> OutputFunction:
    """Two outputs a target, shape (b, 2)."""

    def outputs(logits: Float[Array, "b classes"], labels: Int[Array, " b"]) -> Float[Array, "b 2"]:
        return jnp.stack([first(logits, labels), second(logits, labels)], axis=1)

    return outputs


BUILTIN: dict[str, OutputFunction] = {"margin": margin, "loss": loss, "probability": probability}


def output_function(name: str, classes: int) -> OutputFunction:
    """A built-in output by name, or the user's "package.module:function".

    A user's function maps (logits (b, classes) float32, labels (b,) int32) to (b,) float32.

    Raises:
        UserError: unknown name, or a function that fails or returns another shape.
    """
    if name in BUILTIN:
        return BUILTIN[name]
    if ":" not in name:
        raise UserError(
            f'sweep.output = "{name}" is unknown; choose {", ".join(BUILTIN)} '
            f'or name your own as "package.module:function"'
        )
    function = import_function(name, "sweep.output")
    logits = jax.ShapeDtypeStruct((3, classes), jnp.float32)
    labels = jax.ShapeDtypeStruct((3,), jnp.int32)
    try:
        result = jax.eval_shape(function, logits, labels)
    except Exception as error:  # whatever the user's function raises is the user's to see
        raise UserError(
            f'sweep.output = "{name}" failed on logits (3, {classes}): {reason(error)}'
        ) from error
    if getattr(result, "shape", None) != (3,):
        raise UserError(
            f'sweep.output = "{name}" maps logits (3, {classes}) to shape '
            f"{getattr(result, 'shape', None)}; it must return one number a target, shape (3,)"
        )
    return function
