"""A model of one's own: a factory that the config names as "own_model:two_layers".

PYTHONPATH=examples accomplice run configs/smoke.toml --model.factory own_model:two_layers
"""

import math

import jax
from flax import nnx


class TwoLayers(nnx.Module):
    """Two hidden layers with dropout; train and evaluation mode are switched for you."""

    def __init__(self, shape: tuple[int, ...], classes: int, rngs: nnx.Rngs):
        self.first = nnx.Linear(math.prod(shape), 64, rngs=rngs)
        self.second = nnx.Linear(64, 32, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.output = nnx.Linear(32, classes, rngs=rngs)

    def features(self, inputs: jax.Array) -> jax.Array:
        """What the last layer reads; only `groups.features = "model"` asks for it."""
        hidden = nnx.relu(self.first(inputs.reshape(inputs.shape[0], -1)))
        return self.dropout(nnx.relu(self.second(hidden)))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return self.output(self.features(inputs))


def two_layers(shape: tuple[int, ...], classes: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """Called with the shape of one input, the number of classes and the member's keys."""
    return TwoLayers(shape, classes, rngs)
