"""The verdict: tests that hold their level, and cells that compare like with like."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from influence import calibration, verdict
from influence.verdict import Candidates, Margins, cells_of, conformal_p_values, judge, random_sets

SEEDS = 6


def candidates(labels, flagged, sets):
    suspects = flagged.copy()
    for rows in sets:
        suspects[rows] = True
    random = tuple(random_sets(labels, sets, 0))
    return Candidates(suspects, tuple(sets), random, (0.95,) * len(sets), (0.0,) * len(sets))


def setting(sets=2):
    labels = np.arange(90) % 3
    rows = [np.flatnonzero(labels == number)[:6] for number in range(sets)]
    found = candidates(labels, np.arange(90) < 9, rows)
    return labels, found, cells_of(labels, found, SEEDS, 0)


def test_cells_leave_out_what_they_say():
    labels, found, cells = setting()
    assert cells.everything.all()
    assert (cells.without_suspects == ~found.suspects).all()
    for own, rows, random in zip(
        cells.without_set, found.sets, cells.without_random_set, strict=True
    ):
        assert (~own).sum(1).tolist() == [6] * SEEDS
        assert not own[:, rows].any()
        assert random[:, rows].all()
        np.testing.assert_array_equal(np.bincount(labels[~random[0]]), np.bincount(labels[rows]))
    for row in ~np.concatenate(cells.without_random):
        assert not (row & found.suspects).any()
        np.testing.assert_array_equal(np.bincount(labels[row]), np.bincount(labels[found.suspects]))
    assert len(cells.all()) == 2 + verdict.DRAWS + 2 * len(found.sets)


OF_ONE = np.zeros(60, int)
"""Labels that are all the same."""


def test_of_a_label_that_is_mostly_suspect_none_is_judged_by_itself():
    labels = np.repeat([0, 1, 2], [80, 5, 6])
    rare, half, others = np.arange(80, 85), np.arange(85, 88), np.arange(5)
    flagged = np.isin(np.arange(91), [*others, *rare, *half])
    found = verdict.suspects_of(flagged, labels, [])
    assert np.flatnonzero(found).tolist() == [*others, *half]


def test_sets_of_which_many_are_flagged_are_suspect_as_a_whole():
    flagged = np.isin(np.arange(60), [0, 1, 10, 20])
    backed, natural = np.arange(6), np.arange(10, 20)
    found = verdict.suspects_of(flagged, OF_ONE, [backed, natural])
    assert np.flatnonzero(found).tolist() == [*range(6), 10, 20]
    assert flagged.sum() == 4
    # Where much is flagged, many of a set are so by chance.
    flagged = np.arange(60) < 12
    found = verdict.suspects_of(flagged, OF_ONE, [np.arange(7, 13)])
    assert np.flatnonzero(found).tolist() == [*range(13)]
    assert (verdict.suspects_of(flagged, OF_ONE, [np.arange(11, 13)]) == flagged).all()


def test_a_cluster_among_other_labels_is_suspect_only_if_more_of_it_is_flagged_than_of_all():
    flagged, labels = np.isin(np.arange(100), [0, 1, 10, 20]), np.zeros(100, int)
    mistaken, kind = np.arange(8), np.arange(10, 40)
    found = verdict.suspects_of(flagged, labels, [], [mistaken, kind])
    assert np.flatnonzero(found).tolist() == [*range(8), 10, 20]


def test_a_set_that_is_no_suspect_is_judged_as_a_set_alone():
    labels = np.arange(90) % 3
    sets = (np.arange(30, 36), np.arange(40, 46))
    flagged = np.arange(90) < 9
    suspects = verdict.suspects_of(flagged, labels, sets)
    np.testing.assert_array_equal(suspects, flagged)
    random = tuple(random_sets(labels, sets, 0))
    found = Candidates(suspects, sets, random, (0.95, 0.95), (0.0, 0.0))
    cells = cells_of(labels, found, SEEDS, 0)
    verdicts = judge(found, cells, made(labels, found, cells, transferred=[1]))
    assert np.isnan(verdicts.examples.margin[np.concatenate(sets)]).all()
    assert np.flatnonzero(verdicts.confirmed).tolist() == sets[1].tolist()
    judged = np.flatnonzero(np.isfinite(verdicts.probability))
    assert judged.tolist() == [*range(9), *sets[0], *sets[1]]


def made(labels, found, cells, *, contradicted=(), transferred=()):
    """Margins of members of which some examples are contradicted, and some sets transfer."""
    rng = np.random.default_rng(1)
    count = len(cells.all()) * SEEDS
    train = 5 + rng.normal(size=(count, len(labels)))
    train[:, list(contradicted)] -= 15
    patterned = -5 + rng.normal(size=(2, len(found.sets), count, 20))
    for number in transferred:
        saw = ~np.isin(np.arange(count) // SEEDS, 2 + verdict.DRAWS + number)
        patterned[0, number, saw] += 10
    return Margins(
        train, 5 + rng.normal(size=(count, 30)), tuple(patterned[0]), tuple(patterned[1])
    )


def test_what_is_contradicted_and_what_transfers_is_confirmed_and_nothing_else():
    labels, found, cells = setting()
    margins = made(labels, found, cells, contradicted=[2, 5, 7], transferred=[1])
    verdicts = judge(found, cells, margins)
    expected = np.zeros(90, bool)
    expected[[2, 5, 7, *found.sets[1]]] = True
    np.testing.assert_array_equal(verdicts.confirmed, expected)
    first, second = verdicts.sets
    assert (first.confirmed, second.confirmed) == (False, True)
    assert second.given == (1.0, 0.0)
    assert second.transfer[0] == 1
    assert second.random_transfer[0] == 0
    assert np.isfinite(verdicts.support[found.sets[1]]).all()
    assert np.isnan(np.delete(verdicts.support, found.sets[1])).all()
    assert np.isnan(verdicts.probability[~found.suspects]).all()
    assert (verdicts.probability[found.sets[1]] >= calibration.EVEN).all()


def test_a_pattern_that_transfers_to_some_is_confirmed_only_if_it_is_equal_in_all():
    labels, found, cells = setting(1)
    margins = made(labels, found, cells, transferred=[0])
    margins.with_pattern[0][:, 7:] = -5
    assert judge(found, cells, margins).sets[0].transfer[0] == pytest.approx(0.35)
    assert judge(found, cells, margins).sets[0].confirmed
    varying = found._replace(sameness=(0.7,))
    assert not judge(varying, cells, margins).sets[0].confirmed
    # Unless its examples are disputed as well.
    disputed = found._replace(sameness=(0.85,), disputed=(0.7,))
    assert judge(disputed, cells, margins).sets[0].confirmed
    assert not judge(found._replace(sameness=(0.85,)), cells, margins).sets[0].confirmed


def test_sixteen_seeds_suffice_to_confirm_a_single_example():
    labels, flagged = np.arange(90) % 3, np.arange(90) < 9
    found = Candidates(flagged, (), (), (), ())
    cells = cells_of(labels, found, 16, 0)
    rng = np.random.default_rng(0)
    train = 5 + rng.normal(size=(16 * len(cells.all()), 90))
    train[:, 4] -= 15
    margins = Margins(train, 5 + rng.normal(size=(len(train), 30)), (), ())
    np.testing.assert_array_equal(np.flatnonzero(judge(found, cells, margins).confirmed), [4])


@pytest.mark.parametrize("level", [-2.0, 0.05])
def test_of_a_weak_model_it_is_still_what_is_contradicted_that_is_confirmed(level):
    """Margins of clean targets around 0, or below."""
    labels, found, cells = setting(0)
    margins = made(labels, found, cells, contradicted=[2, 5])
    margins = margins._replace(train=margins.train - 5 + level, clean=margins.clean - 5 + level)
    margins.train[:, 8] += 6
    verdicts = judge(found, cells, margins)
    assert verdicts.unit == verdict.LEAST_UNIT
    assert verdicts.confirmed[[2, 5]].all()
    assert not verdicts.confirmed[8]
    assert np.argmin(verdicts.probability[:9]) == 8


def test_hard_clean_examples_are_contradicted_more_than_random_ones_and_not_confirmed():
    """They are suspects since they are the hardest: the test alone would find most."""
    rng, labels = np.random.default_rng(0), np.arange(400) % 4
    level = rng.normal(6, 2, 400)
    found = Candidates(level <= np.sort(level)[23], (), (), (), ())
    cells = cells_of(labels, found, SEEDS, 0)
    train = level + rng.normal(size=(len(cells.all()) * SEEDS, 400))
    examples = judge(found, cells, Margins(train, 6 + rng.normal(size=(len(train), 50)), (), ()))
    q = examples.examples.q[found.suspects]
    assert (q <= verdict.LEVEL).mean() > 0.5
    assert not examples.confirmed.any()


def test_members_that_are_not_finite_are_left_out():
    labels, found, cells = setting(1)
    margins = made(labels, found, cells, contradicted=[2, 4, 5], transferred=[0])
    whole = judge(found, cells, margins)
    lost = np.arange(len(cells.all())) * SEEDS + 1
    for part in (margins.train, margins.clean, *margins.with_pattern, *margins.with_random_pattern):
        part[lost] = np.nan
    fewer = judge(found, cells, margins)
    np.testing.assert_array_equal(fewer.confirmed, whole.confirmed)
    assert np.isfinite(fewer.examples.margin[found.suspects]).all()


def test_nothing_is_confirmed_where_suspects_are_no_worse_than_random_ones():
    """Rates of a simulation of 200 audits of nothing; each may confirm with probability .05."""
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    audits = 0
    for _ in range(200):
        flagged = np.zeros(400, bool)
        flagged[rng.choice(400, 24, replace=False)] = True
        found = Candidates(flagged, (), (), (), ())
        cells = cells_of(labels, found, 8, int(rng.integers(1000)))
        # A few examples are always contradicted, as in real data.
        level = rng.normal(4, 4, 400)
        train = level + rng.normal(size=(32, 400))
        margins = Margins(train, 4 + rng.normal(size=(32, 50)), (), ())
        audits += judge(found, cells, margins).confirmed.any()
    assert audits <= 0.05 * 200 + 7  # two standard errors


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.floats(-6, 6))
def test_conformal_p_values_are_shares_of_the_controls(controls, value):
    (p,) = conformal_p_values(np.array([value]), np.array(controls))
    assert p == pytest.approx((1 + sum(c <= value for c in controls)) / (1 + len(controls)))


def test_seeds_that_agree_prove_no_more_than_a_share_of_so_many_inputs_can():
    apart, together = np.array([0.4, 0.6]), np.array([0.5, 0.5])
    ten, hundred = (verdict._p_value(together, 1 / inputs) for inputs in (10, 100))
    assert 0.001 < hundred < ten < verdict._p_value(apart, 1 / 100) < 0.1
    assert verdict._p_value(np.zeros(8), 1 / 100) == 0.5
    assert verdict._p_value(np.array([0.5, np.nan]), 1 / 100) == 1


def test_p_values_over_all_sets_are_holms():
    labels, found, cells = setting(2)
    sets = judge(found, cells, made(labels, found, cells)).sets
    raised = verdict._over_all(
        [one._replace(p=p) for one, p in zip(sets, (0.04, 0.01), strict=True)]
    )
    assert [one.p for one in raised] == pytest.approx([0.04, 0.02])
    raised = verdict._over_all([one._replace(p=p) for one, p in zip(sets, (0.9, 0.6), strict=True)])
    assert [one.p for one in raised] == [1.0, 1.0]


def test_probabilities_rise_with_what_they_go_by():
    margins = calibration.of_example(np.array([-5.0, -1.0, 3.0, np.nan]))
    assert margins[0] > margins[1] > margins[2]
    assert np.isnan(margins[3])
    seen = [(0.9, 0.9, 0.5), (0.3, 0.9, 0.5), (0.3, 0.7, 0.5), (0.3, 0.7, 0.0)]
    found = [calibration.of_set(*one) for one in seen]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == 4
    # Shares of 0, or of 1, and what is below chance are as probable as what is very near.
    assert calibration.of_set(-0.1, 1.0, 0.0) == calibration.of_set(0.01, 0.99, 0.0)
