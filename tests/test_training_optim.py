import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from training.optim import OptimConfig, make_optimizer, make_schedule

STEPS = 40


def rate(config, step):
    return float(make_schedule(config)(step))


def rates(**options):
    config = OptimConfig(steps=STEPS, **options)
    return np.array([rate(config, step) for step in range(STEPS + 1)])


def promotion(config):
    """optax's adamw mixes integers and floats, which the strict promotion of the tests forbids."""
    return jax.numpy_dtype_promotion("standard" if config.name == "adamw" else "strict")


def run(config, gradients, start):
    """Parameters after each step."""
    optimizer = make_optimizer(config)

    @jax.jit
    def step(parameters, moments, gradient):
        updates, moments = optimizer.update(gradient, moments, parameters)
        return optax.apply_updates(parameters, updates), moments

    parameters = jnp.asarray(start, jnp.float32)
    path = []
    with promotion(config):
        moments = optimizer.init(parameters)
        for gradient in gradients:
            parameters, moments = step(parameters, moments, jnp.asarray(gradient, jnp.float32))
            path.append(np.asarray(parameters))
    return path


START = np.array([1.0, -2.0, 0.5])
GRADIENTS = np.array([[0.3, -0.1, 2.0], [0.5, 0.0, -1.0], [-0.2, 0.4, 0.1], [1.0, 1.0, 1.0]])


# Schedules.


def test_constant_schedule_never_moves():
    np.testing.assert_allclose(rates(schedule="constant", learning_rate=0.3), 0.3, rtol=1e-6)


def test_cosine_schedule_falls_from_the_rate_to_zero():
    found = rates(schedule="cosine", learning_rate=0.3)
    expected = 0.3 * (1 + np.cos(np.pi * np.arange(STEPS + 1) / STEPS)) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    assert found[0] == pytest.approx(0.3)
    assert found[-1] == 0
    assert (np.diff(found) < 0).all()


def test_one_cycle_schedule_rises_to_the_rate_and_falls_to_almost_zero():
    found = rates(schedule="one_cycle", learning_rate=0.3)
    top = int(0.3 * STEPS)
    assert found[0] == pytest.approx(0.3 / 25)
    assert found.argmax() == top
    assert found[top] == pytest.approx(0.3)
    assert found[-1] == pytest.approx(0.3 / 25 / 1e4, rel=1e-3)
    assert (np.diff(found[: top + 1]) > 0).all()
    assert (np.diff(found[top:]) < 0).all()
    assert found[-2] < 0.3 / 100


def test_schedules_equal_optax():
    schedules = {
        "constant": optax.constant_schedule(0.7),
        "cosine": optax.cosine_decay_schedule(0.7, STEPS),
        "one_cycle": optax.cosine_onecycle_schedule(STEPS, 0.7),
    }
    for name, schedule in schedules.items():
        config = OptimConfig(schedule=name, learning_rate=0.7, steps=STEPS)
        for step in (0, 1, STEPS // 2, STEPS - 1, STEPS):
            with jax.numpy_dtype_promotion("standard"):
                expected = float(schedule(step))
            assert rate(config, step) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["constant", "cosine", "one_cycle"])
def test_schedules_read_the_step_counter_of_a_compiled_loop(name):
    config = OptimConfig(schedule=name, learning_rate=0.7, steps=STEPS)
    schedule = jax.jit(jax.vmap(make_schedule(config)))
    found = schedule(jnp.arange(STEPS, dtype=jnp.int32))
    assert found.dtype == jnp.float32
    expected = [rate(config, step) for step in range(STEPS)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["constant", "cosine", "one_cycle"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_schedules_of_very_short_training_are_positive_and_finite(name, steps):
    config = OptimConfig(schedule=name, learning_rate=0.2, steps=steps)
    for step in range(steps):
        assert 0 < rate(config, step) <= 0.2 * (1 + 1e-6)


# Optimisers.


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_sgd_steps_with_nesterov_momentum_and_decoupled_decay(momentum, decay):
    config = OptimConfig(
        schedule="constant", learning_rate=0.2, momentum=momentum, weight_decay=decay, steps=4
    )
    parameters, trace = START.copy(), np.zeros(3)
    for gradient, found in zip(GRADIENTS, run(config, GRADIENTS, START), strict=True):
        trace = gradient + momentum * trace
        update = gradient + momentum * trace + decay * parameters
        parameters = parameters - 0.2 * update
        np.testing.assert_allclose(found, parameters, rtol=1e-5)


def test_first_sgd_step_by_hand():
    config = OptimConfig(schedule="constant", learning_rate=0.5, momentum=0.9)
    (found,) = run(config, [[2.0, 0.0, -1.0]], [1.0, 1.0, 1.0])
    # 1 - 0.5 * (g + 0.9 g)
    np.testing.assert_allclose(found, [-0.9, 1.0, 1.95], rtol=1e-6)


def test_adamw_equals_the_published_algorithm():
    config = OptimConfig(
        name="adamw", schedule="constant", learning_rate=0.01, weight_decay=0.1, steps=4
    )
    parameters, first, second = START.copy(), np.zeros(3), np.zeros(3)
    for i, found in enumerate(run(config, GRADIENTS, START)):
        first = 0.9 * first + 0.1 * GRADIENTS[i]
        second = 0.999 * second + 0.001 * GRADIENTS[i] ** 2
        scaled = first / (1 - 0.9 ** (i + 1))
        scaled = scaled / (np.sqrt(second / (1 - 0.999 ** (i + 1))) + 1e-8)
        parameters = parameters - 0.01 * (scaled + 0.1 * parameters)
        np.testing.assert_allclose(found, parameters, rtol=1e-5)


def test_adamw_without_decay_leaves_parameters_without_gradient_alone():
    config = OptimConfig(name="adamw", schedule="constant", weight_decay=0.0)
    (found,) = run(config, [np.zeros(3)], START)
    np.testing.assert_array_equal(found, START)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle"])
def test_each_step_moves_by_the_rate_of_that_step(name, schedule):
    """With a constant gradient, one step of plain sgd or adam goes as far as the rate says."""
    config = OptimConfig(name=name, schedule=schedule, momentum=0.0, learning_rate=0.1, steps=10)
    path = np.stack([np.zeros(1), *run(config, np.ones((10, 1)), np.zeros(1))])[:, 0]
    expected = [rate(config, step) for step in range(10)]
    np.testing.assert_allclose(-np.diff(path), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimiser_keeps_float32(name):
    (found,) = run(OptimConfig(name=name), [np.ones(3)], START)
    assert found.dtype == np.float32


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimiser_treats_members_of_a_vmap_alone(name):
    config = OptimConfig(name=name, schedule="cosine", learning_rate=0.1, steps=3)
    optimizer = make_optimizer(config)

    @jax.jit
    @jax.vmap
    def train(start, gradients):
        def step(carry, gradient):
            parameters, moments = carry
            updates, moments = optimizer.update(gradient, moments, parameters)
            return (optax.apply_updates(parameters, updates), moments), None

        return jax.lax.scan(step, (start, optimizer.init(start)), gradients)[0][0]

    starts = np.stack([START, -START])
    gradients = np.stack([GRADIENTS[:3], 10 * GRADIENTS[1:]])
    with promotion(config):
        together = train(jnp.asarray(starts, jnp.float32), jnp.asarray(gradients, jnp.float32))
    for start, own, found in zip(starts, gradients, together, strict=True):
        np.testing.assert_allclose(found, run(config, own, start)[-1], rtol=1e-5)
