"""How well a rank finds what was planted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from influence.detection import detection_metrics
from influence.detection import summary as detection_summary
from training.data import Table
from training.examples import Examples
from training.poison import Attack


@given(seed=st.integers(0, 1000))
def test_detection_metrics_equal_scikit_learn_on_this_attack_and_clean_examples(seed):
    rng = np.random.default_rng(seed)
    rank = rng.permutation(200) + 1
    planted, other = np.zeros((2, 200), bool)
    planted[:10], other[10:25] = True, True
    metrics = detection_metrics(rank, planted, other)
    kept = ~other
    assert metrics["auroc"] == pytest.approx(roc_auc_score(planted[kept], -rank[kept]))
    assert metrics["average_precision"] == pytest.approx(
        average_precision_score(planted[kept], -rank[kept])
    )
    order = np.argsort(rank[kept])
    assert metrics["recall_10"] == pytest.approx(planted[kept][order[:18]].mean() * 18 / 10)
    assert metrics["precision_at_k"] == pytest.approx(planted[kept][order[:10]].mean())


@pytest.mark.parametrize(("before", "scored"), [(0.49, False), (0.5, True)])
def test_a_backdoor_that_failed_is_never_scored(before, scored):
    planted = np.array(["backdoor"] * 3 + [""] * 17, dtype=object)
    scores = {
        "planted": planted,
        "rank_blind": np.arange(20) + 1,
        "rank_incident": 20 - np.arange(20),
    }
    blank = Examples(np.zeros((3, 2), np.float32), np.zeros(3, np.int32))
    incident = Table(blank, np.arange(3))
    attack = Attack("backdoor", np.arange(3), np.zeros(3, np.int32), blank, incident)
    found = detection_summary([attack], scores, {"backdoor": {"before": (before, 0.0, 1.0)}})
    assert {name: entry["auroc"] is not None for name, entry in found.items()} == {
        "backdoor": scored,
        "backdoor_blind": scored,
    }
    if scored:
        assert found["backdoor_blind"]["auroc"] == 1.0
        assert found["backdoor"]["auroc"] == 0.0


def test_of_two_triggers_the_incident_is_the_first_ones_alone():
    planted = np.array(["backdoor"] * 3 + ["blend"] * 3 + [""] * 14, dtype=object)
    rank = np.arange(20) + 1
    scores = {"planted": planted, "rank_blind": rank, "rank_incident": rank}
    blank = Examples(np.zeros((3, 2), np.float32), np.zeros(3, np.int32))
    attacks = [
        Attack(name, np.flatnonzero(planted == name), np.zeros(3, np.int32), blank,
               Table(blank, np.arange(3)))
        for name in ("backdoor", "blend")
    ]  # fmt: skip
    success = {"backdoor": {"before": (0.9, 0.0, 1.0)}, "blend": {"before": (0.4, 0.0, 1.0)}}
    found = detection_summary(attacks, scores, success)
    assert {name: entry["protocol"] for name, entry in found.items()} == {
        "backdoor": "incident",
        "backdoor_blind": "blind",
        "blend": "blind",
    }
    assert found["blend"]["auroc"] is None  # it failed


def test_a_label_flip_is_scored_whether_or_not_the_model_learned_it():
    scores = {"planted": np.array(["label_flip", "", ""], dtype=object), "rank_blind": [1, 2, 3]}
    scores["rank_blind"] = np.array(scores["rank_blind"])
    blank = Examples(np.zeros((1, 2), np.float32), np.zeros(1, np.int32))
    attack = Attack("label_flip", np.array([0]), np.zeros(1, np.int32), blank, None)
    found = detection_summary([attack], scores, {"label_flip": {"before": (0.0, 0.0, 0.0)}})
    assert found["label_flip"]["auroc"] == 1.0
