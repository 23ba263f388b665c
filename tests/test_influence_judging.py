"""Which sets are judged."""

import numpy as np
import pytest
from pictures import kinds, triggers

from influence import judging, pattern


@pytest.mark.parametrize("name", ["patch", "blend", "sine"])
@pytest.mark.parametrize("seed", range(3))
def test_of_sets_that_are_mostly_the_same_the_one_with_the_pattern_in_most_is_judged(name, seed):
    images, labels = kinds(seed)
    poisoned, clean = np.flatnonzero(labels == 2)[:20], np.flatnonzero(labels == 1)
    images[poisoned] = triggers()[name](images[poisoned])
    most, all_but_one = poisoned[:13], poisoned[1:]
    mixed, apart = np.concatenate([poisoned, clean[:8]]), clean[:15]
    sets = [most, apart, all_but_one, poisoned, mixed]
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 4, 1, 3, 0]):
        kept = judging._of_one_pattern(images, [sets[number] for number in order])
        expected = [sets[number] for number in order if number in (1, 3)]
        assert [rows.tolist() for rows, _ in kept] == [rows.tolist() for rows in expected]
        for rows, found in kept:
            assert found.sameness == pattern.common(images, rows).sameness


def test_of_no_sets_none_is_judged():
    assert judging._of_one_pattern(np.zeros((4, 2, 2, 1), np.uint8), []) == []
