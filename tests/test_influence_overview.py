"""The head of the report: what was given, planted, confirmed and found to act together."""

import re
from types import SimpleNamespace

import pytest

from influence import trace_words
from influence.report import templates
from influence.trace_part import TracePart

SHARES = {cell: [share, 0.0, 1.0] for cell, share in (("before", 0.9), ("after", 0.1),
                                                      ("after_random", 0.8))}  # fmt: skip
FOUND = {"class": "<7>", "examples": [1, 2, 3], "confirmed": True}
TRACED = {"flip": False, "removed": [3, 4], "smallest": 2, "most": 20, "bad": SHARES}
HEAD = {
    "config": SimpleNamespace(
        data=SimpleNamespace(source="mine.csv"), audit=SimpleNamespace(budget=0.06)
    ),
    "metrics": {"examples": 1000, "verdict": {"confirmed": 3, "judged": 60}},
    "fit": {"by_arm": {"main": {"alpha": 0.5}}, "r2": 0.5, "ceiling": 0.8, "lds": 0.7,
            "share_of_ceiling": 0.6},
    "verify": {"success_by_attack": {}, "accuracy": SHARES},
    "groups": 0, "members": 2000, "protocol": "incident", "incident_count": 10, "planted": [],
    "caveats": [], "verdict_sets": [], "together": None, "trace": None, "copies": [],
}  # fmt: skip


def planted(name, count, failed=False):
    return {"name": name, "count": count, "failed": failed}


def together(sets, targets, confirmed, failed):
    return {
        "together": {"sets": sets, "targets": targets, "confirmed": confirmed, "failed": failed}
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "Incident : the audit was given 10 bad predictions, beside"),
        ({"incident_count": 1}, "the audit was given 1 bad prediction, beside"),
        ({"protocol": "blind"}, "Blind : ranks and verdicts follow from the training examples and"),
        (
            {"planted": [planted("label flip", 30), planted("sine", 1, failed=True)]},
            "does not know: label flip (30 examples), sine (1 example; failed as an attack, with a "
            "success below one half, and not scored).",
        ),
        ({}, "3 examples of 60 that were judged: the 6.0\u00a0% most suspicious by themselves."),
        (
            {"verdict_sets": [FOUND | {"confirmed": False}]},
            "and sets of what may belong together. No set with a common pattern is confirmed.",
        ),
        (
            {"verdict_sets": [FOUND]},
            "1 set with a common pattern is confirmed: 3 examples of label &lt;7&gt;.",
        ),
        (
            {"verdict_sets": 4 * [FOUND]},
            "4 sets with a common pattern are confirmed: 3 examples of label &lt;7&gt;, 3 examples "
            "of label &lt;7&gt;, 3 examples of label &lt;7&gt; and 1 more.",
        ),
        (together(1, 1, 0, 0), "1 set on 1 target ; none confirmed by retraining of its own yet"),
        (together(7, 2, 5, 3), "7 sets on 2 targets ; 5 confirmed by retraining of their own; 3"),
    ],
)
def test_every_case_is_said_in_whole_sentences(changes, expected):
    assert expected in text_of(**changes)


@pytest.mark.parametrize(("smallest", "shown"), [(2, True), (None, True), (0, False)])
def test_a_trace_has_a_card_where_there_was_something_to_end(smallest, shown):
    summary = TRACED | {"smallest": smallest}
    trace = TracePart(summary, trace_words.headline(summary), False, [], [], 1000)
    text = text_of(trace=trace)
    expected = "Bad predictions traced, without 2 examples 90.0\u00a0% → 10.0\u00a0%"
    assert (expected in text) == shown
    assert "The trace" in text


def text_of(**changes):
    page = templates().get_template("overview.html.j2").render(**HEAD | changes)
    return re.sub(r"[ \n]+", " ", re.sub("<[^>]+>", " ", page)).replace(" .", ".")
