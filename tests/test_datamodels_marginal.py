"""Members with an example against members without it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import marginal_by_loop

from datamodels import marginal

SEEDS = st.integers(0, 2**32 - 1)


def rows(result):
    """The four arrays of a result, in the order of the oracle."""
    return np.stack([*result.out_of_bag, *result.memorisation])


@given(
    seed=SEEDS,
    members=st.integers(1, 12),
    examples=st.integers(1, 8),
    kept=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_marginal_equals_a_loop(seed, members, examples, kept, dtype):
    rng = np.random.default_rng(seed)
    masks = rng.random((members, examples)) < kept
    outputs = rng.standard_normal((members, examples)).astype(dtype)
    result = rows(marginal(masks, outputs))
    np.testing.assert_allclose(result, marginal_by_loop(masks, outputs), rtol=1e-9, atol=1e-12)


def test_no_precision_is_lost_where_outputs_are_large():
    rng = np.random.default_rng(0)
    masks = rng.random((2000, 3)) < 0.5
    outputs = (1e4 + rng.standard_normal((2000, 3))).astype(np.float32)
    result = rows(marginal(masks, outputs))
    np.testing.assert_allclose(result, marginal_by_loop(masks, outputs), rtol=1e-8)


def test_estimates_are_nan_exactly_where_no_member_qualifies():
    # Members that trained on each of the five examples: none, one, two, all but one, all.
    masks = np.arange(4)[:, None] < np.array([0, 1, 2, 3, 4])
    outputs = np.random.default_rng(1).standard_normal((4, 5))
    out_of_bag, memorisation = marginal(masks, outputs)
    assert np.isnan(out_of_bag.value).tolist() == [False, False, False, False, True]
    assert np.isnan(out_of_bag.standard_error).tolist() == [False, False, False, True, True]
    assert np.isnan(memorisation.value).tolist() == [True, False, False, False, True]
    assert np.isnan(memorisation.standard_error).tolist() == [True, True, False, True, True]


def test_values_and_standard_errors_by_hand():
    masks = np.array([[True], [True], [False], [False], [False]])
    outputs = np.array([[5.0], [7.0], [1.0], [2.0], [3.0]])
    out_of_bag, memorisation = marginal(masks, outputs)
    # With: mean 6, variance 2 of 2 members. Without: mean 2, variance 1 of 3 members.
    assert out_of_bag.value == pytest.approx([2])
    assert out_of_bag.standard_error == pytest.approx([np.sqrt(1 / 3)])
    assert memorisation.value == pytest.approx([4])
    assert memorisation.standard_error == pytest.approx([np.sqrt(2 / 2 + 1 / 3)])


@given(seed=SEEDS)
def test_memorisation_is_positive_where_training_on_the_example_raises_its_output(seed):
    rng = np.random.default_rng(seed)
    masks = np.stack([rng.permutation(np.arange(10) < 5) for _ in range(4)], axis=1)
    effect = np.array([3.0, -3.0, 8.0, -8.0])
    outputs = masks * effect + rng.uniform(-1, 1, (10, 4))
    result = marginal(masks, outputs)
    np.testing.assert_array_equal(np.sign(result.memorisation.value), np.sign(effect))
    assert (np.abs(result.out_of_bag.value) <= 1).all()


@given(seed=SEEDS)
def test_exchanging_with_and_without_turns_memorisation_around(seed):
    rng = np.random.default_rng(seed)
    masks = rng.random((20, 6)) < 0.3
    outputs = rng.standard_normal((20, 6))
    straight, turned = marginal(masks, outputs).memorisation, marginal(~masks, outputs).memorisation
    np.testing.assert_allclose(turned.value, -straight.value)
    np.testing.assert_allclose(turned.standard_error, straight.standard_error)


def test_standard_errors_are_the_spread_of_repeated_experiments():
    rng = np.random.default_rng(2)
    # Each column is one experiment of 40 members, 10 of them with the example.
    masks = np.repeat(np.arange(40)[:, None] < 10, 3000, axis=1)
    outputs = np.where(masks, 2.0, 0.5) * rng.standard_normal((40, 3000))
    for estimate in marginal(masks, outputs):
        claimed = np.square(estimate.standard_error).mean()
        # Five standard deviations of a variance of 3000 draws.
        assert abs(estimate.value.var() / claimed - 1) < 5 * np.sqrt(2 / 3000)
