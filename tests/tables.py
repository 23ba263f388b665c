"""Small data sets as files, and what a test asks of a loaded one."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from training import data
from training.data import DataConfig
from training.errors import UserError


def load(config):
    """The split with every row that is left over."""
    return data.load(config, spare_rows=10**6)


def everything(split):
    """All rows of a split by id: {id: (input, label)}."""
    return {
        int(row): (values, int(label))
        for table in (split.train, split.targets, split.spare)
        for row, values, label in zip(
            table.ids, table.examples.inputs, table.examples.labels, strict=True
        )
    }


def in_order(split):
    """Inputs and labels of all rows, sorted by id."""
    rows = everything(split)
    assert sorted(rows) == list(range(len(rows)))
    inputs, labels = zip(*(rows[row] for row in sorted(rows)), strict=True)
    return np.stack(inputs), np.array(labels)


def fails(*phrases, **config):
    """The data cannot be loaded; the message is one line and holds all phrases."""
    with pytest.raises(UserError) as caught:
        load(DataConfig(**config))
    message = str(caught.value)
    assert "\n" not in message
    for phrase in phrases:
        assert phrase in message
    return message


def write_ids(path, text):
    path.write_text(text)
    return str(path)


def write_parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return str(path)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_images(folder, images):
    """{"class/name.png": array} as PNG files."""
    for name, array in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / name)
    return str(folder)


def random_images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def assert_partition(split, total):
    ids = np.concatenate([split.train.ids, split.targets.ids, split.spare.ids])
    assert len(ids) == total
    np.testing.assert_array_equal(np.sort(ids), np.arange(total))
