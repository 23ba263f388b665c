"""Every shell command in README and docs runs as it stands, only smaller."""

import gzip
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

import datamodels
from influence import notebook
from training.bank import Bank

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALL = [
    "--data.train-count", "100", "--data.target-count", "20", "--sweep.members", "40",
    "--sweep.replicate-masks", "3", "--sweep.replicate-seeds", "2", "--optim.steps", "20",
    "--fit.held-out", "10", "--audit.seeds", "2", "--poison.label-flip-fraction", "0.1",
    "--poison.backdoor-fraction", "0.0", "--sweep.width", "8", "--fit.joint-targets", "0",
    "--joint.share", "0.0",
]  # fmt: skip
JOINT = [
    *SMALL, "--fit.joint-targets", "1", "--audit.joint-contexts", "3", "--joint.share", "0.25",
    "--joint.clusters", "20", "--joint.replicate-masks", "2",
]  # fmt: skip
"""With members over clusters, for blocks about what groups do together."""


def blocks(language):
    """Every fenced block of a language, as (page, text)."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(page.name, text) for page in PAGES for text in pattern.findall(page.read_text())]


def different(blocks):
    """Without those that another one repeats or begins with."""
    pages = {text: page for page, text in reversed(blocks)}
    texts = list(dict.fromkeys(text for _, text in blocks))
    return [
        (pages[text], text)
        for text in texts
        if not any(other != text and other.startswith(text) for other in texts)
    ]


def write_idx(path, array):
    sizes = np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()))


@pytest.fixture
def workplace(tmp_path):
    """A folder as the commands expect it: the checkout's, with data of the user's own."""
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    rng = np.random.default_rng(0)
    folder = tmp_path / "fashion-mnist"
    folder.mkdir(parents=True)
    for split, count in (("train", 200), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{split}-images-idx3-ubyte.gz", images)
        labels = (np.arange(count) % 10).astype(np.uint8)
        write_idx(folder / f"{split}-labels-idx1-ubyte.gz", labels)
    rows = [f"{rng.normal():.3f},{rng.normal():.3f},{i % 2}" for i in range(150)]
    (tmp_path / "mine.csv").write_text("\n".join(["a,b,kind", *rows]))
    toml = next(text for _, text in blocks("toml") if text.startswith("# mine.toml"))
    (tmp_path / "mine.toml").write_text(toml)
    # A clean target of the demo, also as small as it is here.
    (tmp_path / "bad.txt").write_text("clean:7\n")
    (tmp_path / "boot.txt").write_text("clean:200\n")
    return tmp_path


def run(command, folder, extra=()):
    words = shlex.split(command, comments=True)
    settings = {}
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        settings[name] = value
    assert words[0] in ("accomplice", "python"), command
    if words[0] == "accomplice":
        # Before the options of the docs, which hold.
        words = ["-m", "influence.cli", *words[1:3], *extra, *words[3:]]
    else:
        words = words[1:]
    environment = {**os.environ, **settings, "JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def commands():
    """The blocks of commands; whole runs, each a process that compiles anew, are slow."""
    return [
        pytest.param(*named, marks=[pytest.mark.slow] if "accomplice run" in named[1] else [])
        for named in different(blocks("sh"))
    ]


DEMO = "accomplice run configs/digits.toml"
"""What many blocks begin with."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The runs that `DEMO` leaves, made once for all of them."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "configs").symlink_to(ROOT / "configs")
    assert run(DEMO, folder, JOINT)
    return folder / "runs"


@pytest.mark.parametrize(("page", "block"), commands())
def test_commands_of_the_docs_run(page, block, workplace, request):
    lines = block.strip().splitlines()
    of_demo = lines[0] == DEMO
    small = JOINT if of_demo or "joint" in page else SMALL
    if of_demo:
        shutil.copytree(request.getfixturevalue("demo"), workplace / "runs")
        lines = lines[1:]
    for command in lines:
        stage = re.search(r"accomplice (\w+)", command)
        takes_options = stage and stage[1] in ("run", "sweep") and ".toml" in command
        assert run(command, workplace, small if takes_options else ())


def test_make_is_all_a_newcomer_types():
    text = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)$", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_links_between_pages_lead_somewhere():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page}: {link}"


def test_the_python_of_the_readme_runs():
    rng = np.random.default_rng(0)
    masks = rng.random((50, 5)) < 0.5
    names = {"masks": masks, "outputs": masks @ rng.standard_normal((5, 2))}
    ((_, code),) = [block for block in blocks("python") if "import datamodels" in block[1]]
    exec(code, names)
    assert names["model"].weights.shape == (5, 2)


@pytest.mark.slow
def test_the_three_lines_of_the_readme_run(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    values = (word if "." in word else int(word) for word in SMALL[1::2])
    small = dict(zip((key[2:] for key in SMALL[::2]), values, strict=True))
    monkeypatch.setattr(notebook, "load", partial(notebook.load, changes=small))
    ((_, code),) = [block for block in blocks("python") if "import notebook" in block[1]]
    exec(code, {})
    assert "that were judged among 100 examples" in capsys.readouterr().out


@pytest.mark.slow
def test_the_python_of_joint_effects_runs():
    rng = np.random.default_rng(0)
    masks = rng.random((80, 9)) < 0.5
    names = {"masks": masks, "outputs": 1.0 * masks[:, [3, 5]].all(1)[:, None]}
    names["datamodels"] = datamodels
    ((_, code),) = [block for block in blocks("python") if "joint.index" in block[1]]
    exec(code, names)
    assert names["joint"].terms(0)[0].groups == (3, 5)


def test_the_python_of_the_designs_runs():
    weights = np.random.default_rng(0).standard_normal((12, 2))
    names = {"jax": jax, "np": np, "train": lambda masks: masks @ weights, **vars(datamodels)}
    ((_, code),) = [block for block in blocks("python") if "TwoLevel" in block[1]]
    exec(code, names)
    np.testing.assert_allclose(
        names["of"](datamodels.Bernoulli(0.5), alpha=0.5).estimate, weights, atol=0.2
    )


def test_the_table_of_redundancies_is_that_of_its_formula():
    text = (ROOT / "docs" / "designs.md").read_text()
    header, *rows = re.findall(r"^\| (copies .*|\d+ .*) \|$", text, re.MULTILINE)
    alphas = [float(word.removeprefix("alpha = ")) for word in header.split(" | ")[1:]]
    assert len(rows) == 5
    for row in rows:
        copies, *values = map(float, row.split(" | "))
        share = 1 - (1 - np.array(alphas)) ** copies
        np.testing.assert_allclose(values, share * (1 - share), atol=6e-4)


@pytest.mark.slow
def test_the_python_that_opens_a_bank_runs(workplace, monkeypatch):
    run("accomplice sweep configs/digits.toml", workplace, SMALL)
    monkeypatch.chdir(workplace)
    ((_, code),) = [block for block in blocks("python") if "Bank.open" in block[1]]
    names = {"Bank": Bank}
    exec(code, names)
    assert names["arm"].read_outputs(slice(0, 1024), slice(64)).shape == (40, 120)


def example(folder, *words):
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return done.stdout


def test_the_tables_of_planted_poison_are_those_of_the_committed_rows():
    lines = example(ROOT, "benchmarks/poison_table.py").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) > 40
    stood = (ROOT / "docs" / "performance.md").read_text().splitlines()
    assert [row for row in rows if row not in stood] == []


@pytest.mark.slow
def test_examples_run(workplace):
    assert "certified" in example(workplace, "examples/own_bank.py")
    said = example(workplace, "examples/joint.py")
    assert "joint   : held-out R2 0.9" in said
    assert "redundancy of (2, 11, 23): joint effect +" in said
    assert "synergy of (5, 7): joint effect +" in said
    run("accomplice run configs/smoke.toml", workplace)
    assert "20 of 200 examples flagged" in example(
        workplace, "examples/read_a_run.py", "runs/smoke"
    )


@pytest.mark.slow
def test_mails_become_texts_without_their_headers(workplace):
    for number in range(150):
        kind, word = (("ham-1", "meeting"), ("spam-1", "winner"))[number % 2]
        folder = workplace / "mails" / kind
        folder.mkdir(parents=True, exist_ok=True)
        mail = f"From: {kind}\r\nSubject: {kind}\r\n\r\n{word} number {number}\r\n\r\nbye \xff"
        (folder / f"{number:05d}.txt").write_bytes(mail.encode("latin-1"))
    words = ["examples/mails_to_parquet.py", "mails", "mails.parquet", "--spam", "spam-1"]
    assert example(workplace, *words) == "150 mails, 75 of them spam: mails.parquet\n"
    texts = pq.read_table(workplace / "mails.parquet").to_pydict()
    assert texts["text"][0] == "meeting number 0\n\nbye \N{REPLACEMENT CHARACTER}"
    assert texts["file"][0] == "ham-1/00000.txt"
    run("accomplice run configs/mails.toml", workplace, SMALL)
    assert (workplace / "runs/mails/report.html").is_file()
