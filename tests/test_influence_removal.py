"""How few examples end a prediction: the search, what weights foretell, and what is said of it."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from influence import trace_words
from influence.counterfactual import random_like
from influence.removal import SHARE, Removal, most, predicted, search, smallest
from influence.report import templates
from influence.trace_part import Ranked, Seen, TracePart


@given(st.integers(1, 200), st.integers(1, 300))
def test_bisection_finds_the_smallest_number(limit, needed):
    asked = []

    def still_bad(count):
        asked.append(count)
        return count < needed

    assert smallest(still_bad, limit) == (needed if needed <= limit else None)
    assert len(asked) <= 2 + np.log2(limit)
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize(
    ("backing", "drive", "share", "expected"),
    [
        (30, 10, SHARE, ("drive", 10)), (30, 11, SHARE, ("backing", 30)),
        (None, 31, SHARE, ("drive", 31)), (30, None, SHARE, ("backing", 30)),
        (None, None, SHARE, ("backing", None)), (5, 4, 1.0, ("drive", 4)),
        (5, 5, 1.0, ("backing", 5)), (4, 5, 1.0, ("backing", 4)), (1, 1, SHARE, ("backing", 1)),
        (0, 0, 1.0, ("backing", 0)),
    ],
)  # fmt: skip
def test_a_removal_goes_by_the_order_in_which_far_fewer_have_to_go(backing, drive, share, expected):
    """In each order the prediction ends once its group number `needed` is gone, from 1."""
    groups, rng = 310, np.random.default_rng(0)
    needed = {"backing": backing, "drive": drive}
    orders = {by: rng.permutation(groups) for by in needed}
    asked = []

    def ended(removed):
        gone = set(np.flatnonzero(removed).tolist())
        return any(
            count is not None
            and gone == set(orders[by][: len(gone)].tolist())
            and len(gone) >= count
            for by, count in needed.items()
        )

    def retrain(removed, judging):
        asked.append((int(removed[0].sum()), judging))
        bad = (1.0 - ended(removed[0]),) * 3
        return Removal(bad, bad)

    labels = np.zeros(groups, int)
    found = search(retrain, orders, share, np.arange(groups), labels, 4, (0, 1))
    assert (found.by, found.smallest) == expected
    assert (found.in_first, found.most) == (backing, 31)
    count = 31 if found.smallest is None else found.smallest
    assert set(np.flatnonzero(found.removed)) == set(orders[found.by][:count].tolist())
    assert [number for number, judging in asked if judging] == [0, count, count]
    assert found.after.bad[0] == float(found.smallest is None)


@given(st.integers(2, 1000))
def test_a_tenth_of_the_groups_may_go_but_never_all(groups):
    assert 1 <= most(groups) < groups
    assert most(groups) <= max(1, 0.1 * groups + 0.5)


@given(st.integers(0, 1000))
def test_the_control_has_other_examples_of_the_same_labels(seed):
    rng = np.random.default_rng(seed)
    labels, removed = rng.integers(0, 3, 60), rng.random(60) < 0.2
    drawn = random_like(labels, removed, 4, (seed,))
    assert not (drawn & removed[None]).any()
    for row in drawn:
        np.testing.assert_array_equal(
            np.bincount(labels[row], minlength=3), np.bincount(labels[removed], minlength=3)
        )
    np.testing.assert_array_equal(drawn[:2], random_like(labels, removed, 2, (seed,)))
    whole = random_like(labels, labels == 0, 2, (seed,))
    # Of a class that went as a whole nothing is left, so others go in its place.
    assert (whole.sum(1) == min((labels == 0).sum(), (labels > 0).sum())).all()
    assert not whole[:, labels == 0].any()


@given(st.integers(0, 100), st.booleans())
def test_what_weights_foretell_is_what_counting_one_by_one_gives(seed, label_is_to_end):
    rng = np.random.default_rng(seed)
    rows, kept = rng.normal(0.5, 1, (3, 12)), rng.normal(3, 2, 3)
    to_end = np.full(3, label_is_to_end)
    expected = None
    for count in range(9):
        left = [kept[t] - sum(rows[t, :count]) for t in range(3)]
        if sum((value > 0) == label_is_to_end for value in left) < 1.5:
            expected = count
            break
    assert predicted(kept, rows, to_end, 8) == expected


@pytest.mark.parametrize(
    ("after", "begins"),
    [
        (
            0.2,
            "Without 2 examples most of the bad predictions end (by their weights 1 example would",
        ),
        (0.6, "Without 2 examples most of the bad predictions ended in the search, but not with"),
    ],
)
def test_what_is_said_of_a_removal_follows_the_fresh_seeds(after, begins):
    shares = {"before": 0.9, "after": after, "after_random": 0.8}
    summary = {
        "targets": ["incident:1"], "flip": False, "removed": [3, 4], "seeds": 16, "smallest": 2,
        "by": "drive", "by_backing": 9, "most": 20, "predicted": 1,
        "bad": {name: [one, one, one] for name, one in shares.items()},
    }  # fmt: skip
    said = trace_words.said(summary)
    assert said.startswith(begins)
    assert f"bad are 90 % with all, {100 * after:.0f} % without these" in said


FOUND = {
    "targets": ["incident:1"], "flip": False, "removed": [3, 4], "seeds": 16, "smallest": 2,
    "by": "backing", "by_backing": 2, "most": 20, "predicted": 1,
    "bad": {"before": [0.9, 0.8, 1.0], "after": [0.1, 0.0, 0.2], "after_random": [0.8, 0.7, 0.9]},
    "output": {name: [1.0, 0.5, 1.5] for name in ("before", "after", "after_random")},
}  # fmt: skip
END = "most of the bad predictions end"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, f"Without 2 examples {END} (by their weights 1 example would do)"),
        (
            {"removed": [*range(9)]},
            f"Without 9 examples, 2 groups, {END} (by their weights 1 group",
        ),
        ({"smallest": None}, "No removal of up to 20 groups ends most of the bad predictions (by"),
        ({"smallest": None, "most": 2}, "No removal of up to 2 examples ends most of the bad"),
        ({"smallest": 0}, "Trained on everything, 90 % of the predictions are bad"),
        (
            {"by": "drive", "by_backing": 9},
            "The rank is by drive alone, as by backing 9 had to go.",
        ),
        (
            {"by": "drive", "by_backing": None},
            "The rank is by drive alone, as by backing even 20 were not enough.",
        ),
        ({"flip": True, "predicted": None}, "right predictions end (by their weights not even 20"),
    ],
)
def test_the_page_says_what_the_command_says(changes, expected):
    summary = FOUND | changes
    seen = Seen("incident:1", "<b>", "", "a text")
    head, first = trace_words.headline(summary), [Ranked(3, seen, 0.5, 2.0, True)]
    part = TracePart(summary, head, True, [seen, seen], first, 9)
    template = templates().get_template("trace.html.j2")
    page = template.render(trace=part, shown_targets=set(), over_groups=False, unit="logits")
    text = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", page)).replace("&lt;b&gt;", "(b)")
    assert expected in text
    assert trace_words.said(summary).startswith(head)
    assert f"{head}." in text
    assert "incident:1: a text label (b)" in text
    # Nothing was left out, so there is nothing beside it.
    assert ("without random ones" in text) == (summary["smallest"] != 0)
