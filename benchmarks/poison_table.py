"""The tables of docs/performance.md: means over seeds of the rows that `poison.py` made.

A line an attack and protocol (an incident is given ten bad predictions, or one), of the seeds in
which the attack worked. Baselines see what the blind rank sees; the best of them is that with the
highest mean. Accuracy changes are of the same seeds with and without what is confirmed.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results" / "poison.json"
NAMES = {
    "label_flip": "label flips",
    "pair_flip": "pair flips",
    "backdoor": "patch",
    "blend": "blend",
    "sine": "wave",
    "consistent": "label-consistent",
    "backdoor (of two)": "patch (of two)",
    "blend (of two)": "blend (of two)",
    "leak": "near copies",
}
HEADS = (
    *("planted", "protocol", "worked", "AUROC", "average precision", "recall at 1, 5, 10 %"),
    *("best of others", "success", "accuracy", "paired change, by seed", "confirmed"),
)

Row = dict[str, Any]


def table(rows: list[Row]) -> list[str]:
    """Of one data set, in Markdown."""
    lines = [_line(HEADS), _line(["---"] * len(HEADS))]
    for attack, name in NAMES.items():
        for given in ("blind", "incident", "incident, one target"):
            own = [r for r in rows if r["attack"] == attack and protocol_of(r) == given]
            if own:
                lines.append(_line(_cells(name, given, own)))
    return lines


def protocol_of(row: Row) -> str:
    """As the table names it."""
    return "incident, one target" if row["bad_predictions"] == 1 else row["protocol"]


def _cells(name: str, given: str, rows: list[Row]) -> list[str]:
    worked = [row for row in rows if row["attack_worked"]]
    cells = [f"{_mean(rows, 'planted'):.0f} {name}", given, f"{len(worked)} of {len(rows)}"]
    if not worked:
        return cells
    if "precision" in rows[0]:
        found = f"precision {_mean(worked, 'precision'):.3f}, recall {_mean(worked, 'recall'):.3f}"
        cells += ["", "", found, ""]
    else:
        recall = ", ".join(f"{_mean(worked, f'recall_{part}'):.2f}" for part in (1, 5, 10))
        cells += [f"{_mean(worked, 'auroc'):.4f}", f"{_mean(worked, 'average_precision'):.3f}"]
        cells += [recall, _best_of_others(worked)]
    if given != "blind":
        return cells
    return [
        *cells,
        f"{_mean(worked, 'attack_success_before'):.3f} to "
        f"{_mean(worked, 'attack_success_after'):.3f}",
        f"{100 * _mean(worked, 'accuracy_before'):.1f} to "
        f"{100 * _mean(worked, 'accuracy_after'):.1f}",
        _paired_change(worked),
        f"{_mean(worked, 'confirmed'):.1f}, and {_mean(worked, 'confirmed_clean'):.1f} clean",
    ]


def _paired_change(rows: list[Row]) -> str:
    """Of accuracy in points: the mean over seeds, which are independent, with its 95 % interval,
    and the least and the largest of a seed."""
    mean, low, high = 100 * np.array([row["accuracy_change"] for row in rows]).T
    half = np.sqrt(np.square((high - low) / 2).sum()) / len(rows)
    middle = mean.mean()
    return (
        f"{middle:+.2f} ({middle - half:+.2f} to {middle + half:+.2f}), "
        f"{mean.min():+.1f} to {mean.max():+.1f}"
    )


def _best_of_others(rows: list[Row]) -> str:
    auroc = {
        name: float(np.mean([row["baselines"][name]["auroc"] for row in rows]))
        for name in rows[0]["baselines"]
    }
    best = max(auroc, key=lambda name: auroc[name])
    return f"{best} {auroc[best]:.4f}"


def _mean(rows: list[Row], name: str) -> float:
    # Where no near copy was found there is no precision.
    return float(np.mean([row[name] for row in rows if row[name] is not None]))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join([*cells, *[''] * (len(HEADS) - len(cells))])} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", metavar="FILE", type=Path, nargs="?", default=RESULTS)
    rows = json.loads(parser.parse_args().results.read_text(encoding="utf-8"))["rows"]
    for data in dict.fromkeys(row["data"] for row in rows):
        own = [row for row in rows if row["data"] == data]
        most = max(row["retrains"] for row in own)
        seeds = ", ".join(map(str, sorted({row["seed"] for row in own})))
        print(f"{data}, seeds {seeds}, at most {most:,} retrains a cell")
        print(*table(own), "", sep="\n")


if __name__ == "__main__":
    main()
