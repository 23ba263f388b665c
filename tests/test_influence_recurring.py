"""Sets that act on several targets in the same way."""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from influence.config import read_config
from influence.experiment import prepare
from influence.levels import levels
from influence.recurring import other_targets, recurring, targets_reached
from influence.terms_file import TermRow

SMOKE = Path(__file__).parent.parent / "configs" / "smoke.toml"
ONE = TermRow("clusters", "clean:1", (1, 2, 3), 3, "redundancy", 1, -2.0, -3.0, -1.0, 4.0,
              (0.0, 4.0, 4.0, 4.0), 0.01)  # fmt: skip
of = partial(dataclasses.replace, ONE)


def test_the_like_of_a_set_is_of_its_kind_and_pushes_the_same_way():
    others = [
        of(target="clean:2"), of(target="clean:2", groups=(1, 2, 4)),
        of(target="clean:3", groups=(1, 4), order=2), of(target="clean:4", group_effect=-4.0),
        of(target="clean:5", kind="synergy"), of(target="clean:6", level="refined_1"),
        of(target="clean:7", groups=(2, 3), order=2), of(groups=(1, 2), order=2),
    ]  # fmt: skip
    assert other_targets(ONE, [ONE, *others]) == ["clean:2", "clean:7"]


def test_a_set_recurs_by_what_most_others_are_like():
    wide = of(target="clean:4", groups=(2, 3, 4, 5), order=4)
    parts = [
        of(target="clean:2", groups=(2, 3), order=2), of(target="clean:3", groups=(4, 5), order=2),
    ]  # fmt: skip
    apart = [of(target=target, groups=(7, 8), order=2) for target in ("clean:8", "clean:9")]
    first, second = recurring([ONE, *apart, *parts, wide])
    assert first == (wide, ("clean:4", "clean:1", "clean:2", "clean:3"))
    assert second == (apart[0], ("clean:8", "clean:9"))


def test_what_failed_or_is_undecided_does_not_recur():
    for status in ("failed", "undecided"):
        assert recurring([ONE, of(target="clean:2", status=status)]) == []
    assert len(recurring([ONE, of(target="clean:2", status="confirmed")])) == 1
    assert recurring([]) == []


SETS = st.tuples(st.integers(0, 3), st.sets(st.integers(0, 4), min_size=2), st.booleans())


@given(st.lists(SETS, max_size=12))
def test_each_set_recurs_once_and_those_on_most_targets_come_first(drawn):
    rows = [
        of(target=f"clean:{target}", groups=tuple(sorted(groups)), order=len(groups),
           group_effect=1.0 if up else -1.0)
        for target, groups, up in drawn
    ]  # fmt: skip
    found = recurring(rows)
    sizes = [len(targets) for _, targets in found]
    assert sizes == sorted(sizes, reverse=True)
    assert all(size > 1 for size in sizes)
    most = max((1 + len(other_targets(row, rows)) for row in rows), default=0)
    assert max(sizes, default=1) == max(most, 1)
    for number, (core, targets) in enumerate(found):
        assert set(targets) <= {core.target, *other_targets(core, rows)}
        assert not any(other_targets(core, [other]) for other, _ in found[:number])


def test_an_example_reaches_the_targets_of_the_recurring_sets_that_it_is_in():
    experiment = prepare(read_config(SMOKE))
    rows = [
        *(of(target=f"clean:{number}", groups=(1, 2), order=2) for number in range(3)),
        *(of(target=f"clean:{number}", groups=(2, 4), order=2) for number in (7, 8)),
        of(target="clean:9", groups=(5, 6), order=2),
    ]
    rows[3:5] = [dataclasses.replace(row, kind="synergy") for row in rows[3:5]]
    expected = np.array([0, 3, 3, 0, 2])
    clusters = levels(experiment)[0].groups.of
    reached = targets_reached(experiment, rows)
    np.testing.assert_array_equal(reached[clusters < 5], expected[clusters[clusters < 5]])
    assert not reached[clusters >= 5].any()
