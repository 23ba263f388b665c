"""Additive datamodels: recovery, choice of the penalty, errors."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    largest_lam_by_loop,
    lasso_by_sklearn,
    lasso_errors_by_sklearn,
    lasso_relative_gap,
    predict_by_loop,
    ridge_by_sklearn,
)

from datamodels import AdditiveDatamodel, FitDiagnostics, fit, prepare, r2, ridge, solver
from datamodels.additive import CERTIFIED, LAM_FRACTIONS, choose

SEEDS = st.integers(0, 2**32 - 1)


def draw_masks(rng, members, groups, kept=0.5):
    return rng.random((members, groups)) < kept


def sparse_bank(seed=0, members=600, groups=40, noise=0.3, kept=0.5):
    """Masks, outputs of three targets, and the weights and intercepts behind them."""
    rng = np.random.default_rng(seed)
    masks = draw_masks(rng, members, groups, kept)
    weights = np.zeros((groups, 3))
    weights[3, 0], weights[7, 0] = 2.0, -1.0
    weights[:5, 1] = [1.5, -0.5, 0.5, 1.0, -2.0]
    weights[9, 2] = -2.0
    intercept = np.array([1.0, -4.0, 10.0])
    outputs = masks @ weights + intercept + noise * rng.standard_normal((members, 3))
    return masks, outputs.astype(np.float32), weights, intercept


@pytest.mark.parametrize("kept", [0.3, 0.5, 0.8])
def test_sparse_truth_is_recovered_in_mask_units(kept):
    masks, outputs, weights, intercept = sparse_bank(kept=kept)
    model = fit(masks, outputs)
    # The lasso shrinks by about lam over the variance of a mask entry.
    shrinkage = model.diagnostics.lam / (kept * (1 - kept))
    sampling = 5 * 0.3 / np.sqrt(600 * kept * (1 - kept))
    assert (np.abs(model.weights - weights) <= shrinkage + sampling).all()
    assert model.weights[3, 0] == pytest.approx(2.0, abs=0.2)
    assert model.weights[9, 2] == pytest.approx(-2.0, abs=0.2)
    np.testing.assert_allclose(model.intercept, intercept, atol=0.7)


def test_new_masks_are_predicted():
    masks, outputs, weights, intercept = sparse_bank()
    model = fit(masks, outputs)
    new = draw_masks(np.random.default_rng(1), 500, 40)
    assert (r2(model.predict(new), (new @ weights + intercept).astype(np.float32)) > 0.98).all()


def test_outputs_without_signal_are_predicted_by_almost_nothing():
    rng = np.random.default_rng(2)
    masks = draw_masks(rng, 400, 30)
    model = fit(masks, rng.standard_normal((400, 5)))
    new = draw_masks(rng, 500, 30)
    assert (model.predict(new).var(0) < 0.05).all()
    assert (model.diagnostics.validation_r2 < 0.1).all()


def test_a_positive_weight_means_that_keeping_the_group_raises_the_output():
    rng = np.random.default_rng(3)
    masks = draw_masks(rng, 200, 8)
    outputs = np.where(masks[:, :1], 5.0, 3.0) + 0.01 * rng.standard_normal((200, 1))
    model = fit(masks, outputs)
    nothing, only_first = np.zeros((1, 8), bool), np.eye(1, 8, dtype=bool)
    assert model.weights[0, 0] == pytest.approx(2.0, abs=0.15)
    assert model.predict(nothing)[0] == pytest.approx(model.intercept)
    assert model.predict(only_first)[0] == pytest.approx(model.intercept + model.weights[0])


@given(seed=SEEDS, members=st.integers(0, 6), groups=st.integers(1, 7), targets=st.integers(1, 4))
def test_predict_equals_a_loop(seed, members, groups, targets):
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((groups, targets)).astype(np.float32)
    intercept = rng.standard_normal(targets).astype(np.float32)
    empty = np.zeros(targets)
    model = AdditiveDatamodel(intercept, weights, FitDiagnostics(empty, empty, empty, empty == 0))
    masks = draw_masks(rng, members, groups)
    predicted = model.predict(masks)
    assert predicted.dtype == np.float32
    np.testing.assert_allclose(predicted, predict_by_loop(masks, weights, intercept), atol=1e-5)


@pytest.mark.parametrize("choice", ["best", "one_se"])
@pytest.mark.parametrize("members", [150, 60])
def test_cross_validation_chooses_lam_as_sklearn_would_and_all_rows_fit_the_weights(
    members, choice
):
    masks, outputs, *_ = sparse_bank(4, members=members, groups=15, noise=2.0)
    model = fit(masks, outputs, folds=3, choice=choice)
    lams = LAM_FRACTIONS[:, None] * largest_lam_by_loop(masks, outputs)
    errors = lasso_errors_by_sklearn(masks, outputs, np.arange(members) % 3, lams)
    position, error = choose(errors, choice)
    np.testing.assert_allclose(model.diagnostics.lam, lams[position, np.arange(3)], rtol=1e-6)
    expected = 1 - error / outputs.var(0)
    np.testing.assert_allclose(model.diagnostics.validation_r2, expected, atol=5e-3)
    weights, intercept = lasso_by_sklearn(masks, outputs, model.diagnostics.lam)
    np.testing.assert_allclose(model.weights, weights, atol=0.02)
    np.testing.assert_allclose(model.intercept, intercept, atol=0.02)
    assert len(np.unique(position)) > 1


def test_one_standard_error_is_taken_over_folds():
    # Of two folds: the means are 4, 2.5, 2; the last has a standard error of 1, or none.
    errors = np.array([[[4, 4], [2, 2], [1, 2]], [[4, 4], [3, 3], [3, 2]]], float)
    assert choose(errors, "best")[0].tolist() == [2, 2]
    assert choose(errors, "one_se")[0].tolist() == [1, 2]
    np.testing.assert_array_equal(choose(errors, "one_se")[1], [2.5, 2])


def test_one_standard_error_leaves_out_more_groups():
    masks, outputs, *_ = sparse_bank(5, members=200, noise=2.0)
    best, sparser = fit(masks, outputs), fit(masks, outputs, choice="one_se")
    assert (sparser.diagnostics.lam >= best.diagnostics.lam).all()
    assert (sparser.weights != 0).sum() < (best.weights != 0).sum()


def test_targets_that_leave_the_path_early_change_nothing_for_the_others():
    masks, outputs, *_ = sparse_bank(6, members=120, noise=0.5)
    noise = np.random.default_rng(6).standard_normal((120, 9)).astype(np.float32)
    together = fit(masks, np.hstack([noise, outputs]))
    alone = fit(masks, outputs)
    np.testing.assert_allclose(together.diagnostics.lam[9:], alone.diagnostics.lam, rtol=1e-6)
    np.testing.assert_allclose(together.weights[:, 9:], alone.weights, atol=0.01)


def test_retrains_of_one_mask_stay_in_one_fold():
    """Seen with another seed, a mask's own output would predict it."""
    rng = np.random.default_rng(7)
    masks = np.repeat(draw_masks(rng, 40, 60), 5, axis=0)
    mask = np.repeat(np.arange(40), 5)
    outputs = (rng.standard_normal(40)[mask] + 0.1 * rng.standard_normal(200))[:, None]
    assert fit(masks, outputs).diagnostics.validation_r2 > 0.5
    assert fit(masks, outputs, replicate_of=mask).diagnostics.validation_r2 < 0.2


@pytest.mark.parametrize(("members", "groups"), [(300, 20), (40, 90)])
def test_ridge_equals_sklearn_and_is_certified(members, groups):
    masks, outputs, *_ = sparse_bank(8, members, groups, noise=1.0)
    model = fit(masks, outputs, penalty="ridge")
    for target, penalty in enumerate(model.diagnostics.lam):
        expected = ridge_by_sklearn(masks, outputs[:, target], penalty)
        np.testing.assert_allclose(model.weights[:, target], expected, atol=1e-5)
    assert (model.diagnostics.relative_gap < 1e-9).all()
    assert (model.diagnostics.relative_gap >= 0).all()


@pytest.mark.parametrize(("members", "groups"), [(60, 12), (40, 90)])
def test_the_penalty_of_ridge_is_chosen_by_the_rows_of_each_fold(members, groups):
    masks, outputs, *_ = sparse_bank(8, members, groups, noise=1.0)
    found = fit(masks, outputs, penalty="ridge", folds=4).diagnostics
    prepared = prepare(masks, folds=4)
    tried = ridge.penalties(prepared.folds.whole, members)
    errors = np.zeros((len(tried), outputs.shape[1]))
    for fold in prepared.folds.parts:
        seen = np.delete(np.arange(members), fold.rows)
        means = masks[seen].mean(0), outputs[seen].mean(0)
        for number, penalty in enumerate(tried):
            for target in range(outputs.shape[1]):
                weights = ridge_by_sklearn(masks[seen], outputs[seen, target], penalty)
                predicted = (masks[fold.rows] - means[0]) @ weights + means[1][target]
                errors[number, target] += np.square(outputs[fold.rows, target] - predicted).mean()
    np.testing.assert_allclose(found.lam, tried[errors.argmin(0)])
    expected = 1 - errors.min(0) / 4 / outputs.var(0)
    np.testing.assert_allclose(found.validation_r2, expected, rtol=1e-3, atol=1e-4)


def test_ridge_of_masks_that_never_vary_is_nothing():
    outputs = np.random.default_rng(0).standard_normal((8, 2))
    for groups in (3, 40):
        with pytest.warns(UserWarning, match="kept in every row"):
            model = fit(np.ones((8, groups), bool), outputs, penalty="ridge")
        assert (model.weights == 0).all()
        np.testing.assert_allclose(model.intercept, outputs.mean(0), rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-28, 1e28])
def test_ridge_of_outputs_of_another_scale_is_the_same(scale):
    masks, outputs, *_ = sparse_bank(8, 40, 90, noise=1.0)
    outputs = outputs.astype(np.float64)
    model = fit(masks, outputs, penalty="ridge")
    scaled = fit(masks, scale * outputs, penalty="ridge")
    np.testing.assert_allclose(scaled.weights / scale, model.weights, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(scaled.diagnostics.lam, model.diagnostics.lam)


def test_ridge_is_better_where_every_group_matters_and_the_lasso_where_few_do():
    rng = np.random.default_rng(9)
    masks = draw_masks(rng, 300, 100)
    few = np.where(np.arange(100) < 5, 2.0, 0.0)
    outputs = masks @ np.stack([few, 0.4 * rng.standard_normal(100)], axis=1)
    outputs += 1.5 * rng.standard_normal(outputs.shape)
    lasso, ridge = (
        fit(masks, outputs, penalty=penalty).diagnostics.validation_r2
        for penalty in ("lasso", "ridge")
    )
    assert lasso[0] > ridge[0] + 0.02
    assert ridge[1] > lasso[1] + 0.02


def test_order_of_the_targets_blocks_does_not_matter(monkeypatch):
    masks, outputs, *_ = sparse_bank(10, members=200, noise=2.0)
    whole = fit(masks, outputs)
    monkeypatch.setattr(solver, "TARGET_BLOCK", 2)
    parts = fit(masks, outputs)
    np.testing.assert_allclose(parts.weights, whole.weights, atol=1e-3)
    np.testing.assert_array_equal(parts.diagnostics.lam, whole.diagnostics.lam)


def test_each_target_is_fitted_as_if_it_were_alone():
    masks, outputs, *_ = sparse_bank(7, members=200, noise=1.0)
    together = fit(masks, outputs)
    for target in range(3):
        alone = fit(masks, outputs[:, [target]])
        assert alone.diagnostics.lam[0] == pytest.approx(together.diagnostics.lam[target])
        np.testing.assert_allclose(alone.weights[:, 0], together.weights[:, target], atol=0.01)


def test_fit_follows_the_sign_and_the_offset_of_the_outputs():
    masks, outputs, *_ = sparse_bank(8, members=200)
    model, mirrored = fit(masks, outputs), fit(masks, 1024 - outputs)
    np.testing.assert_allclose(mirrored.weights, -model.weights, atol=0.01)
    np.testing.assert_allclose(mirrored.intercept, 1024 - model.intercept, atol=0.05)


def test_dropped_instead_of_kept_turns_the_weights_around():
    masks, outputs, *_ = sparse_bank(9, members=200)
    model, turned = fit(masks, outputs), fit(~masks, outputs)
    np.testing.assert_allclose(turned.weights, -model.weights, atol=0.01)
    np.testing.assert_allclose(turned.predict(~masks), model.predict(masks), atol=0.02)


@pytest.mark.parametrize(("members", "groups"), [(300, 30), (50, 80)])
def test_the_certificate_speaks_of_the_weights_that_are_returned(members, groups):
    masks, outputs, *_ = sparse_bank(10, members, groups)
    model = fit(masks, outputs)
    gap = lasso_relative_gap(masks, outputs, model.weights, model.diagnostics.lam)
    np.testing.assert_allclose(model.diagnostics.relative_gap, gap, atol=1e-9)
    assert (gap < CERTIFIED).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_constant_output_is_predicted_as_it_is_and_certified(dtype):
    masks, outputs, *_ = sparse_bank(11, members=100)
    outputs = outputs.astype(dtype)
    outputs[:, 1] = 0.1
    model = fit(masks, outputs)
    assert (model.weights[:, 1] == 0).all()
    assert (model.predict(masks)[:, 1] == np.float32(0.1)).all()
    assert (model.diagnostics.relative_gap < CERTIFIED).all()


def test_a_constant_output_has_no_validation_r2_as_in_the_metrics():
    masks, outputs, *_ = sparse_bank(12, members=100)
    outputs[:, 1] = 0.1
    validation_r2 = fit(masks, outputs).diagnostics.validation_r2
    np.testing.assert_array_equal(np.isnan(validation_r2), [False, True, False])


def test_lists_of_rows_are_taken_too(unchecked):
    masks, outputs, *_ = sparse_bank(13, members=30, groups=10)
    model, again = fit(masks, outputs), fit(masks.tolist(), outputs.astype(float).tolist())
    np.testing.assert_allclose(again.weights, model.weights, atol=1e-4)


def test_lengths_that_do_not_match_are_named(unchecked):
    with pytest.raises(ValueError, match=r"must share m, got \(10, 3\) and \(9, 2\)"):
        fit(np.ones((10, 3), bool), np.ones((9, 2)))
    with pytest.raises(ValueError, match="replicate_of has 9 numbers for 10 masks"):
        fit(np.ones((10, 3), bool), np.ones((10, 2)), replicate_of=np.arange(9))


@pytest.mark.parametrize("shape", [(10,), (10, 0), (10, 3, 1)])
def test_shapes_that_are_no_tables_are_named(unchecked, shape):
    with pytest.raises(ValueError, match=f"masks must be .* got {re.escape(str(shape))}"):
        fit(np.ones(shape, bool), np.ones((10, 2)))
    with pytest.raises(ValueError, match=f"outputs must be .* got {re.escape(str(shape))}"):
        fit(np.ones((10, 3), bool), np.ones(shape))


@pytest.mark.parametrize("dtype", [np.int64, np.float32])
def test_zeros_and_ones_are_masks(unchecked, dtype):
    masks, outputs, *_ = sparse_bank(14, members=30)
    again = fit(masks.astype(dtype), outputs)
    np.testing.assert_array_equal(again.weights, fit(masks, outputs).weights)


@pytest.mark.parametrize(("dtype", "value"), [(np.int64, 2), (np.float32, 0.5), (float, np.nan)])
def test_masks_of_other_values_are_named(unchecked, dtype, value):
    masks = np.ones((10, 3), dtype)
    masks[4, 1] = value
    with pytest.raises(ValueError, match=f"got {value} in row 4, group 1"):
        fit(masks, np.ones((10, 2)))


def test_masks_of_words_are_refused(unchecked):
    with pytest.raises(ValueError, match="masks must be bool"):
        fit(np.full((10, 3), "yes"), np.ones((10, 2)))


def test_outputs_that_are_no_numbers_are_refused(unchecked):
    with pytest.raises(ValueError, match="outputs must be real numbers"):
        fit(np.ones((10, 3), bool), np.full((10, 2), "yes"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_left_out_and_counted(value):
    masks, outputs, *_ = sparse_bank(14, members=40)
    without = fit(np.delete(masks, 13, 0), np.delete(outputs, 13, 0))
    outputs[13, 1] = value
    with pytest.warns(UserWarning, match="1 of 40 rows hold outputs that are not finite"):
        model = fit(masks, outputs)
    np.testing.assert_array_equal(model.weights, without.weights)


def test_blocks_of_targets_must_be_finite():
    masks, outputs, *_ = sparse_bank(14, members=40)
    outputs[13, 1] = np.nan
    with pytest.raises(ValueError, match=r"not finite \(first: nan in row 13, target 1\)"):
        prepare(masks).fit(outputs)


@pytest.mark.parametrize("members", [0, 3])
def test_too_few_rows_are_named(members):
    masks, outputs, *_ = sparse_bank(15, members=members)
    with pytest.raises(ValueError, match=rf"^{members} rows are too few"):
        fit(masks, outputs)


@pytest.mark.parametrize("folds", [1, 0, -2])
def test_fewer_than_two_folds_are_refused(folds):
    masks, outputs, *_ = sparse_bank(15, members=20)
    with pytest.raises(ValueError, match=rf"folds = {folds} must be from 2"):
        fit(masks, outputs, folds=folds)


def test_one_mask_alone_cannot_be_divided():
    masks, outputs, *_ = sparse_bank(15, members=20)
    with pytest.raises(ValueError, match="1 distinct masks are too few"):
        fit(masks, outputs, replicate_of=np.zeros(20, int))


@pytest.mark.filterwarnings("ignore:.* groups")
def test_four_rows_are_enough():
    masks, outputs, *_ = sparse_bank(17, members=4)
    assert np.isfinite(fit(masks, outputs).weights).all()


def test_a_datamodel_is_a_pytree_of_its_arrays():
    masks, outputs, *_ = sparse_bank(18, members=60)
    model = fit(masks, outputs)
    doubled = jax.tree.map(lambda array: array if array.dtype == bool else 2 * array, model)
    assert isinstance(doubled, AdditiveDatamodel)
    assert len(jax.tree.leaves(model)) == 6
    np.testing.assert_array_equal(doubled.weights, 2 * model.weights)
    np.testing.assert_array_equal(doubled.diagnostics.lam, 2 * model.diagnostics.lam)
    np.testing.assert_allclose(doubled.predict(masks), 2 * model.predict(masks), rtol=1e-5)


def test_a_datamodel_is_frozen():
    masks, outputs, *_ = sparse_bank(19, members=60)
    model = fit(masks, outputs)
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.weights = np.zeros_like(model.weights)
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.diagnostics.lam = np.zeros(3)
