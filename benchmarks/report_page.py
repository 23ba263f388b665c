"""Claim: the report of 10,000 examples opens in under 3 seconds and is smaller than 25 MB.

A run on pictures of 28 x 28 pixels that are mostly noise, which no format makes small, with few
members: what its page shows means nothing, but it is as large as a page gets. It is opened anew in
headless Chromium, several times; reported are the medians until the page is loaded and its table
has been built, and until it has been searched. Needs Chromium and the extra `test`.
"""

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import numpy as np
from playwright.sync_api import Browser, sync_playwright

from influence.config import override, read_config
from influence.jax_setup import set_up_jax

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "smoke.toml"
SIDE, CLASSES, TARGETS, SPARE = 28, 10, 200, 100


def write_pictures(path: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    shapes = rng.integers(0, 120, (CLASSES, SIDE, SIDE, 1), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, count)
    noise = rng.integers(0, 120, (count, SIDE, SIDE, 1), dtype=np.uint8)
    features = datasets.Features(
        image=datasets.Array3D((SIDE, SIDE, 1), "uint8"), label=datasets.Value("int32")
    )
    rows = {"image": shapes[labels] + noise, "label": labels.astype(np.int32)}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))


def open_page(browser: Browser, page_file: Path) -> tuple[float, float]:
    """Seconds until the table stands, and that a search takes."""
    page = browser.new_page()
    started = time.perf_counter()
    page.goto(f"file://{page_file}")
    page.locator("#tools").wait_for(state="visible")
    opened = time.perf_counter()
    before = page.locator("#shown").inner_text()
    page.get_by_label("Search").fill("77")
    page.wait_for_function(
        "one => document.getElementById('shown').textContent !== one", arg=before
    )
    searched = time.perf_counter()
    page.close()
    return opened - started, searched - opened


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON, last on stdout")
    parser.add_argument("--quick", action="store_true", help="300 examples, once")
    options = parser.parse_args()
    set_up_jax()
    from influence.pipeline import run_all

    count, times = (300, 1) if options.quick else (10_000, 9)
    with TemporaryDirectory() as folder:
        source = Path(folder) / "pictures.parquet"
        write_pictures(source, count + TARGETS + SPARE)
        config, _ = override(
            read_config(CONFIG),
            [
                *("--data.source", str(source), "--data.train-count", str(count)),
                *("--data.target-count", str(TARGETS), "--groups.by", "cluster"),
                *("--groups.count", "100", "--joint.share", "0", "--fit.joint-targets", "0"),
            ],
            "benchmarks",
        )
        run = run_all(config, Path(folder) / "run")
        size = run.report.stat().st_size
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
            )
            found = [open_page(browser, run.report) for _ in range(times)]
            browser.close()
    opened, searched = (statistics.median(one) for one in zip(*found, strict=True))
    print(
        f"{count:,} examples: {size / 1e6:.1f} MB, opened in {opened:.2f} s, searched in "
        f"{searched:.2f} s (medians of {times})"
    )
    if options.json:
        print(json.dumps({"examples": count, "bytes": size, "opened": opened, "search": searched}))


if __name__ == "__main__":
    main()
