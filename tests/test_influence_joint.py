"""Runs that say which groups act together, and verify it by retraining."""

import dataclasses
import itertools
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from smoke import SMOKE

from influence.arms import arm_specs
from influence.cli import main
from influence.config import Config, JointConfig
from influence.experiment import Targets, prepare
from influence.joint import choose_targets
from influence.joint_verification import cells, in_order, is_confirmed, measure, planned
from influence.levels import Level, levels, part_names, reason_against
from influence.quality import Quality
from influence.refinement import best_alpha, joint_variance, to_split
from influence.refinement import reason_against as reason_against_refining
from influence.run import Run
from influence.sweeping import load_experiment
from influence.terms_file import TermRow, read_terms, save_terms
from training.bank import Bank
from training.data import DataConfig
from training.errors import UserError
from training.examples import Examples
from training.groups import Groups, GroupsConfig
from training.sweep import SweepConfig

WORDS = [
    *("--groups.by", "cluster", "--groups.count", "20", "--sweep.alpha", "0.5", "0.2"),
    *("--poison.label-flip-fraction", "0", "--poison.backdoor-fraction", "0"),
    *("--sweep.members", "250", "--fit.held-out", "50", "--fit.joint-targets", "2"),
    *("--audit.joint-terms", "2", "--audit.joint-contexts", "12"),
]


def row(target="clean:1", groups=(0, 1), joint_effect=-1.0):
    return TermRow("main", target, groups, len(groups), "redundancy", 1, joint_effect,
                   joint_effect - 0.1, joint_effect + 0.1, 1.0, (0.0, 1.0, 1.0), 0.01)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("joint") / "run"
    assert main(["run", SMOKE, "--out", str(path), *WORDS]) == 0
    return Run(path)


@pytest.fixture
def run_without_joint_effects(tmp_path):
    path = tmp_path / "run"
    words = ["--sweep.members", "24", "--fit.held-out", "8", "--fit.joint-targets", "0"]
    assert main(["sweep", SMOKE, "--out", str(path), *words]) == 0
    return path


@pytest.mark.slow
def test_terms_are_written_verified_and_shown(run, capsys):
    joint = json.loads(run.audit.read_text())["fit"]["joint"]
    assert joint["targets"] == 2
    level = joint["levels"]["main"]
    assert list(level["by_arm"]) == ["main", "main_0.2"]
    assert level["by_arm"]["main_0.2"]["r2"] > level["by_arm"]["main_0.2"]["additive_r2"]
    tested = read_terms(run)
    found = [each for each in tested if each.status == "found"]
    assert len(found) == level["terms"] >= 1
    assert all(each.q_value <= 0.1 for each in found)
    assert {each.status for each in tested if each.q_value > 0.1} <= {"undecided"}
    assert all(set(each.groups) <= set(range(20)) for each in found)
    assert "None was checked by retraining" in run.report.read_text()

    capsys.readouterr()
    assert main(["verify", str(run.path), "--joint"]) == 0
    said = capsys.readouterr()
    assert "Retraining" in said.err
    assert "joint effects are confirmed by retraining" in said.out + said.err
    verified = [each for each in read_terms(run) if each.verified_effect is not None]
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
    assert table.num_rows == len(tested)

    # What was retrained is not retrained again, and is compared with what is claimed of it.
    assert main(["verify", str(run.path), "--joint"]) == 0
    assert "Retraining" not in capsys.readouterr().err
    measured = read_terms(run)
    assert main(["fit", str(run.path)]) == 0
    assert read_terms(run) == measured
    _, experiment, _ = load_experiment(run.path)
    (level,) = levels(experiment)
    wrong = [dataclasses.replace(each, joint_effect=-each.joint_effect) for each in verified]
    assert measure(run, experiment, level, wrong)[0].status == "failed"

    # A set that acts on two targets has one set of retrains, which report both.
    twice = [dataclasses.replace(verified[0], target=id) for id in experiment.targets.ids[:2]]
    plans = [planned(run, experiment, level, rows) for rows in (twice, twice[:1])]
    assert [len(each.bank.target_ids) for each in plans] == [2, 1]
    assert len({each.arm.spec.members for each in plans}) == 1


@pytest.mark.slow
def test_groups_that_act_together_are_split_and_fitted_anew(run, tmp_path, capsys):
    copied = Run(shutil.copytree(run.path, tmp_path / "run"))
    before, coarse = read_terms(copied), load_experiment(copied.path)[1].groups
    assert main(["refine", str(copied.path), "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("Would make refined_1: ")
    assert set(Bank.open(copied.path).arms) == set(Bank.open(run.path).arms)

    words = ["refine", str(copied.path), "--members", "200"]
    assert main(words) == 0
    spec = Bank.open(copied.path).arm("refined_1").spec
    assert (spec.members, spec.grouping["of"]) == (200, "main")
    assert sorted(set(spec.group_of)) == list(range(spec.groups))
    assert spec.groups > 20
    # Every part is of one group, and groups that were not split are whole.
    parents = set(zip(spec.group_of, coarse.of.tolist(), strict=True))
    assert len(parents) == spec.groups
    parts = np.bincount([parent for _, parent in parents])
    assert np.flatnonzero(parts > 1).tolist() == spec.grouping["groups"]
    joint = json.loads(copied.audit.read_text())["fit"]["joint"]
    assert list(joint["levels"]) == ["main", "refined_1"]
    assert joint["levels"]["refined_1"]["groups"] == spec.groups
    found = read_terms(copied)
    assert [each for each in found if each.level == "main"] == before
    assert found == [
        *(each for each in found if each.level == "refined_1"),
        *(each for each in found if each.level == "main"),
    ]

    # What is interrupted before its fit is gone on with, and comes out the same.
    metrics = json.loads(copied.audit.read_text())
    del metrics["fit"]["joint"]["levels"]["refined_1"]
    copied.audit.write_text(json.dumps(metrics))
    save_terms(copied, before)
    (copied.path / "bank" / "refined_1" / "0" / "done" / "000001.json").unlink()
    capsys.readouterr()
    assert main(["refine", str(copied.path), "--dry-run"]) == 0
    assert "Would go on with refined_1, which was begun" in capsys.readouterr().out
    assert read_terms(copied) == before
    assert main(words) == 0
    assert "Going on with refined_1, which was begun" in capsys.readouterr().err
    assert set(Bank.open(copied.path).arms) - set(Bank.open(run.path).arms) == {
        "refined_1", "refined_1_replicates",
    }  # fmt: skip
    assert read_terms(copied) == found
    # The whole run replays with it, and shows both.
    assert main(["run", str(copied.path)]) == 0
    assert read_terms(copied) == found
    assert "refined_1" in copied.report.read_text()


def test_what_cannot_be_refined_is_told(run_without_joint_effects, capsys):
    path = run_without_joint_effects
    assert main(["refine", str(path), "--members", "8"]) == 2
    assert "--members 8 must be at least 16" in capsys.readouterr().err
    assert main(["refine", str(path)]) == 2
    assert "run first: accomplice fit" in capsys.readouterr().err
    assert main(["fit", str(path)]) == 0
    for words in (["refine"], ["verify", "--joint"]):
        assert main([words[0], str(path), *words[1:]]) == 2
        assert "has no joint effects: fit.joint_targets = 0" in capsys.readouterr().err


def test_sets_that_were_refuted_or_are_of_single_examples_are_not_refined():
    single = Level("main", Groups(np.arange(4), tuple("abcd"), {}), [], Config().fit)
    pairs = single._replace(groups=Groups(np.array([0, 0, 1, 1]), tuple("ab"), {}))
    refuted = dataclasses.replace(row(), status="failed")
    assert reason_against_refining(pairs, [row(), refuted]) is None
    assert "no groups of main were found" in reason_against_refining(pairs, [refuted])
    assert "single examples, which cannot be split" in reason_against_refining(single, [row()])


def test_those_groups_are_split_that_have_most_at_stake():
    sizes = np.array([5, 1, 3, 9, 4, 2, 2, 2, 2])
    rows = [
        row(groups=(0, 3), joint_effect=-2.0),
        row(groups=(2, 3), joint_effect=1.0),
        row(groups=(1, 4), joint_effect=9.0),
        dataclasses.replace(row(groups=(5, 6)), q_value=1.0),
    ]
    # Of group 1 there is nothing to split, and of 5 and 6 nothing is known.
    assert to_split(rows, sizes) == [0, 3, 4]
    assert to_split([rows[2]], sizes) == [4]
    assert to_split([row(groups=(0, 1))], np.array([100, 100])) == [0]
    confirmed = dataclasses.replace(rows[1], verified_effect=20.0, status="confirmed")
    assert to_split([rows[0], confirmed, rows[2]], sizes) == [2, 3, 4]


def test_joint_variance_is_that_of_every_mask():
    response, pieces, alpha = (0.0, 3.0, 1.0), 5, 0.3
    masks = np.array(list(itertools.product([0, 1], repeat=pieces)))
    chance = np.where(masks, alpha, 1 - alpha).prod(1)
    output = np.interp(masks.sum(1) / pieces, [0, 0.5, 1], response)
    design = np.concatenate([np.ones((len(masks), 1)), masks], axis=1)
    root = np.sqrt(chance)[:, None]
    _, left, *_ = np.linalg.lstsq(root * design, root[:, 0] * output)
    assert joint_variance(response, pieces, alpha) == pytest.approx(left[0])


def test_large_redundancies_ask_for_a_small_alpha_and_synergies_for_a_large_one():
    def term(response):
        own = tuple(range(len(response) - 1))
        return dataclasses.replace(row(groups=own), response=response)

    pieces = np.full(9, 4)
    assert best_alpha([term((0.0, *8 * [1.0]))], pieces) == 0.1
    assert best_alpha([term((0.0, 0.0, 0.0, 1.0))], pieces) == 0.5
    # The surer set decides.
    unsure = dataclasses.replace(term((0.0, 0.0, 0.0, 1.0)), q_value=0.99)
    assert best_alpha([term((0.0, *8 * [1.0])), unsure], pieces) == 0.1


def test_parts_are_named_after_the_group_that_they_are_of():
    coarse = Groups(np.array([0, 0, 1, 1, 1, 2]), ("a", "b", "c"), {"by": "cluster"})
    names = part_names(coarse, np.array([0, 1, 2, 3, 2, 4]))
    assert names == ("part 1 of 2 of a", "part 2 of 2 of a", "part 1 of 2 of b",
                     "part 2 of 2 of b", "c")  # fmt: skip


def test_damaged_or_missing_terms_are_told(tmp_path, capsys):
    broken = Run(tmp_path)
    assert read_terms(broken) == []
    rows = [row(), row(groups=(2, 3, 4))]
    save_terms(broken, rows)
    assert read_terms(broken) == rows
    broken.terms.write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"is damaged .* run again: accomplice fit"):
        read_terms(broken)
    pq.write_table(pa.table({"target": ["clean:1"]}), broken.terms)
    with pytest.raises(UserError, match=r"another version .* columns target\); run again"):
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
    unsure = dataclasses.replace(row("d"), status="undecided")
    assert [(each.target, each.groups[0]) for each in in_order([unsure, *rows])] == [
        ("a", 0), ("a", 2), ("b", 0), ("b", 2), ("c", 0), ("d", 0),
    ]  # fmt: skip


def test_the_incident_and_then_the_worst_of_each_class_are_chosen():
    labels = np.array([9, 0, 0, 0, 1, 1, 5], np.int32)
    examples = Examples(np.zeros((7, 2), np.float32), labels)
    targets = Targets(examples, tuple("abcdefg"), slice(0, 1), slice(1, 6), slice(6, 7))
    r2 = np.array([[0.0, 0.5, 0.1, 0.2, 0.7, 0.6, 0.9]])
    quality = Quality(r2, r2, np.full((1, 7), 0.9))
    assert choose_targets(targets, quality, 5, range(6, 7)).tolist() == [6, 2, 5, 3, 4]
    assert choose_targets(targets, quality, 5, range(0)).tolist() == [2, 5, 3, 4, 1]
    without = quality._replace(ceiling=np.full((1, 7), np.nan))
    assert choose_targets(targets, without, 2, [6]).tolist() == [6, 2]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # Of 200 single examples few show; where groups are kept independently, all does.
        (Config(), "clusters"),
        (Config(groups=GroupsConfig(by="cluster", count=20)), "main"),
        (Config(joint=JointConfig(clusters=500)), "main"),
        (Config(sweep=SweepConfig(design="pairs")), "clusters"),
        (
            Config(
                groups=GroupsConfig(by="cluster", count=20), sweep=SweepConfig(design="fixed_size")
            ),
            "clusters",
        ),
        (Config(joint=JointConfig(share=0.0)), "joint.share = 0"),
        (
            Config(joint=JointConfig(share=0.02), sweep=SweepConfig(members=100)),
            "joint.share = 0.02 of the members are 2, too few",
        ),
    ],
)
def test_where_joint_effects_are_looked_for(config, expected):
    small = dataclasses.replace(
        config, data=DataConfig("digits", train_count=200, target_count=20),
        sweep=dataclasses.replace(config.sweep, width=8),
    )  # fmt: skip
    experiment = prepare(small)
    found = levels(experiment)
    assert [level.name for level in found] == ([expected] if found else [])
    assert reason_against(experiment) == (None if found else expected)
    assert bool(found) == (expected in ("main", "clusters"))
    arms = [name for name in arm_specs(experiment) if name.startswith("clusters")]
    assert bool(arms) == (expected == "clusters")
    for level in found:
        assert len(level.groups.names) == arm_specs(experiment)[level.name].groups
        assert arm_specs(experiment)[level.name].design["kind"] in ("bernoulli", "pairs")


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
    assert "the run has no joint effects: fit.joint_targets = 0" in said
    assert main(["audit", folder, "--joint"]) == 2
