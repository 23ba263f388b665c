"""Second moments of masks and outputs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodels import moments as module
from datamodels.moments import Factored, kept_together, moments, regressors

SEEDS = st.integers(0, 2**32 - 1)


@given(seed=SEEDS, block=st.integers(1, 20))
def test_groups_kept_together_are_counted_in_blocks_of_rows(seed, block):
    masks = np.random.default_rng(seed).random((13, 5)) < 0.6
    expected = [[sum(a and b for a, b in zip(x, y, strict=True)) for x in masks.T] for y in masks.T]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROW_BLOCK", block)
        np.testing.assert_array_equal(kept_together(masks), expected)


@pytest.mark.parametrize("widest", [100, 3])
def test_blocks_of_rows_and_a_factored_gram_matrix_change_nothing(monkeypatch, widest):
    rng = np.random.default_rng(0)
    masks = rng.random((50, 6)) < 0.3
    outputs = 100 + rng.standard_normal((50, 4))
    whole = moments(regressors(masks), outputs)
    monkeypatch.setattr(module, "ROW_BLOCK", 7)
    monkeypatch.setattr(module, "WIDEST_GRAM", widest)
    parts = moments(regressors(masks), outputs)
    assert isinstance(parts.gram, Factored) == (widest == 3)
    np.testing.assert_allclose(parts.gram @ np.eye(6), whole.gram @ np.eye(6), atol=1e-12)
    for name in ("correlation", "energy", "mean_mask", "mean_output"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), atol=1e-12)
