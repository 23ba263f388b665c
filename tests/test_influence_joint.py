"""Runs that say which groups act together, and verify it by retraining."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from influence.cli import main
from influence.experiment import Targets
from influence.joint import choose_targets, reason_against
from influence.joint_verification import cells, in_order, is_confirmed, measure
from influence.pipeline import load_experiment
from influence.quality import Quality
from influence.run import Run
from influence.terms_file import TermRow, read_terms, save_terms
from training.examples import Examples

SMOKE = str(Path(__file__).parent.parent / "configs" / "smoke.toml")
WORDS = [
    *("--groups.by", "cluster", "--groups.count", "20", "--sweep.alpha", "0.5", "0.2"),
    *("--poison.label-flip-fraction", "0", "--poison.backdoor-fraction", "0"),
    *("--sweep.members", "250", "--fit.held-out", "50", "--fit.joint-targets", "2"),
    *("--audit.joint-terms", "2", "--audit.joint-contexts", "12"),
]


def row(target="clean:1", groups=(0, 1), joint_effect=-1.0):
    return TermRow(target, groups, len(groups), "redundancy", 1, joint_effect, joint_effect - 0.1,
                   joint_effect + 0.1, 1.0, (0.0, 1.0, 1.0), 0.01)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("joint") / "run"
    assert main(["run", SMOKE, "--out", str(path), *WORDS]) == 0
    return Run(path)


@pytest.mark.slow
def test_terms_are_written_verified_and_shown(run, capsys):
    joint = json.loads(run.audit.read_text())["fit"]["joint"]
    assert joint["targets"] == 2
    assert list(joint["by_arm"]) == ["main", "main_0.2"]
    assert joint["by_arm"]["main_0.2"]["r2"] > joint["by_arm"]["main_0.2"]["additive_r2"]
    found = read_terms(run)
    assert len(found) == joint["terms"] >= 1
    assert all(each.status == "found" and each.q_value <= 0.1 for each in found)
    assert all(set(each.groups) <= set(range(20)) for each in found)
    assert "not checked" not in run.report.read_text()
    assert "None was checked by retraining" in run.report.read_text()

    capsys.readouterr()
    assert main(["verify", str(run.path), "--joint"]) == 0
    said = capsys.readouterr()
    assert "joint effects are confirmed by retraining" in said.out + said.err
    verified = [each for each in read_terms(run) if each.status != "found"]
    assert len(verified) == min(2, len(found))
    for each in verified:
        assert each.verified_low < each.verified_effect < each.verified_high
        assert (each.status == "confirmed") == is_confirmed(
            each.joint_effect, each.verified_low, each.verified_high
        )
    # The surest of a few hundred retrains is real.
    assert verified[0].status == "confirmed"
    assert main(["report", str(run.path)]) == 0
    page = run.report.read_text()
    assert 'id="terms"' in page
    assert "measured by retraining" in page
    assert "None was checked by retraining" not in page
    table = pq.read_table(run.terms)
    assert table.num_rows == len(found)

    # What was retrained is not retrained again, and is compared with what is claimed of it.
    assert main(["verify", str(run.path), "--joint"]) == 0
    assert "Retraining" not in capsys.readouterr().out
    measured = read_terms(run)
    assert main(["fit", str(run.path)]) == 0
    assert read_terms(run) == measured
    _, experiment, _ = load_experiment(run.path)
    wrong = [dataclasses.replace(each, joint_effect=-each.joint_effect) for each in verified]
    assert measure(run, experiment, wrong)[0].status == "failed"


def test_damaged_or_missing_terms_are_told(tmp_path, capsys):
    broken = Run(tmp_path)
    assert read_terms(broken) == []
    rows = [row(), row(groups=(2, 3, 4))]
    save_terms(broken, rows)
    assert read_terms(broken) == rows
    broken.terms.write_bytes(b"no parquet")
    with pytest.raises(Exception, match=r"is damaged .* run again: accomplice fit"):
        read_terms(broken)


@pytest.mark.parametrize("order", [2, 3, 4, 6])
def test_cells_of_a_set_give_its_joint_effect(order):
    """On outputs whose joint effect is known: copies, partners, and groups that only add up."""
    kept, weight = cells(order)
    assert len(kept) == (2**order if order <= 4 else order + 2)
    copies, partners = kept.any(1), kept.all(1)
    expected = (-1.0) ** (order + 1) if order <= 4 else 1.0 - order
    assert weight @ copies == expected
    assert weight @ partners == 1
    assert weight @ (kept @ np.arange(1.0, order + 1) + 5) == pytest.approx(0)


def test_a_set_is_confirmed_on_the_predicted_side_alone():
    cases = itertools.product((1.0, -1.0), ((0.1, 2.0), (-2.0, -0.1), (-0.1, 0.1)))
    found = [is_confirmed(predicted, *ends) for predicted, ends in cases]
    assert found == [True, False, False, False, True, False]


def test_every_set_is_verified_before_any_of_them_again():
    rows = [row("a"), row("b"), row("a", (2, 3)), row("c"), row("b", (2, 3))]
    assert [(each.target, each.groups[0]) for each in in_order(rows)] == [
        ("a", 0), ("a", 2), ("b", 0), ("b", 2), ("c", 0),
    ]  # fmt: skip


def test_the_incident_and_then_the_worst_of_each_class_are_chosen():
    labels = np.array([9, 0, 0, 0, 1, 1, 5], np.int32)
    examples = Examples(np.zeros((7, 2), np.float32), labels)
    targets = Targets(examples, tuple("abcdefg"), slice(0, 1), slice(1, 6), slice(6, 7))
    r2 = np.array([[0.0, 0.5, 0.1, 0.2, 0.7, 0.6, 0.9]])
    quality = Quality(r2, r2, np.full((1, 7), 0.9))
    assert choose_targets(targets, quality, 5).tolist() == [6, 2, 5, 3, 4]
    without = quality._replace(ceiling=np.full((1, 7), np.nan))
    assert choose_targets(targets, without, 2).tolist() == [6, 2]


def test_why_there_are_no_joint_datamodels_is_said():
    assert reason_against("bernoulli", 10_000, 512, 20) is None
    assert "fit.joint_targets = 0" in reason_against("pairs", 100, 20, 0)
    assert "does not keep groups independently" in reason_against("two_level", 100, 20, 3)
    assert "513 groups, more than 512" in reason_against("bernoulli", 100, 513, 3)
    assert "10,001 members are more than 10,000" in reason_against("bernoulli", 10_001, 20, 3)


@pytest.mark.slow
def test_a_run_without_terms_says_so(tmp_path, capsys):
    folder = str(tmp_path / "run")
    assert main(["run", SMOKE, "--out", folder, "--fit.joint-targets", "0"]) == 0
    assert "No joint datamodel was fitted: fit.joint_targets = 0" in (
        Run(tmp_path / "run").report.read_text()
    )
    capsys.readouterr()
    assert main(["verify", folder, "--joint"]) == 2
    said = capsys.readouterr().err
    assert "there are no joint effects to verify: fit.joint_targets = 0" in said
    assert main(["audit", folder, "--joint"]) == 2
