"""Whole runs over groups and other designs."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from smoke import SMOKE

from influence.artifacts import load_datamodel
from influence.cli import main
from influence.sweeping import load_experiment
from training.bank import Bank

CLUSTERS = ["--groups.by", "cluster", "--groups.count", "20"]


def go(folder, *options):
    assert main(["run", SMOKE, "--out", str(folder), *options]) == 0
    return json.loads((folder / "audit.json").read_text()), Bank.open(folder)


def refused(capsys, *words):
    capsys.readouterr()
    assert main([*map(str, words)]) == 2
    return capsys.readouterr().err


@pytest.mark.slow
def test_groups_and_several_alphas_are_arms_that_grow(tmp_path, capsys):
    run = tmp_path / "run"
    audit, bank = go(run, *CLUSTERS, "--sweep.alpha", "0.5", "0.2")
    assert list(bank.arms) == ["main", "replicates", "main_0.2", "replicates_0.2"]
    group_of = np.array(bank.arm("main").spec.group_of)
    assert group_of.max() + 1 == 20
    for name, alpha in (("main", 0.5), ("main_0.2", 0.2)):
        masks = bank.arm(name).read_masks()
        assert masks.shape == (64, 20)
        assert abs(masks.mean() - alpha) < 0.06
        by_arm = audit["fit"]["by_arm"][name]
        assert by_arm["alpha"] == alpha
        value, low, high = by_arm["by_targets"]["clean"]["intervals"]["ceiling"]
        assert low < value < high
    assert audit["fit"]["members"] == 128
    for found in audit["verify"]["target_outputs"].values():
        assert list(found["others_kept"]) == ["alpha 0.5", "alpha 0.2"]
    scores = pq.read_table(run / "scores.parquet").to_pydict()
    assert scores["group"] == group_of.tolist()
    # What a group does is said of each of its examples.
    effect = np.array(scores["incident_effect"])
    assert all(np.ptp(effect[group_of == group]) == 0 for group in range(20))
    opened, experiment, _ = load_experiment(run)
    model = load_datamodel(opened, experiment.targets)
    assert model.weights(slice(0, 270)).shape == (20, 270)
    assert model.effects(slice(0, 66)).shape == (20, 66)
    np.testing.assert_array_equal(np.unique(model.mean_effects.estimate[group_of, 1]),
                                  np.unique(effect))  # fmt: skip
    page = (run / "report.html").read_text()
    assert "20 groups of them (cluster)" in page
    assert "others kept, alpha 0.2" in page
    # An alpha more is two arms more; what is there stays.
    before = {path: path.stat().st_mtime_ns for path in (run / "bank").rglob("*.json")}
    assert main(["sweep", str(run), "--sweep.alpha", "0.5", "0.2", "0.3"]) == 0
    assert len(Bank.open(run).arms) == 6
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    said = refused(capsys, "sweep", run, "--sweep.alpha", "0.2", "0.5", "0.3")
    assert "sweep.alpha is 0.5, 0.2, 0.3 there and 0.2, 0.5, 0.3 here" in said
    said = refused(capsys, "sweep", run, "--sweep.alpha", "0.5", "0.2", "0.3",
                   "--groups.count", "10")  # fmt: skip
    assert "groups.count is 20 there and 10 here" in said
    assert main(["export", str(run), "--to", "npz", "--out", str(tmp_path / "x.npz")]) == 0
    with np.load(tmp_path / "x.npz") as file:
        assert file["masks"].shape[1] == 20
        assert file["group_of"].tolist() == group_of.tolist()


@pytest.mark.slow
def test_two_levels_choose_clusters_then_examples(tmp_path):
    run = tmp_path / "run"
    _, bank = go(run, *CLUSTERS, "--groups.features", "model", "--sweep.design", "two_level",
                 "--sweep.alpha", "0.7")  # fmt: skip
    spec = bank.arm("main").spec
    assert spec.group_of is None
    clusters, masks = np.array(spec.design["clusters"]), bank.arm("main").read_masks()
    assert masks.shape == (64, 200)
    assert abs(masks.mean() - 0.35) < 0.1
    sizes = np.bincount(clusters)
    whole = np.stack([masks[:, clusters == group].any(1) for group in range(len(sizes))], axis=1)
    assert abs(whole[:, sizes > 6].mean() - 0.7) < 0.1
    opened, experiment, _ = load_experiment(run)
    model = load_datamodel(opened, experiment.targets)
    assert np.isfinite(model.effects(slice(0, 60))).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "size"), [(["pairs"], 100), (["fixed_size", "--sweep.alpha", "0.3"], 60)]
)
def test_masks_of_pairs_and_of_one_size(options, size, tmp_path):
    audit, bank = go(tmp_path / "run", "--sweep.design", *options)
    masks = bank.arm("main").read_masks()
    assert masks.sum(1).mean() == size
    if options == ["pairs"]:
        np.testing.assert_array_equal(masks[::2], ~masks[1::2])
    else:
        assert (masks.sum(1) == 60).all()
    assert np.isfinite(audit["fit"]["effects"]["top_width"])


@pytest.mark.slow
def test_groups_of_a_column_and_of_a_file(tmp_path, capsys, monkeypatch):
    rng = np.random.default_rng(0)
    table = {"x": rng.standard_normal(150), "who": [f"author {i % 12}" for i in range(150)]}
    table["label"] = (table["x"] + 0.3 * rng.standard_normal(150) > 0).astype(int)
    pq.write_table(pa.table(table), tmp_path / "data.parquet")
    (tmp_path / "mine.toml").write_text(
        f'[data]\nsource = "{tmp_path}/data.parquet"\ninput = "x"\n'
        '[groups]\nby = "column"\ncolumn = "who"\n'
        '[model]\nname = "linear"\n[optim]\nsteps = 20\nbatch_size = 10\n[sweep]\nmembers = 60\n'
        "width = 4\nreplicate_masks = 4\nreplicate_seeds = 2\n[fit]\nheld_out = 12\n"
        "[audit]\nseeds = 2\n"
    )
    assert main(["run", str(tmp_path / "mine.toml"), "--out", str(tmp_path / "run")]) == 0
    bank = Bank.open(tmp_path / "run")
    who = [table["who"][row] for row in bank.example_ids]
    group_of = bank.arm("main").spec.group_of
    assert len(set(zip(group_of, who, strict=True))) == 12
    assert "author 3 (" in (tmp_path / "run" / "report.html").read_text()
    monkeypatch.chdir(tmp_path)
    np.save("groups.npy", np.array(group_of))
    words = ["--groups.by", "file", "--groups.file", "groups.npy"]
    assert main(["sweep", "mine.toml", "--out", "again", *words]) == 0
    # The file is found from anywhere.
    monkeypatch.chdir("/")
    assert main(["fit", str(tmp_path / "again")]) == 0
    again = Bank.open(tmp_path / "again").arm("main")
    np.testing.assert_array_equal(again.read_outputs(), bank.arm("main").read_outputs())
    shutil.copy(tmp_path / "groups.npy", tmp_path / "kept.npy")
    np.save(tmp_path / "groups.npy", np.arange(len(group_of)) % 3)
    assert "arms.main.group_of" in refused(capsys, "fit", tmp_path / "again")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sweep.design", "pairs", "--sweep.alpha", "0.4"], "0.5 alone with sweep.design"),
        (["--sweep.design", "fixed_size", "--sweep.alpha", "0.4", "0.5"], "one number with"),
        (["--sweep.design", "two_level"], "groups.by = example must be column, cluster or file"),
        (["--sweep.alpha", "0.5", "0.5"], "must be different numbers"),
        (["--sweep.alpha", "0.5", "1.5"], "sweep.alpha = 1.5 must be above 0 and below 1"),
        (["--sweep.design", "pairs", "--fit.held-out", "9"], "fit.held_out = 9 must be even"),
        (["--groups.by", "column"], "groups.column = '' must be given with groups.by = \"column\""),
        (["--groups.by", "cluster", "--groups.count", "3"], "groups.count = 3 must be from 10"),
        (["--groups.by", "autor"], "groups.by"),
    ],
)
def test_designs_and_groups_that_cannot_be_are_refused(options, said, tmp_path, capsys):
    assert said in refused(capsys, "sweep", SMOKE, "--out", tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()
