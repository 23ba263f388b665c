"""Metrics over masks that are drawn again, and what their intervals cover."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodels import ceiling, lds, r2
from datamodels.bootstrap import (
    ceiling_draws,
    interval,
    lds_draws,
    r2_draws,
    resamples,
)

SEEDS = st.integers(0, 2**32 - 1)


def some_outputs(seed, rows=23, targets=4):
    """Predicted and actual outputs with ties, on a large mean."""
    rng = np.random.default_rng(seed)
    predicted = np.round(rng.standard_normal((rows, targets)), 1)
    return predicted + 100, np.round(predicted + rng.standard_normal((rows, targets)), 1) + 100


def drawn(values, count):
    """The rows of a draw, written out."""
    return np.repeat(values, count, axis=0)


@given(seed=SEEDS)
def test_draws_are_the_metrics_of_the_rows_drawn(seed):
    predicted, actual = some_outputs(seed)
    counts = resamples(23, seed=seed, draws=6)
    assert (counts.sum(1) == 23).all()
    for metric, draws in ((r2, r2_draws), (lds, lds_draws)):
        found = draws(predicted, actual, counts)
        expected = [metric(drawn(predicted, count), drawn(actual, count)) for count in counts]
        np.testing.assert_allclose(found, expected, atol=1e-9)


@given(seed=SEEDS)
def test_draws_of_the_ceiling_are_those_of_the_rows_drawn(seed):
    rng = np.random.default_rng(seed)
    outputs = 50 + rng.standard_normal((31, 3))
    replicates = 50 + rng.standard_normal((7, 4, 3))
    replicates[rng.random(replicates.shape) < 0.2] = np.nan
    counts, replicate_counts = resamples(31, seed=seed, draws=5), resamples(7, seed=seed, draws=5)
    found = ceiling_draws(outputs, replicates, counts, replicate_counts)
    for draw in range(5):
        again = drawn(replicates, replicate_counts[draw])
        expected = ceiling(drawn(outputs, counts[draw]), again)
        np.testing.assert_allclose(found[draw], expected, atol=1e-9)


def test_a_constant_target_has_no_r2_and_ranks_nothing():
    predicted, actual = some_outputs(0)
    actual[:, 1] = 3.7
    counts = resamples(23, draws=10)
    assert np.isnan(r2_draws(predicted, actual, counts)[:, 1]).all()
    assert (lds_draws(predicted, actual, counts)[:, 1] == 0).all()


def test_draws_depend_on_the_seed_alone():
    np.testing.assert_array_equal(resamples(9, seed=3), resamples(9, seed=3))
    assert (resamples(9, seed=3) != resamples(9, seed=4)).any()


def test_intervals_of_means_over_targets_cover_the_metric_of_many_masks():
    """Targets share masks and noise, so one draw of masks serves all targets at once."""
    rng = np.random.default_rng(0)
    inside = {"r2": [], "lds": [], "ceiling": []}
    weights = rng.standard_normal((10, 6))

    def outputs(signal):
        noise = rng.standard_normal((*signal.shape[:-1], 1)) + rng.standard_normal(signal.shape)
        return signal + noise

    def masks(rows):
        return rng.random((rows, 10)) < 0.5

    many = masks(40_000)
    large = outputs(many @ weights)
    # By hand: the noise has variance 2.
    truth = {
        "r2": r2(many @ weights, large).mean(),
        "lds": lds(many @ weights, large).mean(),
        "ceiling": (1 - 2 / large.var(0)).mean(),
    }
    for seed in range(60):
        few = masks(150)
        signal, counts = few @ weights, resamples(150, seed=seed)
        actual = outputs(signal)
        replicates = outputs(np.repeat((masks(40) @ weights)[:, None], 4, axis=1))
        found = {
            "r2": (r2(signal, actual), r2_draws(signal, actual, counts)),
            "lds": (lds(signal, actual), lds_draws(signal, actual, counts)),
            "ceiling": (
                ceiling(actual, replicates),
                ceiling_draws(actual, replicates, counts, resamples(40, seed=seed + 1000)),
            ),
        }
        for name, (value, draws) in found.items():
            _, low, high = interval(float(value.mean()), draws.mean(1))
            inside[name].append(low <= truth[name] <= high)
    for name, hits in inside.items():
        # 60 intervals of 95 %: fewer than 51 would be four standard deviations off.
        assert np.sum(hits) >= 51, name


def test_an_interval_is_of_quantiles_and_without_ends_where_half_the_draws_are_missing():
    draws = np.linspace(0, 1, 401)
    assert interval(0.5, draws, level=0.9) == pytest.approx((0.5, 0.05, 0.95))
    # Draws that are off, as repeated masks make them, are moved to the value.
    assert interval(0.6, draws, level=0.9) == pytest.approx((0.6, 0.15, 1.05))
    draws[:300] = np.nan
    value, low, high = interval(0.5, draws)
    assert value == 0.5
    assert np.isnan([low, high]).all()
