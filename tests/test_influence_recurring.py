"""Sets that act on several targets in the same way."""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from smoke import SMOKE

from influence.config import read_config
from influence.experiment import prepare
from influence.levels import levels
from influence.recurring import other_targets, recurring, targets_reached, update_scores
from influence.run import Run
from influence.terms_file import TermRow

ONE = TermRow("clusters", "clean:1", (1, 2, 3), 3, "redundancy", 1, -2.0, -3.0, -1.0, 4.0,
              (0.0, 4.0, 4.0, 4.0), 0.01)  # fmt: skip
of = partial(dataclasses.replace, ONE)


def row(target, *groups, **changes):
    return of(target=f"clean:{target}", groups=groups, order=len(groups), **changes)


def test_the_like_of_a_set_is_of_its_kind_and_pushes_the_same_way():
    others = [
        row(2, 1, 2, 3), row(2, 1, 2, 3, 4), row(3, 1, 4), row(4, 1, 2, 3, group_effect=-4.0),
        row(5, 1, 2, 3, kind="synergy"), row(6, 1, 2, 3, level="refined_1"), row(7, 2, 3),
        row(8, 2, 3, status="failed"), row(1, 1, 2),
    ]  # fmt: skip
    assert other_targets(ONE, [ONE, *others]) == ["clean:2", "clean:7"]
    assert other_targets(of(status="failed"), [ONE, *others]) == []


def test_a_conflict_has_no_direction():
    one, other = (row(n, 1, 2, kind="conflict", group_effect=n - 1.5) for n in (1, 2))
    assert other_targets(one, [one, other]) == ["clean:2"]


def test_a_set_recurs_by_what_most_others_are_like():
    wide, parts = row(4, 2, 3, 4, 5), [row(2, 2, 3, 4), row(3, 3, 4, 5)]
    apart = [row(8, 7, 8), row(9, 7, 8)]
    first, second = recurring([ONE, *apart, *parts, wide])
    assert (first.core, first.targets) == (wide, ["clean:4", "clean:2", "clean:3"])
    assert (second.core, second.targets) == (apart[0], ["clean:8", "clean:9"])


def test_pairs_with_one_group_in_common_are_not_one_set():
    assert recurring([row(1, 2, 1), row(2, 2, 9), row(3, 2, 7)]) == []


def test_what_failed_or_is_undecided_does_not_recur():
    for status in ("failed", "undecided"):
        assert recurring([ONE, of(target="clean:2", status=status)]) == []
    assert len(recurring([ONE, of(target="clean:2", status="confirmed")])) == 1
    assert recurring([]) == []


SETS = st.tuples(st.integers(0, 3), st.sets(st.integers(0, 4), min_size=2), st.booleans())


@given(st.lists(SETS, max_size=12))
def test_each_term_recurs_once_and_sets_on_most_targets_come_first(drawn):
    rows = [
        row(target, *sorted(groups), group_effect=1.0 if up else -1.0)
        for target, groups, up in drawn
    ]
    found = recurring(rows)
    sizes = [len(one.targets) for one in found]
    assert sizes == sorted(sizes, reverse=True)
    assert all(size > 1 for size in sizes)
    most = max((1 + len(other_targets(one, rows)) for one in rows), default=0)
    assert max(sizes, default=1) == max(most, 1)
    assert sum(len(one.rows) for one in found) <= len(rows)
    for number, one in enumerate(found):
        assert set(one.targets) <= {one.core.target, *other_targets(one.core, rows)}
        assert not any(other_targets(one.core, [other.core]) for other in found[:number])


@pytest.fixture(scope="module")
def experiment():
    return prepare(read_config(Path(SMOKE)))


def test_an_example_reaches_the_targets_on_which_it_acts_in_a_recurring_set(experiment):
    rows = [
        row(0, 1, 2, 3), row(1, 1, 2, 3), row(2, 1, 2, 3, 4), row(3, 1, 2, 4),
        row(7, 2, 5, kind="synergy"), row(8, 2, 5, kind="synergy"), row(9, 5, 6),
    ]  # fmt: skip
    # Group 4 acts on two of the four targets, group 3 on three.
    expected = np.array([0, 4, 4, 3, 2, 2])
    clusters = levels(experiment)[0].groups.of
    reached = targets_reached(experiment, rows)
    np.testing.assert_array_equal(reached[clusters < 6], expected[clusters[clusters < 6]])
    assert not reached[clusters >= 6].any()


def test_a_blind_audit_counts_clean_targets_alone(experiment):
    rows = [
        *(of(target=f"incident:{number}") for number in range(3)),
        *(of(target=id) for id in experiment.targets.ids[experiment.targets.clean][:2]),
    ]
    audit = dataclasses.replace(experiment.config.audit, protocol="blind")
    config = dataclasses.replace(experiment.config, audit=audit)
    assert targets_reached(experiment, rows).max() == 5
    assert targets_reached(dataclasses.replace(experiment, config=config), rows).max() == 2


def test_scores_follow_the_terms(experiment, tmp_path):
    run = Run(tmp_path)
    update_scores(run, experiment, [])
    assert not run.scores.exists()
    count = len(experiment.train)
    table = pa.table({"id": np.arange(count), "targets_reached": np.ones(count, int),
                      "rank": np.arange(count)})  # fmt: skip
    pq.write_table(table, run.scores)
    rows = [ONE, of(target="clean:2")]
    update_scores(run, experiment, rows)
    changed = pq.read_table(run.scores)
    assert changed.column_names == table.column_names
    np.testing.assert_array_equal(changed["targets_reached"], targets_reached(experiment, rows))
    assert changed["targets_reached"].to_numpy().max() == 2
