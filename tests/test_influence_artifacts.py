"""What stages write and read back: block by block, with the columns that others rely on."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from influence import artifacts
from influence.artifacts import Columns, _columns_file
from influence.cli import main
from influence.run import Run
from influence.terms_file import SCHEMA
from training.errors import UserError

FILES = (Path(__file__).parent.parent / "docs" / "files.md").read_text()


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A matrix of 25 targets in blocks of 7, as it was and on disk."""
    monkeypatch.setattr(artifacts, "TARGET_BLOCK", 7)
    run = Run(tmp_path)
    run.weights.parent.mkdir()
    values = np.random.default_rng(0).standard_normal((4, 25)).astype(np.float32)
    with _columns_file(run.weights, 4, 25) as write:
        digests = [write(values[:, first : first + 7])[0] for first in range(0, 25, 7)]
    return values, Columns(run, run.weights, tuple(digests))


@pytest.mark.parametrize("ends", [(0, 25), (0, 7), (6, 8), (7, 14), (3, 22), (24, 25), (5, 5)])
def test_columns_are_read_over_the_ends_of_blocks(weights, ends):
    values, columns = weights
    np.testing.assert_array_equal(columns(slice(*ends)), values[:, slice(*ends)])


def test_single_columns_are_read_in_the_order_asked_for(weights):
    values, columns = weights
    np.testing.assert_array_equal(columns.take([24, 0, 8, 7, 0]), values[:, [24, 0, 8, 7, 0]])


def test_damage_is_told_where_it_is_read_and_nowhere_else(weights):
    values, columns = weights
    content = bytearray(columns.path.read_bytes())
    content[-4 * 4 * 11] ^= 1  # of the last eleven targets, so in the third block of four
    columns.path.write_bytes(content)
    np.testing.assert_array_equal(columns(slice(0, 14)), values[:, :14])
    for read in (lambda: columns(slice(13, 15)), lambda: columns.take([0, 20])):
        with pytest.raises(UserError, match=r"weights.npy does not match .* accomplice fit"):
            read()


def section(name):
    """The text about one file."""
    return re.search(rf"^## {re.escape(name)}.*?\n(.*?)(?=^## )", FILES, re.M | re.S)[1]


@pytest.fixture(scope="module")
def run(smoke_run, tmp_path_factory):
    """A smoke run with an incident, of which one prediction was traced."""
    run = Run(shutil.copytree(smoke_run, tmp_path_factory.mktemp("files") / "run"))
    target = re.search(r'"(incident:\d+)"', run.manifest.read_text())[1]
    assert main(["trace", str(run.path), "--targets", target]) == 0
    return run


def test_scores_have_the_columns_that_are_told_of(run):
    told = set(re.findall(r"`(\w+)`", section("scores.parquet")))
    assert set(pq.read_schema(run.scores).names) == told


def test_a_trace_has_the_columns_and_keys_that_are_told_of(run):
    told = set(re.findall(r"`(\w+)`", section("trace.parquet and trace.json")))
    columns = set(pq.read_schema(run.traced).names)
    keys = set(json.loads(run.trace.read_text()))
    assert told - {"before", "after", "after_random", "most"} <= columns | keys
    assert columns | keys <= told


def test_terms_have_the_columns_that_are_told_of():
    rows = re.findall(r"^\| ([\w, ]+) \|", section("terms.parquet"), re.M)
    told = [name for row in rows[1:] for name in row.split(", ")]
    assert told == SCHEMA.names


def test_the_parts_of_audit_json_are_those_that_are_told_of(run):
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", section("audit.json"), re.M)
    told = {name for row in rows for name in re.findall(r"\w+", row)}
    assert set(run.read_audit()) == told
