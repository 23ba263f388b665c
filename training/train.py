"""Training as one pure function of a key and a mask."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt32

from training.augment import augment
from training.examples import Examples, Normaliser
from training.models import Model, State
from training.optim import OptimConfig, make_optimizer
from training.outputs import OutputFunction


@dataclass(frozen=True)
class Recipe:
    """All that decides a training run besides model, examples, key and mask."""

    optim: OptimConfig
    normalise: Normaliser


class _Batch(NamedTuple):
    """Visits of examples: which, and the key that augments each (None: not augmented)."""

    rows: Int[Array, "*b"]
    keys: Key[Array, "*b"] | None

    def cut(self, pieces: int) -> "_Batch":
        """Equal pieces, one after the other, with an axis of pieces in front."""
        return jax.tree.map(lambda part: part.reshape(pieces, -1), self)


class Progress(NamedTuple):
    """A member between two steps."""

    state: State
    moments: PyTree
    """Of the optimiser."""


class Steps(NamedTuple):
    """Training cut into pure functions, to stop between two steps and go on later."""

    begin: Callable[[Key[Array, ""]], Progress]
    """Before the first step, from the member's training key."""
    advance: Callable[..., Progress]
    """(progress, key, mask, first, last): after the steps from `first` to below `last`. One
    program for any number of steps."""
    end: Callable[[Progress, Progress, Bool[Array, " n"]], State]
    """(after the last step, before the first, mask): what `train` returns."""


Train = Callable[[Key[Array, ""], Bool[Array, " n"]], State]
Evaluate = Callable[[State], Float[Array, " outputs"]]

# Not 0 or 1, which are what a split into two gives.
AUGMENT_TAG = 2

EVALUATION_BLOCK = 256
"""Targets evaluated at once, per member: bounds the memory of the activations."""


def visit_order(
    key: Key[Array, ""], mask: Bool[Array, " n"], visits: int
) -> Int[Array, " {visits}"]:
    """The example visited at each position: epochs over the kept examples, each shuffled anew.

    Every kept example is visited equally often, within one (the last epoch may be cut short,
    and then holds a random part). A dropped example never appears unless the mask is empty.
    The order is a function of key and mask alone and is computed without any shape that depends
    on how many examples are kept, so it can be vmapped over masks. An example's place in an epoch
    is drawn for that example: with the same key, whole epochs of two masks have the examples that
    both keep in the same order.
    """
    order_key, shuffle_key = jax.random.split(key)
    # A first random order of the kept examples decides who is in the last, cut epoch.
    tiebreak = jax.random.bits(order_key, mask.shape)
    kept_first = jnp.lexsort((tiebreak, ~mask)).astype(jnp.int32)
    kept = jnp.maximum(mask.sum(dtype=jnp.int32), 1)
    position = jnp.arange(visits, dtype=jnp.int32)
    epoch = position // kept
    example = kept_first[position % kept]

    def drawn_for(epoch: Int[Array, ""], example: Int[Array, ""]) -> UInt32[Array, ""]:
        # One number for the pair. It may wrap around, and be that of another epoch's visit then.
        return jax.random.bits(jax.random.fold_in(shuffle_key, epoch * len(mask) + example))

    # Sorting by (epoch, random) shuffles within each epoch.
    shuffle = jax.vmap(drawn_for)(epoch, example)
    return jax.lax.sort((epoch, shuffle, example), num_keys=2)[2]


def make_train(recipe: Recipe, model: Model, examples: Examples, microbatch: int = 0) -> Train:
    """`train(key, mask) -> State`, a pure function to `jit`, `vmap`, `pmap` or differentiate.

    The loss is the mean cross-entropy of a batch. The number of steps is the recipe's, whatever
    the mask keeps. Dropped examples are never gathered, so their values (even infinite ones)
    cannot change one bit of the result. An empty mask gives the initial parameters back.

    With a `microbatch`, which must divide the batch size, the gradient of a step is the mean over
    pieces of the batch: less memory, and on CPU the pieces stay in the cache. It is the same
    gradient only for models that treat every example by itself and keep no state.
    """
    parts = _make_parts(recipe, model, examples, microbatch)

    def train(key: Key[Array, ""], mask: Bool[Array, " n"]) -> State:
        before = parts.begin(key)

        def step(progress: Progress, batch: _Batch) -> tuple[Progress, None]:
            return parts.step(progress, batch), None

        after, _ = jax.lax.scan(step, before, parts.batches(key, mask))
        return _end(after, before, mask)

    return train


def make_steps(recipe: Recipe, model: Model, examples: Examples, microbatch: int = 0) -> Steps:
    """The same training in parts; arguments as of `make_train`. Low bits may differ from it."""
    parts = _make_parts(recipe, model, examples, microbatch)

    def advance(
        progress: Progress,
        key: Key[Array, ""],
        mask: Bool[Array, " n"],
        first: Int[Array, ""],
        last: Int[Array, ""],
    ) -> Progress:
        # Planned anew each time: kept, the visits could be larger than the model.
        batches = parts.batches(key, mask)

        def step(number: Int[Array, ""], progress: Progress) -> Progress:
            return parts.step(progress, jax.tree.map(lambda part: part[number], batches))

        return jax.lax.fori_loop(first, last, step, progress)

    return Steps(parts.begin, advance, _end)


class _Parts(NamedTuple):
    begin: Callable[[Key[Array, ""]], Progress]
    batches: Callable[[Key[Array, ""], Bool[Array, " n"]], _Batch]
    step: Callable[[Progress, _Batch], Progress]


def _make_parts(recipe: Recipe, model: Model, examples: Examples, microbatch: int) -> _Parts:
    optimizer = make_optimizer(recipe.optim)
    steps, batch_size = recipe.optim.steps, recipe.optim.batch_size
    pieces = batch_size // (microbatch or batch_size)

    def loss(parameters: PyTree, rest: PyTree, batch: _Batch) -> tuple[Float[Array, ""], PyTree]:
        inputs = jnp.asarray(examples.inputs)[batch.rows]
        if batch.keys is not None:
            inputs = augment(recipe.optim.augment, batch.keys, inputs)
        labels = jnp.asarray(examples.labels)[batch.rows]
        logits, rest = model.apply_train(parameters, rest, recipe.normalise(inputs))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), rest

    def gradient(parameters: PyTree, rest: PyTree, batch: _Batch) -> tuple[PyTree, PyTree]:
        if pieces == 1:
            return jax.grad(loss, has_aux=True)(parameters, rest, batch)

        def add(total: PyTree, piece: _Batch) -> tuple[PyTree, None]:
            of_piece, _ = jax.grad(loss, has_aux=True)(parameters, rest, piece)
            return jax.tree.map(jnp.add, total, of_piece), None

        zero = jax.tree.map(jnp.zeros_like, parameters)
        total, _ = jax.lax.scan(add, zero, batch.cut(pieces))
        return jax.tree.map(lambda part: part / pieces, total), rest

    def begin(key: Key[Array, ""]) -> Progress:
        init_key, _ = jax.random.split(key)
        initial = model.init(init_key)
        return Progress(initial, optimizer.init(initial.parameters))

    def batches(key: Key[Array, ""], mask: Bool[Array, " n"]) -> _Batch:
        _, visit_key = jax.random.split(key)
        visits = steps * batch_size
        keys = None
        if recipe.optim.augment != "none":
            keys = jax.random.split(jax.random.fold_in(key, AUGMENT_TAG), visits)
        return _Batch(visit_order(visit_key, mask, visits), keys).cut(steps)

    def step(progress: Progress, batch: _Batch) -> Progress:
        (parameters, rest), moments = progress
        direction, rest = gradient(parameters, rest, batch)
        updates, moments = optimizer.update(direction, moments, parameters)
        return Progress(State(optax.apply_updates(parameters, updates), rest), moments)

    return _Parts(begin, batches, step)


def _end(after: Progress, before: Progress, mask: Bool[Array, " n"]) -> State:
    """The trained state; the initial one for an empty mask."""
    return jax.tree.map(lambda new, old: jnp.where(mask.any(), new, old), after.state, before.state)


def make_evaluate(
    recipe: Recipe,
    model: Model,
    targets: Examples,
    output: OutputFunction,
    block: int = EVALUATION_BLOCK,
) -> Evaluate:
    """`evaluate(state) -> outputs (t,)`, one number a target, in blocks of targets.

    An output that gives k numbers a target, shape (b, k), yields t * k numbers, target by target.
    """
    count = len(targets)
    block = min(block, count)
    padding = -count % block

    def blocks(array: Array | np.ndarray) -> Array:
        filled = jnp.asarray(array)
        filled = jnp.concatenate([filled, filled[:padding]]) if padding else filled
        return filled.reshape(-1, block, *array.shape[1:])

    def evaluate(state: State) -> Float[Array, " outputs"]:
        def one(block: tuple[Array, Array]) -> Float[Array, "b *k"]:
            inputs, labels = block
            return output(model.apply(*state, recipe.normalise(inputs)), labels)

        outputs = jax.lax.map(one, (blocks(targets.inputs), blocks(targets.labels)))
        return outputs.reshape(-1, *outputs.shape[2:])[:count].reshape(-1)

    return evaluate


def all_finite(state: State) -> Bool[Array, ""]:
    """Whether every floating-point number of a trained member is finite.

    A loss that left the finite range makes the parameters it touched infinite or NaN for good.
    """
    numbers = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(x).all() for x in numbers]).all()
