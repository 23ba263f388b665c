"""Additive datamodels: recovery, choice of the penalty, errors."""

import dataclasses

import jax
import jaxtyping
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    choose_lam_by_sklearn,
    largest_lam_by_loop,
    lasso_by_sklearn,
    lasso_relative_gap,
    predict_by_loop,
)

from datamodels import AdditiveDatamodel, FitDiagnostics, fit, r2
from datamodels.additive import CERTIFIED, LAM_FRACTIONS

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


@pytest.fixture
def unchecked(monkeypatch):
    """The package's own checks, without those that jaxtyping adds in tests."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


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
    model = AdditiveDatamodel(intercept, weights, FitDiagnostics(empty, empty, empty))
    masks = draw_masks(rng, members, groups)
    predicted = model.predict(masks)
    assert predicted.dtype == np.float32
    np.testing.assert_allclose(predicted, predict_by_loop(masks, weights, intercept), atol=1e-5)


@pytest.mark.parametrize("share", [0.2, 0.35])
def test_the_last_rows_choose_lam_and_all_rows_fit_the_weights(share):
    masks, outputs, *_ = sparse_bank(4, members=150, groups=15, noise=2.0)
    held = {0.2: 30, 0.35: 52}[share]  # 52.5, to even
    model = fit(masks, outputs, validation_share=share)
    fraction, validation_r2 = choose_lam_by_sklearn(masks, outputs, held, LAM_FRACTIONS)
    np.testing.assert_allclose(
        model.diagnostics.lam, fraction * largest_lam_by_loop(masks, outputs), rtol=1e-6
    )
    np.testing.assert_allclose(model.diagnostics.validation_r2, validation_r2, atol=5e-3)
    weights, intercept = lasso_by_sklearn(masks, outputs, model.diagnostics.lam)
    np.testing.assert_allclose(model.weights, weights, atol=0.02)
    np.testing.assert_allclose(model.intercept, intercept, atol=0.02)
    assert len(np.unique(fraction)) > 1


def test_only_the_last_rows_validate():
    masks, outputs, *_ = sparse_bank(5, members=400)
    rng = np.random.default_rng(5)
    shuffled_end = outputs.copy()
    shuffled_end[-80:] = rng.permutation(outputs[-80:])
    shuffled_start = outputs.copy()
    shuffled_start[:80] = rng.permutation(outputs[:80])
    assert (fit(masks, outputs).diagnostics.validation_r2 > 0.8).all()
    assert (fit(masks, shuffled_end).diagnostics.validation_r2 < 0.2).all()
    assert (fit(masks, shuffled_start).diagnostics.validation_r2 > 0.5).all()


def test_order_within_the_two_parts_of_the_rows_does_not_matter():
    masks, outputs, *_ = sparse_bank(6, members=200)
    rng = np.random.default_rng(6)
    order = np.concatenate([rng.permutation(160), 160 + rng.permutation(40)])
    model, again = fit(masks, outputs), fit(masks[order], outputs[order])
    np.testing.assert_allclose(again.diagnostics.lam, model.diagnostics.lam, rtol=1e-6)
    np.testing.assert_allclose(again.weights, model.weights, atol=1e-3)


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


@pytest.mark.parametrize(
    ("masks", "outputs"), [((10, 3), (9, 2)), ((10,), (10, 2)), ((10, 3), (10,))]
)
def test_shapes_that_do_not_match_are_named(unchecked, masks, outputs):
    with pytest.raises(ValueError) as error:
        fit(np.ones(masks, bool), np.ones(outputs))
    assert str(masks) in str(error.value)
    assert str(outputs) in str(error.value)


@pytest.mark.parametrize("dtype", [np.int64, np.float32])
def test_masks_that_are_not_bool_are_named(unchecked, dtype):
    with pytest.raises(ValueError, match=np.dtype(dtype).name):
        fit(np.ones((10, 3), dtype), np.ones((10, 2)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_are_refused(value):
    masks, outputs, *_ = sparse_bank(14, members=20)
    outputs[13, 1] = value
    with pytest.raises(ValueError, match="not finite"):
        fit(masks, outputs)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_value_that_is_not_finite_is_named(value):
    masks, outputs, *_ = sparse_bank(14, members=20)
    outputs[13, 1] = value
    with pytest.raises(ValueError, match=rf"(?<!\w){value}\b"):
        fit(masks, outputs)


@pytest.mark.parametrize(
    ("members", "share"), [(3, 0.5), (0, 0.5), (20, 0.0), (20, 1.0), (20, -0.5), (20, np.nan)]
)
def test_too_few_rows_and_shares_that_are_none_are_named(members, share):
    masks, outputs, *_ = sparse_bank(15, members=members)
    with pytest.raises(ValueError, match=rf"^{members} rows and validation_share = {share};"):
        fit(masks, outputs, validation_share=share)


@pytest.mark.parametrize(("share", "held"), [(0.01, 2), (0.99, 18), (0.5, 10)])
def test_at_least_two_rows_are_held_and_two_fitted(share, held):
    masks = np.arange(20)[:, None] % 2 == 0
    outputs = 2.0 * masks + np.random.default_rng(16).standard_normal((20, 3))
    validation_r2 = fit(masks, outputs, validation_share=share).diagnostics.validation_r2
    _, expected = choose_lam_by_sklearn(masks, outputs, held, LAM_FRACTIONS)
    np.testing.assert_allclose(validation_r2, expected, atol=0.02)


def test_four_rows_are_enough():
    masks, outputs, *_ = sparse_bank(17, members=4)
    assert np.isfinite(fit(masks, outputs).weights).all()


def test_a_datamodel_is_a_pytree_of_its_arrays():
    masks, outputs, *_ = sparse_bank(18, members=60)
    model = fit(masks, outputs)
    doubled = jax.tree.map(lambda array: 2 * array, model)
    assert isinstance(doubled, AdditiveDatamodel)
    assert len(jax.tree.leaves(model)) == 5
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
