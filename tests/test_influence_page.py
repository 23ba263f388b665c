"""The report in a browser: real clicks, odd texts, many examples."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import sync_playwright
from smoke import ALONE, write_config
from tables import write_parquet

from influence import example_table, looks, report
from influence.cli import main
from influence.config import read_config
from influence.experiment import prepare
from influence.looks import Looks, looks_of
from influence.run import Run
from influence.terms_file import TermRow, save_terms
from training.examples import Examples

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
PATIENCE = 120_000
"""Milliseconds; a busy machine takes long for what takes a moment."""


@pytest.fixture(scope="module")
def chromium():
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None and not os.environ.get("CI"):
        pytest.skip("no chromium on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium):
    """A function that opens a page of a run; nothing may fail in it, nor be asked for elsewhere."""
    errors, contexts = [], []

    def open_page(run, **options):
        context = chromium.new_context(**options)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(dialog.message) or dialog.dismiss())
        page.on("request", lambda request: asked(request.url))
        page.goto(f"file://{run}/report.html")
        return page

    def asked(url):
        if not url.startswith(("file:", "data:")):
            errors.append(url)

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture(scope="module")
def run(smoke_run, tmp_path_factory):
    """A smoke run whose first bad prediction was traced, with sets that so few members do not
    show."""
    run = shutil.copytree(smoke_run, tmp_path_factory.mktemp("page") / "run")
    targets = prepare(read_config(run / "config.toml")).targets
    target = targets.ids[targets.incident.start]
    pair = TermRow("clusters", target, (3, 8), 2, "redundancy", 1, -2.5, -3.0, -2.0, 4.0,
                   (0.0, 4.0, 4.0), 0.001)  # fmt: skip
    all_of_three = dataclasses.replace(
        pair, groups=(1, 3, 5), order=3, kind="synergy", response=(0.0, 0.0, 0.5, 6.0),
        verified_effect=-1.0, verified_low=-2.0, verified_high=0.5, status="failed",
    )  # fmt: skip
    other = dataclasses.replace(pair, target=targets.ids[targets.clean.start])
    save_terms(Run(run), [pair, all_of_three, other])
    assert main(["trace", str(run), "--targets", target]) == 0
    assert main(["report", str(run)]) == 0
    return run


def cells(page, column):
    return page.locator(f"#suspicious tbody td.{column}").all_inner_texts()


def test_a_click_sorts_and_another_turns_it_round(opened, run):
    page = opened(run)
    scores = pq.read_table(run / "scores.parquet").sort_by("rank").to_pydict()
    assert cells(page, "id") == [str(one) for one in scores["id"][:25]]
    assert page.locator("#shown").inner_text() == "1 to 25 of 200 examples"
    page.get_by_role("button", name="out of bag").click()
    lowest = np.argsort(scores["out_of_bag"], kind="stable")
    shown = [f"{scores['out_of_bag'][row]:.2f}".replace("-", "−") for row in lowest[:25]]
    assert [text.split(" ±")[0] for text in cells(page, "out_of_bag")] == shown
    head = page.locator("th.out_of_bag")
    assert head.get_attribute("aria-sort") == "ascending"
    page.get_by_role("button", name="out of bag").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert int(cells(page, "id")[0]) == scores["id"][lowest[-1]]
    page.get_by_role("button", name="Next").click()
    assert page.locator("#shown").inner_text() == "26 to 50 of 200 examples"


def test_what_has_no_value_comes_last_whichever_way(opened, run):
    page = opened(run)
    for _ in range(2):
        page.get_by_role("button", name="held out").click()
        assert "–" not in cells(page, "held_out")[:3]
    page.get_by_role("button", name="rank", exact=True).press("Enter")
    assert cells(page, "rank")[:3] == ["1", "2", "3"]


def test_a_search_finds_every_example_with_all_words(opened, run):
    page = opened(run)
    scores = pq.read_table(run / "scores.parquet").to_pydict()
    page.get_by_label("Search").fill("BACKDOOR")
    planted = scores["planted"].count("backdoor")
    assert page.locator("#shown").inner_text() == f"1 to {planted} of {planted} examples"
    assert set(cells(page, "truth")) == {"backdoor"}
    page.get_by_label("Search").fill("backdoor 7 no such word")
    assert page.locator("#shown").inner_text() == "0 to 0 of 0 examples"
    page.get_by_label("Search").fill("")
    assert page.locator("#shown").inner_text() == "1 to 25 of 200 examples"


def test_targets_and_sets_open_by_click_key_and_link(opened, run):
    page = opened(run)
    target = page.locator("details.target").first
    assert not target.locator(".effects").first.is_visible()
    target.locator("summary").click()
    assert target.locator(".effects").first.is_visible()
    assert re.search(r"example \d+\n?.*\[", target.inner_text())
    target.locator("summary").focus()
    page.keyboard.press("Enter")
    assert not target.locator(".effects").first.is_visible()
    page.locator("#terms a").nth(1).click()
    opened_set = page.locator("#set-2")
    opened_set.locator("h4").first.wait_for()
    assert opened_set.locator("h4").count() == 3
    assert opened_set.locator("h4").first.is_visible()
    assert opened_set.locator("img.example").count() > 0
    assert "measured by retraining −1.00 [−2.00, 0.50]: failed" in opened_set.inner_text()
    opened_set.locator("p a").click()
    graph = page.locator("details.target[open] svg.graph")
    graph.wait_for()  # the link opens the part a moment later
    assert graph.is_visible()
    assert graph.locator("circle").count() == 4
    assert graph.locator("polygon").count() == 2
    # Closed, it opens by the same link once more.
    part = page.locator("details.target[open]")
    part.locator("summary").click(position={"x": 5, "y": 5})
    assert page.locator("details.target[open]").count() == 0
    opened_set.locator("p a").click()
    assert page.locator("details.target[open] svg.graph").is_visible()


def test_a_set_that_acts_on_several_targets_is_shown_once_with_all_of_them(opened, run):
    page = opened(run)
    targets = prepare(read_config(run / "config.toml")).targets
    pushed = [targets.ids[targets.incident.start], targets.ids[targets.clean.start]]
    assert page.locator("#recurring tr").count() == 2
    row = page.locator("#recurring tr").nth(1)
    assert row.inner_text().endswith("raises them\t2: " + ", ".join(pushed))
    row.locator("a").first.click()
    page.locator("#set-1 h4").first.wait_for()
    assert page.locator("#set-1").get_attribute("open") is not None


def test_the_last_trace_is_shown_with_what_retraining_said(opened, run):
    page = opened(run)
    traced, columns = (
        json.loads((run / "trace.json").read_text()),
        pq.read_table(run / "trace.parquet"),
    )
    page.locator(".card a", has_text="the trace").click()
    part = page.locator("h2#trace ~ ul").first
    (target,) = traced["targets"]
    assert part.locator("img.example").count() == 1
    part.locator("a", has_text=target).click()
    opened_target = page.locator("details.target[open]")
    opened_target.wait_for()
    assert opened_target.locator("summary b").inner_text() == target
    shown = page.locator("#traced td").all_inner_texts()
    assert shown[0] == "predictions that are bad"
    for cell, text in zip(("before", "after", "after_random"), shown[1:4], strict=True):
        assert text.startswith(f"{100 * traced['bad'][cell][0]:.1f}\u00a0%")
    first = columns.sort_by("rank")["id"].to_pylist()[:12]
    listed = page.locator("h2#trace ~ ol").first.locator("li").all_inner_texts()
    assert [int(re.findall(r"\d+", text)[0]) for text in listed] == first
    assert sum("removed" in text for text in listed) == min(12, len(traced["removed"]))


def test_pictures_of_the_table_are_those_of_the_examples(opened, run):
    page = opened(run)
    scores = pq.read_table(run / "scores.parquet").sort_by("rank").to_pydict()
    experiment = prepare(read_config(run / "config.toml"))
    inputs = np.asarray(experiment.train.examples.inputs)
    row_of = {id: row for row, id in enumerate(experiment.train.ids.tolist())}
    page.get_by_role("button", name="id", exact=True).click()
    for place in (0, 17):
        id = sorted(scores["id"])[place]
        thumb = page.locator("#suspicious tbody .thumb").nth(place)
        seen = thumb.evaluate(READ_PIXELS)
        expected = inputs[row_of[id]][..., 0]
        np.testing.assert_allclose(np.reshape(seen, (8, 8)), expected, atol=2)


READ_PIXELS = """async (span) => {
  const style = getComputedStyle(span), image = new Image();
  image.src = style.backgroundImage.slice(5, -2);
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [8, 8];
  const [x, y] = style.backgroundPosition.split(" ").map((part) => -parseFloat(part) / 44 * 8);
  const context = canvas.getContext("2d");
  context.drawImage(image, x, y, 8, 8, 0, 0, 8, 8);
  const pixels = context.getImageData(0, 0, 8, 8).data;
  return [...pixels].filter((_, at) => at % 4 === 0);
}"""


FAINT = """() => {
  const channel = (value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const read = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => rgb.slice(0, 3).reduce(
    (sum, value, at) => sum + [0.2126, 0.7152, 0.0722][at] * channel(value / 255), 0);
  const behind = (part) => {
    const colour = read(getComputedStyle(part).backgroundColor);
    return colour.length < 4 || colour[3] === 1 ? colour : behind(part.parentElement);
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (texts.nextNode()) {
    const part = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !part.checkVisibility() || part.closest("svg")) continue;
    const [dark, bright] = [read(getComputedStyle(part).color), behind(part)]
      .map(light).sort((one, other) => one - other);
    if ((bright + 0.05) / (dark + 0.05) < 4.5) found.push(texts.currentNode.data.trim());
  }
  return found;
}"""
"""Texts with less than the contrast that WCAG 2.2 asks for (1.4.3, level AA)."""


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window_and_text_can_be_read(opened, run, width, scheme):
    page = opened(run, viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    assert dark == (scheme == "dark")
    faint = page.evaluate(FAINT)
    assert faint == []
    # What scrolls by itself can be reached with the keyboard, and has a name.
    for region in page.locator(".scroll").all():
        assert region.get_attribute("tabindex") == "0"
        assert region.get_attribute("aria-label")


def test_without_javascript_the_first_rows_and_all_parts_stand(opened, run):
    page = opened(run, java_script_enabled=False)
    assert page.locator("#suspicious tbody tr").count() == 25
    assert not page.locator("#tools").is_visible()
    assert "With JavaScript" in page.locator("body").inner_text()
    target = page.locator("details.target").first
    target.locator("summary").click()
    assert target.locator(".effects").first.is_visible()


HOSTILE = [
    "<script>alert('in a text')</script>", "</script><script>alert(2)</script>", "<!-- <script>",
    '"><img src=x onerror=alert(3)>', "{{ 7 * 7 }} & ${7}", "a\u2028b 'quoted' \\u003c",
]  # fmt: skip


def test_texts_and_labels_that_hold_markup_are_shown_and_not_run(tmp_path, opened):
    texts = [f"{HOSTILE[row % 6]} {'good' if row % 2 else 'bad'} {row}" for row in range(60)]
    labels = ["a & b </script>", "<b onclick=alert(4)>bold</b>"]
    source = str(tmp_path / "odd.parquet")
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=labels)
    )
    rows = {"text": texts, "label": [row % 2 for row in range(60)]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(source)
    config = write_config(
        tmp_path, f'[data]\nsource = "{source}"\nlength = 8\n[model]\nname = "bag"\nwidth = 8\n'
    )
    run = tmp_path / "run"
    assert main(["run", config, "--out", str(run), *ALONE]) == 0
    page = opened(run)
    scores = pq.read_table(run / "scores.parquet").sort_by("rank").to_pydict()
    shown = page.locator("#suspicious tbody td.text").evaluate_all(
        "found => found.map((cell) => cell.textContent)"
    )
    written = [texts[id] for id in scores["id"][:25]]
    assert [text for text in shown if text in texts] == written
    assert set(cells(page, "label")) <= set(labels)
    assert page.locator("td b[onclick], td img, q img").count() == 0
    page.get_by_label("Search").fill("onerror")
    found = sum("onerror" in texts[id] for id in scores["id"])
    assert page.locator("#shown").inner_text() == f"1 to {found} of {found} examples"
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert page.locator("details.target q").count() > 0


def test_of_very_many_examples_the_first_are_shown_and_that_is_said(run, tmp_path, monkeypatch):
    monkeypatch.setattr(example_table, "SHOWN", 100)
    copied = shutil.copytree(run, tmp_path / "run")
    assert main(["report", str(copied)]) == 0
    page = (copied / "report.html").read_text()
    assert "The first 100 of 200 by rank" in page
    data = re.search(r'<script id="examples-data" type="application/json">(.*?)</script>', page)
    assert len(json.loads(data[1])["rows"]) == 100


def test_sheets_end_before_the_page_grows_too_large(monkeypatch):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1100, 6, 9, 3), dtype=np.uint8)
    shown = Looks(Examples(images, np.zeros(1100, np.int32)))
    whole = shown.sheets(np.arange(1100))
    assert len(whole) == 3
    monkeypatch.setattr(looks, "MOST_BYTES", len(whole[0]) + len(whole[1]) + 10)
    assert shown.sheets(np.arange(1100)) == whole[:2]


def test_pictures_that_are_left_out_are_told(run, tmp_path, monkeypatch):
    copied = shutil.copytree(run, tmp_path / "run")
    assert "more would make the page too large" not in (copied / "report.html").read_text()
    for module in (looks, report):
        monkeypatch.setattr(module, "PER_SHEET", 50)
    monkeypatch.setattr(looks, "DOWN", 2)
    one, *_ = looks_of(prepare(read_config(run / "config.toml"))).sheets(np.arange(200))
    monkeypatch.setattr(looks, "MOST_BYTES", 2.5 * len(one))
    assert main(["report", str(copied)]) == 0
    assert "Pictures of the first 100 by rank: more" in (copied / "report.html").read_text()


def test_large_pictures_are_made_smaller_in_their_own_proportions():
    images = np.zeros((1, 96, 48, 3), np.uint8)
    images[:, :, 24:] = 200
    picture = looks._small(images[0])
    assert picture.shape == (48, 24, 3)
    assert (picture[:, 12:] == 200).all()
    assert (picture[:, :12] == 0).all()


def test_rows_of_numbers_show_the_first_of_them():
    shown = Looks(Examples(np.arange(8, dtype=np.float32)[None] / 3, np.zeros(1, np.int32)))
    assert shown.text(0) == "0, 0.333, 0.667, 1, 1.33, 1.67, …"
    assert shown.picture(0) == ""


def test_texts_of_targets_are_those_of_their_ids(tmp_path):
    source = write_parquet(tmp_path / "own.parquet", text=[f"word{i} a" for i in range(40)],
                           label=[i % 2 for i in range(40)])  # fmt: skip
    config = write_config(tmp_path, f'[data]\nsource = "{source}"\n[model]\nname = "bag"\n')
    experiment = prepare(read_config(Path(config)))
    shown = looks_of(experiment)
    for row, id in enumerate(experiment.targets.ids):
        assert shown.text(row) == f"word{id.split(':')[1]} a"


def test_clusters_among_other_labels_are_shown_or_said_not_to_be_searched(opened, run, tmp_path):
    changed = Run(shutil.copytree(run, tmp_path / "run"))
    scores = pq.read_table(run / "scores.parquet").to_pydict()
    of = dict(zip(scores["id"], scores["status"], strict=True))
    some = [one for one, status in of.items() if status == "confirmed"][:2]
    cluster = [*some, *(one for one, status in of.items() if status != "confirmed")][:14]
    found = [{"class": "<b>7", "examples": cluster, "own_label": 0.05}]
    changed.replace_audit(**changed.read_audit() | {"strangers": found})
    assert main(["report", str(changed.path)]) == 0
    shown_row = opened(changed.path).locator("#strange tr").nth(1)
    row = shown_row.inner_text()
    flagged = np.array(scores["flagged"])[np.isin(scores["id"], cluster)].mean()
    shown = ["<b>7", "14", "5.0\u00a0%", f"{100 * flagged:.1f}\u00a0%"]
    assert row.split("\t")[:5] == [*shown, f"{len(some)}, not judged as a whole"]
    assert row.endswith("and 2 more")
    shown_row.locator("summary").click()
    assert shown_row.inner_text().endswith(", ".join(map(str, cluster[12:])))
    changed.replace_audit(**changed.read_audit() | {"strangers": None, "look_alikes": None})
    assert main(["report", str(changed.path)]) == 0
    assert "too many pictures to compare" in opened(changed.path).locator("body").inner_text()
