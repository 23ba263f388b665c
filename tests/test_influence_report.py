"""What the report makes of the other stages' results."""

from pathlib import Path

import numpy as np
import pytest
from smoke import SMOKE

from influence import plots, report
from influence.config import read_config
from influence.experiment import prepare
from influence.looks import looks_of


@pytest.fixture(scope="module")
def experiment():
    return prepare(read_config(Path(SMOKE)))


def test_of_a_cluster_those_count_that_are_confirmed_by_themselves(experiment):
    ids = experiment.train.ids
    held_out = np.where(np.arange(len(ids)) < 4, -3.0, np.nan)
    # All are confirmed in a set; by themselves the first four were judged, and two confirmed.
    scores = {
        "id": ids,
        "flagged": np.isin(ids, ids[[0, 1, 2]]),
        "held_out_margin": held_out,
        "contradicted": np.isin(ids, ids[[0, 2]]),
        "status": np.full(len(ids), "confirmed", object),
        "probability": np.ones(len(ids)),
    }
    clusters = [{"class": "7", "examples": ids[:count].tolist()} for count in (4, 6)]
    found = report._strangers(experiment, looks_of(experiment), clusters, scores)
    assert [one["judged"] for one in found] == [True, False]
    assert [one["confirmed"] for one in found] == [2, 2]
    assert [one["flagged"] for one in found] == [3 / 4, 1 / 2]


def test_curves_are_among_clean_examples_as_the_table_is(experiment, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "inspection", lambda curves, _: drawn.update(curves))
    planted = np.array(["a", "b", "", "b", "a", "", "", ""])
    scores = {"rank_blind": np.arange(1, 9), "planted": planted}
    entry = {"attack_worked": True, "protocol": "blind"}
    metrics = {"detection": {"a": entry | {"attack": "a"}, "b": entry | {"attack": "b"}}}
    report._inspection_plot(experiment, metrics, scores)
    rank, planted = drawn["a (blind)"]
    assert rank.tolist() == [1, 3, 5, 6, 7, 8]
    assert planted.tolist() == [True, False, True, False, False, False]


def test_plots_of_one_page_share_no_name():
    curves = {"a": (np.arange(1, 11), np.arange(10) < 3)}
    assert 'id="figure_1"' not in plots.inspection(curves, 0.06)
