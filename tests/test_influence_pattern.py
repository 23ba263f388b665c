"""What a set of inputs has in common: found, told from others, and put on other inputs."""

import numpy as np
import pytest
from pictures import SHAPE, kinds, triggers

from influence import pattern


@pytest.mark.parametrize("name", ["patch", "blend", "sine"])
@pytest.mark.parametrize("seed", range(3))
def test_all_that_have_a_trigger_are_found_from_some_and_no_others(name, seed):
    images, labels = kinds(seed)
    poisoned = np.flatnonzero(labels == 2)[:15]
    images[poisoned] = triggers()[name](images[poisoned])
    labels[poisoned] = 0
    # Ten more with the label, of one kind, of which the set has half, and not the surest.
    clean = np.flatnonzero(labels == 1)[:10]
    labels[clean] = 0
    rows = np.concatenate([poisoned[:9], clean[:5]])
    found = pattern.patterns_in(images, rows, labels == 0)
    np.testing.assert_array_equal(found[0], poisoned)


def test_the_second_pattern_of_a_set_is_found_among_the_rest():
    images, labels = kinds(0)
    first, second = np.flatnonzero(labels == 2)[:12], np.flatnonzero(labels == 4)[:12]
    images[first] = triggers()["sine"](images[first])
    images[second] = triggers()["blend"](images[second])
    labels[first] = labels[second] = 0
    rows = np.concatenate([first[:10], second[:8]])
    found = pattern.patterns_in(images, rows, labels == 0)
    assert [list(rows) for rows in found] == [list(first), list(second)]


def test_those_that_are_one_anothers_neighbours_are_found_as_well():
    images, labels = kinds(0)
    left = np.delete(np.arange(len(images)), np.flatnonzero(labels == 4)[24:])
    images, labels = images[left], labels[left]
    # Of a rare kind, most of which has the trigger, none is in the set.
    known, rare = np.flatnonzero(labels == 2)[:12], np.flatnonzero(labels == 4)[:14]
    poisoned = np.concatenate([known, rare])
    images[poisoned] = triggers()["patch"](images[poisoned])
    labels[poisoned] = 0
    found = pattern.sharing(images, known[:10], labels == 0)
    np.testing.assert_array_equal(found, np.sort(poisoned))


def test_those_whose_neighbours_are_found_first_are_found_after_them():
    # The grey of all pixels but one says which images are alike; the marked have that one bright.
    marked = [np.linspace(200, 220, 10), np.linspace(112, 118, 10), np.linspace(94, 98, 12)]
    plain = [np.linspace(195, 225, 60), np.linspace(120, 140, 60)]
    grey = np.concatenate([*marked, *plain])
    count = sum(map(len, marked))
    images = np.repeat(grey[:, None], 9, axis=1)
    images[:, 0] = np.where(np.arange(len(grey)) < count, 30, 0)
    images = np.rint(images).astype(np.uint8).reshape(-1, 3, 3, 1)
    # The last twelve stand among one another and the ten before, which show it beside plain ones.
    found = pattern.sharing(images, np.arange(10), np.ones(len(images), bool))
    np.testing.assert_array_equal(found, np.arange(count))


def test_what_share_of_the_others_difference_each_has_equals_its_definition():
    rng = np.random.default_rng(0)
    difference, within = rng.normal(1, 1, (9, 4)), np.arange(9) < 5
    expected = []
    for row in range(9):
        others = [other for other in range(5) if other != row]
        mean = difference[others].mean(0)
        expected.append(difference[row] @ mean / (mean @ mean))
    np.testing.assert_allclose(pattern._share(difference, within), expected)


def test_neighbours_are_the_closest_others_and_never_the_example_itself():
    inputs = np.random.default_rng(0).integers(0, 256, (40, 3)).astype(np.uint8)
    inputs[30] = inputs[2]  # nor its twin in its place
    rows, looked_at = np.array([1, 4, 5]), np.array([1, 2, 4, 9, 30])
    inputs = inputs.astype(np.float32)
    difference, reference = pattern._apart(inputs, rows, looked_at)
    for at, row in enumerate(looked_at):
        others = [other for other in range(40) if other not in (*rows, row)]
        distance = np.linalg.norm(inputs[others] - inputs[row], axis=1)
        near = inputs[others][np.argsort(distance)[: pattern.NEIGHBOURS]]
        np.testing.assert_allclose(reference[at], near.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(difference[at], inputs[row] - near.mean(0), atol=1e-4)


def test_a_pattern_of_numbers_is_found_whatever_units_they_are_in():
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(120, 6))
    marked = np.arange(12)
    numbers[marked, 1] = 8
    numbers[:, 5] = 0  # so this one is the same in all
    scale, offset = np.array([1e5, 1, 1e-3, 1, 1e4, 1]), np.array([1e6, 0, 0, 5, 0, 7])
    inputs = (numbers * scale + offset).astype(np.float32)
    found = pattern.sharing(inputs, np.array([0, 1, 2, 3, 4, 5, 50, 51]), np.arange(120) < 60)
    np.testing.assert_array_equal(found, marked)
    of_one = pattern.put(inputs[[100]], pattern.common(inputs, marked))[0]
    moved = (of_one - inputs[100]) / scale
    assert abs(moved[1]) > 3
    assert np.abs(np.delete(moved, 1)).max() < 1


def test_other_inputs_carry_a_pattern_where_they_have_it_however_many_they_are():
    images, _ = kinds(0)
    rows, others = np.arange(15), np.arange(200, 260)
    for trigger in triggers().values():
        train = images[:200].copy()
        train[rows] = trigger(train[rows])
        clean = images[others]
        np.testing.assert_array_equal(pattern.carried(train, rows, clean), False)
        np.testing.assert_array_equal(pattern.carried(train, rows, trigger(clean)), True)


def test_an_equal_pattern_has_sameness_1_and_noise_has_little():
    rng = np.random.default_rng(0)
    inputs = np.zeros((60, 8), np.float32)
    inputs[:10] += np.arange(8)
    assert pattern.common(inputs, np.arange(10)).sameness == pytest.approx(1)
    noise = rng.normal(size=(200, 50)).astype(np.float32)
    assert pattern.common(noise, np.arange(20)).sameness < 0.3


def test_what_is_put_on_images_stays_within_white_and_black():
    images, _ = kinds(0)
    rows = np.arange(12)
    images[rows] = triggers()["sine"](images[rows])
    found = pattern.put(images[50:60], pattern.common(images, rows))
    assert found.dtype == np.uint8
    assert found.shape == (20, *SHAPE[1:])
    # As light and shade it is close to what the trigger itself does.
    meant = triggers()["sine"](images[50:60]).astype(float)
    shaded = np.abs(found[10:] - meant).mean()
    assert shaded < 0.5 * np.abs(images[50:60] - meant).mean()


def test_on_numbers_it_is_added():
    inputs = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    found = pattern.common(inputs, np.arange(6))
    put = pattern.put(inputs[10:], found)
    assert put.dtype == np.float32
    np.testing.assert_allclose(put, inputs[10:] + found.difference, rtol=1e-6)


def test_what_most_of_a_class_shares_is_no_pattern():
    inputs = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    of_class = np.arange(60) < 20
    inputs[of_class] += 50
    # All others are far away, so that the whole class differs from them in the same way.
    rows = np.flatnonzero(of_class)[:18]
    np.testing.assert_array_equal(pattern.sharing(inputs, rows, of_class), rows)


def test_a_set_without_a_pattern_stays_as_it_is():
    inputs = np.random.default_rng(0).normal(size=(60, 400)).astype(np.float32)
    rows = np.array([7, 3, 30, 21, 11])
    np.testing.assert_array_equal(pattern.sharing(inputs, rows, np.ones(60, bool)), np.sort(rows))
