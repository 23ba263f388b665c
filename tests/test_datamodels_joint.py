"""Joint datamodels, against slow oracles and against functions of masks that are known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodels import fit, fit_joint, r2
from datamodels.covariance import CONSTANT, Covariance, Inputs, alike, between
from datamodels.evidence import Known, learn, posterior, steps_tried, unseen_error
from datamodels.process import (
    _outstanding_pairs,
    choose_settings,
    distinct,
    fit_process,
    predict,
)

SEEDS = st.integers(0, 2**32 - 1)


def some_signs(rng, rows, groups):
    return np.where(rng.random((rows, groups)) < 0.5, 1, -1).astype(np.float32)


def some_covariance(rng, groups, pairs=3, parts=2):
    def numbers(*shape):
        return jnp.asarray(rng.uniform(0.01, 0.3, shape), jnp.float32)

    return Covariance(
        numbers(groups), numbers(pairs), numbers(parts, groups), numbers(parts), numbers()
    )


def some_inputs(rng, rows, groups, pairs):
    signs = some_signs(rng, rows, groups)
    return Inputs(jnp.asarray(signs), jnp.asarray(signs[:, pairs[:, 0]] * signs[:, pairs[:, 1]]))


PAIRS = np.array([[0, 1], [1, 3], [2, 4]])


@given(seed=SEEDS)
def test_a_covariance_equals_a_loop_over_masks_and_groups(seed):
    rng = np.random.default_rng(seed)
    covariance = some_covariance(rng, 5)
    left, right = some_inputs(rng, 4, 5, PAIRS), some_inputs(rng, 3, 5, PAIRS)
    found = between(covariance, left, right)
    for row, column in itertools.product(range(4), range(3)):
        z, other = np.asarray(left.signs[row]), np.asarray(right.signs[column])
        expected = CONSTANT + sum(covariance.main[i] * z[i] * other[i] for i in range(5))
        for weight, (i, j) in zip(covariance.pair, PAIRS, strict=True):
            expected += weight * z[i] * z[j] * other[i] * other[j]
        for relevance, amplitude in zip(covariance.relevance, covariance.amplitude, strict=True):
            apart = sum(relevance[i] * (1 - z[i] * other[i]) for i in range(5))
            expected += amplitude / np.sqrt(1 + 2 * apart)
        assert found[row, column] == pytest.approx(float(expected), rel=1e-5)


def test_a_part_is_a_mean_of_products_over_groups():
    """So that its variance for every set of groups is known."""
    rng = np.random.default_rng(0)
    relevance = rng.uniform(0, 0.4, 6)
    signs = some_signs(rng, 8, 6)
    points, weights = np.polynomial.hermite_e.hermegauss(60)
    weights /= weights.sum()
    expected = np.zeros((8, 8))
    for x, weight in zip(points, weights, strict=True):
        reach = relevance * x**2
        product = np.ones((8, 8))
        for i in range(6):
            both = np.outer(signs[:, i], signs[:, i])
            product *= np.exp(-reach[i]) * (np.cosh(reach[i]) + both * np.sinh(reach[i]))
        expected += weight * product
    found = alike(jnp.asarray(relevance, jnp.float32), jnp.asarray(signs), jnp.asarray(signs))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def log_likelihood(covariance, inputs, outputs, share):
    whole = between(covariance, inputs, inputs) + jnp.diag(covariance.noise * share)
    _, determinant = jnp.linalg.slogdet(whole)
    return -(outputs @ jnp.linalg.solve(whole, outputs) + determinant) / 2


@given(seed=SEEDS, own_mains=st.booleans())
@settings(max_examples=10)
def test_a_step_goes_where_the_likelihood_rises(seed, own_mains):
    rng = np.random.default_rng(seed)
    covariance = some_covariance(rng, 5)
    if not own_mains:
        covariance = covariance._replace(main=jnp.full(5, 0.1))
    inputs = some_inputs(rng, 20, 5, PAIRS)
    outputs = jnp.asarray(rng.standard_normal(20), jnp.float32)
    share = jnp.asarray(1 / rng.integers(1, 4, 20), jnp.float32)
    slope = jax.grad(log_likelihood)(covariance, inputs, outputs, share)
    known = Known(inputs, outputs, share)
    after = learn(covariance, known, steps=1, own_mains=own_mains, known_noise=False)
    for name in ("main", "pair", "amplitude", "noise"):
        rises = np.asarray(getattr(slope, name))
        if name == "main" and not own_mains:
            rises = np.full(5, rises.sum())
        grown = np.log(np.asarray(getattr(after, name) / getattr(covariance, name)))
        clear = np.abs(rises) > 1e-2
        np.testing.assert_array_equal(np.sign(grown)[clear], np.sign(rises)[clear])


def test_relevances_grow_where_the_likelihood_rises():
    """Along a relevance with the sum that makes a mask's variance 1 held, as the step has it."""
    rng = np.random.default_rng(3)
    covariance = some_covariance(rng, 5, parts=1)
    inputs = some_inputs(rng, 30, 5, PAIRS)
    outputs = inputs.signs[:, 0] * inputs.signs[:, 1] * inputs.signs[:, 2]
    outputs += 0.3 * jnp.asarray(rng.standard_normal(30), jnp.float32)
    share, total = jnp.ones(30), covariance.relevance.sum()

    def likelihood(relevance):
        signs = inputs.signs
        kernel = 1 / jnp.sqrt(1 + 2 * (total - (signs * relevance[None]) @ signs.T))
        others = covariance._replace(amplitude=jnp.zeros(1))
        whole = between(others, inputs, inputs) + covariance.amplitude[0] * kernel
        whole += jnp.diag(covariance.noise * share)
        _, determinant = jnp.linalg.slogdet(whole)
        return -(outputs @ jnp.linalg.solve(whole, outputs) + determinant) / 2

    rises = jax.grad(likelihood)(covariance.relevance[0])
    known = Known(inputs, outputs, share)
    after = learn(covariance, known, steps=1, own_mains=True, known_noise=False)
    grown = np.log(np.asarray(after.relevance[0] / covariance.relevance[0]))
    np.testing.assert_array_equal(np.sign(grown), np.sign(rises))
    assert (grown[:3] > 0).all()


@pytest.mark.slow
def test_steps_raise_the_likelihood_and_leave_out_what_does_not_matter():
    rng = np.random.default_rng(4)
    inputs = some_inputs(rng, 300, 12, PAIRS)
    outputs = inputs.signs[:, 5] * inputs.signs[:, 6] * inputs.signs[:, 7]
    outputs += 0.3 * jnp.asarray(rng.standard_normal(300), jnp.float32)
    found = Covariance(
        jnp.full(12, 0.02), jnp.zeros(3), jnp.full((1, 12), 0.1), jnp.ones(1), jnp.float32(0.09)
    )
    before = log_likelihood(found, inputs, outputs, jnp.ones(300))
    for steps in (5, 15, 30):
        known = Known(inputs, outputs, jnp.ones(300))
        found = learn(found, known, steps=steps, own_mains=True, known_noise=True)
        after = log_likelihood(found, inputs, outputs, jnp.ones(300))
        assert after > before - 1e-2
        before = after
    relevance = np.asarray(found.relevance[0])
    assert relevance[5:8].min() > 10 * np.delete(relevance, [5, 6, 7]).max()
    assert found.noise == np.float32(0.09)
    assert (found.pair == 0).all()


def test_what_is_left_out_is_predicted_from_the_rest():
    rng = np.random.default_rng(5)
    covariance = some_covariance(rng, 5)
    inputs = some_inputs(rng, 12, 5, PAIRS)
    outputs = rng.standard_normal(12).astype(np.float32)
    share = (1 / rng.integers(1, 4, 12)).astype(np.float32)
    found = posterior(covariance, Known(inputs, jnp.asarray(outputs), jnp.asarray(share)))
    whole = np.asarray(between(covariance, inputs, inputs), np.float64)
    noisy = whole + np.diag(float(covariance.noise) * share)
    np.testing.assert_allclose(noisy @ np.asarray(found.coefficients), outputs, atol=1e-3)
    for row in range(12):
        rest = np.delete(np.arange(12), row)
        expected = whole[row, rest] @ np.linalg.solve(noisy[np.ix_(rest, rest)], outputs[rest])
        assert found.left_out[row] == pytest.approx(outputs[row] - expected, abs=1e-3)


def test_errors_on_what_is_unseen_are_those_after_each_step():
    rng = np.random.default_rng(12)
    covariance = some_covariance(rng, 5)
    outputs = jnp.asarray(rng.standard_normal(16), jnp.float32)
    known = Known(some_inputs(rng, 16, 5, PAIRS), outputs, jnp.ones(16))
    unseen = Known(some_inputs(rng, 16, 5, PAIRS), outputs[::-1], jnp.ones(16))
    how = {"own_mains": True, "known_noise": False}
    found = steps_tried(covariance, known, unseen, steps=4, **how)
    for steps in range(4):
        after = learn(covariance, known, steps=steps, **how)
        coefficients = posterior(after, known).coefficients
        predicted = between(after, unseen.inputs, known.inputs) @ coefficients
        expected = np.square(np.asarray(unseen.outputs - predicted)).mean()
        assert found[steps].error == pytest.approx(expected, rel=1e-3)
        assert unseen_error(found[steps].covariance, known, unseen) == pytest.approx(
            expected, rel=1e-3
        )


def test_the_noise_is_raised_where_that_predicts_better():
    """A smooth function of many groups, some of whose noise is learned as if masks made it."""
    rng = np.random.default_rng(4)
    masks, unseen = (rng.random((count, 30)) < 0.5 for count in (400, 2000))
    within, across = rng.standard_normal((30, 8)), rng.standard_normal(8)
    clean, expected = (
        np.tanh((2.0 * each - 1) @ within / 1.5) @ across for each in (masks, unseen)
    )
    outputs = clean + 1.5 * rng.standard_normal(400)
    outputs, expected = outputs - outputs.mean(), expected - outputs.mean()
    scale = outputs.std()
    bank = distinct(masks, outputs[:, None] / scale)
    own = bank.outputs[:, 0]
    found = choose_settings(bank, own, None)
    assert found.noise_factor > 1

    def error(factor):
        fitted = fit_process(bank, own, found._replace(noise_factor=factor))
        return np.square(predict(fitted, bank.masks, unseen) - expected / scale).mean()

    assert error(found.noise_factor) < error(1.0)
    assert choose_settings(bank, own, 0.5).noise_factor == 1


def any_of(masks):
    """A redundancy: any one of three is enough."""
    return masks[:, :3].any(1).astype(float)


def all_of(masks):
    return masks[:, 3:6].all(1).astype(float)


def conflict(masks):
    return (masks[:, 6] ^ masks[:, 7]).astype(float)


def drawn(function, alpha, seed=0, members=400, groups=20, noise=0.1):
    rng = np.random.default_rng(seed)
    masks = rng.random((members + 1000, groups)) < alpha
    truth = function(masks) + 0.2 * masks[:, 8] - 0.3 * masks[:, 9]
    outputs = truth[:members] + noise * rng.standard_normal(members)
    return masks[:members], outputs[:, None], masks[members:], truth[members:, None]


@pytest.mark.parametrize("alpha", [0.5, 0.3])
@pytest.mark.parametrize("function", [any_of, all_of, conflict])
def test_groups_that_act_together_are_learned_whatever_they_do(function, alpha):
    masks, outputs, unseen, truth = drawn(function, alpha)
    joint = r2(fit_joint(masks, outputs).predict(unseen), truth)
    additive = r2(fit(masks, outputs).predict(unseen), truth)
    assert joint > 0.93
    assert 1 - joint < 0.5 * (1 - additive)


def test_where_groups_add_up_nothing_is_lost():
    rng = np.random.default_rng(6)
    masks = rng.random((900, 60)) < 0.5
    weights = np.zeros((60, 2))
    weights[rng.permutation(60)[:6], 0] = rng.standard_normal(6)  # few groups
    weights[:, 1] = 0.3 * rng.standard_normal(60)  # all of them
    outputs = masks @ weights + 0.5 * rng.standard_normal((900, 2))
    unseen, truth = masks[400:], (masks @ weights)[400:]
    joint = r2(fit_joint(masks[:400], outputs[:400]).predict(unseen), truth)
    additive = r2(fit(masks[:400], outputs[:400]).predict(unseen), truth)
    assert (joint >= additive - 0.005).all()


@pytest.mark.slow
def test_many_pairs_are_learned():
    rng = np.random.default_rng(7)
    masks = rng.random((1600, 60)) < 0.5
    signs = 2.0 * masks - 1
    pairs = rng.permutation(60)[:16].reshape(8, 2)
    truth = (signs[:, pairs[:, 0]] * signs[:, pairs[:, 1]]).sum(1, keepdims=True)
    outputs = truth + 0.5 * rng.standard_normal(truth.shape)
    model = fit_joint(masks[:600], outputs[:600])
    assert r2(model.predict(masks[600:]), truth[600:]) > 0.97


def test_pairs_that_stand_out_are_those_of_a_loop():
    rng = np.random.default_rng(13)
    signs = some_signs(rng, 400, 30)
    left = signs[:, 4] * signs[:, 9] - 0.5 * signs[:, 9] * signs[:, 20]
    left = (left + rng.standard_normal(400)).astype(np.float32)
    pairs, count = _outstanding_pairs(signs, left)
    scores = {
        (i, j): abs(signs[:, i] * signs[:, j] @ left) / np.sqrt(left @ left)
        for i, j in itertools.combinations(range(30), 2)
    }
    expected = sorted(scores, key=scores.__getitem__, reverse=True)[:count]
    assert [tuple(pair) for pair in pairs[:count].tolist()] == expected
    assert expected == [(4, 9), (9, 20)]


def test_nothing_is_found_in_shuffled_outputs():
    masks, outputs, unseen, _ = drawn(any_of, 0.3, seed=8)
    shuffled = np.random.default_rng(9).permutation(outputs)
    model = fit_joint(masks, shuffled)
    assert model.predict(unseen).var() < 0.05 * shuffled.var()
    assert (model.process.covariance.pair == 0).all()


@pytest.mark.slow
def test_retrains_of_a_mask_count_as_one_and_tell_the_noise():
    rng = np.random.default_rng(10)
    masks, outputs, unseen, _ = drawn(any_of, 0.3, members=60, noise=0.0)
    repeated = np.repeat(outputs, 4, axis=0) + 0.2 * rng.standard_normal((240, 1))
    order = rng.permutation(240)
    found = fit_joint(np.repeat(masks, 4, axis=0)[order], repeated[order])
    within = repeated.reshape(60, 4).var(1, ddof=1)
    assert len(found.masks) == len(np.unique(masks, axis=0))
    assert found.noise_variance[0] == pytest.approx(within.mean(), rel=0.2)
    known = fit_joint(np.repeat(masks, 4, axis=0), repeated, noise_variance=found.noise_variance)
    np.testing.assert_allclose(found.predict(unseen), known.predict(unseen), atol=1e-4)


@pytest.mark.slow
def test_a_target_is_fitted_for_itself():
    masks, outputs, unseen, _ = drawn(any_of, 0.5, members=120)
    other = np.random.default_rng(11).standard_normal((120, 1))
    alone = fit_joint(masks, outputs)
    both = fit_joint(masks, np.hstack([other, 100 * outputs + 7]))
    np.testing.assert_allclose(
        both.predict(unseen)[:, 1], 100 * alone.predict(unseen)[:, 0] + 7, atol=0.05
    )
    assert both.noise_variance[1] == pytest.approx(1e4 * alone.noise_variance[0], rel=1e-3)


@pytest.mark.slow
def test_a_constant_target_stays_so_and_rows_without_outputs_are_left_out():
    masks, outputs, unseen, _ = drawn(any_of, 0.5, members=80)
    outputs = np.hstack([outputs, np.full((80, 1), 2.5)])
    expected = fit_joint(np.delete(masks, 3, axis=0), np.delete(outputs, 3, axis=0))
    outputs[3, 0] = np.nan
    with pytest.warns(UserWarning, match="1 of 80 rows hold outputs that are not finite"):
        model = fit_joint(masks, outputs)
    np.testing.assert_array_equal(model.predict(unseen), expected.predict(unseen))
    assert model.diagnostics.constant.tolist() == [False, True]
    np.testing.assert_allclose(model.predict(unseen)[:, 1], 2.5, atol=1e-5)
    assert np.isnan(model.diagnostics.left_out_r2).tolist() == [False, True]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, y: fit_joint(m[:3], y[:3]), "3 rows are too few"),
        (lambda m, y: fit_joint(m, y[:5]), r"must share m, got \(40, 20\) and \(5, 1\)"),
        (lambda m, y: fit_joint(m * 0.5, y), "zeros and ones, got 0.5"),
        (
            lambda m, y: fit_joint(m, y, noise_variance=np.array([-1.0])),
            "noise_variance must be one number",
        ),
        (lambda m, y: fit_joint(m, y, noise_variance=np.ones(2)), "each of the 1 targets"),
        (lambda m, y: fit_joint(m, y).predict(m[:, :3]), "masks have 3 groups, the datamodel has"),
    ],
)
def test_what_cannot_be_fitted_is_named(call, message, unchecked):
    masks, outputs, *_ = drawn(any_of, 0.5, members=40)
    with pytest.raises(ValueError, match=message):
        call(masks, outputs)
