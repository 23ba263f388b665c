"""The models a sweep trains: small flax nnx modules, built in or the user's own."""

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, PyTree

from training.errors import UserError, reason
from training.layers import Convolution, mean_pool

Inputs = Float[Array, "b *shape"]
Logits = Float[Array, "b classes"]


@dataclass(frozen=True)
class ModelConfig:
    """The model that every member trains."""

    name: str = "mlp"
    """A built-in model: linear, mlp or cnn. Not read when `factory` is given."""
    factory: str = ""
    """Your own model, "package.module:function"; see docs/own_model.md."""
    width: int = 0
    """Hidden units of the mlp (0: 128), or channels of the cnn's first layer (0: 8)."""
    classes: int = 0
    """Number of classes; 0 takes the largest label + 1."""


class Linear(nnx.Module):
    """Multinomial logistic regression on the flattened input."""

    def __init__(self, shape: tuple[int, ...], classes: int, *, rngs: nnx.Rngs):
        self.output = nnx.Linear(math.prod(shape), classes, rngs=rngs)

    def __call__(self, inputs: Inputs) -> Logits:
        """Logits of a batch."""
        return self.output(inputs.reshape(inputs.shape[0], -1))


class MLP(nnx.Module):
    """One hidden layer of rectified units on the flattened input."""

    def __init__(self, shape: tuple[int, ...], classes: int, width: int, *, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(math.prod(shape), width, rngs=rngs)
        self.output = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, inputs: Inputs) -> Logits:
        """Logits of a batch."""
        return self.output(nnx.relu(self.hidden(inputs.reshape(inputs.shape[0], -1))))


class CNN(nnx.Module):
    """Two 3x3 convolutions (`width`, then 2 `width` channels), each halved by mean pooling."""

    def __init__(self, shape: tuple[int, ...], classes: int, width: int, *, rngs: nnx.Rngs):
        height, columns, channels = shape
        self.first = Convolution(channels, width, 3, rngs=rngs)
        self.second = Convolution(width, 2 * width, 3, rngs=rngs)
        self.output = nnx.Linear((height // 4) * (columns // 4) * 2 * width, classes, rngs=rngs)

    def __call__(self, inputs: Inputs) -> Logits:
        """Logits of a batch."""
        hidden = jnp.moveaxis(inputs, (0, 3), (3, 0))  # as the layers want them
        hidden = mean_pool(nnx.relu(self.first(hidden)), 2)
        hidden = mean_pool(nnx.relu(self.second(hidden)), 2)
        return self.output(hidden.reshape(-1, hidden.shape[3]).T)


@dataclass(frozen=True)
class Model:
    """A model as three pure functions, so that it can be vmapped over members.

    `parameters` are what the optimiser moves (`nnx.Param`); `rest` is every other variable
    (batch statistics, dropout keys), which a training step may change.
    """

    init: Callable[[Key[Array, ""]], tuple[PyTree, PyTree]]
    """key -> (parameters, rest)"""
    apply_train: Callable[[PyTree, PyTree, Inputs], tuple[Logits, PyTree]]
    """(parameters, rest, inputs) -> (logits, rest after the call)"""
    apply: Callable[[PyTree, PyTree, Inputs], Logits]
    """(parameters, rest, inputs) -> logits, in evaluation mode"""
    classes: int
    source: str = field(default="", compare=False)
    """Source text of the user's factory module, so that a changed model is another run."""


Factory = Callable[..., nnx.Module]


def _builtin(config: ModelConfig, shape: tuple[int, ...]) -> Factory:
    match config.name:
        case "linear":
            return Linear
        case "mlp":
            return partial(MLP, width=config.width or 128)
        case "cnn":
            if len(shape) != 3 or min(shape[:2]) < 4:
                raise UserError(
                    f'model.name = "cnn" needs images of at least 4x4 pixels, but one input has '
                    f'shape {shape}; use "mlp" or "linear"'
                )
            return partial(CNN, width=config.width or 8)
    raise UserError(f'model.name = "{config.name}" is unknown; choose linear, mlp or cnn')


def import_function(path: str, key: str) -> Callable[..., Any]:
    """The function that "package.module:function" names.

    Raises:
        UserError: the module cannot be imported, or holds no such function. `key` is the config
            key to name in the message.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise UserError(f'{key} = "{path}" must read "package.module:function"')
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the user's module may fail in any way
        raise UserError(
            f'{key} = "{path}": cannot import {module_name} '
            f"({reason(error)}); is its folder on PYTHONPATH?"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f'{key} = "{path}": {module_name} has no function {name}')
    return function


def module_source(path: str) -> str:
    """Text of the module in "package.module:function"; "" when it has no file of its own."""
    file = getattr(importlib.import_module(path.partition(":")[0]), "__file__", None)
    return Path(file).read_text(encoding="utf-8") if file and file.endswith(".py") else ""


def build_model(config: ModelConfig, shape: tuple[int, ...], classes: int) -> Model:
    """The configured model for inputs of one `shape` (without the batch axis).

    A user's factory is called as `factory(shape, classes, rngs=nnx.Rngs(key))` and returns an
    `nnx.Module` that maps float32 inputs (b, *shape) to logits (b, classes).

    Raises:
        UserError: unknown name; factory that cannot be imported, fails, or returns something
            that is not such a module.
    """
    if config.factory:
        factory = import_function(config.factory, "model.factory")
        source, name = module_source(config.factory), f'model.factory = "{config.factory}"'
    else:
        factory = _builtin(config, shape)
        source, name = "", f'model.name = "{config.name}"'
    try:
        model = _as_functions(factory, shape, classes, source)
        _check_calls(model, shape)
    except _Unfit as error:
        raise UserError(f"{name} {error}") from error
    except UserError:
        raise
    except Exception as error:  # whatever the user's module raises is the user's to see
        raise UserError(
            f"{name} failed for inputs of shape {shape} and {classes} classes: {reason(error)}"
        ) from error
    return model


class _Unfit(Exception):
    """A factory that works, but makes something else than a model; says what."""


def _as_functions(factory: Factory, shape: tuple[int, ...], classes: int, source: str) -> Model:
    def build(key: Key[Array, ""]) -> Any:
        module = factory(shape, classes, rngs=nnx.Rngs(key))
        if not isinstance(module, nnx.Module):
            raise _Unfit(f"returned {type(module).__name__}; it must return an nnx.Module")
        return module

    template = nnx.eval_shape(build, jax.random.key(0))
    template.train()
    graph_train, *_ = nnx.split(template, nnx.Param, ...)
    template.eval()
    graph_eval, *_ = nnx.split(template, nnx.Param, ...)

    def init(key: Key[Array, ""]) -> tuple[PyTree, PyTree]:
        _, parameters, rest = nnx.split(build(key), nnx.Param, ...)
        return parameters, rest

    # Copies, since a module that was merged shares its variables with the state it came from.
    def apply_train(parameters: PyTree, rest: PyTree, inputs: Inputs) -> tuple[Logits, PyTree]:
        module: Any = nnx.merge(graph_train, parameters, rest, copy=True)
        logits = module(inputs)
        _, _, rest = nnx.split(module, nnx.Param, ...)
        return logits, rest

    def apply(parameters: PyTree, rest: PyTree, inputs: Inputs) -> Logits:
        module: Any = nnx.merge(graph_eval, parameters, rest, copy=True)
        return module(inputs)

    return Model(init, apply_train, apply, classes, source)


def _check_calls(model: Model, shape: tuple[int, ...]) -> None:
    """Trace both modes once, without computing: logits of the right shape, a stable state."""
    inputs = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    parameters, rest = jax.eval_shape(model.init, jax.random.key(0))
    if not jax.tree.leaves(parameters):
        raise _Unfit("has no nnx.Param, so there is nothing to train")
    logits, after = jax.eval_shape(model.apply_train, parameters, rest, inputs)
    for found in (logits, jax.eval_shape(model.apply, parameters, rest, inputs)):
        seen, expected = getattr(found, "shape", type(found).__name__), (2, model.classes)
        if seen != expected:
            raise _Unfit(
                f"maps inputs {(2, *shape)} to {seen}; it must return logits of shape {expected}"
            )
    if jax.tree.structure(after) != jax.tree.structure(rest):
        raise _Unfit("makes variables while it is called; make all of them in __init__")
