"""Joint datamodels of many groups or masks: what is additive first, and some groups and masks."""

import itertools

import numpy as np
import pytest

from datamodels import background, fit, fit_joint, r2
from datamodels.background import _largest_products
from datamodels.process import distinct

GROUPS = 40


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Few count as many, for speed."""
    monkeypatch.setattr(background, "MOST_GROUPS", 16)
    monkeypatch.setattr(background, "MOST_MASKS", 400)


def truth(masks):
    """Two copies, three partners whose single effects are nought in the mean, and many mains."""
    signs = 2.0 * masks - 1
    return np.stack(
        [
            2.0 * masks[:, [30, 35]].any(1) + masks[:, :20] @ np.linspace(-0.5, 0.5, 20),
            1.5 * signs[:, 25] * signs[:, 38] + 0.3 * masks[:, :25].sum(1),
            masks @ np.linspace(-1, 1, GROUPS),
        ],
        axis=1,
    )


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    masks = rng.random((1200, GROUPS)) < 0.5
    outputs = truth(masks)
    return masks, outputs + 0.2 * rng.standard_normal(outputs.shape)


@pytest.fixture
def model(data, few):
    return fit_joint(*data, alpha=0.5)


def test_groups_that_act_together_are_kept_and_their_terms_found(model, data):
    assert model.groups.shape == (3, 16)
    assert model.masks.shape == (400, GROUPS)
    assert {30, 35} <= set(model.groups[0].tolist())
    assert {25, 38} <= set(model.groups[1].tolist())
    found = {(term.target, term.groups): term for term in model.terms()}
    assert set(found) == {(0, (30, 35)), (1, (25, 38))}
    copies, partners = found[0, (30, 35)], found[1, (25, 38)]
    assert copies.kind == "redundancy"
    assert copies.low < -2 < copies.high
    assert copies.group_effect == pytest.approx(2, abs=0.2)
    assert partners.low < 6 < partners.high
    # The mean output with none, one and both kept, all others averaged.
    masks = np.random.default_rng(1).random((20_000, GROUPS)) < 0.5
    expected = [truth(masks)[masks[:, [30, 35]].sum(1) == count, 0].mean() for count in range(3)]
    np.testing.assert_allclose(copies.response, expected, atol=0.15)


def test_predictions_are_those_of_all_groups_and_better_than_additive_ones(model, data):
    unseen = np.random.default_rng(2).random((500, GROUPS)) < 0.5
    actual = truth(unseen)
    joint, additive = r2(model.predict(unseen), actual), r2(fit(*data).predict(unseen), actual)
    assert (joint[:2] > additive[:2] + 0.05).all()
    assert joint[2] > additive[2] - 0.005
    assert (joint > 0.95).all()


def test_effects_of_any_named_sets_are_estimated(model):
    """Also of groups that do not stand out, which the datamodel takes to add up."""
    left = sorted(set(range(GROUPS)) - set(model.groups[0].tolist()))[:2]
    sets = [(), (0,), (19,), (30, 35), (0, 19), tuple(left), (left[0],)]
    found = model.effects(0, sets)
    masks = np.random.default_rng(3).random((20_000, GROUPS)) < 0.5
    mains = np.append(np.linspace(-0.5, 0.5, 20), np.zeros(GROUPS - 20))
    expected = [truth(masks)[:, 0].mean(), mains[0], mains[19], -2.0, 0, 0, mains[left[0]]]
    assert (np.abs(found.value - expected) < 4 * found.standard_error + 0.03).all()
    assert (found.standard_error < 0.3).all()


def test_indices_are_those_of_the_prediction(model):
    sets = [(), *((group,) for group in range(GROUPS)), *itertools.combinations(range(20, 40), 2)]
    found = dict(zip(sets, model.index(0, sets, "moebius"), strict=True))
    cells = np.zeros((4, GROUPS), bool)
    cells[1, 30] = cells[2, 2] = cells[3, [2, 30]] = True
    none, one, other, both = model.predict(cells)[:, 0]
    assert found[()] == pytest.approx(none, abs=5e-3)
    assert found[30,] == pytest.approx(one - none, abs=5e-3)
    assert found[2,] == pytest.approx(other - none, abs=5e-3)
    assert both - one - other + none == pytest.approx(0, abs=0.1)


def test_all_pairs_are_screened():
    rng = np.random.default_rng(4)
    masks, left = rng.standard_normal((50, 9)).astype(np.float32), rng.standard_normal(50)
    products = np.abs((masks * left[:, None]).T @ masks)
    np.fill_diagonal(products, 0)
    found = _largest_products(masks, left.astype(np.float32))
    np.testing.assert_allclose(found, products.max(0), rtol=1e-4)


def test_of_few_groups_and_masks_all_is_left_to_the_covariance(data):
    masks, outputs = data
    found = background.background(distinct(masks[:300, :16], outputs[:300]))
    assert not found.weights.any()
    assert found.groups.tolist() == [list(range(16))] * 3
    assert len(found.rows) == 300
