"""One training run: what it visits, and what it may not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import train_linear_by_hand

from training.examples import Examples, Normaliser
from training.models import ModelConfig, build_model
from training.optim import OptimConfig
from training.outputs import margin
from training.train import Recipe, all_finite, make_evaluate, make_train, visit_order

SHAPE, CLASSES, COUNT = (5,), 3, 24


def make_examples(seed=0, count=COUNT):
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((count, *SHAPE)).astype(np.float32)
    return Examples(inputs, rng.integers(0, CLASSES, count).astype(np.int32))


def make_recipe(**optim):
    unit = Normaliser(np.zeros(SHAPE, np.float32), np.ones(SHAPE, np.float32))
    return Recipe(OptimConfig(**{"steps": 12, "batch_size": 4, **optim}), unit)


def leaves_equal(first, second):
    return all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    )


jitted_visit_order = jax.jit(visit_order, static_argnums=2)


@given(
    seed=st.integers(0, 10_000), kept=st.integers(1, 17), visits=st.sampled_from([1, 16, 17, 60])
)
def test_kept_examples_are_visited_equally_often_within_one_and_dropped_ones_never(
    seed, kept, visits
):
    mask = np.zeros(17, bool)
    mask[np.random.default_rng(seed).choice(17, kept, replace=False)] = True
    order = np.asarray(jitted_visit_order(jax.random.key(seed), jnp.asarray(mask), visits))
    times = np.bincount(order, minlength=17)
    assert times[~mask].sum() == 0
    assert times[mask].max() - times[mask].min() <= 1


@given(seed=st.integers(0, 10_000))
def test_every_epoch_holds_each_kept_example_once_in_a_new_order(seed):
    mask = np.arange(40) % 2 == 0
    order = jitted_visit_order(jax.random.key(seed), jnp.asarray(mask), 60)
    order = np.asarray(order).reshape(3, 20)
    for epoch in order:
        assert sorted(epoch) == sorted(np.flatnonzero(mask))
    assert not np.array_equal(order[0], order[1])


@given(seed=st.integers(0, 10_000), dropped=st.integers(0, 19))
def test_dropping_an_example_keeps_the_order_of_the_others(seed, dropped):
    """In whole epochs: 3 of 20 examples, then the same of 19."""
    more = np.ones(20, bool)
    fewer = np.arange(20) != dropped
    key = jax.random.key(seed)
    with_it = np.asarray(jitted_visit_order(key, jnp.asarray(more), 60))
    without = np.asarray(jitted_visit_order(key, jnp.asarray(fewer), 57))
    np.testing.assert_array_equal(with_it[with_it != dropped], without)


def test_a_cut_last_epoch_holds_a_random_part():
    mask = jnp.ones(10, bool)
    keys = jax.random.split(jax.random.key(0), 400)
    first_five = jax.vmap(lambda key: visit_order(key, mask, 5))(keys)
    share = np.bincount(np.asarray(first_five).ravel(), minlength=10) / 400
    # Each share is a mean of 400 draws of probability 1/2: six standard errors are 0.15.
    assert np.abs(share - 0.5).max() < 0.15


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle"])
def test_training_equals_the_same_steps_by_hand(schedule):
    examples = make_examples()
    recipe = make_recipe(schedule=schedule, learning_rate=0.1, weight_decay=0.01)
    model = build_model(ModelConfig(name="linear"), SHAPE, CLASSES)
    mask = np.arange(COUNT) % 3 != 0
    key = jax.random.key(3)
    state = jax.jit(make_train(recipe, model, examples))(key, mask)
    init_key, visit_key = jax.random.split(key)
    start = model.init(init_key)[0]["output"]
    order = np.asarray(visit_order(visit_key, jnp.asarray(mask), 48))
    kernel, bias = train_linear_by_hand(
        np.asarray(start["kernel"].get_value()),
        np.asarray(start["bias"].get_value()),
        examples.inputs,
        examples.labels,
        order.reshape(12, 4),
        recipe.optim,
    )
    trained = state.parameters["output"]
    np.testing.assert_allclose(trained["kernel"].get_value(), kernel, atol=2e-6)
    np.testing.assert_allclose(trained["bias"].get_value(), bias, atol=2e-6)


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_a_dropped_example_changes_no_bit(name):
    examples = make_examples()
    mask = np.arange(COUNT) != 5
    model = build_model(ModelConfig(name=name, width=8), SHAPE, CLASSES)

    @jax.jit
    def train(data, mask):
        return make_train(make_recipe(), model, data)(jax.random.key(0), mask)

    before = train(examples, mask)
    for value in (1e38, np.inf, np.nan, -7.0):
        spoiled = Examples(examples.inputs.copy(), examples.labels.copy())
        spoiled.inputs[5] = value
        spoiled.labels[5] = (spoiled.labels[5] + 1) % CLASSES
        assert leaves_equal(before, train(spoiled, mask))
        assert not leaves_equal(before, train(spoiled, np.ones(COUNT, bool)))


def test_an_empty_mask_gives_the_initial_parameters_even_beside_infinite_inputs():
    examples = make_examples()
    examples.inputs[:] = np.inf
    model = build_model(ModelConfig(name="mlp", width=8), SHAPE, CLASSES)
    train = make_train(make_recipe(), model, examples)
    key = jax.random.key(7)
    state = jax.jit(train)(key, np.zeros(COUNT, bool))
    assert leaves_equal(state.parameters, model.init(jax.random.split(key)[0])[0])
    assert bool(all_finite(state))


def test_training_can_be_differentiated():
    model = build_model(ModelConfig(name="linear"), SHAPE, CLASSES)
    examples = make_examples()

    def final_sum(inputs):
        train = make_train(make_recipe(), model, Examples(inputs, examples.labels))
        state = train(jax.random.key(0), jnp.arange(COUNT) < 10)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(state.parameters))

    gradient = np.asarray(jax.grad(final_sum)(jnp.asarray(examples.inputs)))
    assert np.abs(gradient[:10]).min(axis=1).max() > 0
    assert not gradient[10:].any()


def test_a_diverged_member_is_seen_as_not_finite():
    model = build_model(ModelConfig(name="mlp", width=8), SHAPE, CLASSES)
    recipe = make_recipe(learning_rate=1e30, schedule="constant")
    state = make_train(recipe, model, make_examples())(jax.random.key(0), jnp.ones(COUNT, bool))
    assert not bool(all_finite(state))


@pytest.mark.parametrize("count", [1, 255, 256, 257, 600])
def test_outputs_in_blocks_equal_outputs_at_once(count):
    model = build_model(ModelConfig(name="mlp", width=8), SHAPE, CLASSES)
    targets = make_examples(1, count)
    state = make_train(make_recipe(), model, make_examples())(
        jax.random.key(0), jnp.ones(COUNT, bool)
    )
    outputs = make_evaluate(make_recipe(), model, targets, margin)(state)
    at_once = margin(model.apply(*state, jnp.asarray(targets.inputs)), jnp.asarray(targets.labels))
    assert outputs.shape == (count,)
    np.testing.assert_allclose(outputs, at_once, atol=1e-5)


def test_two_numbers_a_target_follow_each_other():
    model = build_model(ModelConfig(name="linear"), SHAPE, CLASSES)
    targets = make_examples(1, 300)
    state = make_train(make_recipe(), model, make_examples())(
        jax.random.key(0), jnp.ones(COUNT, bool)
    )

    def pair(logits, labels):
        return jnp.stack([margin(logits, labels), labels.astype(jnp.float32)], axis=1)

    outputs = make_evaluate(make_recipe(), model, targets, pair)(state)
    single = make_evaluate(make_recipe(), model, targets, margin)(state)
    np.testing.assert_array_equal(outputs[0::2], single)
    np.testing.assert_array_equal(outputs[1::2], targets.labels)
