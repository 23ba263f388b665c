"""Stages alone on a run: what each needs, refuses, drops, and leaves when it is interrupted."""

import json
import shutil
import signal

import pytest
from smoke import read_json

from influence import artifacts, pipeline
from influence.cli import main
from influence.interruption import Interrupted


def test_stages_alone_rebuild_what_was_lost(smoke_copy):
    kept = {name: (smoke_copy / name).read_bytes() for name in ("audit.json", "report.html")}
    shutil.rmtree(smoke_copy / "datamodel")
    shutil.rmtree(smoke_copy / "verification")
    for name in ("scores.parquet", *kept):
        (smoke_copy / name).unlink()
    for stage in ("fit", "audit", "verify", "report"):
        assert main([stage, str(smoke_copy)]) == 0
    assert {name: (smoke_copy / name).read_bytes() for name in kept} == kept


@pytest.mark.parametrize(
    ("stage", "gone"),
    [
        ("audit", "datamodel"),
        ("audit", "audit.json"),
        ("verify", "scores.parquet"),
        ("report", "audit.json"),
    ],
)
def test_a_stage_names_the_one_to_run_first(smoke_copy, capsys, stage, gone):
    path = smoke_copy / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert main([stage, str(smoke_copy)]) == 2
    assert "run first: accomplice" in capsys.readouterr().err


def test_scores_of_an_older_fit_are_not_verified(smoke_copy, capsys):
    assert main(["fit", str(smoke_copy)]) == 0
    assert main(["verify", str(smoke_copy)]) == 2
    assert "older than the fit; run first: accomplice audit" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["verify", "report", "clean", "trace"])
def test_what_another_version_audited_is_audited_again_first(smoke_copy, tmp_path, capsys, command):
    audit = json.loads((smoke_copy / "audit.json").read_text())
    (smoke_copy / "audit.json").write_text(json.dumps(audit | {"version": audit["version"] + 1}))
    target = read_json(smoke_copy / "manifest.json")["target_ids"][-1]
    words = {"clean": ["--out", str(tmp_path / "cleaned.parquet")], "trace": ["--targets", target]}
    assert main([command, str(smoke_copy), *words.get(command, [])]) == 2
    assert "another version of Accomplice; run first: accomplice audit" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["audit.json", "scores.parquet"])
@pytest.mark.parametrize("command", ["verify", "report", "clean"])
def test_damaged_results_are_named(smoke_copy, tmp_path, capsys, command, name):
    whole = (smoke_copy / name).read_bytes()
    out = ["--out", str(tmp_path / "cleaned.parquet")] if command == "clean" else []
    for damaged in (whole[: len(whole) // 2], b"garbage", b""):
        (smoke_copy / name).write_bytes(damaged)
        assert main([command, str(smoke_copy), *out]) == 2
        said = capsys.readouterr().err
        assert f"{name} is damaged" in said
        assert "run again: accomplice" in said


@pytest.mark.parametrize("stage", ["audit", "verify"])
def test_a_stage_that_is_interrupted_leaves_nothing_that_does_not_belong_together(
    smoke_copy, tmp_path, monkeypatch, capsys, stage
):
    def interrupted(*_):
        raise Interrupted(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "save_scores", interrupted)
        assert main([stage, str(smoke_copy)]) == 130
    capsys.readouterr()
    assert main(["clean", str(smoke_copy), "--out", str(tmp_path / "cleaned.parquet")]) == 2
    assert f"run first: accomplice {stage}" in capsys.readouterr().err


@pytest.mark.parametrize("after", ["nothing", "the older audit", "all of it"])
def test_a_fit_that_is_interrupted_leaves_the_older_one_or_no_audit(
    smoke_copy, monkeypatch, capsys, after
):
    where = {
        "nothing": (pipeline, "save_datamodel"),
        "the older audit": (artifacts.shutil, "rmtree"),
        "all of it": (pipeline, "load_datamodel"),
    }
    before, rmtree = read_json(smoke_copy / "audit.json"), shutil.rmtree

    def interrupted(path, *_, **options):
        # The folder of an earlier interruption goes first.
        if after == "the older audit" and path.name.endswith(".partial"):
            return rmtree(path, **options)
        raise Interrupted(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(*where[after], interrupted)
        assert main(["fit", str(smoke_copy)]) == 130
    capsys.readouterr()
    if after == "nothing":
        assert read_json(smoke_copy / "audit.json") == before
        assert main(["report", str(smoke_copy)]) == 0
    else:
        assert main(["audit", str(smoke_copy)]) == 2
        assert "run first: accomplice fit" in capsys.readouterr().err


def test_targets_that_no_fit_saw_are_fitted_first(smoke_copy, capsys):
    more = ["--data.target-count", "65", "--retrain"]
    assert main(["sweep", str(smoke_copy), *more]) == 0
    for stage in ("audit", "verify", "report", "refine", "trace"):
        named = ["--targets", read_json(smoke_copy / "manifest.json")["target_ids"][-1]]
        assert main([stage, str(smoke_copy), *(named if stage == "trace" else [])]) == 2
        assert "run first: accomplice fit" in capsys.readouterr().err


def test_a_stage_drops_what_later_stages_made_of_older_results(smoke_copy, capsys):
    assert "verify" in read_json(smoke_copy / "audit.json")
    assert main(["audit", str(smoke_copy)]) == 0
    assert "verify" not in read_json(smoke_copy / "audit.json")
    assert main(["report", str(smoke_copy)]) == 2
    assert "accomplice verify" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["additive.npz", "weights.npy"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "garbage"])
def test_a_damaged_datamodel_is_named(smoke_copy, capsys, name, damage):
    file = smoke_copy / "datamodel" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    match damage:
        case "flip":
            file.write_bytes(content)
        case "cut":
            file.write_bytes(content[:-1])
        case "gone":
            file.unlink()
        case "garbage":
            file.write_bytes(b"garbage")
    assert main(["audit", str(smoke_copy)]) == 2
    said = capsys.readouterr().err
    assert "accomplice fit" in said
    if name == "weights.npy" or damage != "gone":
        assert "is damaged" in said
