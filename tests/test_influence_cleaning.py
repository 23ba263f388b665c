"""The cleaned data set: what is left, what went and why."""

import csv
import io

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from smoke import JUDGED, SMOKE, read_json

from influence.cleaning import _require_free, as_trained
from influence.cli import main
from influence.config import Config, override
from influence.experiment import prepare
from influence.run import Run
from training.data import load_rows
from training.errors import UserError


def removed(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def check(run, out, capsys):
    """Clean a run; returns the kept rows and the removal list, which are what was confirmed."""
    capsys.readouterr()
    assert main(["clean", str(run), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    scores = pq.read_table(run / "scores.parquet").to_pydict()
    confirmed = [
        id for id, s in zip(scores["id"], scores["status"], strict=True) if s == "confirmed"
    ]
    kept = datasets.load_dataset("parquet", data_files=str(out), split="train")
    gone = removed(out.with_name(f"{out.stem}_removed.csv"))
    assert sorted(int(row["id"]) for row in gone) == sorted(confirmed)
    assert all(row["reason"] for row in gone)
    surest = [float(row["probability"]) for row in gone]
    assert surest == sorted(surest, reverse=True)
    if confirmed:
        assert f"{len(kept):,} rows, without the {len(confirmed):,} that are confirmed" in said
    else:
        assert f"Nothing is confirmed, so {out} has all {len(kept):,} rows" in said
    return kept, gone


@pytest.mark.slow
def test_a_cleaned_data_set_can_be_trained_on(tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "clean.parquet"
    words = ["--poison.backdoor-fraction", "0.04", "--data.train-count", "400"]
    assert main(["run", SMOKE, "--out", str(run), *JUDGED, *words]) == 0
    kept, gone = check(run, out, capsys)
    assert gone
    assert len(kept) == 1797 - len(gone)
    again = ["sweep", SMOKE, "--out", str(tmp_path / "again"), "--data.source", str(out), *JUDGED]
    assert main([*again, "--data.train-count", "100"]) == 0


@pytest.fixture
def pictures(tmp_path):
    """Pictures with a few wrong labels, and a column that no model reads."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 2
    pixels = rng.integers(0, 60, (120, 8, 8)).astype(np.uint8)
    pixels[labels == 0, :, :4] += 190
    pixels[labels == 1, :, 4:] += 190
    labels[[3, 20, 57]] = 1 - labels[[3, 20, 57]]
    files = []
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        files.append({"bytes": file.getvalue(), "path": None})
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=["le<ft>", 'right, "so"']),
        note=datasets.Value("string"),
    )
    table = datasets.Dataset.from_dict(
        {"image": files, "label": labels, "note": [f"row {n}" for n in range(120)]}, features
    )
    table.save_to_disk(str(tmp_path / "pictures"))
    return tmp_path / "pictures"


@pytest.mark.slow
def test_ones_own_columns_stay_and_what_was_planted_is_in_the_file(pictures, tmp_path, capsys):
    config = tmp_path / "mine.toml"
    config.write_text(f'[data]\nsource = "{pictures}"\n[model]\nname = "linear"\n')
    run, out = tmp_path / "run", tmp_path / "out" / "clean.parquet"
    planted = ["--poison.label-flip-fraction", "0.05"]
    assert main(["run", str(config), "--out", str(run), *JUDGED, *planted]) == 0
    kept, gone = check(run, out, capsys)
    assert kept.column_names == ["image", "label", "note"]
    assert kept.features["label"].names == ["le<ft>", 'right, "so"']
    scores = pq.read_table(run / "scores.parquet").to_pydict()
    trained = dict(zip(scores["id"], scores["label"], strict=True))
    left = [int(note.split()[1]) for note in kept["note"]]
    assert sorted([*left, *(int(row["id"]) for row in gone)]) == list(range(120))
    for row, label in zip(left, kept["label"], strict=True):
        assert trained.get(row, label) == label
    assert np.asarray(kept[0]["image"]).shape == (8, 8)


@pytest.mark.parametrize("labels", [["no", "yes"], [False, True]])
def test_what_was_planted_is_in_the_file_as_the_column_names_classes(tmp_path, labels):
    rng = np.random.default_rng(0)
    numbers = np.arange(40) % 2
    rows = {"a": rng.normal(size=40) + 4 * numbers, "label": [labels[one] for one in numbers]}
    source = tmp_path / "mine.parquet"
    datasets.Dataset.from_dict(rows).to_parquet(str(source))
    config, _ = override(
        Config(), ["--data.source", str(source), "--poison.label-flip-fraction", "0.1"], "test"
    )
    experiment = prepare(config)
    changed = as_trained(experiment, load_rows(config.data))["label"][:]
    flipped = {row for row in range(40) if changed[row] != rows["label"][row]}
    assert flipped == set(experiment.train.ids[experiment.attacks[0].positions].tolist())
    assert set(changed) == set(labels)


@pytest.mark.parametrize("kind", ["a folder of files", "numbers"])
def test_planted_triggers_are_in_the_file_as_the_models_saw_them(pictures, tmp_path, kind):
    source = pictures
    if kind == "numbers":
        rows = datasets.load_from_disk(str(pictures))
        numbers = {
            "image": [np.asarray(one)[..., None] for one in rows["image"]],
            "label": rows["label"],
        }
        features = datasets.Features(
            image=datasets.Array3D((8, 8, 1), "uint8"), label=rows.features["label"]
        )
        source = tmp_path / "numbers"
        datasets.Dataset.from_dict(numbers, features).save_to_disk(str(source))
    words = [
        "--data.source", str(source), "--data.train-count", "60", "--data.target-count", "10",
        "--poison.backdoor-fraction", "0.1", "--poison.backdoor-target", "1",
    ]  # fmt: skip
    experiment = prepare(override(Config(), words, "test")[0])
    before = load_rows(experiment.config.data)
    written = as_trained(experiment, before)
    (attack,) = experiment.attacks
    planted = set(experiment.train.ids[attack.positions].tolist())
    seen = np.asarray(experiment.train.examples.inputs).squeeze(-1)
    for id, trained in zip(experiment.train.ids.tolist(), seen, strict=True):
        np.testing.assert_array_equal(np.asarray(written[id]["image"]).squeeze(), trained)
        same = np.array_equal(np.asarray(before[id]["image"]).squeeze(), trained)
        assert same == (id not in planted)
    assert {written[id]["label"] for id in planted} == {1}


def test_what_cannot_be_cleaned_is_told(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["sweep", SMOKE, "--out", str(run), *JUDGED]) == 0
    assert main(["fit", str(run)]) == 0
    for stage, said in (("audit", "run first: accomplice audit"), ("verify", "accomplice verify")):
        assert main(["clean", str(run), "--out", str(tmp_path / "c.parquet")]) == 2
        assert said in capsys.readouterr().err
        assert main([stage, str(run)]) == 0
    assert main(["clean", str(run), "--out", str(tmp_path / "c.csv")]) == 2
    assert "must end in .parquet" in capsys.readouterr().err
    before = (run / "scores.parquet").read_bytes()
    assert main(["clean", str(run), "--out", str(run / "scores.parquet")]) == 2
    assert "is in the run" in capsys.readouterr().err
    assert (run / "scores.parquet").read_bytes() == before
    (tmp_path / "folder.parquet").mkdir()
    assert main(["clean", str(run), "--out", str(tmp_path / "folder.parquet")]) == 2
    assert "is a folder" in capsys.readouterr().err
    (tmp_path / "file").write_text("no folder")
    assert main(["clean", str(run), "--out", str(tmp_path / "file" / "c.parquet")]) == 2
    assert f"cannot write {tmp_path / 'file' / 'c.parquet'}" in capsys.readouterr().err
    assert main(["clean", str(run), "--out", "gs://bucket/c.parquet"]) == 2
    assert "must be a file of this machine" in capsys.readouterr().err
    assert "confirmed" in read_json(run / "audit.json")["verdict"]


@pytest.mark.parametrize(
    ("source", "out"),
    [
        ("mine.parquet", "mine.parquet"),
        ("mine.parquet", "folder/../mine.parquet"),
        ("mine_removed.csv", "mine.parquet"),
        ("folder", "folder/clean.parquet"),
        ("folder/*.parquet", "folder/clean.parquet"),
        ("folder/*.csv", "folder/clean.parquet"),
        ("fold*/**/*.parquet", "folder/deep/clean.parquet"),
    ],
)
def test_nothing_is_written_among_the_data_of_a_run(tmp_path, source, out):
    (tmp_path / "folder").mkdir()
    for name in ("mine.parquet", "mine_removed.csv", "folder/one.csv"):
        (tmp_path / name).write_text("data")
    with pytest.raises(UserError, match="is or would be of the data that the run is of"):
        claim(tmp_path, out, source)


def test_what_is_beside_the_data_may_be_written_and_written_again(tmp_path):
    source = "folder/*.csv"
    claim(tmp_path, "clean.parquet", source)
    claim(tmp_path, "folder/deep/clean.parquet", source)
    listed = tmp_path / "clean_removed.csv"
    listed.write_text("id,label,class,probability,reason\n")
    claim(tmp_path, "clean.parquet", source)
    listed.write_text("my own list\n")
    with pytest.raises(UserError, match="another file is there"):
        claim(tmp_path, "clean.parquet", source)


def claim(folder, out, source):
    file = folder / out
    list_file = file.with_name(f"{file.stem}_removed.csv")
    _require_free(file, list_file, Run(folder / "run"), str(folder / source))
