"""Terms: the sets that act together, their kinds and intervals, on functions that are known."""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodels import fit_joint
from datamodels.crossfit import Estimate, pooled, refit_halves, sides
from datamodels.estimates import Effects
from datamodels.process import Settings
from datamodels.scores import sampling
from datamodels.shapes import MOST_ORDER, fit_shapes, has, mixed_step, step_effects, subsets
from datamodels.terms import Assessed, mostly_same, without_overlaps

JOINT = Settings(steps=8, own_mains=False, joint=True, noise=None)


def cells(size):
    return np.array(list(itertools.product([0, 1], repeat=size)), bool)


def joint_effect(function: Callable, groups: int, own, kept):
    """By its definition, over every mask."""
    every = cells(groups)
    own = list(own)
    others = [group for group in range(groups) if group not in own]
    weight = np.where(every[:, others], kept, 1 - kept).prod(1)
    return float((weight * np.where(every[:, own], 1, -1).prod(1) * function(every)).sum())


@given(size=st.integers(1, 6), kept=st.floats(0.05, 0.95), data=st.data())
def test_effects_of_a_step_are_those_of_a_sum_over_cells(size, kept, data):
    least = data.draw(st.integers(1, size))
    found = step_effects(size, least, kept)
    for row, own in zip(found, has(size), strict=True):
        truth = joint_effect(lambda z: (z.sum(1) >= least) * 1.0, size, np.flatnonzero(own), kept)
        assert row == pytest.approx(truth, abs=1e-9)


def test_subsets_are_all_of_few_groups():
    found = subsets(np.array([[3, 5, 7, 8, 9]]))[0]
    expected = {
        own
        for size in range(MOST_ORDER + 1)
        for own in itertools.combinations((3, 5, 7, 8, 9), size)
    }
    assert {tuple(int(group) for group in row if group >= 0) for row in found} == expected
    assert len(found) == len(expected)


@given(size=st.integers(3, 7), sign=st.sampled_from([-1, 1]), data=st.data())
def test_a_step_is_recognised_whatever_main_effects_are_beside_it(size, sign, data):
    least = data.draw(st.integers(1, size))
    kept, share = np.array([0.5, 0.2]), np.array([0.5, 0.5])
    effects = 2.0 * sign * mixed_step(size, least, kept, share)
    effects[1 : size + 1] += 5
    found = fit_shapes(effects[None], size, kept, share)
    assert (found.least[0], found.share[0]) == (least, pytest.approx(1))


def test_what_mostly_is_a_surer_set_is_left_out():
    def assessed(groups, p_value):
        return Assessed(groups, Estimate(np.zeros(1), np.ones(1)), p_value, 1)

    every = [
        assessed((1, 2, 3, 4), 1e-3),
        assessed((1, 2, 3, 5), 1e-2),  # three of five
        assessed((3, 4), 1e-2),  # a part
        assessed((4, 6), 1e-2),
        assessed((1, 2, 3, 4, 7, 8, 9), 1e-1),  # four of seven
    ]
    assert [each.groups for each in without_overlaps(every)] == [(1, 2, 3, 4), (4, 6)]


ALPHAS = np.resize([0.5, 0.2], 1600)


def planted(masks):
    conflict = 1.5 * masks[:, 16] * ~masks[:, 17] - 1.2 * masks[:, 17] * ~masks[:, 16]
    return (
        1.5 * masks[:, [0, 1]].any(1)
        - 1.5 * masks[:, [2, 3, 4]].any(1)
        + 1.5 * masks[:, [5, 6]].all(1)
        + 2.0 * masks[:, [7, 8, 9]].all(1)
        + 1.5 * (masks[:, [10, 11, 12]].sum(1) >= 2)
        + conflict
        + 0.3 * masks[:, 18:24].sum(1)
    )


PLANTED = {
    (0, 1): "redundancy",
    (2, 3, 4): "redundancy",
    (5, 6): "synergy",
    (7, 8, 9): "synergy",
    (10, 11, 12): "threshold",
    (16, 17): "conflict",
}


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(1)
    masks = rng.random((len(ALPHAS), 26)) < ALPHAS[:, None]
    outputs = planted(masks) + 0.3 * rng.standard_normal(len(masks))
    constant = np.full(len(masks), 2.0)
    shuffled = rng.permutation(outputs)
    return fit_joint(masks, np.stack([outputs, constant, shuffled], axis=1), alpha=ALPHAS)


def test_planted_sets_are_found_whole_with_their_kinds(model):
    found = {term.groups: term for term in model.terms(0, q=0.05)}
    assert {groups: found[groups].kind for groups in PLANTED} == PLANTED
    assert len(found) <= len(PLANTED) + 1
    assert [found[groups].least for groups in PLANTED] == [1, 1, 2, 3, 2, found[16, 17].least]
    for groups in PLANTED:
        truth = np.mean([joint_effect(part_of(groups), len(groups), range(len(groups)), 0.5)])
        assert found[groups].low - 0.1 < truth < found[groups].high + 0.1
        assert found[groups].order == len(groups)
        height = found[groups].response[-1] - found[groups].response[0]
        assert height == pytest.approx(found[groups].group_effect, abs=1e-6)
    assert found[2, 3, 4].group_effect == pytest.approx(-1.5, abs=0.2)
    np.testing.assert_allclose(np.diff(found[7, 8, 9].response), [0, 0, 2], atol=0.2)


def part_of(groups):
    """What planted says of some groups, on masks of these alone."""

    def output(masks):
        whole = np.zeros((len(masks), 26), bool)
        whole[:, groups] = masks
        return planted(whole)

    return output


def test_terms_are_sorted_and_those_of_a_smaller_rate_among_those_of_a_larger(model):
    every, few = model.terms(0, q=1.0), model.terms(0, q=1e-6)
    p_values = [term.p_value for term in every]
    assert p_values == sorted(p_values)
    assert {term.groups for term in few} == {t.groups for t in every if t.q_value <= 1e-6}


def test_nothing_is_found_in_shuffled_or_constant_outputs(model):
    assert model.terms(2) == []
    assert model.terms(1) == []


def test_what_was_learned_for_one_call_serves_the_next_about_the_same_targets(model):
    alone = model.effects(0, [(0, 1)])
    anew = dataclasses.replace(model).effects(0, [(0, 1)])
    other = model.effects(2, [(0, 1)])
    again = model.effects(0, [(0, 1)])
    assert alone.value[0] == anew.value[0] == again.value[0] != other.value[0]


@pytest.mark.slow
def test_targets_are_pooled_under_one_rate(model):
    alone, pooled_terms = model.terms(0), model.terms()
    assert {term.target for term in pooled_terms} == {0}
    assert {term.groups for term in pooled_terms} <= {term.groups for term in alone}


@pytest.mark.slow
def test_a_large_redundancy_is_one_term():
    rng = np.random.default_rng(2)
    masks = rng.random((1500, 30)) < 0.2
    outputs = 2.0 * masks[:, 3:9].any(1) + 0.2 * rng.standard_normal(1500)
    found = fit_joint(masks, outputs[:, None], alpha=0.2).terms(0)
    assert [(term.groups, term.kind) for term in found] == [(tuple(range(3, 9)), "redundancy")]
    # One alone does what all do: together five times less than added up.
    assert found[0].low < -5 * 2.0 < found[0].high


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.5, 0.25])
def test_a_set_of_three_without_pairs_is_found(alpha):
    rng = np.random.default_rng(3)
    masks = rng.random((1200, 12)) < alpha
    signs = (masks - alpha) / np.sqrt(alpha * (1 - alpha))
    outputs = signs[:, [2, 5, 7]].prod(1) + 0.3 * rng.standard_normal(1200)
    found = fit_joint(masks, outputs[:, None], alpha=alpha).terms(0)
    assert found[0].groups == (2, 5, 7)


@pytest.mark.slow
def test_few_groups_and_groups_that_never_vary_are_met():
    rng = np.random.default_rng(8)
    masks = rng.random((300, 3)) < 0.5
    masks[:, 2] = True
    outputs = 1e6 + 2.0 * masks[:, :2].any(1) + 0.1 * rng.standard_normal(300)
    for own in (masks[:, :2], masks):
        model = fit_joint(own, outputs[:, None])
        (term,) = model.terms(0)
        assert (term.groups, term.kind) == ((0, 1), "redundancy")
        assert term.joint_effect == pytest.approx(-2, abs=0.1)
    found = model.effects(0, [(0, 1), (0, 2)])
    assert found.value[0] == pytest.approx(-2, abs=0.1)
    assert np.isfinite(found.standard_error).tolist() == [True, False]


@pytest.mark.slow
def test_products_of_three_are_no_conflict():
    rng = np.random.default_rng(9)
    masks = rng.random((600, 10)) < 0.5
    outputs = (2.0 * masks[:, [1, 4, 8]] - 1).prod(1) + 0.2 * rng.standard_normal(600)
    (term,) = fit_joint(masks, outputs[:, None], alpha=0.5).terms(0)
    assert (term.groups, term.kind) == ((1, 4, 8), "synergy")


def simulated(rng, members, together):
    """A function of 7 of 14 groups, with noise, and how its rows were drawn together."""
    drawn = members // 2 if together else members
    masks = rng.random((drawn, 14)) < 0.5
    if together == "complements":
        masks = np.concatenate([masks, ~masks])
    elif together == "retrains":
        masks = np.concatenate([masks, masks])
    number = np.resize(np.arange(drawn), members)
    return masks, rugged(masks) + 0.5 * rng.standard_normal(members), number


def rugged(masks):
    signs = 2.0 * masks[:, :7] - 1
    return (
        signs[:, 0]
        + signs[:, [1, 2]].prod(1)
        + np.sin(signs @ np.arange(7.0))
        + masks[:, :4].any(1)
    )


@pytest.mark.slow
@pytest.mark.parametrize("together", [None, "complements", "retrains"])
def test_intervals_of_joint_effects_cover(together):
    rng = np.random.default_rng(4)
    sets = [own for size in range(5) for own in itertools.combinations(range(7), size)]
    rows = np.full((len(sets), 4), -1)
    for row, own in enumerate(sets):
        rows[row, : len(own)] = own
    truth = np.array([joint_effect(rugged, 7, own, 0.5) for own in sets])
    inside = []
    for _ in range(25):
        masks, outputs, number = simulated(rng, 400, together)
        alpha = None if together == "complements" else 0.5
        drawn = sampling(masks, alpha, fixed_size=False, replicate_of=number)
        halves = refit_halves(sides(drawn, outputs[:, None]), [JOINT], np.ones(1)).halves(0)
        parts = [half.estimate(rows, np.eye(len(rows))) for half in halves]
        found = pooled(parts, [len(half.masks) for half in halves])
        low, high = Effects(found.value[:, None], found.standard_error[:, None]).interval()
        inside.append((low[:, 0] <= truth) & (truth <= high[:, 0]))
    assert 0.93 <= np.mean(inside) <= 0.97


@pytest.mark.slow
def test_few_of_what_is_found_is_false():
    """Random pairs and triples, at a rate of .1 over the sets found with 20 functions."""
    false, found, hit, true = [], 0, 0, 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        masks = rng.random((800, 30)) < 0.5
        signs = 2.0 * masks - 1
        groups = rng.permutation(30)
        sets = [tuple(sorted(groups[begin : begin + 2].tolist())) for begin in range(0, 12, 2)]
        outputs = sum(0.4 * signs[:, list(own)].prod(1) for own in sets)
        outputs += signs[:, groups[:15]] @ rng.standard_normal(15) * 0.5
        outputs += 0.7 * rng.standard_normal(800)
        terms = fit_joint(masks, outputs[:, None], alpha=0.5).terms(0)
        wrong = [term for term in terms if term.groups not in sets]
        false.append(len(wrong) / max(len(terms), 1))
        found, true = found + len(terms), true + len(sets)
        hit += len(terms) - len(wrong)
    assert np.mean(false) <= 0.12
    assert hit / true >= 0.9


def open_in_half(masks):
    """Alphas of rows of which half are said to keep the first group as they do."""
    alpha = np.full(masks.shape, 0.5)
    alpha[:100, 0] = masks[:100, 0]
    return alpha


def of_five(members):
    return np.random.default_rng(7).random((members, 10)).argsort(1) < 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, y: fit_joint(m, y, alpha=0.9), "alpha = 0.9, but the masks keep"),
        (lambda m, y: fit_joint(m, y).terms(1), "target 1 is not there; the datamodel has 1"),
        (lambda m, y: fit_joint(m, y).effects(0, [(3, 3)]), r"set \(3, 3\) must hold different"),
        (lambda m, y: fit_joint(m, y).effects(0, [3, 5]), "each set must be a sequence of groups"),
        (
            lambda m, y: fit_joint(m, y, alpha=np.full(3, 0.5)),
            "alpha must be one number, one a row",
        ),
        (lambda m, y: fit_joint(m, y).terms(0, q=-1.0), "q = -1.0 must be above 0"),
        (
            lambda m, y: fit_joint(m, y, alpha=open_in_half(m)).effects(0, [(0,)]),
            "alpha is 0 or 1 for a group in some rows",
        ),
        (
            lambda m, y: fit_joint(m, y, alpha=np.linspace(0.4, 0.6, 200)).effects(0, [(0,)]),
            "rows have 200 different alphas",
        ),
        (
            lambda m, y: fit_joint(of_five(len(m)), y).terms(0),
            "need masks whose groups are kept independently",
        ),
    ],
)
def test_what_cannot_be_told_is_named(call, message, unchecked):
    rng = np.random.default_rng(5)
    masks = rng.random((200, 10)) < 0.5
    with pytest.raises(ValueError, match=message):
        call(masks, masks[:, :1] + 0.1 * rng.standard_normal((200, 1)))


@pytest.mark.slow
def test_rows_without_outputs_are_left_out_with_their_alphas():
    rng = np.random.default_rng(6)
    alpha = np.resize([0.5, 0.3], 300)
    masks = rng.random((300, 8)) < alpha[:, None]
    outputs = masks[:, :1] * masks[:, 1:2] + 0.1 * rng.standard_normal((300, 1))
    expected = fit_joint(masks[1:], outputs[1:], alpha=alpha[1:]).effects(0, [(0, 1), ()])
    outputs[0] = np.nan
    with pytest.warns(UserWarning, match="1 of 300 rows"):
        found = fit_joint(masks, outputs, alpha=alpha, replicate_of=np.arange(300))
    same = found.effects(0, [(0, 1), ()])
    np.testing.assert_array_equal(same.value, expected.value)
    assert same.value[0] == pytest.approx(1, abs=0.1)
    assert same.value[1] == pytest.approx(outputs[1:].mean(), abs=0.05)


@pytest.mark.slow
def test_steady_terms_are_those_that_are_there():
    rng = np.random.default_rng(5)
    masks = rng.random((300, 12)) < 0.5
    outputs = 2.0 * masks[:, [0, 1]].any(1) + 0.3 * masks[:, [2, 3]].all(1)
    model = fit_joint(masks, (outputs + 0.3 * rng.standard_normal(300))[:, None], alpha=0.5)
    (sure,) = [term for term in model.terms(q=1.0) if term.groups == (0, 1)]
    absent = dataclasses.replace(sure, groups=(7, 8))
    steady = model.stability([sure, absent], splits=3)
    np.testing.assert_array_equal(steady, [1, 0])
    np.testing.assert_array_equal(steady, model.stability([sure, absent], splits=3))
    assert model.stability([]).shape == (0,)
    with pytest.raises(ValueError, match="splits = 0 must be at least 1"):
        model.stability([sure], splits=0)


def test_two_sets_are_mostly_the_same_that_share_more_than_half_of_what_they_have_together():
    assert mostly_same(np.arange(6), np.arange(2, 8)) is False
    assert mostly_same(np.arange(6), np.arange(1, 7)) is True
