"""Designs of masks."""

import re

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import bernoulli_masks_by_loop

from datamodels import Bernoulli, Listed

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
)
def test_masks_depend_on_the_root_and_the_row_alone(seed, order, count, replicates):
    design, root = Bernoulli(0.5, replicates), jax.random.key(seed)
    everyone = design.masks(root, np.arange(24), GROUPS)
    some = np.array(order[:count])
    np.testing.assert_array_equal(design.masks(root, some, GROUPS), everyone[some])


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("replicates", [1, 3])
def test_masks_equal_those_drawn_one_by_one(alpha, replicates):
    members = np.array([0, 7, 7, 123_456, 2])
    masks = Bernoulli(alpha, replicates).masks(ROOT, members, GROUPS)
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
    design, members = Bernoulli(0.5, replicates), np.array(members, np.int64)
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
        Bernoulli(0.5, replicates)


def test_a_bernoulli_design_can_be_rebuilt_from_its_description():
    description = Bernoulli(0.3, replicates=4).describe()
    assert description == {"kind": "bernoulli", "alpha": 0.3, "replicates": 4}


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
