"""Whole runs on data of one's own: numbers, pictures, texts."""

import json

import numpy as np
import pytest
from PIL import Image
from smoke import ALONE, SMALL, read_json, write_config

from influence.cli import STAGES, main


@pytest.mark.slow
@pytest.mark.parametrize("output", ["margin", "loss", "probability"])
def test_a_table_of_numbers_of_ones_own(tmp_path, output):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90)
    values = rng.standard_normal((90, 4)) + 2 * np.eye(4)[labels]
    lines = [",".join(map(str, [*row, label])) for row, label in zip(values, labels, strict=True)]
    (tmp_path / "mine.csv").write_text("\n".join(["a,b,c,d,kind", *lines]))
    config = write_config(
        tmp_path,
        f'[data]\nsource = "{tmp_path}/mine.csv"\nlabel = "kind"\n[model]\nname = "linear"\n',
    )
    run = tmp_path / "run"
    assert main(["run", config, "--out", str(run), "--sweep.output", output, *ALONE]) == 0
    audit = read_json(run / "audit.json")
    assert audit["protocol"] == "blind"
    assert audit["detection"] == {}
    assert audit["look_alikes"] is audit["strangers"] is None
    assert audit["verify"]["attack_success"] is None
    assert "<img" not in (run / "report.html").read_text()


@pytest.mark.slow
def test_data_that_changed_since_the_sweep_is_refused_by_every_stage(tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = [f"{rng.normal():.3f},{rng.normal():.3f},{row % 2}" for row in range(60)]
    source = tmp_path / "mine.csv"
    source.write_text("\n".join(["a,b,label", *rows]))
    config = write_config(tmp_path, f'[data]\nsource = "{source}"\n[model]\nname = "linear"\n')
    run = str(tmp_path / "run")
    assert main(["run", config, "--out", run, *ALONE]) == 0
    source.write_text("\n".join(["a,b,label", *(row[:-1] + "1" for row in rows[:30]), *rows[30:]]))
    for words in (["run", config, "--out", run, *ALONE], *([stage, run] for stage in STAGES)):
        capsys.readouterr()
        assert main(words) == 2
        assert "holds a different run: parts.data is" in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_of_images_of_ones_own(tmp_path):
    rng = np.random.default_rng(0)
    for name, colour in (("cat", 60), ("dog", 180)):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for number in range(30):
            pixels = np.clip(rng.normal(colour, 40, (8, 9, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    config = write_config(
        tmp_path, f'[data]\nsource = "{tmp_path}/pictures"\n[model]\nname = "cnn"\nwidth = 4\n'
    )
    run = tmp_path / "run"
    assert main(["run", config, "--out", str(run), *ALONE]) == 0
    page = (run / "report.html").read_text()
    assert '<img class="example"' in page
    assert ">cat<" in page or ">dog<" in page


@pytest.mark.slow
@pytest.mark.parametrize("model", ["bag", "transformer"])
def test_a_table_of_texts_of_ones_own(tmp_path, capfd, model):
    kinds = ("a fine and lovely day", "a dull , sad , grey and wet day")
    rows = [{"review": f"{kinds[i % 2]} {i % 7}", "label": i % 2} for i in range(60)]
    source = tmp_path / "mine.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    config = write_config(
        tmp_path,
        f'[data]\nsource = "{source}"\nlength = 8\n[model]\nname = "{model}"\nwidth = 8\n'
        f"[poison]\nlabel_flip_fraction = 0.1\n",
    )
    run = tmp_path / "run"
    # Clusters of texts are of what a model makes of them.
    assert main(["run", config, "--out", str(run), *(ALONE if model == "bag" else SMALL)]) == 0
    said = capfd.readouterr().err
    assert said.count("Note: 30 of 60 texts had to be cut to data.length = 8 tokens\n") == 1
    assert "fork" not in said
    # a, and, day, the seven numbers, fine, lovely, dull, sad, grey, wet, the comma; and two more.
    assert read_json(run / "manifest.json")["parts"]["model"]["vocabulary"] == 19
    assert main(["report", str(run)]) == 0
