"""From a loaded source to arrays: columns, splits, content hash, and what is refused."""

from dataclasses import replace

import datasets
import numpy as np
import pytest
from tables import (
    assert_partition,
    fails,
    in_order,
    load,
    random_images,
    write_ids,
    write_images,
    write_parquet,
)

from training.data import DataConfig, Table, content_hash
from training.errors import nearest
from training.examples import Examples


def table_of(inputs, labels, ids):
    return Table(Examples(inputs, np.array(labels, np.int32)), np.array(ids, np.int64))


@pytest.fixture
def rows12(tmp_path):
    """A CSV file of 12 rows whose content tells the row number."""
    lines = [f"{row},{10 * row + 0.5},{row % 3}" for row in range(12)]
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(["number,tenfold,label", *lines]) + "\n")
    return str(path)


@pytest.fixture
def two_splits(tmp_path):
    """A saved dataset of 10 training rows (value = row) and 6 test rows (value = 100 + row)."""

    def split(start, count):
        rows = np.arange(count)
        return datasets.Dataset.from_dict({"value": start + rows, "label": rows % 2})

    folder = str(tmp_path / "two_splits")
    datasets.DatasetDict({"train": split(0, 10), "test": split(100, 6)}).save_to_disk(folder)
    return folder


# Columns.


def test_csv_columns_become_float32_columns_in_order(rows12):
    split = load(DataConfig(source=rows12))
    inputs, labels = in_order(split)
    rows = np.arange(12)
    assert inputs.dtype == np.float32
    np.testing.assert_array_equal(inputs, np.stack([rows, 10 * rows + 0.5], axis=1))
    np.testing.assert_array_equal(labels, rows % 3)
    assert split.class_names == ()


def test_chosen_inputs_and_label_come_in_the_order_asked(rows12):
    config = DataConfig(source=rows12, input=("tenfold", "label"), label="number")
    inputs, labels = in_order(load(config))
    np.testing.assert_array_equal(inputs[:, 0], 10 * np.arange(12) + 0.5)
    np.testing.assert_array_equal(inputs[:, 1], np.arange(12) % 3)
    np.testing.assert_array_equal(labels, np.arange(12))


def test_one_scalar_column_has_a_column_axis(rows12):
    inputs, _ = in_order(load(DataConfig(source=rows12, input=("number",))))
    np.testing.assert_array_equal(inputs, np.arange(12, dtype=np.float32)[:, None])


def test_column_named_image_is_the_default_input(tmp_path):
    source = write_parquet(tmp_path / "a.parquet", other=[9.0] * 3, image=[1, 2, 3], label=[0] * 3)
    inputs, _ = in_order(load(DataConfig(source=source)))
    np.testing.assert_array_equal(inputs, [[1], [2], [3]])


# Splits.


@pytest.mark.parametrize(
    ("options", "train", "targets"),
    [
        ({}, 10, 2),
        ({"target_fraction": 0.5}, 6, 6),
        ({"target_count": 5}, 7, 5),
        ({"target_count": 5, "target_fraction": 0.9}, 7, 5),
        ({"target_count": 3, "train_count": 4}, 4, 3),
    ],
)
def test_split_sizes_follow_counts_and_fraction(rows12, options, train, targets):
    split = load(DataConfig(source=rows12, **options))
    assert (len(split.train), len(split.targets)) == (train, targets)
    assert len(split.spare) == 12 - train - targets
    assert_partition(split, 12)


@pytest.mark.parametrize("seed", range(5))
def test_row_of_an_id_has_the_content_of_that_row(rows12, seed):
    split = load(DataConfig(source=rows12, train_count=5, target_count=3, seed=seed))
    assert_partition(split, 12)
    for table in (split.train, split.targets, split.spare):
        np.testing.assert_array_equal(table.examples.inputs[:, 0], table.ids)
        np.testing.assert_array_equal(table.examples.labels, table.ids % 3)
        assert (np.diff(table.ids) > 0).all()


def test_same_seed_gives_the_same_split(rows12):
    config = DataConfig(source=rows12, train_count=5, seed=3)
    first, second = load(config), load(config)
    for one, other in zip(first[:3], second[:3], strict=True):
        assert content_hash(one) == content_hash(other)


def test_another_seed_gives_another_split():
    config = DataConfig(source="breast_cancer", train_count=200)
    first, second = load(config), load(replace(config, seed=1))
    assert set(first.train.ids) != set(second.train.ids)
    assert set(first.targets.ids) != set(second.targets.ids)


def test_train_count_does_not_change_the_targets(rows12):
    config = DataConfig(source=rows12)
    many, few = load(config), load(replace(config, train_count=4))
    np.testing.assert_array_equal(many.targets.ids, few.targets.ids)
    assert set(few.train.ids) < set(many.train.ids)


def test_target_count_does_not_change_the_training_examples(rows12):
    config = DataConfig(source=rows12, train_count=5, target_count=2)
    few, many = load(config), load(replace(config, target_count=7))
    np.testing.assert_array_equal(few.train.ids, many.train.ids)
    assert set(few.targets.ids) < set(many.targets.ids)


def test_draws_are_spread_over_all_rows():
    split = load(DataConfig(source="digits", target_fraction=0.5))
    early = (split.targets.ids < 898).mean()
    assert 0.45 < early < 0.55


def test_target_ids_continue_after_the_training_split(two_splits):
    split = load(DataConfig(source=two_splits, target_split="test", target_fraction=0.5))
    assert set(split.train.ids) == set(range(10))
    assert len(split.targets) == 3
    assert set(split.targets.ids) | set(split.spare.ids) == set(range(10, 16))
    np.testing.assert_array_equal(split.train.examples.inputs[:, 0], split.train.ids)
    np.testing.assert_array_equal(split.targets.examples.inputs[:, 0], split.targets.ids + 90)
    np.testing.assert_array_equal(split.spare.examples.inputs[:, 0], split.spare.ids + 90)


def test_training_split_is_train_unless_named(two_splits):
    assert_partition(load(DataConfig(source=two_splits)), 10)
    split = load(DataConfig(source=two_splits, train_split="test"))
    assert_partition(split, 6)
    np.testing.assert_array_equal(split.train.examples.inputs[:, 0], split.train.ids + 100)


def test_splits_may_change_places(two_splits):
    split = load(DataConfig(source=two_splits, train_split="test", target_split="train"))
    assert set(split.train.ids) == set(range(6))
    np.testing.assert_array_equal(split.targets.examples.inputs[:, 0], split.targets.ids - 6)


def test_only_split_is_taken_whatever_its_name(tmp_path):
    data = datasets.Dataset.from_dict({"value": [0, 1, 2], "label": [0, 1, 0]})
    datasets.DatasetDict({"everything": data}).save_to_disk(str(tmp_path / "one"))
    assert_partition(load(DataConfig(source=str(tmp_path / "one"))), 3)


def test_same_split_for_both_has_no_row_in_both(two_splits):
    config = DataConfig(source=two_splits, target_split="train", target_count=3)
    split = load(config)
    assert len(split.targets) == 3
    assert sorted([*split.train.ids, *split.targets.ids]) == [*range(10)]
    assert not set(split.train.examples.inputs[:, 0]) & set(split.targets.examples.inputs[:, 0])


@pytest.mark.parametrize("text", ["7\n2\n11\n", "  2 \n\n7\n11", "2 7 11"])
def test_targets_can_be_named_in_a_file(rows12, tmp_path, text):
    targets = write_ids(tmp_path / "ids.txt", text)
    split = load(DataConfig(source=rows12, targets=targets, target_fraction=7.0))
    np.testing.assert_array_equal(split.targets.ids, [2, 7, 11])
    np.testing.assert_array_equal(split.targets.examples.inputs[:, 0], [2, 7, 11])
    assert len(split.train) == 9
    assert_partition(split, 12)


def test_named_targets_may_lie_in_both_splits(two_splits, tmp_path):
    targets = write_ids(tmp_path / "ids.txt", "1\n12\n")
    split = load(DataConfig(source=two_splits, target_split="test", targets=targets))
    np.testing.assert_array_equal(split.targets.examples.inputs[:, 0], [1, 102])
    assert set(split.train.ids) == set(range(10)) - {1}
    assert set(split.spare.ids) == {10, 11, 13, 14, 15}


def test_take_keeps_rows_together(rows12):
    table = load(DataConfig(source=rows12)).train
    taken = table.take(np.array([4, 0, 4]))
    np.testing.assert_array_equal(taken.ids, table.ids[[4, 0, 4]])
    np.testing.assert_array_equal(taken.examples.inputs[:, 0], taken.ids)
    np.testing.assert_array_equal(taken.examples.labels, taken.ids % 3)


# Content hash.


def base_table():
    return table_of(np.arange(12, dtype=np.float32).reshape(4, 3), [0, 1, 2, 0], [3, 5, 8, 9])


def with_input(table, inputs):
    return Table(Examples(inputs, table.examples.labels), table.ids)


def test_content_hash_of_a_copy_is_the_same():
    table = base_table()
    strided = np.repeat(table.examples.inputs, 2, axis=1)[:, ::2]
    assert not strided.flags.c_contiguous
    assert content_hash(with_input(table, strided)) == content_hash(table)
    assert content_hash(table.take(np.arange(4))) == content_hash(table)


@pytest.mark.parametrize("part", ["inputs", "labels", "ids"])
@pytest.mark.parametrize("place", [0, -1])
def test_content_hash_changes_with_any_value(part, place):
    table, changed = base_table(), base_table()
    array = changed.ids if part == "ids" else getattr(changed.examples, part)
    array.reshape(-1)[place] += 1
    assert content_hash(changed) != content_hash(table)


@pytest.mark.parametrize(
    "change",
    [
        lambda inputs: inputs.astype(np.float64),
        lambda inputs: inputs.view(np.int32),
        lambda inputs: inputs.reshape(4, 3, 1),
        lambda inputs: np.asfortranarray(inputs)[::-1],
    ],
    ids=["wider", "same bytes", "other shape", "other order"],
)
def test_content_hash_changes_with_dtype_shape_and_order(change):
    table = base_table()
    changed = with_input(table, change(table.examples.inputs))
    assert content_hash(changed) != content_hash(table)


def test_content_hash_is_a_fixed_function():
    inputs = np.array([[1.0], [2.0]], np.float32)
    digest = "c727c809eeac4ea1"
    assert content_hash(table_of(inputs, [0, 1], [0, 1])) == digest


# Errors: a split or column that is not there.


def test_missing_label_column_suggests_the_nearest(rows12):
    fails(
        'data.label = "labels": the data has no such column (did you mean "label"?)',
        "it has number, tenfold, label",
        source=rows12,
        label="labels",
    )


def test_missing_input_column_suggests_the_nearest(rows12):
    fails(
        'data.input = "tenfolds": the data has no such column (did you mean "tenfold"?)',
        "it has number, tenfold, label",
        source=rows12,
        input=("number", "tenfolds"),
    )


def test_far_name_gets_no_suggestion(rows12):
    message = fails('data.label = "zzz": the data has no such column;', source=rows12, label="zzz")
    assert "did you mean" not in message


def test_nearest_names_the_closest_of_several():
    assert nearest("labl", ["level", "label", "table"]) == ' (did you mean "label"?)'
    assert nearest("xyz", ["level", "label"]) == ""


def test_long_lists_of_columns_are_cut(tmp_path):
    columns = {f"c{i:02d}": [i, i] for i in range(20)}
    source = write_parquet(tmp_path / "a.parquet", **columns)
    assert fails("it has c00, c01", source=source).endswith("c11, ...")


def test_missing_split_suggests_the_nearest(two_splits):
    fails(
        'data.train_split = "trian": the data has no such split (did you mean "train"?)',
        "it has train, test",
        source=two_splits,
        train_split="trian",
    )
    fails(
        'data.target_split = "tests": the data has no such split (did you mean "test"?)',
        source=two_splits,
        target_split="tests",
    )


def test_several_splits_without_train_must_be_chosen(tmp_path):
    data = datasets.Dataset.from_dict({"value": [0, 1], "label": [0, 1]})
    datasets.DatasetDict({"north": data, "south": data}).save_to_disk(str(tmp_path / "two"))
    fails(
        'data.train_split = "train": the data has no such split',
        "it has north, south",
        source=str(tmp_path / "two"),
    )


def test_splits_with_different_types_are_a_user_error(tmp_path):
    train = datasets.Dataset.from_dict({"value": [0.0, 1.0], "label": [0, 1]})
    test = datasets.Dataset.from_dict({"value": ["a", "b"], "label": [0, 1]})
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(str(tmp_path / "two"))
    fails("data.target_split", source=str(tmp_path / "two"), target_split="test", target_count=1)


def test_data_without_any_input_is_refused(tmp_path):
    source = write_parquet(tmp_path / "a.parquet", label=[0, 1, 0])
    fails('no column beside the label "label"', "name data.input", source=source)


def test_images_without_class_folders_have_no_label(tmp_path):
    source = write_images(tmp_path / "flat", {f"{i}.png": random_images(3, 3) for i in range(3)})
    fails('data.label = "label": the data has no such column', "it has image", source=source)


# Errors: counts and ids.


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({"target_fraction": 0.0}, "0 targets asked for of 12 rows"),
        ({"target_fraction": 0.01}, "0 targets asked for of 12 rows"),
        ({"target_count": 13}, "13 targets asked for of 12 rows (data.target_count = 13"),
        ({"target_count": -1}, "-1 targets asked for of 12 rows (data.target_count = -1"),
    ],
)
def test_number_of_targets_must_fit(rows12, options, seen):
    message = fails(seen, source=rows12, **options)
    assert "at least one is needed and there can be no more than rows" in message


def test_number_of_targets_must_fit_the_target_split(two_splits):
    fails("7 targets asked for of 6 rows", source=two_splits, target_split="test", target_count=7)


@pytest.mark.parametrize("fraction", [-0.1, 1.5, np.nan])
def test_target_fraction_must_be_a_fraction(rows12, fraction):
    expected = f"data.target_fraction = {fraction} must lie between 0 and 1"
    fails(expected, source=rows12, target_fraction=fraction)


@pytest.mark.parametrize(
    ("options", "free"),
    [
        ({"train_count": 11}, 10),
        ({"train_count": -2}, 10),
        ({"train_count": 10, "target_count": 4}, 8),
    ],
)
def test_number_of_training_examples_must_fit(rows12, options, free):
    fails(
        f"data.train_count = {options['train_count']} must be from 1 to {free}, the rows beside",
        source=rows12,
        **options,
    )


def test_targets_must_leave_rows_to_train_on(rows12):
    fails(
        "12 targets leave no row of 12 to train on",
        "data.target_fraction = 1.0); ask for fewer",
        source=rows12,
        target_fraction=1.0,
    )


def test_missing_ids_file_is_named(rows12, tmp_path):
    path = str(tmp_path / "none.txt")
    fails(
        f'data.targets = "{path}" cannot be read: No such file or directory',
        source=rows12,
        targets=path,
    )


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_empty_ids_file_is_refused(rows12, tmp_path, text):
    path = write_ids(tmp_path / "ids.txt", text)
    fails(f'data.targets = "{path}" names no id; write one a line', source=rows12, targets=path)


@pytest.mark.parametrize("word", ["seven", "12", "-1", "1.5", "1,2", "1" * 30])
def test_bad_id_is_named(rows12, tmp_path, word):
    path = write_ids(tmp_path / "ids.txt", f"3\n{word}\n5\n")
    fails(
        f'data.targets = "{path}" holds "{word}"; ids are the row numbers 0 to 11',
        source=rows12,
        targets=path,
    )


@pytest.mark.parametrize("text", ["3\n5\n3\n", "3\n03\n"])
def test_duplicate_id_is_refused(rows12, tmp_path, text):
    path = write_ids(tmp_path / "ids.txt", text)
    fails(
        f'data.targets = "{path}" names an id twice; keep one line of each',
        source=rows12,
        targets=path,
    )


def test_ids_file_that_is_no_text_is_named(rows12, tmp_path):
    path = tmp_path / "ids.txt"
    path.write_bytes(b"\xff\xfe3\x00")
    fails(f'data.targets = "{path}"', source=rows12, targets=str(path))
