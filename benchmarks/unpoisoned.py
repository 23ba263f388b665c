"""How much is confirmed on data in which nobody planted anything, and what that looks like.

Digits and, with its folder, 5,000 examples of Fashion-MNIST, swept, audited blind and judged as in
`poison.py` but without poison; runs are kept in --runs. Prints how many examples are confirmed, and
with --picture draws them: each with the label that it has, and the margin in logits that models
which never saw it give that label.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from poison import FEW, config_of, kept_run

from influence.artifacts import read_scores
from influence.config import Config
from influence.jax_setup import set_up_jax

COLUMNS = 12


def confirmed(data: str, config: Config, seed: int, folder: Path) -> dict[str, Any]:
    """Run without poison: what is confirmed, with its pictures."""
    run, experiment = kept_run(config, seed, folder / f"{data}_none_{seed}")
    scores, audit = read_scores(run), run.read_audit()
    order = np.argsort(scores["rank"])
    rows = order[scores["status"][order] == "confirmed"]
    sets = [one for one in audit["verdict"]["sets"] if one["confirmed"]]
    return {
        "data": data,
        "seed": seed,
        "examples": len(order),
        "confirmed": len(rows),
        "sets": len(sets),
        "accuracy_change": audit["verify"]["accuracy_change"],
        "ids": scores["id"][rows].tolist(),
        "labels": [experiment.class_names[label] for label in scores["label"][rows]],
        "margins": [
            m if np.isfinite(m) else None for m in scores["held_out_margin"][rows].tolist()
        ],
        "pictures": np.asarray(experiment.train.examples.inputs)[rows],
    }


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """All of them, the most suspicious of each run first."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    each = [
        (picture, f"{label}\nin a set" if margin is None else f"{label}\n{margin:.0f}")
        for one in found
        for picture, label, margin in zip(
            one["pictures"], one["labels"], one["margins"], strict=True
        )
    ]
    rows = max(1, -(-len(each) // COLUMNS))
    figure, axes = pyplot.subplots(rows, COLUMNS, figsize=(COLUMNS, 1.5 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (picture, title) in zip(axes.flat, each, strict=False):
        axis.imshow(picture.squeeze(), cmap="gray_r")
        axis.set_title(title, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON, last on stdout")
    parser.add_argument("--quick", action="store_true", help="digits, one seed, few members")
    parser.add_argument("--runs", type=Path, default=Path("runs/unpoisoned"), help="their folder")
    parser.add_argument(
        "--fashion", type=Path, default=Path("fashion-mnist"), help="folder of Fashion-MNIST"
    )
    parser.add_argument("--picture", type=Path, help="a .png of what is confirmed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12, 13, 14])
    options = parser.parse_args()
    set_up_jax()
    if options.quick:
        options.runs /= "quick"
        chosen = [("digits", options.seeds[0])]
    else:
        chosen = [("digits", seed) for seed in options.seeds]
        if options.fashion.is_dir():
            chosen.append(("fashion", options.seeds[0]))
    found = []
    for data, seed in chosen:
        config = config_of(data, options.fashion, FEW if options.quick else [])
        found.append(confirmed(data, config, seed, options.runs))
        one = found[-1]
        change = 100 * one["accuracy_change"][0]
        print(
            f"{data}, seed {seed}: {one['confirmed']} of {one['examples']:,} confirmed, "
            f"{one['sets']} sets; accuracy without them {change:+.2f} points",
            flush=True,
        )
        # Linux allows a process so many memory mappings, and every program takes some.
        jax.clear_caches()
    if options.picture:
        draw(found, options.picture)
    if options.json:
        print(json.dumps([{k: v for k, v in one.items() if k != "pictures"} for one in found]))


if __name__ == "__main__":
    main()
