"""The whole pipeline on small real runs: files, replay, resume, interruption, report."""

import os
import re
import signal
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
from smoke import SMOKE, read_json

from influence import engines, progress
from influence.cli import main
from influence.config import read_config
from training import layouts
from training.arm import Arm
from training.store import seal, unseal


def bank_bytes(run):
    """All files of a bank, but for when and where its units were made."""
    files = sorted(path for path in (run / "bank").rglob("*") if path.is_file())
    return {str(path.relative_to(run)): without_time_and_host(path) for path in files}


def without_time_and_host(path):
    if path.parent.name != "done":
        return path.read_bytes()
    record = read_json(path)
    return {key: record[key] for key in record.keys() - {"time", "host", "checksum"}}


def rewrite(record, change):
    """Change a done-record as if it had been written so."""
    content = unseal(record.read_bytes())
    change(content)
    record.write_bytes(seal(content))


def test_a_run_leaves_every_file(smoke_run):
    names = {path.name for path in smoke_run.iterdir()}
    assert names >= {
        "config.toml", "manifest.json", "bank", "datamodel", "scores.parquet", "audit.json",
        "report.html", "metrics.jsonl",
    }  # fmt: skip
    assert not [name for name in names if name.startswith(".")]


def test_audit_json_has_its_keys(smoke_run):
    audit = read_json(smoke_run / "audit.json")
    assert audit["fit"].keys() >= {"lds", "r2", "ceiling"}
    assert {one.keys() == {"class", "examples", "sameness"} for one in audit["look_alikes"]} == {
        True
    }
    assert audit["detection"].keys() == {"label_flip", "backdoor", "backdoor_blind"}
    for name, protocol in [("label_flip", "blind"), ("backdoor", "incident")]:
        assert audit["detection"][name]["protocol"] == protocol
    for part in ("attack_success", "accuracy"):
        for cell in ("before", "after", "after_random"):
            mean, low, high = audit["verify"][part][cell]
            assert low <= mean <= high
    changes = audit["verify"]["success_change"]
    assert changes.keys() == audit["verify"]["success_by_attack"].keys()
    for name, cells in audit["verify"]["success_by_attack"].items():
        change = cells["after"][0] - cells["before"][0]
        assert changes[name][0] == pytest.approx(change, abs=1e-9)
        assert changes[name][1] <= change <= changes[name][2]


def test_detection_is_scored_exactly_where_the_attack_worked(smoke_run):
    audit = read_json(smoke_run / "audit.json")
    keys = ("auroc", "average_precision", "precision_at_k", "recall_1", "recall_5", "recall_10")
    for entry in audit["detection"].values():
        success = audit["verify"]["success_by_attack"][entry["attack"]]["before"][0]
        assert entry["attack_worked"] == (success >= 0.5 or entry["attack"] == "label_flip")
        for key in keys:
            assert (entry[key] is not None) == entry["attack_worked"]


def test_scores_have_a_row_an_example(smoke_run):
    table = pq.read_table(smoke_run / "scores.parquet").to_pydict()
    manifest = read_json(smoke_run / "manifest.json")
    assert table["id"] == manifest["example_ids"]
    assert sorted(table["rank"]) == list(range(1, 201))
    assert sum(table["flagged"]) == 20
    assert table["planted"].count("label_flip") == 10
    assert table["planted"].count("backdoor") == 6


def test_the_blind_rank_of_an_incident_is_the_same_whatever_it_had_judged(smoke_run, smoke_copy):
    assert read_json(smoke_run / "audit.json")["protocol"] == "incident"
    before = pq.read_table(smoke_run / "scores.parquet")
    # With more flagged by the incident, more is judged.
    assert main(["run", str(smoke_copy), "--audit.budget", "0.2"]) == 0
    after = pq.read_table(smoke_copy / "scores.parquet")
    judged = [np.isfinite(table["held_out_margin"].to_numpy()).sum() for table in (before, after)]
    assert judged[0] < judged[1]
    # The settings of fit and audit may change in a run.
    assert read_json(smoke_copy / "audit.json")["flagged"] == 40
    assert "budget = 0.2" in (smoke_copy / "config.toml").read_text()
    np.testing.assert_array_equal(before["rank_blind"], after["rank_blind"])
    assert (before["rank_incident"].to_numpy() != after["rank_incident"].to_numpy()).any()


def test_a_second_call_makes_nothing_and_ends_with_the_same(smoke_copy):
    before, report = bank_bytes(smoke_copy), (smoke_copy / "report.html").read_text()
    log_lines = (smoke_copy / "metrics.jsonl").read_text()
    assert main(["run", str(smoke_copy / "config.toml")]) == 0
    assert bank_bytes(smoke_copy) == before
    assert (smoke_copy / "report.html").read_text() == report
    assert (smoke_copy / "metrics.jsonl").read_text() == log_lines


@pytest.mark.parametrize(("code", "number"), [(130, signal.SIGINT), (143, signal.SIGTERM)])
def test_interrupted_and_resumed_equals_uninterrupted(
    smoke_run, tmp_path, monkeypatch, capsys, code, number
):
    run = tmp_path / "cut"
    commit = Arm.commit

    def commit_then_stop(self, unit, *members, **options):
        commit(self, unit, *members, **options)
        if unit == 0:
            os.kill(os.getpid(), number)

    words = ["run" if number == signal.SIGINT else "sweep", SMOKE, "--out", str(run)]
    with monkeypatch.context() as patch:
        patch.setattr(Arm, "commit", commit_then_stop)
        assert main(words) == code
    said = capsys.readouterr().err
    assert "Stopping within 25 s: what is in training is finished first, if it can be\n" in said
    assert f"To go on: accomplice {' '.join(words)}" in said
    assert 1 <= len(list((run / "bank").rglob("done/*.json"))) < 3
    assert main(words) == 0
    ours, theirs = bank_bytes(run), bank_bytes(smoke_run)
    assert ours == theirs


@pytest.mark.slow
@pytest.mark.parametrize(("grace", "codes"), [("0.2", {143}), ("1000", {130, 143})])
def test_the_end_of_grace_or_a_second_signal_stops_at_once(
    smoke_run, tmp_path, monkeypatch, grace, codes
):
    """A commit that does not end: nothing waits for it.

    Of two signals that wait for Python's handlers, these see the one of the lower number first.
    """
    run, hold, told, commit = tmp_path / "cut", threading.Event(), threading.Event(), Arm.commit

    def stop_and_hold(self, unit, *members, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        assert told.wait(60)
        if grace == "1000":
            os.kill(os.getpid(), signal.SIGINT)
        assert hold.wait(60)
        commit(self, unit, *members, **options)

    words = ["sweep", SMOKE, "--out", str(run), "--sweep.grace", grace]
    with monkeypatch.context() as patch:
        patch.setattr(Arm, "commit", stop_and_hold)
        patch.setattr(engines, "say", lambda line: told.set() if "Stopping" in line else None)
        assert main(words) in codes
    assert not list((run / "bank").rglob("done/*.json"))
    # What was held goes on, as a process would that nobody could stop.
    hold.set()
    assert main(words) == 0
    assert bank_bytes(run) == bank_bytes(smoke_run)


def test_the_unit_size_changes_no_bit_of_a_run(smoke_run, tmp_path):
    words = ["sweep", SMOKE, "--out", str(tmp_path / "run"), "--sweep.unit", "64"]
    assert main(words) == 0
    assert main(["fit", str(tmp_path / "run")]) == 0
    first, second = (
        (run / "datamodel" / "weights.npy").read_bytes() for run in (smoke_run, tmp_path / "run")
    )
    assert first == second


def test_another_run_in_the_same_directory_is_refused(smoke_copy, capsys):
    before = bank_bytes(smoke_copy)
    assert main(["run", SMOKE, "--out", str(smoke_copy), "--optim.learning-rate", "0.3"]) == 2
    said = capsys.readouterr().err
    assert "holds a different run" in said
    assert "optim.learning_rate is 0.2 there and 0.3 here" in said
    assert "choose another --out" in said
    assert bank_bytes(smoke_copy) == before


def test_going_on_with_another_layout_is_refused_unless_allowed(smoke_copy, capsys):
    done = smoke_copy / "bank" / "main" / "0" / "done"
    (done / "000000.json").unlink()
    rewrite(done / "000001.json", lambda record: record["made_on"].update(devices=3))
    assert main(["sweep", str(smoke_copy)]) == 2
    assert "begun with devices = 3, and here it is 4" in capsys.readouterr().err
    assert main(["sweep", str(smoke_copy), "--sweep.allow-mixed", "True"]) == 0


def test_what_a_process_left_that_died_while_it_made_a_run_is_cleaned(tmp_path):
    old, young = tmp_path / ".run.abc", tmp_path / ".run.xyz"
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (0, 0))
    words = ["sweep", SMOKE, "--out", str(tmp_path / "run"), "--sweep.members", "24"]
    assert main([*words, "--fit.held-out", "8"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [".run.xyz", "run"]


def test_a_directory_that_is_no_run_is_refused(tmp_path, capsys):
    (tmp_path / "letter.txt").write_text("dear")
    assert main(["run", SMOKE, "--out", str(tmp_path)]) == 2
    assert "is no run directory" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_the_report_stands_alone_and_shows_the_flagged(smoke_run):
    page = (smoke_run / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert not re.search(r"url\((?!data:|#)", page)
    scores = pq.read_table(smoke_run / "scores.parquet").to_pydict()
    table = page[page.index('id="suspicious"') :]
    shown = re.findall(r'<td class="id" data-value="(\d+)"', table)
    assert [int(id) for id in shown[:20]] == [
        scores["id"][scores["rank"].index(rank)] for rank in range(1, 21)
    ]


def test_diverged_members_are_refused_with_a_remedy(tmp_path, capsys):
    words = ["--optim.learning-rate", "1e9", "--optim.schedule", "constant"]
    assert main(["run", SMOKE, "--out", str(tmp_path / "run"), *words]) == 2
    assert re.search(r"\d+ of 64 members are not finite", capsys.readouterr().err)


def test_a_short_sweep_takes_one_member_at_a_time(tmp_path, capsys):
    run = tmp_path / "run"
    words = ["--sweep.members", "24", "--fit.held-out", "8", "--sweep.width", "0"]
    assert main(["sweep", SMOKE, "--out", str(run), *words]) == 0
    said = capsys.readouterr().err
    assert "one member on each (the sweep is too short for a search; " in said
    assert read_config(run / "config.toml").sweep.width == 1


def test_the_layout_is_found_once_and_read_ever_after(tmp_path, capsys, monkeypatch):
    def seconds(_, layout):
        """Of a machine on which two side by side, and whole batches, are best."""
        return (1.0 if layout.width == 2 else 2.0) + (0.5 if layout.microbatch else 0)

    monkeypatch.setattr(layouts, "_seconds_a_member", seconds)
    monkeypatch.setattr(layouts, "SHORT", 0.0)
    monkeypatch.setenv("ACCOMPLICE_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    words = ["sweep", SMOKE, "--out", str(run), "--sweep.members", "24", "--fit.held-out", "8"]
    assert main([*words, "--sweep.width", "0"]) == 0
    said = capsys.readouterr().err
    assert "Looking for the fastest layout on this machine\n" in said
    assert re.search(
        r"Layout: 4 cpu device\(s\), 2 members side by side on each.* \(fastest of \d+ timed; ",
        said,
    )
    numerics = read_json(run / "manifest.json")["parts"]["numerics"]
    config = read_config(run / "config.toml").sweep
    assert (
        (config.width, config.microbatch) == (numerics["width"], numerics["microbatch"]) == (2, 0)
    )
    # The same call goes on with it, without a search; another width is another run.
    assert main([*words, "--sweep.width", "0"]) == 0
    assert "Looking" not in capsys.readouterr().err
    assert main([*words, "--sweep.width", "4"]) == 2
    assert "sweep.width is 2 there" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_with_a_common_seed_has_no_ceiling_and_says_so(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["run", SMOKE, "--out", str(run), "--sweep.seeds", "common"]) == 0
    assert "All members share one training key" in capsys.readouterr().err
    assert sorted(path.name for path in (run / "bank").iterdir()) == [
        "clusters", "clusters_0.2", "main",
    ]  # fmt: skip
    audit = read_json(run / "audit.json")
    assert audit["fit"]["ceiling"] is None
    assert audit["fit"]["share_of_ceiling"] is None
    low, high = audit["verify"]["accuracy"]["before"][1:]
    assert low < high  # the verification has seeds of its own
    assert "all members share one training key" in " ".join(
        (run / "report.html").read_text().split()
    )


def test_a_log_says_how_far_a_sweep_is(smoke_copy, capsys, monkeypatch):
    monkeypatch.setattr(progress, "SILENCE", 0.0)
    for record in (smoke_copy / "bank" / "main" / "0" / "done").iterdir():
        record.unlink()
    assert main(["sweep", str(smoke_copy)]) == 0
    log = capsys.readouterr().err
    assert re.search(r": \d+ of 64 members, [\d.,]+ a second, about \d+ s left\n", log)


def test_a_dry_run_says_what_a_sweep_takes_and_writes_nothing(tmp_path, capsys):
    run = tmp_path / "run"
    words = ["sweep", SMOKE, "--out", str(run), "--dry-run"]
    assert main(words) == 0
    plan = capsys.readouterr().out
    assert not run.exists()
    clusters = "16 clusters, 12 clusters_replicates, 16 clusters_0.2, 12 clusters_0.2_replicates"
    assert f"members   64 main, 12 replicates, {clusters}; 132 left to train\n" in plan
    # 60 steps of 20 on 64-32-10, then 268 targets in two blocks of 256.
    products = 2 * (64 * 32 + 32 * 10)
    flops = 60 * 20 * (2 * 2 * 64 * 32 + 3 * 2 * 32 * 10) + 512 * products
    assert f"targets: {flops / 1e9:.3g} GFLOP\n" in plan
    assert re.search(r"time      about \d+ s, at \d+ GFLOP/s\n", plan)
    assert re.search(
        r"memory    [\d.]+ MB and [\d.]+ MB of data on each of 4 device\(s\); [\d.]+ GB is free\n",
        plan,
    )
    assert main(["sweep", SMOKE, "--out", str(run)]) == 0
    capsys.readouterr()
    assert main(words) == 0
    assert "0 left to train" in capsys.readouterr().out
    assert main([*words, "--optim.steps", "7"]) == 2
    assert "optim.steps is 60 there and 7 here" in capsys.readouterr().err


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("option", "value", "remedy"),
    [
        ("--model.width", "50000000", "GB is free; lower optim.batch_size"),
        ("--sweep.members", "10000000000", "GB free; choose another --out or fewer members"),
    ],
)
def test_what_cannot_fit_is_refused_before_anything_is_made(
    tmp_path, capsys, option, value, remedy, dry
):
    run = tmp_path / "run"
    words = [option, value, "--sweep.width", "1", *dry]
    assert main(["sweep", SMOKE, "--out", str(run), *words]) == 2
    assert not run.exists()
    said = capsys.readouterr().err
    assert "needs" in said
    assert remedy in said
