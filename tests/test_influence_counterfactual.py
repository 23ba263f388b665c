"""The verification's plan, its cells and intervals: the parts without training."""

import numpy as np
import pytest
from scipy import stats

from influence import counterfactual
from influence.counterfactual import cell_names, context_cells


def test_the_interval_of_a_share_stays_within_0_and_1_and_keeps_a_width():
    mean, low, high = counterfactual.share_interval(np.zeros(8), inputs=200)
    assert (mean, low) == (0.0, 0.0)
    # Wilson's upper limit at 0 of n is z^2 / (n + z^2).
    assert high == pytest.approx(1.96**2 / (200 + 1.96**2), rel=1e-3)
    spread = counterfactual.share_interval(np.array([0.0, 0.5, 1.0, 1.0]), inputs=10)
    assert (spread[1], spread[2]) == (0.0, 1.0)


def some_contexts(seeds):
    rng = np.random.default_rng(0)
    return {f"alpha {alpha}": rng.random((seeds, 50)) < alpha for alpha in (0.3, 0.6)}


def test_more_seeds_leave_the_masks_of_the_first_as_they_are():
    labels, confirmed, flagged = np.arange(50) % 3, np.arange(50) < 3, np.arange(50) < 5
    contexts = some_contexts(6)
    few, many = (
        counterfactual.by_cell(
            counterfactual.plan(
                labels,
                confirmed,
                np.arange(50) >= 25,
                flagged,
                {name: kept[:seeds] for name, kept in contexts.items()},
                seed=0,
            ).listed,
            list(contexts),
        )
        for seeds in (3, 6)
    )
    for cell in cell_names(list(contexts)):
        np.testing.assert_array_equal(few[cell], many[cell][:3])


def test_seeds_count_where_both_cells_that_are_compared_have_them():
    contexts = list(some_contexts(3))
    usable = np.ones((len(cell_names(contexts)), 3), bool)
    assert counterfactual.fewest_seeds(usable.ravel(), contexts) == 3
    place = cell_names(contexts).index
    usable[place("after_random")] = [True, False, True]
    assert counterfactual.fewest_seeds(usable.ravel(), contexts) == 2
    kept, dropped = map(place, counterfactual.context_cells(contexts[1]))
    usable[kept], usable[dropped] = [True, True, False], [False, True, True]
    assert counterfactual.fewest_seeds(usable.ravel(), contexts) == 1


def test_the_plan_pairs_the_cells_seed_by_seed():
    labels, confirmed, flagged = np.arange(50) % 3, np.arange(50) < 3, np.arange(50) < 5
    contexts = some_contexts(4)
    redundant = np.arange(50) >= 25
    design = counterfactual.plan(labels, confirmed, redundant, flagged, contexts, seed=0)
    cells = counterfactual.by_cell(design.listed, list(contexts))
    assert cells["before"].all()
    assert (cells["after"] == ~confirmed).all()
    assert (cells[counterfactual.WITHOUT_FLAGGED] == ~flagged).all()
    for row in ~cells["after_random"]:
        np.testing.assert_array_equal(np.bincount(labels[row]), np.bincount(labels[confirmed]))
    assert len(np.unique(cells["after_random"], axis=0)) == 4
    assert (cells["thinned"] == ~redundant).all()
    for row in ~cells["thinned_random"]:
        np.testing.assert_array_equal(np.bincount(labels[row]), np.bincount(labels[redundant]))
        assert 0 < row[redundant].sum() < 25
    assert len(np.unique(cells["thinned_random"], axis=0)) == 4
    for name, others in contexts.items():
        kept, dropped = (cells[cell] for cell in context_cells(name))
        np.testing.assert_array_equal(kept[:, 5:], others[:, 5:])
        np.testing.assert_array_equal(dropped[:, 5:], others[:, 5:])
        assert kept[:, :5].all()
        assert not dropped[:, :5].any()
    members = np.arange(4 * len(cells))
    np.testing.assert_array_equal(design.rows(members).reshape(-1, 4), [[0, 1, 2, 3]] * len(cells))


def test_the_change_is_that_between_the_cells_of_each_context():
    rng = np.random.default_rng(1)
    contexts = list(some_contexts(4))
    cells = {name: rng.standard_normal((4, 3)) for name in cell_names(contexts)}
    change = counterfactual.change(cells, np.arange(3.0), contexts)
    for name in contexts:
        kept, dropped = (cells[cell] for cell in context_cells(name))
        np.testing.assert_array_equal(change.contexts[name], dropped - kept)
    without = cells[counterfactual.WITHOUT_FLAGGED]
    np.testing.assert_array_equal(change.all_kept, without - cells["before"])


def test_an_interval_is_students_and_leaves_out_lost_members():
    values = np.array([1.0, 2.0, np.nan, 4.0])
    mean, low, high = counterfactual.interval(values)
    expected = stats.ttest_1samp([1.0, 2.0, 4.0], 0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((7 / 3, expected.low, expected.high))
