"""Designs of masks."""

import json
import re
from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import bernoulli_masks_by_loop

from datamodels import Bernoulli, FixedSize, Listed, Pairs, TwoLevel
from datamodels.design import from_description

ROOT = jax.random.key(0)
GROUPS = 17
SEEDS = st.integers(0, 2**32 - 1)
ALPHAS = [0.05, 0.5, 0.9]


def hoeffding(count, failure=1e-9):
    """How far the mean of so many independent bits strays, but for this probability."""
    return np.sqrt(np.log(2 / failure) / (2 * count))


@given(
    seed=SEEDS,
    order=st.permutations(range(24)),
    count=st.sampled_from([1, 5, 24]),
    replicates=st.sampled_from([1, 3]),
    make=st.sampled_from(
        [
            partial(Bernoulli, 0.5),
            partial(FixedSize, 0.3),
            Pairs,
            partial(TwoLevel, 0.5, 0.4, tuple(group % 5 for group in range(GROUPS))),
        ]
    ),
)
def test_masks_depend_on_the_root_and_the_row_alone(seed, order, count, replicates, make):
    design, root = make(replicates=replicates), jax.random.key(seed)
    everyone = design.masks(root, np.arange(24), GROUPS)
    some = np.array(order[:count])
    np.testing.assert_array_equal(design.masks(root, some, GROUPS), everyone[some])


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("replicates", [1, 3])
def test_masks_equal_those_drawn_one_by_one(alpha, replicates):
    members = np.array([0, 7, 7, 123_456, 2])
    masks = Bernoulli(alpha, replicates=replicates).masks(ROOT, members, GROUPS)
    assert masks.dtype == np.bool_
    expected = bernoulli_masks_by_loop(ROOT, members, alpha, replicates, GROUPS)
    np.testing.assert_array_equal(masks, expected)


def test_replicates_share_the_mask_of_their_row():
    alone = Bernoulli(0.5).masks(ROOT, np.arange(8), GROUPS)
    repeated = Bernoulli(0.5, replicates=3).masks(ROOT, np.arange(24), GROUPS)
    np.testing.assert_array_equal(repeated, np.repeat(alone, 3, axis=0))
    assert len(np.unique(repeated, axis=0)) == 8


@given(replicates=st.integers(1, 9), members=st.lists(st.integers(0, 10**6), max_size=20))
def test_row_and_replicate_name_each_member_once(replicates, members):
    design, members = Bernoulli(0.5, replicates=replicates), np.array(members, np.int64)
    rows, repeats = design.rows(members), design.replicate_of(members)
    np.testing.assert_array_equal(rows * replicates + repeats, members)
    assert ((repeats >= 0) & (repeats < replicates)).all()


def test_rows_and_replicates_of_the_first_members():
    design, members = Bernoulli(0.5, replicates=3), np.arange(7)
    assert design.rows(members).tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert design.replicate_of(members).tolist() == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_masks_keep_a_share_of_alpha(alpha):
    masks = Bernoulli(alpha).masks(ROOT, np.arange(4000), 20)
    assert abs(masks.mean() - alpha) < hoeffding(80_000)
    assert (np.abs(masks.mean(0) - alpha) < hoeffding(4000)).all()  # no group is favoured


@pytest.mark.parametrize("alpha", ALPHAS)
def test_groups_and_neighbouring_rows_are_independent(alpha):
    masks = Bernoulli(alpha).masks(ROOT, np.arange(4000), 20)
    both = masks.T.astype(float) @ masks / 4000
    pairs = ~np.eye(20, dtype=bool)
    assert (np.abs(both - alpha**2)[pairs] < hoeffding(4000)).all()
    following = (masks[0::2] & masks[1::2]).mean()
    assert abs(following - alpha**2) < hoeffding(40_000)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(
    "other", [jax.random.key(1), jax.random.fold_in(ROOT, 0), jax.random.fold_in(ROOT, 1)]
)
def test_other_roots_give_unrelated_masks(alpha, other):
    design, members = Bernoulli(alpha), np.arange(1000)
    differ = (design.masks(ROOT, members, 20) != design.masks(other, members, 20)).mean()
    assert abs(differ - 2 * alpha * (1 - alpha)) < hoeffding(20_000)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.2, 1.5, float("nan")])
def test_an_alpha_outside_zero_and_one_is_named(alpha):
    with pytest.raises(ValueError, match=re.escape(f"alpha = {alpha} ")):
        Bernoulli(alpha)


@pytest.mark.parametrize("replicates", [0, -3])
def test_replicates_below_one_are_named(replicates):
    with pytest.raises(ValueError, match=f"replicates = {replicates} "):
        Bernoulli(0.5, replicates=replicates)


@pytest.mark.parametrize(
    "design",
    [
        Bernoulli(0.3, replicates=4),
        FixedSize(0.3),
        Pairs(replicates=2),
        TwoLevel(0.5, 0.4, (0, 0, 1, 2, 1)),
    ],
)
def test_a_design_can_be_rebuilt_from_its_description(design):
    description = json.loads(json.dumps(design.describe()))
    assert from_description(description) == design
    assert description["alpha"] == pytest.approx(
        design.masks(ROOT, np.arange(4000), 5).mean(),
        abs=hoeffding(4000) + 0.1 * (design == FixedSize(0.3)),
    )


def test_a_listed_design_cannot_be_rebuilt():
    with pytest.raises(ValueError, match="the kind 'listed'"):
        from_description(listed().describe() | {"replicates": 1})


def test_a_fixed_size_is_that_of_every_mask_and_no_group_is_favoured():
    design = FixedSize(0.3)
    masks = design.masks(ROOT, np.arange(4000), 20)
    assert (masks.sum(1) == design.size(20)).all()
    assert (np.abs(masks.mean(0) - 0.3) < hoeffding(4000)).all()
    pairs = ~np.eye(20, dtype=bool)
    both = masks.T.astype(float) @ masks / 4000
    assert (np.abs(both - 6 * 5 / (20 * 19))[pairs] < hoeffding(4000)).all()


@pytest.mark.parametrize(
    ("alpha", "groups", "size"), [(0.5, 7, 4), (0.01, 10, 1), (0.99, 10, 9), (0.25, 8, 2)]
)
def test_a_fixed_size_is_rounded_and_leaves_something_to_draw(alpha, groups, size):
    assert FixedSize(alpha).size(groups) == size


def test_a_single_group_has_no_fixed_size():
    with pytest.raises(ValueError, match="at least 2 groups, got 1"):
        FixedSize(0.5).masks(ROOT, np.arange(2), 1)


@pytest.mark.parametrize("replicates", [1, 3])
def test_pairs_split_the_groups_between_them(replicates):
    design, members = Pairs(replicates=replicates), np.arange(40 * replicates)
    masks = design.masks(ROOT, members, GROUPS)
    rows, draws = design.rows(members), design.draws(members)
    np.testing.assert_array_equal(masks[rows % 2 == 0], ~masks[rows % 2 == 1])
    assert np.unique(draws, return_counts=True)[1].tolist() == [2 * replicates] * 20
    # The first of each pair is what a fair coin gives.
    fair = Bernoulli(0.5).masks(ROOT, np.arange(20), GROUPS)
    np.testing.assert_array_equal(masks[:: 2 * replicates], fair)


CLUSTERS = (0, 1, 1, 2, 2, 2, 3, 3, 3, 3)


def test_two_levels_keep_groups_of_chosen_clusters_alone():
    design, members = TwoLevel(0.4, 0.7, CLUSTERS), np.arange(4000)
    masks, chosen = design.masks(ROOT, members, 10), design.chosen(ROOT, members)
    assert not masks[~chosen].any()
    for first in np.unique(CLUSTERS, return_index=True)[1]:
        same = np.array(CLUSTERS) == CLUSTERS[first]
        assert (chosen[:, same] == chosen[:, [first]]).all()
        assert abs(chosen[:, first].mean() - 0.4) < hoeffding(4000)
    for group in range(10):
        inside = masks[chosen[:, group], group]
        assert abs(inside.mean() - 0.7) < hoeffding(len(inside))
    # Within a chosen cluster, groups are independent of one another.
    inside = masks[chosen[:, 6]][:, 6:]
    both = inside.T.astype(float) @ inside / len(inside)
    assert (np.abs(both - 0.49)[~np.eye(4, dtype=bool)] < hoeffding(len(inside))).all()


def test_two_levels_share_their_clusters_among_replicates():
    design = TwoLevel(0.5, 0.5, CLUSTERS, replicates=3)
    chosen = design.chosen(ROOT, np.arange(12))
    np.testing.assert_array_equal(chosen[::3], chosen[1::3])
    alone = TwoLevel(0.5, 0.5, CLUSTERS).chosen(ROOT, np.arange(4))
    np.testing.assert_array_equal(chosen[::3], alone)


def test_two_levels_of_other_groups_are_named():
    with pytest.raises(ValueError, match="clusters are given of 10 groups, not 11"):
        TwoLevel(0.5, 0.5, CLUSTERS).masks(ROOT, np.arange(2), 11)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (FixedSize(0.3), FixedSize(0.4)),
        (Pairs(), Pairs(replicates=2)),
        (FixedSize(0.5), Bernoulli(0.5)),
        (TwoLevel(0.5, 0.4, CLUSTERS), TwoLevel(0.5, 0.4, CLUSTERS[::-1])),
        (TwoLevel(0.5, 0.4, CLUSTERS), TwoLevel(0.4, 0.5, CLUSTERS)),
    ],
)
def test_other_designs_have_other_descriptions(one, other):
    assert one.describe() != other.describe()


@pytest.mark.parametrize("copies", [1, 2, 3, 5])
@pytest.mark.parametrize("alpha", [0.5, 0.2])
def test_a_redundancy_varies_as_the_designs_page_says(copies, alpha):
    """An OR of k copies: P (1 - P) with P = 1 - (1 - alpha)^k."""
    masks = Bernoulli(alpha).masks(ROOT, np.arange(4000), copies)
    share = 1 - (1 - alpha) ** copies
    assert abs(masks.any(1).mean() - share) < hoeffding(4000)


def listed():
    masks = np.random.default_rng(0).random((6, 11)) < 0.5
    return Listed(masks, np.array([0, 0, 1, 1, 2, 5]))


def test_listed_masks_are_those_of_the_caller_whatever_the_root():
    design, members = listed(), np.array([5, 0, 3, 3])
    for root in (ROOT, jax.random.key(1)):
        masks = design.masks(root, members, 11)
        np.testing.assert_array_equal(masks, design.listed[[5, 0, 3, 3]])


def test_listed_members_have_the_row_numbers_of_the_caller():
    design, members = listed(), np.array([5, 0, 3, 2])
    assert design.rows(members).tolist() == [5, 0, 1, 1]
    assert design.replicate_of(members).tolist() == [0, 0, 0, 0]


def test_listed_masks_of_another_width_are_named():
    with pytest.raises(ValueError, match="11 groups, not 12"):
        listed().masks(ROOT, np.arange(2), 12)


def test_listed_designs_with_the_same_content_have_the_same_description():
    design = listed()
    copy = Listed(np.asfortranarray(design.listed), design.row_numbers.astype(np.int32))
    assert design.describe() == copy.describe()
    assert design.describe()["kind"] == "listed"
    assert re.fullmatch("[0-9a-f]{64}", design.describe()["sha256"])


@given(row=st.integers(0, 5), group=st.integers(0, 10))
def test_a_changed_bit_changes_the_description(row, group):
    design = listed()
    changed = design.listed.copy()
    changed[row, group] ^= True
    assert Listed(changed, design.row_numbers).describe() != design.describe()


@given(row=st.integers(0, 5), number=st.integers(6, 2**40))
def test_a_changed_row_number_changes_the_description(row, number):
    design = listed()
    changed = design.row_numbers.copy()
    changed[row] = number
    assert Listed(design.listed, changed).describe() != design.describe()


def test_a_changed_order_changes_the_description():
    design = listed()
    assert Listed(design.listed[::-1], design.row_numbers).describe() != design.describe()


def test_one_more_group_that_nobody_keeps_changes_the_description():
    design = listed()
    wider = np.pad(design.listed, ((0, 0), (0, 1)))
    assert Listed(wider, design.row_numbers).describe() != design.describe()
