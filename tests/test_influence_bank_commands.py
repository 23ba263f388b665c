"""Commands on a run's bank: status, export, merge; shards; a bank in the cloud."""

import csv
import json
import re
import shutil
import socket
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from commits import commit
from smoke import SMOKE

from influence.cli import main
from influence.status import bank_status
from training.arm import Made, Rows
from training.bank import Bank
from training.params import KeptParams
from training.store import Store
from training.sweep import Sweeper

SMALL = [
    "--sweep.members", "40", "--sweep.replicate-masks", "4", "--sweep.replicate-seeds", "2",
    "--sweep.unit", "8", "--sweep.width", "2", "--optim.steps", "20", "--fit.held-out", "10",
    "--joint.share", "0",
]  # fmt: skip


def swept(out, *more):
    words = ["sweep", SMOKE, "--out", str(out), *SMALL, *more]
    assert main(words) == 0
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A complete bank of 5 units and 1; never changed by a test."""
    return swept(tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture
def copied(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copied")


@pytest.fixture
def partial(copied):
    """Units 1 and 3 of the main arm are missing."""
    for unit in (1, 3):
        (copied / "bank" / "main" / "0" / "done" / f"{unit:06d}.json").unlink()
    return copied


def rows_of(run):
    bank = Bank.open(run)
    return {name: arm.read() for name, arm in bank.arms.items()}


def assert_same_rows(run, other):
    ours, theirs = rows_of(run), rows_of(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        for one, two in zip(ours[name], theirs[name], strict=True):
            assert one.tobytes() == two.tobytes()


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)


# Status


def test_status_of_a_complete_bank(whole, capsys):
    assert main(["status", str(whole)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"bank {whole}\n")
    assert re.search(r"main +40 +40 +0 +0\n", said)
    assert re.search(r"replicates +8 +8 +0 +0\n", said)
    assert re.search(r"last unit finished \d+ (s|min) ago", said)
    assert "left" not in said


def test_status_says_what_is_missing_and_damaged(partial, capsys):
    flip_a_bit(partial / "bank" / "main" / "0" / "outputs" / "c" / "2" / "0")
    assert main(["status", str(partial), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["arms"]["main"] == {"members": 40, "done": 16, "missing": 16, "damaged": 8}
    assert status["arms"]["replicates"]["done"] == 8
    assert status["members_left"] == 24
    assert status["seconds_left"] == pytest.approx(24 / status["members_a_second"])
    assert main(["status", str(partial)]) == 0
    assert re.search(r"24 members left: \d+ .* at .* a second", capsys.readouterr().out)


def test_status_takes_its_rate_from_when_units_were_finished(partial):
    bank = Bank.open(partial)
    arm = bank.arm("main")
    rows = Rows(np.zeros((40, 200), bool), np.zeros((40, 270), np.float32), np.zeros(40, np.uint8))
    for unit in range(5):
        commit(arm, unit, rows, Made({}, time=1000.0 + 20 * unit), allow_mixed=True)
    done = bank.arm("replicates").spec
    commit(bank.arm("replicates"), 0, rows, Made({}, time=1100.0), allow_mixed=True)
    status = bank_status(bank, now=1130.0)
    assert status.last_commit == 30.0
    assert status.rate == pytest.approx((4 * 8 + done.members) / 100)


def test_status_needs_no_data_and_writes_nothing(whole, capsys, monkeypatch):
    before = sorted((path, path.stat().st_mtime_ns) for path in whole.rglob("*"))
    monkeypatch.setattr("influence.sweeping.prepare", None)
    assert main(["status", str(whole)]) == 0
    assert sorted((path, path.stat().st_mtime_ns) for path in whole.rglob("*")) == before


# Export


def test_export_to_npz(whole, tmp_path, capsys):
    out = tmp_path / "bank.npz"
    assert main(["export", str(whole), "--to", "npz", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"Exported: {out}\n"
    found, rows, bank = np.load(out), rows_of(whole), Bank.open(whole)
    np.testing.assert_array_equal(
        found["masks"], np.concatenate([arm.masks for arm in rows.values()])
    )
    np.testing.assert_array_equal(
        found["outputs"], np.concatenate([arm.outputs for arm in rows.values()])
    )
    assert found["row_ids"][0] == "main:0"
    assert found["row_ids"].tolist()[-8:] == [f"replicates:{member}" for member in range(8)]
    assert found["mask_rows"].tolist()[-8:] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert found["alpha"].tolist() == [0.5] * 48
    assert found["status"].dtype == np.uint8
    assert found["target_ids"].tolist() == list(bank.target_ids)
    assert found["example_ids"].tolist() == bank.example_ids.tolist()
    assert len({len(found[name]) for name in ("masks", "outputs", "row_ids", "status")}) == 1


def test_arms_over_other_groups_are_exported_by_name(tmp_path, capsys):
    run, out = swept(tmp_path / "run", "--joint.share", "0.25"), tmp_path / "bank.npz"
    words = ["export", str(run), "--to", "npz", "--out", str(out)]
    assert main(words) == 0
    assert np.load(out)["masks"].shape == (48, 200)
    assert main([*words, "--like", "clusters_0.2"]) == 0
    found = np.load(out)
    assert found["masks"].shape == (2 * (10 + 4 * 2), 100)
    assert found["group_of"].max() == 99
    capsys.readouterr()
    assert main([*words, "--like", "parts"]) == 2
    assert "has no arm parts; it has main, replicates, clusters" in capsys.readouterr().err


def test_export_to_parquet(whole, tmp_path):
    out = tmp_path / "bank.parquet"
    assert main(["export", str(whole), "--to", "parquet", "--out", str(out)]) == 0
    table, rows = pq.read_table(out), rows_of(whole)
    assert table.num_rows == 48
    assert table["row_id"].to_pylist()[39:41] == ["main:39", "replicates:0"]
    outputs = np.array(table["outputs"].to_pylist(), np.float32)
    np.testing.assert_array_equal(outputs[:40], rows["main"].outputs)
    np.testing.assert_array_equal(np.array(table["mask"].to_pylist())[:40], rows["main"].masks)
    targets = table.schema.metadata[b"target_ids"].decode().split("\n")
    assert targets == list(Bank.open(whole).target_ids)


def test_export_to_csv_keeps_every_bit(whole, tmp_path):
    out = tmp_path / "bank.csv"
    assert main(["export", str(whole), "--to", "csv", "--out", str(out)]) == 0
    lines, rows = list(csv.reader(out.read_text().splitlines())), rows_of(whole)
    header = lines[0]
    assert header[:4] == ["row_id", "alpha", "mask_row", "status"]
    assert header[-270:] == list(Bank.open(whole).target_ids)
    outputs = np.array([line[-270:] for line in lines[1:41]], np.float32)
    np.testing.assert_array_equal(outputs, rows["main"].outputs)
    masks = np.array([line[4:204] for line in lines[1:41]]) == "1"
    np.testing.assert_array_equal(masks, rows["main"].masks)


def test_export_leaves_out_what_is_not_done_and_says_so(partial, tmp_path, capsys):
    out = tmp_path / "bank.npz"
    assert main(["export", str(partial), "--to", "npz", "--out", str(out)]) == 0
    assert "16 members are not done yet and left out" in capsys.readouterr().out
    ids = np.load(out)["row_ids"].tolist()
    assert [id for id in ids if id.startswith("main")] == [
        f"main:{member}" for member in (*range(8), *range(16, 24), *range(32, 40))
    ]


def test_export_never_writes_what_is_damaged(copied, tmp_path, capsys):
    flip_a_bit(copied / "bank" / "main" / "0" / "outputs" / "c" / "2" / "0")
    out = tmp_path / "bank.npz"
    assert main(["export", str(copied), "--to", "npz", "--out", str(out)]) == 2
    assert "0/outputs is damaged" in capsys.readouterr().err
    assert list(tmp_path.glob("*bank*")) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "RUN"], "the following arguments are required: --to, --out; usage:"),
        (["export", "RUN", "--to", "xml", "--out", "x"], "invalid choice: 'xml'"),
        (["export", "nowhere", "--to", "npz", "--out", "x"], "nowhere is no run directory"),
        (["export", "RUN", "--to", "npz", "--out", "no/where/x"], "cannot write no/where/x"),
        (["status", "nowhere"], "nowhere is no run directory"),
        (["status"], "the following arguments are required: RUN"),
        (["merge", "RUN", "--out", "x"], "the following arguments are required: RUN"),
        (["merge", "RUN", "RUN", "--out", "RUN"], "exists; choose another --out"),
        (["sweep", SMOKE, "--shard"], "--shard needs a value i/k"),
        (["sweep", SMOKE, "--shard", "3"], "--shard 3 must read i/k"),
        (["sweep", SMOKE, "--shard", "3/3"], "gives shard 3 of 3"),
        (["run", SMOKE, "--shard", "0/3"], "--shard belongs to accomplice sweep"),
        (["run", SMOKE, "--shard=0/3"], "--shard belongs to accomplice sweep"),
        (["sweep", SMOKE, "--shard=3/3"], "gives shard 3 of 3"),
        (["sweep", SMOKE, "--engine=slurm"], "--engine slurm is unknown"),
        (["sweep", SMOKE, "--dry-run=yes"], "--dry-run takes no value, and yes is given"),
    ],
)
def test_wrong_calls_are_one_line(whole, capsys, words, message):
    assert main([str(whole) if word == "RUN" else word for word in words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


# Shards


def test_shards_make_each_their_own_and_together_the_whole(whole, tmp_path, capsys):
    run = tmp_path / "run"
    swept(run, "--shard", "1/3")
    said = capsys.readouterr().out
    assert "Shard 1/3 complete; 4 units of others are missing" in said
    bank = Bank.open(run)
    assert bank.arm("main").missing_units() == [0, 2, 3]
    assert bank.arm("replicates").missing_units() == [0]
    swept(run, "--shard", "0/3")
    swept(run, "--shard", "2/3")
    assert f"Bank complete: {run}" in capsys.readouterr().out
    assert_same_rows(run, whole)


def test_a_dry_run_counts_what_a_shard_makes(tmp_path, capsys):
    words = ["sweep", SMOKE, "--out", str(tmp_path / "run"), *SMALL, "--shard", "1/3", "--dry-run"]
    assert main(words) == 0
    assert "40 main, 8 replicates; 16 left to train by shard 1/3\n" in capsys.readouterr().out


@pytest.mark.slow
def test_several_hosts_of_one_jax_job_make_each_their_part(whole, tmp_path):
    """Two processes as JAX sees those of a TPU pod; each has four devices of its own."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    code = (
        "import sys, jax\n"
        "jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))\n"
        "from influence.cli import main\n"
        "sys.exit(main(sys.argv[3:]))"
    )
    words = ["sweep", SMOKE, "--out", str(tmp_path / "run"), *SMALL]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, address, str(index), *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    for index, process in enumerate(processes):
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        assert f"Shard {index}/2, as one of 2 processes of a JAX job" in said
    assert_same_rows(tmp_path / "run", whole)


def test_a_call_without_shards_makes_what_dead_ones_left(whole, tmp_path):
    run = swept(tmp_path / "run", "--shard", "1/3")
    swept(run)
    assert_same_rows(run, whole)


def test_a_job_array_says_which_shard(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "4")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
    run = swept(tmp_path / "run")
    said = capsys.readouterr()
    assert "Shard 1/3, from SLURM_ARRAY_TASK_ID\n" in said.err
    assert Bank.open(run).arm("main").missing_units() == [0, 2, 3]


# Merge


@pytest.mark.slow
def test_two_halves_merge_into_the_whole_and_the_run_goes_on(whole, tmp_path, capsys):
    first = swept(tmp_path / "first", "--shard", "0/2")
    second = swept(tmp_path / "second", "--shard", "1/2")
    merged = tmp_path / "merged"
    assert main(["merge", str(first), str(second), "--out", str(merged)]) == 0
    assert_same_rows(merged, whole)
    records = [Bank.open(run).arm("main").records() for run in (merged, first)]
    assert records[0][0] == records[1][0]
    capsys.readouterr()
    assert main(["sweep", str(merged)]) == 0
    assert "Retraining" not in capsys.readouterr().err
    assert main(["fit", str(merged)]) == 0


def test_more_members_in_one_of_them_are_kept(whole, tmp_path):
    longer = swept(tmp_path / "longer", "--sweep.members", "52")
    merged = tmp_path / "merged"
    assert main(["merge", str(whole), str(longer), "--out", str(merged)]) == 0
    assert_same_rows(merged, longer)


def test_another_unit_size_is_merged_where_whole_units_fit(whole, tmp_path):
    other = swept(tmp_path / "other", "--sweep.unit", "20")
    (other / "bank" / "main" / "0" / "done" / "000000.json").unlink()
    merged = tmp_path / "merged"
    assert main(["merge", str(other), str(whole), "--out", str(merged)]) == 0
    assert_same_rows(merged, whole)


def test_a_damaged_unit_is_taken_from_the_other(whole, copied, tmp_path):
    flip_a_bit(copied / "bank" / "main" / "0" / "outputs" / "c" / "2" / "0")
    merged = tmp_path / "merged"
    assert main(["merge", str(copied), str(whole), "--out", str(merged)]) == 0
    assert_same_rows(merged, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            ["--optim.learning-rate", "0.3"],
            "parts.recipe.learning_rate is 0.2 in the first and 0.3",
        ),
        (["--sweep.seed", "4"], "arms.main.seed is 0 in the first and 4 in the second"),
        (["--sweep.width", "4"], "parts.numerics.width is 2 in the first and 4"),
        (["--data.target-count", "50"], "a list of 270 in the first and a list of"),
    ],
)
def test_banks_of_different_runs_are_not_merged(whole, tmp_path, capsys, change, named):
    other, merged = swept(tmp_path / "other", *change, "--shard", "7/8"), tmp_path / "merged"
    assert main(["merge", str(whole), str(other), "--out", str(merged)]) == 2
    assert named in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


def test_units_that_differ_are_not_merged(whole, copied, tmp_path, capsys):
    arm = Bank.open(copied).arm("main")
    rows = arm.read()
    rows.outputs[9] += 1
    made = Made(arm.records()[0]["made_on"])
    commit(arm, 1, rows, made, allow_mixed=True)
    assert main(["merge", str(whole), str(copied), "--out", str(tmp_path / "merged")]) == 2
    assert "members 8 to 15 are not the same in" in capsys.readouterr().err


def test_units_made_elsewhere_are_merged_only_where_allowed(whole, copied, tmp_path, capsys):
    arm = Bank.open(copied).arm("main")
    rows = arm.read()
    made_on = arm.records()[1]["made_on"] | {"device_kind": "TPU v9"}
    commit(arm, 1, rows, Made(made_on), allow_mixed=True)
    words = ["merge", str(whole), str(copied), "--out", str(tmp_path / "merged")]
    assert main(words) == 2
    assert "begun with device_kind = TPU v9, and here it is cpu" in capsys.readouterr().err
    assert main([*words, "--allow-mixed"]) == 0


# Elsewhere


@pytest.mark.slow
def test_a_bank_in_another_folder_serves_two_run_directories(whole, tmp_path):
    place = ["--sweep.bank", str(tmp_path / "bank")]
    first = swept(tmp_path / "first", *place, "--shard", "0/2")
    second = swept(tmp_path / "second", *place, "--shard", "1/2")
    assert not (first / "bank").exists()
    for run in (first, second):
        assert (run / "manifest.json").read_bytes() == (
            tmp_path / "bank" / "manifest.json"
        ).read_bytes()
        assert main(["status", str(run)]) == 0
    assert main(["run", str(second / "config.toml")]) == 0
    assert_same_rows(tmp_path / "bank", whole)


def test_a_second_run_directory_takes_the_layout_of_the_bank(tmp_path):
    place = ["--sweep.bank", str(tmp_path / "bank"), "--sweep.width"]
    swept(tmp_path / "first", *place, "2", "--shard", "0/2")
    second = swept(tmp_path / "second", *place, "0", "--shard", "1/2")
    assert "width = 2\n" in (second / "config.toml").read_text()


# Top-up


@pytest.mark.slow
def test_more_members_are_added_and_the_old_ones_stay(whole, copied, tmp_path, capsys):
    before = Bank.open(copied).arm("main").records()
    swept(copied, "--sweep.members", "52")
    after = Bank.open(copied).arm("main").records()
    assert {unit: after[unit] for unit in before} == before
    capsys.readouterr()
    larger = swept(tmp_path / "larger", "--sweep.members", "52")
    assert_same_rows(copied, larger)
    assert main(["fit", str(copied)]) == 0
    # The run now has them: fewer would drop some.
    assert main(["sweep", SMOKE, "--out", str(copied), *SMALL]) == 2
    assert "sweep.members is 52 there and 40 here" in capsys.readouterr().err


def test_an_interrupted_top_up_goes_on(copied, tmp_path):
    swept(copied, "--sweep.members", "52", "--shard", "0/2")
    swept(copied, "--sweep.members", "52")
    assert_same_rows(copied, swept(tmp_path / "larger", "--sweep.members", "52"))


def test_an_arm_is_added(tmp_path, whole):
    run = swept(tmp_path / "run", "--sweep.replicate-masks", "0")
    assert sorted(Bank.open(run).arms) == ["main"]
    assert main(["fit", str(run)]) == 0
    assert json.loads((run / "audit.json").read_text())["fit"]["ceiling"] is None
    swept(run)
    assert_same_rows(run, whole)
    assert main(["fit", str(run)]) == 0
    assert json.loads((run / "audit.json").read_text())["fit"]["ceiling"] is not None


@pytest.mark.slow
def test_arms_that_a_run_lacks_are_asked_for(copied, capsys):
    text = (copied / "config.toml").read_text()
    (copied / "config.toml").write_text(text.replace("share = 0.0", "share = 0.25"))
    assert main(["fit", str(copied)]) == 2
    said = capsys.readouterr().err
    assert "lacks the arms clusters, clusters_0.2" in said
    assert f"run first: accomplice sweep {copied}" in said
    assert main(["sweep", str(copied)]) == 0
    assert main(["fit", str(copied)]) == 0


def test_new_targets_need_a_word(copied, capsys):
    words = ["sweep", SMOKE, "--out", str(copied), *SMALL, "--data.target-count", "75"]
    before = (copied / "manifest.json").read_bytes()
    assert main(words) == 2
    assert "lacks 15 of 285 targets" in capsys.readouterr().err
    assert (copied / "manifest.json").read_bytes() == before


@pytest.mark.slow
def test_new_targets_are_added_by_retraining_and_the_old_ones_keep_their_bits(
    whole, copied, tmp_path
):
    more = ["--data.target-count", "75"]
    swept(copied, *more, "--retrain")
    bank, old = Bank.open(copied), Bank.open(whole)
    assert [panel.targets for panel in bank.manifest.panels] == [270, 15]
    assert bank.target_ids[:270] == old.target_ids
    for name in bank.arms:
        outputs = bank.arm(name).read_outputs()
        assert outputs[:, :270].tobytes() == old.arm(name).read_outputs().tobytes()
    fresh = Bank.open(swept(tmp_path / "fresh", *more))
    order = [fresh.target_ids.index(id) for id in bank.target_ids]
    np.testing.assert_allclose(
        bank.arm("main").read_outputs(), fresh.arm("main").read_outputs()[:, order], atol=1e-5
    )
    assert main(["run", str(copied / "config.toml")]) == 0


def test_new_targets_may_not_take_the_rows_of_triggers(tmp_path, capsys):
    words = ["sweep", SMOKE, "--out", str(tmp_path / "run"), *SMALL, "--data.train-count", "1200"]
    assert main([*words, "--data.target-count", "300"]) == 0
    capsys.readouterr()
    assert main([*words, "--data.target-count", "500", "--retrain"]) == 2
    said = capsys.readouterr().err
    assert "more targets leave fewer rows to put triggers on" in said
    assert "first: incident:" in said


def test_old_targets_that_come_back_with_other_bits_are_refused(copied, capsys):
    arm = Bank.open(copied).arm("main")
    rows = arm.read()
    rows.outputs[9] += 1
    made = Made(arm.records()[0]["made_on"])
    commit(arm, 1, rows, made, allow_mixed=True)
    words = ["sweep", SMOKE, "--out", str(copied), *SMALL, "--data.target-count", "75"]
    assert main([*words, "--retrain"]) == 2
    assert "unit 1 came out with other bits than before" in capsys.readouterr().err


KEEP = ("--sweep.keep-params", "True")


def test_with_kept_parameters_new_targets_are_only_evaluated(whole, tmp_path, monkeypatch, capsys):
    run = swept(tmp_path / "run", *KEEP)
    assert_same_rows(run, whole)
    more = ["--data.target-count", "75"]
    capsys.readouterr()
    assert main(["sweep", SMOKE, "--out", str(run), *SMALL, *KEEP, *more, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "; 0 left to train, 48 with kept parameters to evaluate on 15 new targets" in said

    def refuse(self, *words, **options):
        raise AssertionError("trained")

    monkeypatch.setattr(Sweeper, "start", refuse)
    swept(run, *KEEP, *more)
    assert "Evaluating kept parameters of 6 and retraining 0 units on" in capsys.readouterr().err
    bank, old = Bank.open(run), Bank.open(whole)
    for name in bank.arms:
        outputs = bank.arm(name).read_outputs()
        assert outputs.shape[1] == 285
        assert outputs[:, :270].tobytes() == old.arm(name).read_outputs().tobytes()


def test_units_that_did_not_keep_their_parameters_are_named(copied, capsys):
    more = ["--sweep.members", "56", "--data.target-count", "75"]
    words = ["sweep", SMOKE, "--out", str(copied), *SMALL, *KEEP, *more]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "lacks 15 of 285 targets, and 6 of its units did not keep their parameters" in said
    assert main([*words, "--dry-run"]) == 2
    assert capsys.readouterr().err == said
    assert main([*words, "--dry-run", "--retrain"]) == 0
    assert "; 64 left to train\n" in capsys.readouterr().out
    assert main([*words, "--retrain"]) == 0


def test_a_merge_has_the_parameters_that_were_kept(tmp_path, monkeypatch):
    halves = [swept(tmp_path / str(index), *KEEP, "--shard", f"{index}/2") for index in range(2)]
    merged = tmp_path / "merged"
    assert main(["merge", *map(str, halves), "--out", str(merged)]) == 0
    arm = Bank.open(merged).arm("main")
    assert KeptParams(arm).units() == set(range(5))
    assert all(KeptParams(arm).read(unit) is not None for unit in range(5))


def test_kept_parameters_count_for_the_disk(tmp_path, capsys):
    words = ["sweep", SMOKE, "--out", str(tmp_path / "run"), *SMALL, "--dry-run"]
    sizes = []
    for options in ([], KEEP):
        assert main([*words, *options]) == 0
        sizes.append(float(re.search(r"disk +([0-9.]+) MB", capsys.readouterr().out)[1]))
    assert sizes[1] > sizes[0] + 48 * 4 * 64 * 32 / 1e6


def test_a_dry_run_counts_what_a_top_up_takes(copied, capsys):
    words = ["sweep", SMOKE, "--out", str(copied), *SMALL, "--sweep.members", "52", "--dry-run"]
    assert main(words) == 0
    assert "12 left to train" in capsys.readouterr().out


def test_a_fit_that_the_disk_has_no_room_for_is_refused_before_anything_is_trained(
    copied, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(Store, "free_bytes", lambda store: 1_000)
    for words in (["run", SMOKE, "--out", str(tmp_path / "run"), *SMALL], ["fit", str(copied)]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "the fit needs 0.0 GB for the weights of 200 groups on " in said
        assert 'keep and drop examples together (groups.by = "cluster" and groups.count)' in said
    assert not (tmp_path / "run").exists()
