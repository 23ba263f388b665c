"""Joint effects of a posterior in closed form, against sums over every mask."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import comb

from datamodels import fit_joint
from datamodels.closed_form import (
    Contexts,
    Fitted,
    average,
    joint_effects,
    pair_effects,
    response,
    subset_effects,
)
from datamodels.covariance import Covariance, Inputs, between
from datamodels.shapes import subsets

GROUPS = 6
EVERY = np.array(list(itertools.product([0, 1], repeat=GROUPS)), bool)
PAIRS = np.array([[0, 3], [2, 5]])
SETS = [own for size in range(5) for own in itertools.combinations(range(GROUPS), size)]


def padded(sets):
    found = np.full((len(sets), max(len(own) for own in sets)), -1)
    for row, own in enumerate(sets):
        found[row, : len(own)] = own
    return found


def some_fitted(rng):
    def numbers(*shape):
        return jnp.asarray(rng.uniform(0, 1, shape), jnp.float32)

    covariance = Covariance(
        numbers(GROUPS), numbers(2), numbers(3, GROUPS), numbers(3), jnp.float32(0.1)
    )
    signs = jnp.asarray(rng.choice([-1.0, 1.0], (20, GROUPS)), jnp.float32)
    coefficients = jnp.asarray(rng.standard_normal(20), jnp.float32)
    return Fitted(covariance, signs, jnp.asarray(PAIRS), coefficients, numbers(GROUPS))


def outputs_of_every_mask(fitted):
    def inputs(signs):
        return Inputs(signs, signs[:, PAIRS[:, 0]] * signs[:, PAIRS[:, 1]])

    left = inputs(jnp.asarray(2.0 * EVERY - 1, jnp.float32))
    kernel = between(fitted.covariance, left, inputs(fitted.signs))
    return np.asarray(
        kernel @ fitted.coefficients + jnp.asarray(EVERY, jnp.float32) @ fitted.weights
    )


def enumerated(outputs, own, kept):
    """The joint effect by its definition: cells of the set, all others averaged."""
    own = list(own)
    others = [group for group in range(GROUPS) if group not in own]
    weight = np.where(EVERY[:, others], kept[others], 1 - kept[others]).prod(1)
    sign = np.where(EVERY[:, own], 1, -1).prod(1)
    return float((weight * sign * outputs).sum())


@given(seed=st.integers(0, 2**32 - 1))
def test_joint_effects_are_those_of_sums_over_every_mask(seed):
    rng = np.random.default_rng(seed)
    fitted = some_fitted(rng)
    contexts = Contexts(rng.uniform(0, 1, (2, GROUPS)), np.array([0.3, 0.7]))
    outputs = outputs_of_every_mask(fitted)

    def truth(own):
        parts = zip(contexts.kept, contexts.share, strict=True)
        return sum(share * enumerated(outputs, own, kept) for kept, share in parts)

    expected = [truth(own) for own in SETS]
    averaged = average(fitted, contexts)
    np.testing.assert_allclose(joint_effects(averaged, padded(SETS)), expected, atol=2e-4)
    pairs = pair_effects(averaged)
    for i, j in itertools.combinations(range(GROUPS), 2):
        assert pairs[i, j] == pytest.approx(truth((i, j)), abs=2e-4)
        assert pairs[j, i] == pytest.approx(pairs[i, j], abs=1e-5)


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(2, GROUPS), count=st.integers(1, 5))
def test_effects_of_all_subsets_are_those_of_each(seed, size, count):
    rng = np.random.default_rng(seed)
    contexts = Contexts(rng.uniform(0, 1, (2, GROUPS)), np.array([0.3, 0.7]))
    averaged = average(some_fitted(rng), contexts)
    sets = np.stack([np.sort(rng.permutation(GROUPS)[:size]) for _ in range(count)])
    one_by_one = [joint_effects(averaged, own) for own in subsets(sets)]
    np.testing.assert_allclose(subset_effects(averaged, sets), one_by_one, atol=2e-4)


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, GROUPS))
def test_responses_are_those_of_sums_over_every_mask(seed, size):
    rng = np.random.default_rng(seed)
    fitted = some_fitted(rng)
    contexts = Contexts(rng.uniform(0, 1, (2, GROUPS)), np.array([0.3, 0.7]))
    groups = sorted(rng.permutation(GROUPS)[:size].tolist())
    others = [group for group in range(GROUPS) if group not in groups]
    outputs, count = outputs_of_every_mask(fitted), EVERY[:, groups].sum(1)
    expected = np.zeros(size + 1)
    for kept, share in zip(contexts.kept, contexts.share, strict=True):
        weight = share * np.where(EVERY[:, others], kept[others], 1 - kept[others]).prod(1)
        expected += np.bincount(count, weight * outputs) / comb(size, np.arange(size + 1))
    found = response(average(fitted, contexts), tuple(groups))
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_relevances_of_any_size_leave_numbers():
    rng = np.random.default_rng(3)
    fitted = some_fitted(rng)
    covariance = fitted.covariance._replace(relevance=fitted.covariance.relevance * 1e3)
    fitted = fitted._replace(covariance=covariance)
    contexts = Contexts(np.zeros((1, GROUPS)), np.ones(1))
    averaged = average(fitted, contexts)
    assert np.isfinite(joint_effects(averaged, padded(SETS))).all()
    assert np.isfinite(subset_effects(averaged, np.arange(4)[None])).all()
    assert np.isfinite(response(averaged, tuple(range(GROUPS)))).all()


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    masks = rng.random((200, GROUPS)) < 0.5
    truth = 2.0 * masks[:, [0, 1]].any(1) + masks[:, [2, 3, 4]].all(1) - masks[:, 5] + 3
    outputs = np.stack([truth, np.full(200, 2.0)], axis=1)
    return fit_joint(masks, outputs + 0.05 * rng.standard_normal((200, 2)))


ALL_SETS = [
    own for size in range(GROUPS + 1) for own in itertools.combinations(range(GROUPS), size)
]


def test_moebius_terms_add_up_to_every_prediction(model):
    terms = model.index(0, ALL_SETS, "moebius")
    inside = np.array(
        [[EVERY[row, list(own)].all() for own in ALL_SETS] for row in range(2**GROUPS)]
    )
    np.testing.assert_allclose(inside @ terms, model.predict(EVERY)[:, 0], atol=2e-3)


def test_fourier_terms_add_up_to_every_prediction(model):
    coefficients = model.index(0, ALL_SETS, "fourier")
    signs = 2.0 * EVERY - 1
    basis = np.stack([signs[:, list(own)].prod(1) for own in ALL_SETS], axis=1)
    np.testing.assert_allclose(basis @ coefficients, model.predict(EVERY)[:, 0], atol=1e-3)


def test_shapley_and_banzhaf_indices_are_those_of_their_sums(model):
    """By their definitions: discrete derivatives over the sets of others, and their weights."""
    outputs = dict(zip(map(tuple, EVERY.astype(int)), model.predict(EVERY)[:, 0], strict=True))

    def derivative(own, others):
        total = 0.0
        for kept in itertools.product([0, 1], repeat=len(own)):
            cell = np.zeros(GROUPS, int)
            cell[list(others)] = 1
            cell[list(own)] = kept
            total += (-1) ** (len(own) - sum(kept)) * outputs[tuple(cell)]
        return total

    sets = [(0,), (5,), (0, 1), (2, 3), (2, 3, 4)]
    shapley, banzhaf = [], []
    for own in sets:
        rest = [group for group in range(GROUPS) if group not in own]
        values = [
            (len(others), derivative(own, others))
            for size in range(len(rest) + 1)
            for others in itertools.combinations(rest, size)
        ]
        banzhaf.append(np.mean([value for _, value in values]))
        by_size = [np.mean([v for s, v in values if s == size]) for size in range(len(rest) + 1)]
        shapley.append(np.mean(by_size))
    np.testing.assert_allclose(model.index(0, sets, "shapley"), shapley, atol=2e-3)
    np.testing.assert_allclose(model.index(0, sets, "banzhaf"), banzhaf, atol=2e-3)


def test_shapley_values_share_out_what_all_groups_do(model):
    values = model.index(0, [(group,) for group in range(GROUPS)], "shapley")
    both = model.predict(np.array([[True] * GROUPS, [False] * GROUPS]))[:, 0]
    assert values.sum() == pytest.approx(both[0] - both[1], abs=2e-3)
    assert values[5] == pytest.approx(-1, abs=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.index(2, [(0,)], "shapley"), "target 2 is not there; the datamodel has 2"),
        (lambda m: m.index(0, [(0, 6)], "shapley"), r"set \(0, 6\) must hold different groups"),
        (lambda m: m.index(0, [(1, 1)], "banzhaf"), r"set \(1, 1\) must hold different groups"),
        (lambda m: m.index(0, [(1,)], "value"), "index = 'value' must be one of fourier, moebius"),
    ],
)
def test_what_is_not_there_is_named(model, call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call(model)
