"""The optimiser of a recipe, through optax."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from training.augment import Augmentation


@dataclass(frozen=True)
class OptimConfig:
    """How one member is trained; the same for every member, whatever its mask."""

    name: Literal["sgd", "adamw"] = "sgd"
    """sgd (with momentum) or adamw."""
    schedule: Literal["constant", "cosine", "one_cycle"] = "one_cycle"
    """Learning rate over the steps."""
    learning_rate: float = 0.05
    """The constant, the first (cosine) or the highest (one_cycle) learning rate."""
    momentum: float = 0.9
    """Of sgd (Nesterov)."""
    weight_decay: float = 0.0
    """Decoupled weight decay (both optimisers)."""
    steps: int = 300
    """Steps of every member, however many examples its mask keeps."""
    batch_size: int = 50
    """Examples a step."""
    augment: Augmentation = "none"
    """Random changes of the training images: flip (left to right), crop (moved by up to 4 pixels),
    flip_crop, or none."""


def make_schedule(config: OptimConfig) -> optax.Schedule:
    """Step -> learning rate."""
    match config.schedule:
        case "constant":
            schedule = optax.constant_schedule(config.learning_rate)
        case "cosine":
            schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps)
        case "one_cycle":
            schedule = optax.cosine_onecycle_schedule(config.steps, config.learning_rate)

    def rate(step: ArrayLike) -> Float[Array, ""]:
        # optax's schedules add integers, booleans and floats: allowed here, and only here.
        with jax.numpy_dtype_promotion("standard"):
            return jnp.asarray(schedule(step), jnp.float32)

    return rate


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """The configured optimiser with its schedule."""
    schedule = make_schedule(config)
    match config.name:
        case "sgd":
            return optax.chain(
                optax.trace(decay=config.momentum, nesterov=True),
                optax.add_decayed_weights(config.weight_decay),
                optax.scale_by_learning_rate(schedule),
            )
        case "adamw":
            return optax.adamw(schedule, weight_decay=config.weight_decay)
