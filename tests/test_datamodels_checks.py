"""Groups that masks cannot tell apart."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodels import effects, fit, separation
from datamodels.checks import check_independent


@given(seed=st.integers(0, 2**32 - 1), members=st.integers(1, 7), groups=st.integers(1, 9))
def test_separation_equals_a_loop_over_pairs(seed, members, groups):
    masks = np.random.default_rng(seed).random((members, groups)) < 0.5
    found = separation(masks)
    constant = [g for g in range(groups) if masks[:, g].all() or not masks[:, g].any()]
    assert found.constant.tolist() == constant
    twins = []
    for later in range(groups):
        for first in range(later):
            same = (masks[:, first] == masks[:, later]).all()
            turned = (masks[:, first] != masks[:, later]).all()
            if later not in constant and first not in constant and (same or turned):
                twins.append([first, later])
                break
    assert found.twins.tolist() == twins


def test_a_fit_warns_of_groups_that_the_masks_do_not_separate():
    rng = np.random.default_rng(0)
    masks = rng.random((60, 8)) < 0.5
    outputs = rng.standard_normal((60, 2))
    masks[:, 5], masks[:, 6] = masks[:, 2], ~masks[:, 1]
    with pytest.warns(UserWarning, match=r"2 groups cannot be told .*first: 2 and 5"):
        fit(masks, outputs)
    masks[:, 5:7] = rng.random((60, 2)) < 0.5
    masks[:, 3] = True
    with pytest.warns(UserWarning, match=r"1 groups \(first: 3\) are kept in every row or in none"):
        model = fit(masks, outputs)
    assert (model.weights[3] == 0).all()
    with pytest.warns(UserWarning, match="nothing is known of them"):
        effects(masks, outputs)


def test_a_constant_target_has_weight_zero_and_a_flag():
    rng = np.random.default_rng(1)
    masks = rng.random((80, 6)) < 0.5
    outputs = np.stack([np.full(80, 2.7), masks[:, 0] + rng.standard_normal(80)], axis=1)
    for penalty in ("lasso", "ridge"):
        model = fit(masks, outputs, penalty=penalty)
        assert model.diagnostics.constant.tolist() == [True, False]
        assert (model.weights[:, 0] == 0).all()
        assert model.intercept[0] == np.float32(2.7)
        assert np.isnan(model.diagnostics.validation_r2).tolist() == [True, False]
    found = effects(masks, outputs)
    assert (found.estimate[:, 0] == 0).all()
    assert (found.q_values()[:, 0] == 1).all()


@given(
    seed=st.integers(0, 2**32 - 1),
    members=st.integers(2, 30),
    groups=st.integers(1, 40),
    alpha=st.sampled_from([0.02, 0.2, 0.5, 0.9]),
    known=st.booleans(),
)
def test_few_independent_masks_are_not_taken_for_another_design(
    seed, members, groups, alpha, known
):
    masks = np.random.default_rng(seed).random((members, groups)) < alpha
    check_independent(masks, np.full((1, 1), alpha) if known else None)


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_masks_that_are_too_even_or_too_uneven_are_refused(alpha):
    rng = np.random.default_rng(0)
    fixed = np.argsort(rng.random((60, 30)), axis=1) < 30 * alpha
    with pytest.raises(ValueError, match="varies 0 times as much"):
        check_independent(fixed, np.full((1, 1), alpha))
    doubled = np.repeat(rng.random((300, 15)) < alpha, 2, axis=1)
    with pytest.raises(ValueError, match=r"varies (1\.[6-9]|2)[.\d]* times as much"):
        check_independent(doubled, np.full((1, 1), alpha))


def test_one_undecided_group_a_row_says_nothing_of_the_spread():
    rng = np.random.default_rng(2)
    alpha = np.zeros((40, 6))
    alpha[np.arange(40), rng.integers(0, 6, 40)] = 0.5
    check_independent(rng.random((40, 6)) < alpha, alpha)
