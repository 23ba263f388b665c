"""Sets that support one another and no clean target: the search for what a trigger leaves."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodels import hidden_support
from datamodels.support import GROWTH, LEAST_SIZE, MOST_SHARE, HiddenSet, _outstanding, largest

CLASSES, EACH, TARGETS = 8, 30, 120
TRIGGER = np.arange(3, 15)
"""Of the first class."""
KIND = np.arange(35, 47)
"""A natural kind of the second class, of which clean targets have as many in proportion."""


def weights(seed, trigger=0.6, kind=0.6, noise=0.02):
    """Weights of groups on each other and on clean targets, with a trigger and a natural kind."""
    rng = np.random.default_rng(seed)
    groups = CLASSES * EACH
    classes = np.repeat(np.arange(CLASSES), EACH)
    own = noise * rng.standard_normal((groups, groups))
    clean = noise * rng.standard_normal((groups, TARGETS))
    own[np.ix_(TRIGGER, TRIGGER)] += trigger
    own[np.ix_(KIND, KIND)] += kind
    clean[np.ix_(KIND, np.arange(TARGETS * len(KIND) // groups))] += kind
    np.fill_diagonal(own, 5.0)
    return own.astype(np.float32), clean.astype(np.float32), classes


@given(
    st.lists(
        st.lists(st.sampled_from([-np.inf, -1e30, -2.5, 0.0, 1e-40, 3.0]), min_size=7, max_size=7),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 7),
)
def test_the_largest_of_each_row_are_the_first_of_its_order(rows, count):
    values = np.array(rows, np.float32)
    first = np.argsort(-values, axis=1, kind="stable")[:, :count]
    expected = np.zeros(values.shape, bool)
    np.put_along_axis(expected, first, True, axis=1)
    np.testing.assert_array_equal(largest(jnp.asarray(values), count), expected)


@settings(max_examples=6)
@given(st.integers(0, 1000))
def test_a_trigger_is_found_whole_and_a_natural_kind_is_not(seed):
    found = hidden_support(*weights(seed))
    first = found.sets[0]
    assert sorted(first.groups) == TRIGGER.tolist()
    assert first.hidden > 3 * found.chance
    assert not any(set(one.groups) & set(KIND) for one in found.beyond_chance)
    others = np.delete(np.arange(CLASSES * EACH), TRIGGER)
    assert found.score[TRIGGER].min() > 0.8 * first.hidden
    assert found.score[others].max() < 0.2 * first.hidden


@settings(max_examples=6)
@given(st.integers(0, 1000))
def test_two_triggers_are_two_sets(seed):
    own, clean, classes = weights(seed)
    other = np.arange(100, 110)
    own[np.ix_(other, other)] += 0.5
    found = hidden_support(own, clean, classes)
    assert {frozenset(one.groups) for one in found.sets[:2]} == {
        frozenset(TRIGGER.tolist()),
        frozenset(other.tolist()),
    }


@settings(max_examples=6)
@given(st.integers(0, 1000))
def test_what_is_said_of_a_set_is_what_its_weights_add_up_to(seed):
    own, clean, classes = weights(seed, trigger=0.2, noise=0.1)
    found = hidden_support(own, clean, classes)
    for one in found.sets:
        k = len(one.groups)
        support = sum(own[i, j] for i in one.groups for j in one.groups if i != j) / k
        helped = sorted(sum(clean[i, t] for i in one.groups) for t in range(TARGETS))
        count = max(1, round(k * TARGETS / len(own)))
        assert one.support == pytest.approx(support, abs=1e-4)
        received = [sum(own[i, j] + own[j, i] for j in one.groups if i != j) for i in one.groups]
        assert received == sorted(received, reverse=True)
        assert one.clean == pytest.approx(np.mean(helped[-count:]), abs=1e-4)
        share = 1 - max(one.clean, 0) / one.support
        assert one.hidden == pytest.approx(k * (one.support - one.clean) * share)
        assert (one in found.beyond_chance) == (one.hidden > found.chance)
        assert len(set(classes[list(one.groups)])) == 1


def test_a_weak_trigger_among_many_strong_kinds_is_found_whole():
    """Of what supports itself most all is natural, and clean targets take every kind in turn."""
    rng = np.random.default_rng(0)
    each, trigger = 60, np.arange(24)
    groups, targets = CLASSES * each, 2 * TARGETS
    own = 0.02 * rng.standard_normal((groups, groups))
    clean = 0.02 * rng.standard_normal((groups, targets))
    for number in range(4):
        kind = np.arange(15 * number, 15 * (number + 1))
        own[np.ix_(kind, kind)] += 0.6
        clean[np.ix_(kind, np.arange(8 * number, 8 * (number + 1)))] += 0.6
    own[np.ix_(trigger, trigger)] += 0.15
    found = hidden_support(own, clean, np.repeat(np.arange(CLASSES), each))
    assert sorted(found.sets[0].groups) == trigger.tolist()


@pytest.mark.slow
@settings(max_examples=6)
@given(st.integers(0, 1000))
def test_the_order_of_groups_and_their_own_weights_do_not_matter(seed):
    own, clean, classes = weights(seed)
    order = np.random.default_rng(seed).permutation(len(own))
    mixed = own[np.ix_(order, order)]
    np.fill_diagonal(mixed, -3.0)
    one = hidden_support(own, clean, classes)
    other = hidden_support(mixed, clean[order], classes[order])
    np.testing.assert_allclose(one.score[order], other.score, atol=1e-3)
    assert sorted(order[list(other.sets[0].groups)].tolist()) == sorted(one.sets[0].groups)


@pytest.mark.slow
def test_of_noise_hardly_anything_is_found():
    named = sum(len(hidden_support(*weights(seed, 0, 0)).beyond_chance) > 0 for seed in range(15))
    assert named <= 4
    scores = hidden_support(*weights(0, 0, 0)).score
    assert scores.max() < 0.1 * hidden_support(*weights(0)).score.max()


@pytest.mark.slow
@settings(max_examples=6)
@given(st.integers(0, 1000))
def test_two_triggers_of_one_class_are_both_named(seed):
    own, clean, classes = weights(seed, trigger=0, kind=0)
    classes = classes // 2
    one, other = np.arange(3, 25), np.arange(30, 52)
    for group in (one, other):
        own[np.ix_(group, group)] += 0.5
    np.fill_diagonal(own, 0)
    named = {frozenset(each.groups) for each in hidden_support(own, clean, classes).beyond_chance}
    assert {frozenset(one.tolist()), frozenset(other.tolist())} <= named


@pytest.mark.parametrize(
    ("own", "clean", "classes", "message"),
    [
        ((3, 4), (3, 2), 3, r"own must be \(g, g\)"),
        ((3, 3), (2, 2), 3, r"clean \(g, t\)"),
        ((3, 3), (3, 0), 3, "clean has no targets"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(own, clean, classes, message, unchecked):
    with pytest.raises(ValueError, match=message):
        hidden_support(np.zeros(own), np.zeros(clean), np.zeros(classes, int))


@pytest.mark.parametrize(
    ("hidden", "chance", "count"),
    [
        ([57, 10], 5, 1),
        ([74, 47, 16], 13, 2),  # the second step is the largest
        ([17, 10, 9, 6, 4], 3, 0),  # natural kinds follow one another closely
        ([12], 6, 0),
        ([20], 6, 1),
        ([], 6, 0),
        ([5, 4], 0, 2),
    ],
)
def test_only_sets_before_a_large_step_count(hidden, chance, count):
    sets = [HiddenSet((0,), float(each), 0.0) for each in hidden]
    assert [one.hidden for one in sets] == hidden
    assert len(_outstanding(sets, float(chance))) == count


def test_the_score_is_of_what_stands_out():
    np.testing.assert_array_equal(np.flatnonzero(hidden_support(*weights(0)).score), TRIGGER)


def test_small_classes_are_left_out():
    own, clean, classes = weights(0)
    classes = np.where(np.isin(np.arange(len(own)), TRIGGER[: 2 * LEAST_SIZE - 1]), 9, classes)
    found = hidden_support(own, clean, classes)
    assert (found.score[classes == 9] == 0).all()
    single = hidden_support(own[:6, :6], clean[:6], classes[:6])
    assert single.sets == ()
    assert (single.score == 0).all()


def test_a_set_is_at_most_half_of_its_class_and_a_tenth_of_all():
    own, clean, classes = weights(0)
    own[:EACH, :EACH] += 1.0
    own, clean, classes = own[:100, :100], clean[:100], classes[:100]
    sizes = [len(one.groups) for one in hidden_support(own, clean, classes).sets]
    assert max(sizes) <= MOST_SHARE * len(own)
    assert max(sizes) * GROWTH > MOST_SHARE * len(own)
