"""Columns of a data set as arrays, and the values that are refused.

All rows are trained on or targets, so that each is seen.
"""

import numpy as np
import pyarrow as pa
import pytest
from tables import (
    fails,
    in_order,
    load,
    random_images,
    write_ids,
    write_images,
    write_jsonl,
    write_parquet,
)

from training.data import DataConfig


def grey_and(odd, folder):
    """Six grey 4x4 images of two classes, of which row 2 is replaced."""
    images = list(random_images(6, 4, 4))
    images[2] = odd
    return write_images(folder, {f"{'ab'[i // 3]}/{i}.png": im for i, im in enumerate(images)})


def test_parquet_list_column_becomes_a_table(tmp_path):
    values = np.arange(15.0).reshape(5, 3)
    source = write_parquet(tmp_path / "a.parquet", vector=list(values), label=[0, 1, 2, 1, 0])
    inputs, labels = in_order(load(DataConfig(source=source)))
    assert inputs.dtype == np.float32
    np.testing.assert_array_equal(inputs, values)
    np.testing.assert_array_equal(labels, [0, 1, 2, 1, 0])


def test_parquet_columns_of_several_types_are_stacked(tmp_path):
    source = write_parquet(
        tmp_path / "a.parquet",
        whole=pa.array([1, 2, 3, 4], pa.int16()),
        flag=[True, False, True, True],
        real=[0.5, -1.5, 2.0, 0.0],
        label=pa.array([0, 1, 1, 3], pa.uint8()),
    )
    inputs, labels = in_order(load(DataConfig(source=source)))
    np.testing.assert_array_equal(inputs.T, [[1, 2, 3, 4], [1, 0, 1, 1], [0.5, -1.5, 2.0, 0.0]])
    np.testing.assert_array_equal(labels, [0, 1, 1, 3])


def test_nested_lists_get_a_channel_axis(tmp_path):
    values = np.arange(24.0).reshape(4, 2, 3)
    rows = [{"grid": grid.tolist(), "label": i % 2} for i, grid in enumerate(values)]
    inputs, _ = in_order(load(DataConfig(source=write_jsonl(tmp_path / "a.jsonl", rows))))
    assert inputs.dtype == np.float32
    np.testing.assert_array_equal(inputs, values[..., None])


def test_text_column_is_named(tmp_path):
    source = write_parquet(
        tmp_path / "a.parquet", x=[1.0, 2.0, 3.0], word=["one", "two", "three"], label=[0, 1, 0]
    )
    message = fails('data.input: column "word" is not numbers', source=source)
    assert any(f"'{word}'" in message for word in ("one", "two", "three"))
    assert "name columns of numbers in data.input, or one column of images or text alone" in message


def test_the_one_text_that_made_a_column_text_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("x,label\n0.5,0\n1.5,1\nn/k,0\n2,1\n")
    fails(
        'column "x" is not numbers of one shape (row 2 holds',
        "'n/k'",
        source=str(tmp_path / "a.csv"),
    )


def test_text_with_line_breaks_stays_on_one_line(tmp_path):
    rows = [{"words": "two\nlines " * 30, "x": 1, "label": 0}] * 3
    fails('column "words"', r"two\nlines", source=write_jsonl(tmp_path / "a.jsonl", rows))


def test_lists_of_different_lengths_are_refused(tmp_path):
    source = write_parquet(tmp_path / "a.parquet", v=[[1.0, 2.0], [3.0]] * 4, label=[0, 1] * 4)
    fails('data.input: column "v" is not numbers of one shape', source=source)


def test_lists_of_another_length_among_the_targets_are_refused(tmp_path):
    lists = [[1.0, 2.0], [3.0, 4.0], [5.0], [6.0, 7.0]]
    source = write_parquet(tmp_path / "a.parquet", v=lists, label=[0, 1, 0, 1])
    targets = write_ids(tmp_path / "ids.txt", "2\n")
    fails("data.input", '"v"', source=source, targets=targets)


def test_list_columns_beside_others_are_refused(tmp_path):
    source = write_parquet(
        tmp_path / "a.parquet", v=[[1.0, 2.0]] * 4, x=[1.0] * 4, label=[0, 1] * 2
    )
    fails("data.input", source=source)


@pytest.mark.parametrize("row", [0, 4, 9])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_input_that_is_not_finite_names_its_row(tmp_path, row, value):
    x = np.arange(10.0)
    x[row] = value
    source = write_parquet(tmp_path / "a.parquet", x=x, y=np.zeros(10), label=[0, 1] * 5)
    fails(
        f'data.input: column "x" holds {value} in row {row};',
        "every input must be a finite number, so fill or drop such rows",
        source=source,
    )


def test_nan_inside_a_list_names_its_row(tmp_path):
    lists = [[0.0, 1.0]] * 5 + [[0.0, np.nan]] + [[0.0, 1.0]] * 2
    source = write_parquet(tmp_path / "a.parquet", v=lists, label=[0, 1] * 4)
    fails('data.input: column "v" holds nan in row 5;', source=source)


def test_missing_number_names_its_row(tmp_path):
    source = write_parquet(tmp_path / "a.parquet", x=[1, 2, None, 4], y=[0] * 4, label=[0, 1] * 2)
    fails('data.input: column "x" holds ', " in row 2;", "fill or drop such rows", source=source)


def test_number_too_large_for_float32_names_its_row(tmp_path):
    source = write_parquet(tmp_path / "a.parquet", x=[1.0, 1e300, 2.0, 3.0], label=[0, 1] * 2)
    fails('data.input: column "x" holds ', " in row 1;", source=source)


@pytest.mark.parametrize("target", [0, 2])
def test_images_of_different_sizes_are_refused(tmp_path, target):
    source = grey_and(random_images(4, 5), tmp_path / "images")
    targets = write_ids(tmp_path / "ids.txt", f"{target}\n")
    fails(
        'data.input = "image": the image of row 2 has (4, 5) pixels',
        "resize all images to one size",
        source=source,
        targets=targets,
    )


@pytest.mark.parametrize("target", [0, 2])
def test_a_colour_image_among_grey_ones_leaves_one_shape(tmp_path, target):
    source = grey_and(random_images(4, 4, 3), tmp_path / "images")
    targets = write_ids(tmp_path / "ids.txt", f"{target}\n")
    split = load(DataConfig(source=source, targets=targets))
    for table in (split.train, split.targets):
        assert table.examples.inputs.shape[1:] == (4, 4, 3)
        # Which is the one in colour: the others are grey in all three channels.
        grey = (table.examples.inputs == table.examples.inputs[..., :1]).all((1, 2, 3))
        np.testing.assert_array_equal(grey, table.ids != 2)


def test_16_bit_grey_keeps_its_greys(tmp_path):
    deep = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4096
    files = {f"{'ab'[i % 2]}/{i}.png": deep for i in range(4)}
    source = write_images(tmp_path / "deep", files)
    split = load(DataConfig(source=source))
    for pixels in split.train.examples.inputs:
        np.testing.assert_array_equal(pixels[..., 0], deep >> 8)


def test_broken_image_names_its_row(tmp_path):
    source = grey_and(random_images(4, 4), tmp_path / "images")
    (tmp_path / "images/a/2.png").write_bytes(b"not an image")
    fails('data.input = "image"', "row 2 cannot be read", source=source)
