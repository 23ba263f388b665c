"""What is said of the examples that are most like each: against a loop, whatever the inputs are."""

import numpy as np
import pytest

from influence import likeness
from influence.likeness import closest, distances, mean_of_alike


def inputs_of(kind, count):
    rng = np.random.default_rng(0)
    match kind:
        case "images":
            return rng.integers(0, 256, (count, 5, 6, 2), np.uint8), 0
        case "texts":
            return rng.integers(0, 9, (count, 7)).astype(np.int32), 9
        case _:
            return rng.normal(size=(count, 4)).astype(np.float32) * [1, 100, 1, 1], 0


@pytest.mark.parametrize("kind", ["images", "texts", "numbers"])
@pytest.mark.parametrize("block", [7, 256])
def test_the_mean_is_that_of_the_closest_with_the_same_label_and_a_value(monkeypatch, kind, block):
    monkeypatch.setattr(likeness, "BLOCK", block)
    rng = np.random.default_rng(1)
    inputs, vocabulary = inputs_of(kind, 60)
    labels, values = rng.integers(0, 3, 60), rng.normal(size=60)
    values[[4, 30]] = np.nan
    found = mean_of_alike(values, inputs, labels, vocabulary)
    for row in range(60):
        among = np.flatnonzero((labels == labels[row]) & np.isfinite(values))
        distance = distances(inputs[among], inputs[[row]], vocabulary)[0][among != row]
        others = among[among != row]
        closest = np.sort(distance)[likeness.ALIKE - 1]
        # Equal distances, as of texts, may be taken in any order.
        inside = values[others][distance < closest - 1e-6]
        tied = values[others][np.abs(distance - closest) <= 1e-6]
        left = likeness.ALIKE - len(inside)
        low, high = np.sort(tied)[:left].sum(), np.sort(tied)[len(tied) - left :].sum()
        total = found[row] * likeness.ALIKE - inside.sum()
        assert low - 1e-6 <= total <= high + 1e-6


def test_an_example_alone_of_its_label_has_its_own_value_and_few_have_what_there_is():
    inputs, _ = inputs_of("numbers", 6)
    labels, values = np.array([0, 1, 1, 2, 2, 2]), np.array([5.0, 1.0, 2.0, 1.0, 3.0, np.nan])
    found = mean_of_alike(values, inputs, labels)
    np.testing.assert_array_equal(found, [5.0, 2.0, 1.0, 3.0, 1.0, found[5]])
    assert found[5] in (1.0, 3.0)


def test_a_number_that_is_the_same_in_all_changes_no_distance():
    inputs, _ = inputs_of("numbers", 40)
    constant = np.full((40, 1), 0.1, np.float32)
    np.testing.assert_allclose(
        distances(np.hstack([inputs, constant]), np.hstack([inputs, constant]), 0),
        distances(inputs, inputs, 0),
    )


def test_of_many_examples_some_are_compared(monkeypatch):
    inputs, _ = inputs_of("numbers", 90)
    monkeypatch.setattr(likeness, "MOST_COMPARED", 12)
    compared = []

    def noted(inputs, rows, among, *rest):
        compared.extend(among.tolist())
        return closest(inputs, rows, among, *rest)

    monkeypatch.setattr(likeness, "closest", noted)
    found = mean_of_alike(np.ones(90), inputs, np.zeros(90, int))
    np.testing.assert_array_equal(found, 1)
    assert len(set(compared)) == 12


def test_mistakes_that_were_made_in_one_way_are_told_from_what_is_hard():
    rng = np.random.default_rng(3)
    centres = rng.normal(0, 5, (3, 20))
    kind = np.repeat(np.arange(3), 60)
    inputs = (centres[kind] + rng.normal(size=(180, 20))).astype(np.float32)
    labels = kind.copy()
    labels[:15] = 1
    # Models that learned from the others of them are not sure; hard ones are as low.
    values = np.where(np.arange(180) < 15, -1.5, 3.0)
    values[[100, 150, 170]] = -2.0
    lowest = np.argsort(values + mean_of_alike(values, inputs, labels))[:15]
    assert set(lowest.tolist()) == set(range(15))
