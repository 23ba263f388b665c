"""Scores of datamodels, and the ceiling of those scores."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from oracles import noise_variance_by_loop
from scipy.stats import spearmanr
from sklearn.metrics import r2_score

from datamodels import ceiling, lds, noise_variance, r2

SHAPE = (9, 3)
# Whole numbers: sums and monotone maps of them are exact, and ties are common.
WHOLE = arrays(np.float64, SHAPE, elements=st.integers(-20, 20).map(float))
INCREASING = {
    "affine": lambda values: 3 * values + 7,
    "cube": lambda values: values**3,
    "exponential": np.exp,
    "tangent": lambda values: np.arctan(values / 10),
}


def varies(values):
    return (values != values[0]).any(0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_r2_equals_sklearn(dtype):
    rng = np.random.default_rng(0)
    actual = (np.array([0, 5, -100, 1]) + rng.standard_normal((200, 4))).astype(dtype)
    scale = np.array([0.1, 1.0, 3.0, 0.0])
    predicted = (actual + scale * rng.standard_normal((200, 4))).astype(dtype)
    expected = r2_score(actual, predicted, multioutput="raw_values")
    np.testing.assert_allclose(r2(predicted, actual), expected, rtol=1e-4, atol=1e-6)


@given(predicted=WHOLE, actual=WHOLE)
def test_r2_of_any_outputs_equals_sklearn(predicted, actual):
    assume(varies(actual).all())
    expected = r2_score(actual, predicted, multioutput="raw_values")
    np.testing.assert_allclose(r2(predicted, actual), expected, rtol=1e-9, atol=1e-9)


def test_r2_of_the_truth_is_one_and_of_the_mean_is_zero():
    actual = np.array([[1.0], [2.0], [6.0]])
    assert r2(actual, actual) == pytest.approx(1)
    assert r2(np.full((3, 1), 3.0), actual) == pytest.approx(0)
    assert r2(-actual, actual)[0] < 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.5, 0.1])
def test_r2_of_a_constant_target_is_nan(value, dtype):
    actual = np.full((1000, 2), value, dtype)
    actual[:, 1] = np.arange(1000)
    np.testing.assert_array_equal(np.isnan(r2(actual, actual)), [True, False])


def test_r2_of_three_equal_outputs_is_nan():
    actual = np.full((3, 1), 0.1)  # whose mean rounds to another number
    assert np.isnan(r2(actual + 1, actual)).all()


@given(predicted=WHOLE, actual=WHOLE, shift=st.integers(-1000, 1000))
def test_r2_does_not_see_a_joint_shift(predicted, actual, shift):
    assume(varies(actual).all())
    shifted = r2(predicted + shift, actual + shift)
    np.testing.assert_allclose(shifted, r2(predicted, actual), rtol=1e-9, atol=1e-9)


@given(predicted=WHOLE, actual=WHOLE, order=st.permutations(range(SHAPE[0])))
def test_scores_do_not_see_the_order_of_the_masks(predicted, actual, order):
    assume(varies(actual).all())
    for score in (r2, lds):
        reordered = score(predicted[list(order)], actual[list(order)])
        np.testing.assert_allclose(reordered, score(predicted, actual), rtol=1e-9, atol=1e-9)


@given(predicted=WHOLE, actual=WHOLE)
def test_lds_equals_spearman_with_ties(predicted, actual):
    assume(varies(predicted).all() and varies(actual).all())
    expected = [spearmanr(predicted[:, t], actual[:, t]).statistic for t in range(SHAPE[1])]
    np.testing.assert_allclose(lds(predicted, actual), expected, atol=1e-12)


def test_lds_is_one_score_a_target():
    rng = np.random.default_rng(1)
    actual = rng.standard_normal((300, 3)).astype(np.float32)
    predicted = np.stack([actual[:, 0], -actual[:, 1], rng.permutation(actual[:, 2])], axis=1)
    scores = lds(predicted, actual)
    np.testing.assert_allclose(scores[:2], [1, -1])
    assert abs(scores[2]) < 5 / np.sqrt(300)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lds_of_a_constant_is_zero(dtype):
    actual = np.arange(20, dtype=dtype).reshape(10, 2)
    constant = actual.copy()
    constant[:, 0] = 0.1
    np.testing.assert_allclose(lds(constant, actual), [0, 1])
    np.testing.assert_allclose(lds(actual, constant), [0, 1])
    np.testing.assert_allclose(lds(constant, constant), [0, 1])


def test_scores_of_outputs_that_are_nan_are_nan():
    actual = np.arange(20.0).reshape(10, 2)
    missing = actual.copy()
    missing[3, 0] = np.nan
    for score in (r2, lds):
        np.testing.assert_allclose(score(missing, actual), [np.nan, 1])
        np.testing.assert_allclose(score(actual, missing), [np.nan, 1])


@given(
    predicted=WHOLE,
    actual=WHOLE,
    first=st.sampled_from(sorted(INCREASING)),
    second=st.sampled_from(sorted(INCREASING)),
)
def test_lds_does_not_see_increasing_maps(predicted, actual, first, second):
    mapped = lds(INCREASING[first](predicted), INCREASING[second](actual))
    np.testing.assert_allclose(mapped, lds(predicted, actual), atol=1e-12)


@given(predicted=WHOLE, actual=WHOLE, name=st.sampled_from(sorted(INCREASING)))
def test_lds_turns_around_with_a_decreasing_map(predicted, actual, name):
    turned = lds(-INCREASING[name](predicted), actual)
    np.testing.assert_allclose(turned, -lds(predicted, actual), atol=1e-12)


@given(predicted=WHOLE, actual=WHOLE)
def test_lds_is_symmetric_and_at_most_one(predicted, actual):
    scores = lds(predicted, actual)
    np.testing.assert_allclose(lds(actual, predicted), scores, atol=1e-12)
    assert (np.abs(scores) <= 1 + 1e-12).all()


def simulated_bank(members=4000, masks=400, seeds=5):
    """Outputs of one member a mask, and repeated ones; signal and noise have known variances."""
    rng = np.random.default_rng(2)
    signal, noise = np.array([1.0, 2.0, 0.0]), np.array([1.0, 0.5, 1.0])
    kept = signal * rng.standard_normal((members, 3))
    outputs = 10 + kept + noise * rng.standard_normal((members, 3))
    repeated = signal * rng.standard_normal((masks, 1, 3))
    replicates = 10 + repeated + noise * rng.standard_normal((masks, seeds, 3))
    return kept + 10, outputs, replicates, signal**2, noise**2


def test_noise_variance_of_a_simulated_bank_is_the_true_one():
    *_, replicates, _, noise = simulated_bank()
    error = 4 * noise * np.sqrt(2 / (400 * 4))  # four standard deviations
    assert (np.abs(noise_variance(replicates) - noise) < error).all()


def test_ceiling_of_a_simulated_bank_is_the_true_share():
    _, outputs, replicates, signal, noise = simulated_bank()
    truth = signal / (signal + noise)
    error = 4 * (1 - truth) * np.sqrt(2 / (400 * 4) + 2 / 4000)
    assert (np.abs(ceiling(outputs, replicates) - truth) < error).all()


def test_ceiling_is_the_r2_of_the_best_function_of_the_mask():
    best, outputs, replicates, signal, noise = simulated_bank()
    share = noise / (signal + noise)
    error = 4 * share * np.sqrt(2 / (400 * 4) + 2 / 4000)
    assert (np.abs(ceiling(outputs, replicates) - r2(best, outputs)) < error).all()


@given(seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from([np.float32, np.float64]))
def test_noise_variance_equals_a_loop_that_leaves_out_nan(seed, dtype):
    rng = np.random.default_rng(seed)
    replicates = (100 + rng.standard_normal((6, 4, 3))).astype(dtype)
    replicates[:, 2:][rng.random((6, 2, 3)) < 0.5] = np.nan  # two seeds are always left
    expected = noise_variance_by_loop(replicates.astype(np.float64))
    np.testing.assert_allclose(noise_variance(replicates), expected, rtol=1e-6)


@pytest.mark.parametrize("lost", [1, 2])
def test_a_mask_with_fewer_than_two_seeds_left_says_nothing_of_the_noise(lost):
    replicates = np.random.default_rng(3).standard_normal((5, 2, 3))
    replicates[1, :lost] = np.nan
    expected = noise_variance_by_loop(replicates)
    np.testing.assert_allclose(noise_variance(replicates), expected)


def test_ceiling_handles_members_left_out():
    _, outputs, replicates, signal, noise = simulated_bank()
    replicates[::2, 1] = np.nan
    truth = signal / (signal + noise)
    error = 4 * (1 - truth) * np.sqrt(2 / (400 * 3) + 2 / 4000)
    scores = ceiling(outputs, replicates)
    assert (np.abs(scores - truth) < error).all()
    by_hand = 1 - noise_variance_by_loop(replicates) / outputs.var(0, ddof=1)
    np.testing.assert_allclose(scores, by_hand)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ceiling_of_a_constant_output_is_nan(dtype):
    outputs = np.full((3, 2), 0.1, dtype)
    outputs[:, 1] = [1, 2, 3]
    replicates = np.repeat(outputs[:, None], 2, axis=1)
    np.testing.assert_array_equal(ceiling(outputs, replicates), [np.nan, 1])


def test_ceiling_without_noise_is_one_and_without_signal_about_zero():
    rng = np.random.default_rng(4)
    signal = rng.standard_normal((500, 2))
    np.testing.assert_array_equal(ceiling(signal, np.repeat(signal[:, None], 3, axis=1)), 1)
    noise = rng.standard_normal((500, 3, 2))
    assert (np.abs(ceiling(noise[:, 0], noise)) < 4 * np.sqrt(2 / 1000 + 2 / 500)).all()
