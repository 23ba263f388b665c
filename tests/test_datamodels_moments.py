"""Second moments of masks and outputs."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodels import moments as module
from datamodels.folds import divide
from datamodels.moments import Factored, count, moments, regressors

SEEDS = st.integers(0, 2**32 - 1)


@given(seed=SEEDS, block=st.integers(1, 20))
def test_groups_kept_together_are_counted_in_blocks_of_rows(seed, block):
    masks = np.random.default_rng(seed).random((13, 5)) < 0.6
    expected = [[sum(a and b for a, b in zip(x, y, strict=True)) for x in masks.T] for y in masks.T]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "COUNT_BLOCK", block)
        np.testing.assert_array_equal(count(masks).together, expected)


@pytest.mark.parametrize("widest", [100, 3])
def test_blocks_of_rows_and_a_factored_gram_matrix_change_nothing(monkeypatch, widest):
    rng = np.random.default_rng(0)
    masks = rng.random((50, 6)) < 0.3
    outputs = 100 + rng.standard_normal((50, 4))
    whole = moments(masks, regressors(masks), outputs)
    monkeypatch.setattr(module, "ROW_BLOCK", 7)
    monkeypatch.setattr(module, "COUNT_BLOCK", 7)
    monkeypatch.setattr(module, "WIDEST_GRAM", widest)
    monkeypatch.setattr(module, "BLOCK_NUMBERS", 42)
    parts = moments(masks, regressors(masks), outputs)
    assert isinstance(parts.masks.gram, Factored) == (widest == 3)
    np.testing.assert_allclose(
        parts.masks.gram @ np.eye(6), whole.masks.gram @ np.eye(6), atol=1e-12
    )
    np.testing.assert_allclose(
        parts.masks.device_gram @ jnp.eye(6), whole.masks.gram @ np.eye(6), atol=1e-6
    )
    np.testing.assert_allclose(parts.masks.mean_mask, masks.mean(0), atol=1e-15)
    for name in ("correlation", "energy", "mean_output"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), atol=1e-12)


@pytest.mark.parametrize(("members", "groups"), [(60, 6), (20, 60)])
def test_the_problem_without_a_fold_is_that_of_the_other_rows(members, groups):
    rng = np.random.default_rng(1)
    masks = rng.random((members, groups)) < 0.4
    outputs = 1000 + rng.standard_normal((members, 3))
    outputs[:, 2] = 0.1
    number = np.repeat(np.arange(members // 2), 2)
    folds = divide(masks, 3, number)
    products = folds.multiply(outputs)
    whole, rest = folds.problem(products), folds.problems(products)
    for fold, (part, problem) in enumerate(zip(folds.parts, rest, strict=True)):
        np.testing.assert_array_equal(part.rows, np.flatnonzero(number % 3 == fold))
        others = number % 3 != fold
        expected = moments(masks[others], regressors(masks[others]), outputs[others])
        assert_same(problem, expected)
    assert_same(whole, moments(masks, regressors(masks), outputs))


def assert_same(problem, expected):
    groups = len(problem.correlation)
    np.testing.assert_allclose(
        problem.masks.gram @ np.eye(groups), expected.masks.gram @ np.eye(groups), atol=1e-12
    )
    # Without a Gram matrix a bound will do.
    assert 0.6 * expected.masks.step < problem.masks.step < 1.01 * expected.masks.step
    for name in ("correlation", "energy", "mean_output"):
        np.testing.assert_allclose(
            getattr(problem, name), getattr(expected, name), atol=1e-10, err_msg=name
        )
    assert problem.energy[2] == 0
    assert (problem.correlation[:, 2] == 0).all()
