"""Members with an example against members without it."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import marginal_by_loop

from datamodels import average_marginal_effects, banzhaf, effects, influence, marginal

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


@pytest.mark.filterwarnings("ignore:.* groups")
@given(seed=SEEDS, members=st.integers(4, 12), kept=st.sampled_from([0.1, 0.5, 1.0]))
def test_influence_equals_memorisation_of_every_pair(seed, members, kept):
    rng = np.random.default_rng(seed)
    masks = rng.random((members, 5)) < kept
    outputs = 100 + rng.standard_normal((members, 3))
    found = influence(masks, outputs)
    for target in range(3):
        expected = marginal(masks, np.repeat(outputs[:, [target]], 5, axis=1)).memorisation
        np.testing.assert_allclose(found.estimate[:, target], expected.value, atol=1e-11)
        np.testing.assert_allclose(
            found.standard_error[:, target], expected.standard_error, atol=1e-6
        )


def banzhaf_by_enumeration(function, groups):
    """The mean change by each group over all sets of the others."""
    values = np.zeros(groups)
    for group in range(groups):
        for others in itertools.product([False, True], repeat=groups - 1):
            mask = np.insert(others, group, [True])
            kept = function(mask)
            mask[group] = False
            values[group] += (kept - function(mask)) / 2 ** (groups - 1)
    return values


def test_banzhaf_values_are_those_of_all_sets():
    def function(mask):
        return 2.0 * (mask[0] or mask[1]) - mask[2] + 3.0 * (mask[0] and mask[3] and mask[4])

    truth = banzhaf_by_enumeration(function, 5)
    masks = np.random.default_rng(0).random((20_000, 5)) < 0.5
    found = banzhaf(masks, np.array([function(mask) for mask in masks])[:, None])
    assert (np.abs(found.estimate[:, 0] - truth) < 4 * found.standard_error[:, 0]).all()
    assert found.standard_error.max() < 0.05
    # All five at once, each mask once: nothing is left to chance but the rows' share.
    every = np.array(list(itertools.product([False, True], repeat=5)))
    exact = banzhaf(every, np.array([function(mask) for mask in every])[:, None])
    np.testing.assert_allclose(exact.estimate[:, 0], truth, atol=1e-12)


def test_banzhaf_values_need_fair_coins():
    masks = np.random.default_rng(1).random((500, 10)) < 0.3
    with pytest.raises(ValueError, match=r"alpha = 0\.5, but the masks keep 0\.[23]"):
        banzhaf(masks, masks[:, :1].astype(float))


def test_average_marginal_effects_cover_the_truth_at_several_alphas_at_once():
    shares, wider = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        alpha = rng.choice([0.2, 0.5], 400)
        masks = rng.random((400, 40)) < alpha[:, None]
        weights = rng.standard_normal((40, 6))
        outputs = 7 + masks @ weights + rng.standard_normal((400, 6))
        found = average_marginal_effects(masks, outputs, alpha=alpha)
        low, high = found.interval()
        shares.append(((low <= weights) & (weights <= high)).mean())
        fitted = effects(masks, outputs, alpha=alpha)
        wider.append(np.median(found.standard_error / fitted.standard_error))
    assert 0.93 <= np.mean(shares) <= 0.97
    assert np.mean(wider) > 2
