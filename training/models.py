"""The models a sweep trains, built in or the user's own, as pure functions."""

import dataclasses
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Key, Num, PyTree

from training.errors import UserError, reason
from training.finetuning import is_part, require_parts, starting_values
from training.networks import CNN, MLP, Bag, Linear, Logits, PatchTransformer, ResNet, Transformer
from training.variables import names, to_named, with_named

Variables = dict[str, Any]
"""Arrays by the name of the variable in its module."""

Inputs = Num[Array, "b *shape"]
"""float32 numbers or images, or int32 token ids"""


@dataclass(frozen=True)
class ModelConfig:
    """The model that every member trains."""

    name: str = "mlp"
    """A built-in model: linear, mlp, cnn, resnet, transformer or bag. Not read when `factory` is
    given."""
    factory: str = ""
    """Your own model, "package.module:function"; see docs/own_model.md."""
    width: int = 0
    """Hidden units of the mlp (0: 128), channels of the first layer of the cnn (0: 8) and the
    resnet (0: 16), features of transformer and bag (0: 64)."""
    depth: int = 2
    """Layers of the transformer."""
    patch: int = 0
    """Side in pixels of the transformer's patches of an image; 0: 4, or 2 below 16 pixels."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What a model computes in; parameters, moments, logits and loss are float32 either way."""
    classes: int = 0
    """Number of classes; 0 takes the largest label + 1."""
    init_from: str = ""
    """A checkpoint written by orbax that every member starts from (fine-tuning): a folder, or in
    gs://."""
    fresh: tuple[str, ...] = ()
    """Parts of the model that start anew all the same, such as its last layer, by name: "output"
    or "blocks.0"."""
    frozen: tuple[str, ...] = ()
    """Parts of the model whose parameters are not trained, by name."""


class Rest(NamedTuple):
    """Variables that the optimiser does not move."""

    frozen: PyTree
    """Parameters that stay as they start."""
    variables: PyTree
    """Whatever else there is (batch statistics, dropout keys); a training step may change it."""


class State(NamedTuple):
    """All variables of one member."""

    parameters: PyTree
    """What the optimiser moves."""
    rest: Rest


@dataclass(frozen=True)
class Model:
    """A model as three pure functions, so that it can be vmapped over members.

    `parameters` are what the optimiser moves (`nnx.Param`); `rest` is every other variable.
    """

    make: Callable[[Key[Array, ""]], State]
    """key -> the state of a member before its first step, all drawn anew"""
    apply_train: Callable[[PyTree, Rest, Inputs], tuple[Logits, Rest]]
    """(parameters, rest, inputs) -> (logits, rest after the call)"""
    apply: Callable[[PyTree, Rest, Inputs], Logits]
    """(parameters, rest, inputs) -> logits, in evaluation mode"""
    classes: int
    initial: Variables = field(default_factory=dict, compare=False)
    """What members start from that is not drawn anew, by name."""
    by_example: bool = False
    """In training every example is treated by itself, and nothing but parameters (no batch
    statistics, no dropout keys) changes: a batch may be taken in pieces."""
    features: Callable[[PyTree, Rest, Inputs], Array] | None = field(default=None, compare=False)
    """(parameters, rest, inputs) -> (b, d) what the last layer reads, in evaluation mode; None
    where the module has no method `features`."""
    source: str = field(default="", compare=False)
    """Source text of the user's factory module, so that a changed model is another run."""

    def init(self, key: Key[Array, ""]) -> State:
        """key -> the state of a member before its first step."""
        return with_named(self.make(key), self.initial)

    @cached_property
    def common(self) -> frozenset[str]:
        """Names of what all members share: frozen, and not drawn anew."""
        _, rest = jax.eval_shape(self.make, jax.random.key(0))
        return frozenset(names(rest.frozen)).intersection(self.initial)


Factory = Callable[..., nnx.Module]


def _builtin(config: ModelConfig, shape: tuple[int, ...], vocabulary: int) -> Factory:
    name, width, depth = config.name, config.width, config.depth
    if name not in BUILTIN:
        raise UserError(f'model.name = "{name}" is unknown; choose {", ".join(BUILTIN)}')
    match name, vocabulary > 0:
        case "transformer", True:
            return partial(Transformer, width=width or 64, depth=depth, vocabulary=vocabulary)
        case "bag", True:
            return partial(Bag, width=width or 64, vocabulary=vocabulary)
        case _, True:
            raise UserError(f'model.name = "{name}" cannot read text; choose transformer or bag')
        case "linear", _:
            return Linear
        case "mlp", _:
            return partial(MLP, width=width or 128)
        case "cnn", _:
            _require_images(name, shape, 4)
            return partial(CNN, width=width or 8)
        case "resnet", _:
            _require_images(name, shape, 8)
            return partial(ResNet, width=width or 16)
        case "transformer", _:
            _require_images(name, shape, 2)
            patch = config.patch or (4 if min(shape[:2]) >= 16 else 2)
            if shape[0] % patch or shape[1] % patch:
                raise UserError(
                    f"model.patch = {patch} does not divide images of {shape[0]}x{shape[1]} "
                    f"pixels; choose a common divisor of both"
                )
            return partial(PatchTransformer, width=width or 64, depth=depth, patch=patch)
    others = (
        "cnn, resnet, transformer, mlp or linear for images"
        if len(shape) == 3
        else "mlp or linear for numbers"
    )
    raise UserError(f'model.name = "{name}" reads text only; choose {others}')


BUILTIN = ("linear", "mlp", "cnn", "resnet", "transformer", "bag")


def _require_images(name: str, shape: tuple[int, ...], side: int) -> None:
    if len(shape) != 3 or min(shape[:2]) < side:
        raise UserError(
            f'model.name = "{name}" needs images of at least {side}x{side} pixels, but one input '
            f'has shape {shape}; use "mlp" or "linear"'
        )


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


def build_model(
    config: ModelConfig, shape: tuple[int, ...], classes: int, vocabulary: int = 0
) -> Model:
    """The configured model for inputs of one `shape` (without the batch axis).

    A user's factory is called as `factory(shape, classes, rngs=nnx.Rngs(key))` and returns an
    `nnx.Module` that maps inputs (b, *shape) to logits (b, classes). Inputs are float32, or int32
    token ids below `vocabulary` when that is not 0.

    Raises:
        UserError: unknown name; a model that does not fit the inputs; a factory that cannot be
            imported, fails, or returns something that is not such a module.
    """
    if config.factory:
        factory = import_function(config.factory, "model.factory")
        source, name = module_source(config.factory), f'model.factory = "{config.factory}"'
    else:
        factory = _builtin(config, shape, vocabulary)
        source, name = "", f'model.name = "{config.name}"'
    inputs = jax.ShapeDtypeStruct((2, *shape), jnp.int32 if vocabulary else jnp.float32)
    try:
        model = _as_functions(factory, shape, classes, jnp.dtype(config.precision), config.frozen)
        if config.init_from:
            shapes = jax.eval_shape(lambda key: to_named(model.make(key)), jax.random.key(0))
            values = starting_values(config.init_from, config.fresh, shapes)
            model = dataclasses.replace(model, initial=values)
        _check_calls(model, inputs)
        by_example = not config.factory or _is_by_example(model, inputs, vocabulary)
    except _Unfit as error:
        raise UserError(f"{name} {error}") from error
    except UserError:
        raise
    except Exception as error:  # whatever the user's module raises is the user's to see
        raise UserError(
            f"{name} failed for inputs of shape {shape} and {classes} classes: {reason(error)}"
        ) from error
    return dataclasses.replace(model, by_example=by_example, source=source)


class _Unfit(Exception):
    """A factory that works, but makes something else than a model; says what."""


def _as_functions(
    factory: Factory,
    shape: tuple[int, ...],
    classes: int,
    precision: jnp.dtype,
    frozen: tuple[str, ...],
) -> Model:
    def build(key: Key[Array, ""]) -> Any:
        module = factory(shape, classes, rngs=nnx.Rngs(key))
        if not isinstance(module, nnx.Module):
            raise _Unfit(f"returned {type(module).__name__}; it must return an nnx.Module")
        return module

    def is_trained(path: tuple[Any, ...], value: Any) -> bool:
        return isinstance(value, nnx.Param) and not is_part(".".join(map(str, path)), frozen)

    def split(module: nnx.Module) -> tuple[nnx.GraphDef, PyTree, Rest]:
        graph, parameters, stay, variables = nnx.split(module, is_trained, nnx.Param, ...)
        return graph, parameters, Rest(stay, variables)

    template = nnx.eval_shape(build, jax.random.key(0))
    require_parts("model.frozen", frozen, names(nnx.state(template, nnx.Param)))
    template.train()
    graph_train, *_ = split(template)
    template.eval()
    graph_eval, *_ = split(template)

    def make(key: Key[Array, ""]) -> State:
        _, parameters, rest = split(build(key))
        return State(parameters, rest)

    def call(
        graph: nnx.GraphDef,
        parameters: PyTree,
        rest: Rest,
        inputs: Inputs,
        method: str = "__call__",
    ) -> tuple[Any, nnx.GraphDef, Rest]:
        trained, stay = _cast(parameters, precision), _cast(rest.frozen, precision)
        # A copy, since a module that was merged shares its variables with the state it came from.
        module: Any = nnx.merge(graph, trained, stay, rest.variables, copy=True)
        logits = getattr(module, method)(_cast(inputs, precision))
        after, _, (_, variables) = split(module)
        return _cast(logits, jnp.dtype(jnp.float32)), after, Rest(rest.frozen, variables)

    def apply_train(parameters: PyTree, rest: Rest, inputs: Inputs) -> tuple[Logits, Rest]:
        logits, after, rest = call(graph_train, parameters, rest, inputs)
        if after != graph_train:
            raise _Unfit(
                "makes variables or changes Python attributes while it is called, which members "
                "of one program cannot do; keep all state in nnx.Variable, made in __init__"
            )
        return logits, rest

    def apply(parameters: PyTree, rest: Rest, inputs: Inputs) -> Logits:
        return call(graph_eval, parameters, rest, inputs)[0]

    def features(parameters: PyTree, rest: Rest, inputs: Inputs) -> Array:
        return call(graph_eval, parameters, rest, inputs, "features")[0]

    has_features = callable(getattr(template, "features", None))
    return Model(make, apply_train, apply, classes, features=features if has_features else None)


def _cast(tree: PyTree, dtype: jnp.dtype) -> PyTree:
    """The same with every floating-point array in `dtype`."""

    def cast(leaf: Any) -> Any:
        floating = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype) if floating else leaf

    return jax.tree.map(cast, tree)


def _check_calls(model: Model, inputs: jax.ShapeDtypeStruct) -> None:
    """Trace both modes, without computing: logits of the right shape, a stable state."""
    parameters, rest = jax.eval_shape(model.init, jax.random.key(0))
    if not jax.tree.leaves(parameters):
        raise _Unfit("has no nnx.Param that is not frozen, so there is nothing to train")
    logits, after = jax.eval_shape(model.apply_train, parameters, rest, inputs)
    for found in (logits, jax.eval_shape(model.apply, parameters, rest, inputs)):
        seen, expected = getattr(found, "shape", type(found).__name__), (2, model.classes)
        if seen != expected:
            raise _Unfit(
                f"maps inputs {inputs.shape} to {seen}; it must return logits of shape {expected}"
            )
    if jax.tree.map(_shape_and_dtype, after) != jax.tree.map(_shape_and_dtype, rest):
        raise _Unfit("changes the shape or dtype of a variable while it is called")
    made_alike = _same_each_time(model.init, jax.random.key(0))
    if not (made_alike and _same_each_time(model.apply_train, parameters, rest, inputs)):
        raise _Unfit(
            "computes something else each time it is made or called, so it reads or changes Python "
            "state (a counter, numpy's random numbers) or holds a jax array that is no "
            "nnx.Variable; use nnx.Variable and nnx.Rngs, made in __init__"
        )


def _same_each_time(function: Callable[..., Any], *arguments: Any) -> bool:
    """Whether two traces of a function are the same program."""
    # A new function each time, since JAX keeps the trace of one that it knows.
    once, again = (
        jax.make_jaxpr(lambda *arguments: function(*arguments))(*arguments) for _ in range(2)
    )
    return str(once) == str(again) and all(map(np.array_equal, once.consts, again.consts))


def _is_by_example(model: Model, inputs: jax.ShapeDtypeStruct, vocabulary: int) -> bool:
    """Whether examples are treated one by one in training, seen on random numbers.

    In evaluation they must be: a target's output may not depend on the others.
    """
    rng = np.random.default_rng(0)

    def draw(like: Any) -> np.ndarray:
        if vocabulary and like is inputs:
            return rng.integers(1, vocabulary, inputs.shape).astype(inputs.dtype)
        return rng.normal(size=like.shape).astype(like.dtype)

    # Not the initial parameters, since those of a last layer may be zero.
    shapes, _ = jax.eval_shape(model.init, jax.random.key(0))
    parameters = jax.tree.map(draw, shapes)
    _, rest = jax.jit(model.init)(jax.random.key(0))

    @jax.jit
    def of_first(batch: Inputs) -> tuple[Array, Array]:
        trained, _ = model.apply_train(parameters, rest, batch)
        return trained[0], model.apply(parameters, rest, batch)[0]

    batch, other = draw(inputs), draw(inputs)
    other[0] = batch[0]
    trained, evaluated = map(_near, of_first(batch), of_first(other))
    if not evaluated:
        raise _Unfit(
            "lets the logits of an example depend on the others of its batch in evaluation, too; "
            "use nnx.BatchNorm or another layer that does so in training only"
        )
    return trained and not jax.tree.leaves(rest.variables)


def _near(one: Array, other: Array) -> bool:
    return np.allclose(one, other, rtol=1e-3, atol=1e-3 * float(np.abs(one).max()), equal_nan=True)


def _shape_and_dtype(leaf: Any) -> tuple[tuple[int, ...], Any]:
    return leaf.shape, leaf.dtype
