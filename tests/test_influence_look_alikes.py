"""Look-alikes: the images of a trigger come first, whatever else their label holds. And strangers:
clusters of images that stand among other labels."""

import numpy as np
import pytest
from pictures import kinds, triggers

from datamodels.terms import mostly_same
from influence import look_alikes, strangers
from influence.image_clusters import clusters
from influence.likeness import closest


def searched(images, labels):
    return look_alikes.search(images, labels, clusters(images, labels))


def strangers_of(images, labels):
    return strangers.search(images, labels, clusters(images, labels))


@pytest.mark.parametrize("name", ["patch", "blend", "sine"])
@pytest.mark.parametrize("share", [0.1, 0.4])
def test_a_trigger_of_few_or_many_images_of_its_label_is_first(name, share):
    images, labels = kinds(1)
    own = np.flatnonzero(labels == 3)
    poisoned = own[: round(share * len(own))]
    images[poisoned] = triggers()[name](images[poisoned])
    first = searched(images, labels)[0]
    np.testing.assert_array_equal(first.rows, poisoned)
    assert first.sameness > 0.9


def test_sets_are_different_and_of_at_most_half_of_one_label():
    images, labels = kinds(0)
    labels //= 2
    found = searched(images, labels)
    assert 0 < len(found) <= look_alikes.FIRST
    assert [one.sameness for one in found] == sorted((o.sameness for o in found), reverse=True)
    for at, one in enumerate(found):
        (label,) = set(labels[one.rows].tolist())
        assert 4 <= len(one.rows) <= (labels == label).sum() / 2
        assert not any(mostly_same(one.rows, other.rows) for other in found[:at])


def test_labels_of_few_or_of_equal_images_are_met():
    images, labels = kinds(0)
    labels[:] = 0
    labels[:3] = 1
    labels[3:20] = 2
    images[3:20] = images[3]
    for one in searched(images, labels):
        assert np.isfinite(one.sameness)
        assert not (labels[one.rows] == 1).any()


def test_where_looks_say_nothing_of_labels_no_images_are_strangers():
    images, labels = kinds(2)
    labels = np.random.default_rng(0).permutation(np.arange(len(labels)) % 12)
    own = clusters(images, labels)
    shares = [
        (labels[closest(images, rows, np.arange(len(images)), 20)] == labels[rows[0]])
        for rows in own
    ]
    assert np.mean([share.mean() for share in shares]) < strangers.OWN_LABEL
    assert strangers.search(images, labels, own) == []


@pytest.mark.parametrize("share", [0.1, 0.18])
def test_images_of_one_kind_that_have_the_label_of_another_are_strangers(share):
    images, labels = kinds(2)
    assert strangers_of(images, labels) == []
    wrong = np.flatnonzero(labels == 1)[: round(share * (labels == 3).sum())]
    labels[wrong] = 3
    found = strangers_of(images, labels)
    assert {row for one in found for row in one.rows.tolist()} == set(wrong.tolist())
    assert all(one.own_label < strangers.OWN_LABEL for one in found)
    assert not any(
        set(one.rows) <= set(other.rows) for one in found for other in found if one is not other
    )
