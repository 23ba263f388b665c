"""`report.html`: one self-contained file that shows what was found and how it was proved."""

import base64
import io
import json
import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from jaxtyping import Num
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from datamodels.estimates import Effects
from influence import pattern, plots
from influence.arms import group_name, masks_groups, positions_of
from influence.artifacts import StoredDatamodel
from influence.caveats import caveats
from influence.copies import positions
from influence.counterfactual import Change
from influence.experiment import Experiment
from influence.levels import levels, name_of
from influence.quality import FALSE_DISCOVERIES, Quality
from influence.run import Run
from influence.terms_file import TermRow, read_terms
from training.files import write_atomically, writing

SHOWN_EXAMPLES = 100
"""Rows of the ranked table."""
SHOWN_TARGETS = 10
"""Targets whose largest effects are shown."""
SHOWN_EFFECTS = 5
"""Of each of them."""
SHOWN_TERMS = 30
"""Sets of groups of one level that act together; all are in terms.parquet."""
SHOWN_OF_SET = 12
"""Examples of a set of hidden support."""
SHOWN_COPIES = 30
"""Of targets among the training examples; all are in audit.json."""
GREY = 128
"""Of 255, where a pattern is neither lighter nor darker."""
SHOWN_GROUPS = 2
"""Of each of them, unless it is opened."""


def write_report(
    run: Run,
    experiment: Experiment,
    metrics: dict[str, Any],
    scores: dict[str, np.ndarray],
    model: StoredDatamodel,
    change: Change,
) -> None:
    """Write the report of a finished run.

    Args:
        run: where to.
        experiment: for the pictures and names of the examples.
        metrics: all of audit.json.
        scores: the columns of scores.parquet.
        model: the datamodels and effects.
        change: predicted and measured, of the clean and the incident targets.
    """
    environment = Environment(
        loader=PackageLoader("influence", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": _number,
        "percent": _percent,
        "interval": _interval,
        "small": _small,
    }
    clean = experiment.targets.clean
    terms = [row for row in read_terms(run) if row.status != "undecided"]
    page = environment.get_template("report.html.j2").render(
        config=experiment.config,
        config_text=run.config.read_text(encoding="utf-8"),
        manifest_text=_short_manifest(run),
        metrics=metrics,
        protocol=metrics["protocol"],
        unit="logits" if experiment.config.sweep.output == "margin" else "output units",
        members=metrics["fit"]["members"],
        caveats=caveats(metrics),
        rows=_ranked_rows(experiment, scores),
        hidden_sets=_with_pictures(experiment, metrics["hidden_sets"]),
        verdict_sets=_with_patterns(experiment, metrics["verdict"]["sets"]),
        copies=_copies(experiment, metrics["copies"]),
        has_pictures=_is_image(experiment),
        over_groups=masks_groups(experiment),
        groups=0 if experiment.groups.is_single else len(experiment.groups.names),
        quality_plot=_quality_plot(model.quality, clean, metrics),
        effects=_largest_effects(experiment, model),
        shown_groups=SHOWN_GROUPS,
        terms=_shown_terms(experiment, terms),
        joint_plot=_joint_plot(terms),
        several_levels=len(levels(experiment)) > 1,
        change_plot=plots.counterfactual(change, clean.stop - clean.start),
        inspection_plot=_inspection_plot(experiment, metrics, scores),
    )
    with writing(run.report):
        write_atomically(run.report, page.encode())


def _quality_plot(quality: Quality, clean: slice, metrics: dict[str, Any]) -> str | None:
    """None where there is no ceiling to compare with."""
    if not np.isfinite(quality.ceiling).any():
        return None
    names = [f"alpha {arm['alpha']:g}" for arm in metrics["fit"]["by_arm"].values()]
    return plots.quality(names, quality.r2[:, clean], quality.ceiling[:, clean])


def _largest_effects(experiment: Experiment, model: StoredDatamodel) -> list[dict[str, Any]]:
    """The largest effects on the first targets of the incident, or on the first clean ones."""
    targets, first = experiment.targets, experiment.targets.clean.start
    chosen = targets.incident if experiment.protocol == "incident" else targets.clean
    count = min(SHOWN_TARGETS, chosen.stop - chosen.start)
    block = slice(chosen.start - first, chosen.start - first + count)
    found = Effects(model.effects(block), model.effect_errors(block))
    low, high = found.interval()
    q_values = found.q_values()
    rows = []
    for target in range(count):
        size = np.where(np.isnan(found.standard_error[:, target]), 0, found.estimate[:, target])
        largest = np.argsort(-np.abs(size))[:SHOWN_EFFECTS]
        rows.append(
            {
                "target": targets.ids[chosen.start + target],
                "found": int((q_values[:, target] <= FALSE_DISCOVERIES).sum()),
                "effects": [
                    {
                        "group": group_name(experiment, group),
                        "effect": [float(v[group, target]) for v in (found.estimate, low, high)],
                        "q": float(q_values[group, target]),
                    }
                    for group in largest.tolist()
                ],
            }
        )
    return rows


def _shown_terms(experiment: Experiment, rows: Sequence[TermRow]) -> list[dict[str, Any]]:
    """The surest terms of every level, the finest level first, their groups by name."""
    by_name = {level.name: level for level in levels(experiment)}
    own = {name: [row for row in rows if row.level == name][:SHOWN_TERMS] for name in by_name}
    return [
        {
            "row": row,
            "groups": [name_of(experiment, by_name[row.level], group) for group in row.groups],
            "curve": _curve(row.response),
            "joint": [row.joint_effect, row.low, row.high],
            "verified": [row.verified_effect, row.verified_low, row.verified_high],
        }
        for name in reversed(by_name)
        for row in own[name]
    ]


def _curve(response: Sequence[float]) -> str:
    """The points of a line in a box of 60 by 24, for an output with none, one, ... all kept."""
    low, high = min(response), max(response)
    across, up = 56 / (len(response) - 1), 20 / max(high - low, 1e-30)
    return " ".join(
        f"{2 + across * kept:.1f},{22 - up * (output - low):.1f}"
        for kept, output in enumerate(response)
    )


def _joint_plot(rows: Sequence[TermRow]) -> str | None:
    """None where nothing was verified."""
    verified = [row for row in rows if row.status != "found"]
    if not verified:
        return None
    return plots.joint_effects(
        np.array([[row.joint_effect, row.low, row.high] for row in verified]),
        np.array([[row.verified_effect, row.verified_low, row.verified_high] for row in verified]),
    )


def _ranked_rows(experiment: Experiment, scores: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The most suspicious examples, with their pictures."""
    inputs = np.asarray(experiment.train.examples.inputs)
    flagged = int(scores["flagged"].sum())
    columns = {name: values.tolist() for name, values in scores.items()}
    rows = []
    for position in np.argsort(scores["rank"])[: min(SHOWN_EXAMPLES, max(flagged, 20))]:
        row = {name: values[position] for name, values in columns.items()}
        row["class_name"] = experiment.class_names[row["label"]]
        row["picture"] = _picture(inputs[position]) if _is_image(experiment) else None
        rows.append(row)
    return rows


def _with_patterns(experiment: Experiment, sets: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The sets that were judged, with pictures of their first examples and their pattern."""
    found = _with_pictures(experiment, sets) or []
    if not _is_image(experiment):
        return found
    inputs, ids = np.asarray(experiment.train.examples.inputs), experiment.train.ids.tolist()
    for one in found:
        rows = positions_of(ids, one["examples"])
        difference = pattern.common(inputs, rows).difference
        grey = np.clip(np.rint(GREY + difference / 2), 0, 255).astype(np.uint8)
        one["pattern"] = _picture(grey)
    return found


def _copies(experiment: Experiment, copies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The closest copies of targets, each with the pictures of both."""
    shown = copies[:SHOWN_COPIES]
    if not _is_image(experiment):
        return list(shown)
    targets = experiment.targets.examples.take(experiment.targets.clean)
    clean, train = np.asarray(targets.inputs), np.asarray(experiment.train.examples.inputs)
    return [
        row | {"pictures": [_picture(clean[target]), _picture(train[example])]}
        for row, (target, example) in zip(shown, positions(experiment, list(shown)), strict=True)
    ]


def _with_pictures(
    experiment: Experiment, sets: Sequence[dict[str, Any]] | None
) -> list[dict[str, Any]] | None:
    """Sets with pictures of their first examples; None where nothing was searched."""
    if sets is None:
        return None
    inputs, ids = np.asarray(experiment.train.examples.inputs), experiment.train.ids.tolist()
    found = []
    for one in sets:
        shown = one["examples"][:SHOWN_OF_SET]
        rows = positions_of(ids, shown)
        pictures = [_picture(inputs[row]) for row in rows] if _is_image(experiment) else []
        found.append(one | {"shown": list(zip_longest(shown, pictures))})
    return found


def _is_image(experiment: Experiment) -> bool:
    inputs = experiment.train.examples.inputs
    return inputs.dtype == np.uint8 and inputs.ndim == 4


def _picture(pixels: Num[np.ndarray, "h w c"]) -> str:
    """A PNG as a data address."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _inspection_plot(
    experiment: Experiment, metrics: dict[str, Any], scores: dict[str, np.ndarray]
) -> str | None:
    """The recall curves; None where no truth is known."""
    curves = {}
    for entry in metrics["detection"].values():
        if entry["attack_worked"]:
            rank = scores[f"rank_{entry['protocol']}"]
            planted = scores["planted"] == entry["attack"]
            name = f"{entry['attack'].replace('_', ' ')} ({entry['protocol']})"
            curves[name] = (rank, planted)
    return plots.inspection(curves, experiment.config.audit.budget) if curves else None


def _short_manifest(run: Run) -> str:
    """The manifest without its long lists of ids."""
    text = run.manifest.read_text(encoding="utf-8")
    manifest = json.loads(text)
    for name in ("example_ids", "target_ids"):
        manifest[name] = f"{len(manifest[name])} ids, see manifest.json"
    for arm in manifest["arms"].values():
        for holder, name in ((arm, "group_of"), (arm["design"], "clusters")):
            if holder.get(name):
                holder[name] = f"of {len(holder[name])} examples, see manifest.json"
    return json.dumps(manifest, indent=1)


def _number(value: float | None, digits: int = 2) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.1e}"
    return text.replace("-", "−")


def _percent(value: float | None) -> str:
    # A space that does not break the line.
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f}\u00a0%"


def _small(value: float | None) -> str:
    """A q-value: few digits, and none below a thousandth."""
    return "< 0.001" if value is not None and value < 0.001 else _number(value, 3)


def _interval(values: list[float | None], percent: bool = False, digits: int = 2) -> str:
    """mean [low, high]; the mean alone where there is no interval"""
    mean, low, high = (_percent(value) if percent else _number(value, digits) for value in values)
    return mean if low == high == "–" else f"{mean} [{low}, {high}]"
