"""The data set without what was confirmed, and why each row went."""

import csv
import glob
from itertools import takewhile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image

from influence.experiment import Experiment
from influence.run import Run
from training.data import first_input, load_rows
from training.errors import UserError
from training.files import writing
from training.labels import label_as_held

REMOVAL_COLUMNS: tuple[str, ...] = ("id", "label", "class", "probability", "reason")


def write_cleaned(
    run: Run, experiment: Experiment, scores: dict[str, np.ndarray], out: Path
) -> str:
    """Write the split that was trained on without the confirmed rows, and a list of those.

    Every other row and every column is kept, also rows that were not trained on. What a config
    planted is in the file as the models saw it.

    Args:
        run: that was verified.
        experiment: of the run.
        scores: the columns of scores.parquet.
        out: a .parquet file; the list is beside it, as NAME_removed.csv. Both appear whole.

    Returns:
        What was written.

    Raises:
        UserError: the name has another ending, a file would be one of the data or of the run, or in
            the place of one that something else wrote, or it cannot be written.
    """
    list_file = out.with_name(f"{out.stem}_removed.csv")
    _require_free(out, list_file, run, experiment.config.data.source)
    confirmed = scores["status"] == "confirmed"
    rows = as_trained(experiment, load_rows(experiment.config.data))
    kept = np.setdiff1d(np.arange(len(rows)), scores["id"][confirmed])
    partial, listed = (path.with_name(path.name + ".partial") for path in (out, list_file))
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        rows.select(kept).to_parquet(str(partial))
        with listed.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, REMOVAL_COLUMNS)
            table.writeheader()
            table.writerows(removals(experiment, scores, run.read_audit()))
        listed.replace(list_file)
        partial.replace(out)
    count = int(confirmed.sum())
    if not count:
        return f"Nothing is confirmed, so {out} has all {len(rows):,} rows"
    return (
        f"Wrote {out}: {len(kept):,} rows, without the {count:,} that are confirmed; why each went "
        f"is in {list_file}"
    )


def _require_free(out: Path, list_file: Path, run: Run, source: str) -> None:
    """Refuse files that the run was made of, would be if it were made again, or is made of."""
    if ":/" in str(out):  # a path keeps one slash of gs://
        raise UserError(f"--out {out} must be a file of this machine; copy it from there")
    if out.suffix != ".parquet":
        raise UserError(f"--out {out} must end in .parquet, which is what is written")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; choose another --out")
    for file in (out, list_file):
        if _is_data(file, source):
            raise UserError(
                f"--out {out} makes {file}, which is or would be of the data that the run is of "
                f"({source}); choose another --out"
            )
    if list_file.exists() and not _is_list(list_file):
        raise UserError(
            f"--out {out} also writes {list_file}, and another file is there; choose another --out"
        )
    if run.path.resolve() in out.resolve().parents:
        raise UserError(f"--out {out} is in the run, whose files it could replace; choose another")


def _is_data(file: Path, source: str) -> bool:
    """Whether a file is the source, one that its pattern stands for, or in its folder."""
    whole, start = file.resolve(), Path(source).resolve()
    if not glob.has_magic(source):
        return whole == start or start in whole.parents
    if "**" in source:  # of any depth below what is named
        named = takewhile(lambda part: not glob.has_magic(part), start.parts)
        return Path(*named) in whole.parents
    return whole.match(str(start))


def _is_list(file: Path) -> bool:
    """Whether a file is a list of an earlier call."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        return next(lines, "").strip() == ",".join(REMOVAL_COLUMNS)


def removals(
    experiment: Experiment, scores: dict[str, np.ndarray], audit: dict[str, Any]
) -> list[dict[str, Any]]:
    """A row for each confirmed example, the surest first, with its reasons in words.

    Args:
        experiment: of the run.
        scores: the columns of scores.parquet.
        audit: all of audit.json.
    """
    confirmed = np.flatnonzero(scores["status"] == "confirmed")
    order = confirmed[np.lexsort((scores["rank"][confirmed], -scores["probability"][confirmed]))]
    sets = [one for one in audit["verdict"]["sets"] if one["confirmed"]]
    return [
        {
            "id": int(scores["id"][row]),
            "label": int(scores["label"][row]),
            "class": experiment.class_names[scores["label"][row]],
            "probability": round(float(scores["probability"][row]), 4),
            "reason": "; ".join(_reasons(row, scores, sets)),
        }
        for row in order.tolist()
    ]


def _reasons(row: int, scores: dict[str, np.ndarray], sets: list[dict[str, Any]]) -> list[str]:
    """Why an example is confirmed: by itself, and in sets."""
    found = []
    if scores["contradicted"][row]:
        found.append(
            f"models trained without it and all that is suspicious contradict its label (margin "
            f"{scores['held_out_margin'][row]:.1f} logits; q {scores['held_out_q'][row]:.3f} "
            f"against random examples of the same labels)"
        )
    for one in sets:
        if scores["id"][row] in one["examples"]:
            saw, did_not = one["given"]
            found.append(
                f"one of {len(one['examples'])} whose common pattern, put on clean targets of "
                f"other classes, gives {saw:.0%} of them the class {one['class']} (over half of "
                f"the probability), and {did_not:.0%} in models trained without these examples; of "
                f"as many random ones the difference is {one['random_transfer'][0]:.0%}"
            )
    return found


def as_trained(experiment: Experiment, rows: datasets.Dataset) -> datasets.Dataset:
    """The rows with what the config planted in them."""
    if not experiment.attacks:
        return rows
    positions = np.concatenate([attack.positions for attack in experiment.attacks])
    train, data = experiment.train.take(positions), experiment.config.data
    column = first_input(data, rows, experiment.config.groups.named_by)
    changed = []
    for at, row in enumerate(rows.select(train.ids).to_list()):
        pixels = np.asarray(train.examples.inputs[at])
        label = int(train.examples.labels[at])
        new: dict[str, Any] = {
            data.label: label_as_held(rows.features[data.label], label, experiment.class_names)
        }
        if isinstance(rows.features[column], datasets.Image):
            new[column] = PIL.Image.fromarray(pixels.squeeze())
        elif pixels.dtype == np.uint8:
            new[column] = pixels
        changed.append(row | new)
    order = np.arange(len(rows))
    order[train.ids] = len(rows) + np.arange(len(train))
    planted = datasets.Dataset.from_list(changed, features=rows.features)
    return datasets.concatenate_datasets([rows, planted]).select(order)
