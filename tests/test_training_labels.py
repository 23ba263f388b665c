"""Labels: what a column of them may hold, how they are numbered, and what is refused."""

import datasets
import numpy as np
import pytest
from tables import fails, in_order, load, write_ids, write_parquet

from training.data import DataConfig
from training.labels import class_names, label_as_held, numbered_labels


@pytest.mark.parametrize(
    ("labels", "row", "seen"),
    [
        ([1.5, 0.0, 2.0, 0.0], 0, "1.5"),
        ([0, -1, 2, 0], 1, "-1"),
        ([0, 1, 2**31, 0], 2, "2147483648"),
        (["0", "1", "cat", "1"], 2, "'cat'"),
        ([0.0, 1.0, 0.5, 1.0], 2, "0.5"),
        (["0", "1", "-2", "1"], 2, "'-2'"),
        ([[0], [1], [0], [1]], 0, "[0]"),
    ],
)
def test_numbers_as_labels_that_are_not_counted_from_zero_are_refused(tmp_path, labels, row, seen):
    source = write_parquet(tmp_path / "a.parquet", x=[1, 2, 3, 4], label=labels)
    # The last row is the only target, so the first bad label is one that is trained on.
    targets = write_ids(tmp_path / "ids.txt", "3\n")
    fails(
        f'data.label = "label" holds {seen} in row {row};',
        "labels must be names of classes, or integers counted from 0, so number the classes 0,",
        source=source,
        targets=targets,
    )


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (["dog", "cat", "a\nb", "dog"], ("a\nb", "cat", "dog"), [2, 1, 0, 2]),
        ([True, False, False, True], ("False", "True"), [1, 0, 0, 1]),
        (["1", "0", "1", "0"], (), [1, 0, 1, 0]),
        ([1.0, 0.0, 1.0, 0.0], (), [1, 0, 1, 0]),
    ],
)
def test_labels_are_names_or_whole_numbers_whatever_their_type(tmp_path, labels, names, numbers):
    source = write_parquet(tmp_path / "a.parquet", x=[1, 2, 3, 4], label=labels)
    targets = write_ids(tmp_path / "ids.txt", "2\n")
    split = load(DataConfig(source=source, targets=targets))
    assert split.class_names == names
    np.testing.assert_array_equal(in_order(split)[1], numbers)


def test_a_class_of_the_target_split_alone_keeps_its_number(tmp_path):
    train = datasets.Dataset.from_dict({"value": [0.0, 1.0], "label": ["b", "d"]})
    test = datasets.Dataset.from_dict({"value": [0.0, 1.0], "label": ["c", "d"]})
    datasets.DatasetDict(train=train, test=test).save_to_disk(str(tmp_path / "saved"))
    split = load(DataConfig(source=str(tmp_path / "saved"), target_split="test", target_count=2))
    assert split.class_names == ("b", "c", "d")
    np.testing.assert_array_equal(split.train.examples.labels, [0, 2])
    np.testing.assert_array_equal(split.targets.examples.labels, [1, 2])
    assert split.notes == ("no training example is of 1 of 3 classes (c)",)


def test_classes_that_no_training_example_has_are_told(tmp_path):
    source = write_parquet(tmp_path / "a.parquet", x=list(range(6)), label=[0, 7] * 3)
    notes = load(DataConfig(source=source, target_count=1)).notes
    assert notes == ("no training example is of 6 of 8 classes (1, 2, 3, 4, 5, ...)",)


@pytest.mark.parametrize("labels", [[0.0, 1.0, None, 0.0], [0, 1, None, 0], ["a", "b", None, "b"]])
def test_a_missing_label_is_named_before_what_it_makes_of_the_others(tmp_path, labels):
    source = write_parquet(tmp_path / "a.parquet", x=[1, 2, 3, 4], label=labels)
    fails('data.label = "label" is missing in row 2; fill it', source=source)


def test_bad_label_among_the_targets_is_refused(tmp_path):
    source = write_parquet(tmp_path / "a.parquet", x=[1, 2, 3, 4], label=[0, 1, -7, 0])
    targets = write_ids(tmp_path / "ids.txt", "2\n")
    fails('data.label = "label" holds -7 in row 2', source=source, targets=targets)


@pytest.mark.parametrize(
    "held", [["dog", "cat", "dog"], [True, False, False], [1, 0, 2], ["1", "0", "0"]]
)
def test_a_number_leads_back_to_what_the_column_holds(held):
    rows = datasets.Dataset.from_dict({"label": held})
    names = class_names(rows, "label")
    numbers = numbered_labels(rows, "label", np.arange(len(held)), names)
    feature, every_name = rows.features["label"], names or ("0", "1", "2")
    assert [label_as_held(feature, int(number), every_name) for number in numbers] == held
