"""Examples as arrays: what training and evaluation read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

PADDING = 0
"""The token id that fills short texts at their end."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Examples:
    """A batch of examples; a pytree, on the host or on a device.

    Inputs keep the dtype they were loaded with (images stay uint8) and are normalised batch by
    batch, so that the copy on the device is small.
    """

    inputs: Num[Array, "n *shape"] | Num[np.ndarray, "n *shape"]
    labels: Int[Array, " n"] | Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return self.labels.shape[0]

    def take(self, rows: slice | Int[np.ndarray, " k"]) -> "Examples":
        """Some of the examples, on the host."""
        return Examples(np.asarray(self.inputs)[rows], np.asarray(self.labels)[rows])


def concatenate(batches: Sequence[Examples]) -> Examples:
    """All examples of several batches, one batch after the other, on the host."""
    return Examples(
        np.concatenate([np.asarray(batch.inputs) for batch in batches]),
        np.concatenate([np.asarray(batch.labels) for batch in batches]),
    )


class Normaliser(NamedTuple):
    """Affine map to mean 0 and standard deviation 1; fitted once on all training examples.

    It is part of the recipe: a mask does not change it. Fitted on token ids, which name and do
    not measure, it is empty and leaves them as they are.
    """

    mean: Float[np.ndarray, " c"]
    scale: Float[np.ndarray, " c"]

    def __call__(self, inputs: Num[Array, "*b c"]) -> Num[Array, "*b c"]:
        """Normalise the last axis: colour channels of images, columns of a table."""
        if not self.mean.size:
            return inputs
        shape = (1,) * (inputs.ndim - 1) + (-1,)
        mean, scale = jnp.asarray(self.mean).reshape(shape), jnp.asarray(self.scale).reshape(shape)
        return (inputs.astype(jnp.float32) - mean) / scale


def fit_normaliser(inputs: Num[np.ndarray, "n *b c"]) -> Normaliser:
    """Mean and standard deviation of the last axis, in float32; a constant keeps scale 1.

    Inputs of int32 are token ids, and of no use as numbers.
    """
    if inputs.dtype == np.int32:
        return Normaliser(np.zeros(0, np.float32), np.zeros(0, np.float32))
    axes = tuple(range(inputs.ndim - 1))
    mean = inputs.mean(axes, dtype=np.float64)
    scale = inputs.std(axes, dtype=np.float64)
    scale = np.where(scale > 0, scale, 1.0)
    return Normaliser(mean.astype(np.float32), scale.astype(np.float32))
