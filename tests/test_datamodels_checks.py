"""Groups that masks cannot tell apart."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodels import (
    average_marginal_effects,
    banzhaf,
    calibration,
    ceiling,
    effects,
    fit,
    how_many_more,
    influence,
    knockoffs,
    lds,
    noise_variance,
    r2,
    separation,
    stability,
)
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


def test_a_group_of_another_alpha_is_named():
    rng = np.random.default_rng(5)
    masks = rng.random((400, 50)) < 0.5
    masks[:, 3] = rng.random(400) < 0.95
    with pytest.raises(
        ValueError, match=r"group 3 is kept in 0\.9\d* of the rows, but its alpha is"
    ):
        effects(masks, rng.standard_normal((400, 2)), alpha=0.5)
    effects(masks, rng.standard_normal((400, 2)))


@pytest.mark.parametrize("kind", ["the same", "complementary"])
def test_rows_that_were_drawn_together_are_noticed(kind):
    rng = np.random.default_rng(6)
    half = rng.random((60, 60)) < 0.5
    masks = np.concatenate([half, half if kind == "the same" else ~half])
    outputs = rng.standard_normal((120, 2))
    for found in (effects, average_marginal_effects, influence):
        with pytest.raises(ValueError, match=rf"60 rows have a mask that is {kind} .*: 0 and 60\)"):
            found(masks, outputs)
    effects(masks, outputs, replicate_of=np.arange(120) % 60)
    few = rng.random((200, 6)) < 0.5  # alike by chance
    effects(few, rng.standard_normal((200, 2)))


def test_fixed_sizes_that_repeat_are_noticed():
    masks = np.argsort(np.random.default_rng(7).random((50, 40)), axis=1) < 10
    outputs = np.random.default_rng(8).standard_normal((100, 1))
    twice = np.concatenate([masks, masks])
    with pytest.raises(ValueError, match="50 rows have a mask that is the same"):
        effects(twice, outputs, fixed_size=True)
    effects(twice, outputs, fixed_size=True, replicate_of=np.arange(100) % 50)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, y: fit(m, y, penalty="Ridge"), "penalty = 'Ridge' must be one of lasso, ridge"),
        (lambda m, y: fit(m, y, choice="one-se"), "choice = 'one-se' must be one of best, one_se"),
        (lambda m, y: effects(m, y).interval(95), "level = 95 must lie strictly between 0 and 1"),
        (lambda m, y: effects(m, y).found_pooled(10), "q = 10 must lie strictly between"),
        (lambda m, y: effects(m, y).found_groups(0), "q = 0 must lie strictly between"),
        (lambda m, y: knockoffs(m, y, seed=0, alpha=0.5, q=2), "q = 2 must lie strictly"),
        (lambda m, y: knockoffs(m, y[:9], seed=0, alpha=0.5), r"got \(60, 8\) and \(9, 2\)"),
        (lambda m, y: stability(m, y, draws=0), "draws = 0 must be at least 1"),
        (lambda m, y: how_many_more(m, y, share=2.0), r"share = 2.0 must be above 0 and at most 1"),
        (lambda m, y: how_many_more(m, y, share=np.nan), "share = nan must be above 0"),
        (lambda m, y: how_many_more(m, y, share=0.9, ceiling=3.0), "ceiling, 3.0, at most 1"),
        (lambda m, y: how_many_more(m, y, share=0.9, ceiling=np.ones(5)), r"got \(5,\) for 2"),
        (lambda m, y: separation(m * 0.5), "masks must be bool .* or zeros and ones, got 0.5"),
        (lambda m, y: separation(2 * m - 1), "zeros and ones, got -1"),
        (lambda m, y: fit(m, y).predict(m[:, :3]), "masks have 3 groups, the datamodel has 8"),
        (lambda m, y: fit(m, y).predict(m * 0.5), "zeros and ones, got 0.5"),
        (lambda m, y: influence(m[:3], y[:3]), "3 rows are too few; at least 4 are needed"),
        (lambda m, y: banzhaf(m[:2], y[:2]), "2 rows are too few; at least 4 are needed"),
        (lambda m, y: fit(m, y * 1e38), r"largest output is of size .*e\+38; scale outputs"),
        (lambda m, y: fit(m, y * 1e-100), r"largest output is of size .*e-100; scale outputs"),
        (lambda m, y: fit(m, np.full_like(y, np.nan)), "target 0 has no finite output in any of"),
        (lambda m, y: r2(y[:1], y), r"got \(1, 2\) and \(60, 2\)"),
        (lambda m, y: lds(y[:, 0], y[:, 0]), r"got \(60,\) and \(60,\)"),
        (
            lambda m, y: noise_variance(y),
            r"of shape \(masks, seeds, targets\), got float64 of shape",
        ),
        (lambda m, y: ceiling(y, y[None, :1]), "1 masks and 1 seeds show no noise"),
        (lambda m, y: ceiling(y[:, :1], y[None]), r"share their targets, got \(60, 1\)"),
        (lambda m, y: calibration(y[0], y[:1]), "at least 2 seeds of the targets of predicted"),
    ],
)
def test_what_cannot_be_meant_is_refused(call, message, unchecked):
    rng = np.random.default_rng(9)
    masks, outputs = rng.random((60, 8)) < 0.5, rng.standard_normal((60, 2))
    with pytest.raises(ValueError, match=message):
        call(masks, outputs)


@pytest.mark.parametrize("by", [influence, average_marginal_effects, banzhaf])
def test_by_products_warn_of_groups_of_which_nothing_is_known(by):
    rng = np.random.default_rng(10)
    masks = rng.random((60, 8)) < 0.5
    masks[:, 2] = masks[:, 5]
    with pytest.warns(UserWarning, match="1 groups cannot be told from another one"):
        by(masks, rng.standard_normal((60, 1)))
