"""`report.html`: one self-contained file that shows what was found and how it was proved."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from influence import formats, leakage, pattern, plots
from influence.arms import masks_groups, positions_of
from influence.artifacts import StoredDatamodel
from influence.caveats import caveats
from influence.counterfactual import Change
from influence.example_table import ExampleTable, example_table
from influence.experiment import Experiment
from influence.looks import ACROSS, DOWN, PER_SHEET, Looks, looks_of, png
from influence.quality import Quality
from influence.recurring import recurring, standing
from influence.run import Run
from influence.target_parts import target_parts
from influence.term_parts import SIZE, recurring_parts, term_parts
from influence.terms_file import TermRow, read_terms
from influence.trace_part import trace_part
from training.files import write_atomically, writing

FIRST_ROWS = 25
"""Of the table of examples, on a page of it, and where there is no JavaScript."""
SHOWN_OF_SET = 12
"""Examples of a set of hidden support."""
SHOWN_COPIES = 30
"""Of targets among the training examples; all are in audit.json."""
SHOWN_RECURRING = 10
"""Sets that act on several targets: those on most of them."""
SHOWN_GROUPS = 2
"""Of a set's groups, unless it is opened."""
GREY = 128
"""Of 255, where a pattern is neither lighter nor darker."""


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
    clean, looks = experiment.targets.clean, looks_of(experiment)
    terms = [row for row in read_terms(run) if row.status != "undecided"]
    recurs = recurring(terms)[:SHOWN_RECURRING]
    shown_terms = term_parts(experiment, looks, terms, recurs)
    targets = target_parts(experiment, looks, model, change, shown_terms)
    examples = example_table(experiment, scores, looks, bool(experiment.attacks))
    template = templates().get_template("report.html.j2")
    page = template.render(
        config=experiment.config,
        config_text=run.config.read_text(encoding="utf-8"),
        manifest_text=_short_manifest(run),
        metrics=metrics,
        protocol=metrics["protocol"],
        incident_count=experiment.targets.incident.stop - experiment.targets.incident.start,
        planted=_planted(experiment, metrics["detection"]),
        unit="logits" if experiment.gives_margins else "output units",
        members=metrics["fit"]["members"],
        caveats=caveats(metrics),
        examples=examples,
        examples_data=_for_script(examples),
        first_rows=FIRST_ROWS,
        across=ACROSS,
        down=DOWN,
        per_sheet=PER_SHEET,
        hidden_sets=_with_looks(experiment, looks, metrics["hidden_sets"]),
        strangers=_strangers(experiment, looks, metrics["strangers"], scores),
        verdict_sets=_with_patterns(experiment, looks, metrics["verdict"]["sets"]),
        copies=_copies(experiment, looks, metrics["copies"]),
        lowering=_lowering(experiment, looks, metrics["lowering"]["examples"]),
        subpopulations=_subpopulations(experiment, looks, metrics["subpopulations"]),
        has_pictures=looks.pictured,
        texts=experiment.vocabulary > 0,
        over_groups=masks_groups(experiment),
        groups=0 if experiment.groups.is_single else len(experiment.groups.names),
        quality_plot=_quality_plot(model.quality, clean, metrics),
        targets=targets,
        shown_targets={part.id for part in targets},
        trace=trace_part(run, experiment, looks),
        graph_size=SIZE,
        shown_groups=SHOWN_GROUPS,
        terms=shown_terms,
        together=_together(terms),
        recurring=recurring_parts(recurs, shown_terms),
        joint_plot=_joint_plot(terms),
        change_plot=plots.counterfactual(change, clean.stop - clean.start),
        inspection_plot=_inspection_plot(experiment, metrics, scores),
    )
    with writing(run.report):
        write_atomically(run.report, page.encode())


def templates() -> Environment:
    """The parts of the page."""
    environment = Environment(
        loader=PackageLoader("influence", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": formats.number,
        "count": formats.count,
        "percent": formats.percent,
        "interval": formats.interval,
        "small": formats.small,
    }
    return environment


def _for_script(examples: ExampleTable) -> dict[str, Any]:
    """What the page's script needs of the table."""
    return {
        "rows": examples.rows,
        "perPage": FIRST_ROWS,
        "pictured": len(examples.sheets) * PER_SHEET,
        "across": ACROSS,
        "perSheet": PER_SHEET,
    }


def _planted(experiment: Experiment, detection: dict[str, Any]) -> list[dict[str, Any]]:
    """What was planted in the training data, and whether it failed to lead the model astray."""
    failed = {one["attack"] for one in detection.values() if not one["attack_worked"]}
    return [
        {
            "name": attack.name.replace("_", " "),
            "count": len(attack.positions),
            "failed": attack.name in failed,
        }
        for attack in experiment.attacks
    ]


def _together(terms: Sequence[TermRow]) -> dict[str, int] | None:
    """How many sets act together, on how many targets, and what retraining said; None: no sets."""
    if not terms:
        return None
    left, status = standing(terms), [row.status for row in terms]
    return {
        "sets": len(left),
        "targets": len({row.target for row in left}),
        "confirmed": status.count("confirmed"),
        "failed": status.count("failed"),
    }


def _quality_plot(quality: Quality, clean: slice, metrics: dict[str, Any]) -> str | None:
    """None where there is no ceiling to compare with."""
    if not np.isfinite(quality.ceiling).any():
        return None
    names = [f"alpha {arm['alpha']:g}" for arm in metrics["fit"]["by_arm"].values()]
    return plots.quality(names, quality.r2[:, clean], quality.ceiling[:, clean])


def _joint_plot(rows: Sequence[TermRow]) -> str | None:
    """None where nothing was verified."""
    verified = [row for row in rows if row.status != "found"]
    if not verified:
        return None
    return plots.joint_effects(
        np.array([[row.joint_effect, row.low, row.high] for row in verified]),
        np.array([[row.verified_effect, row.verified_low, row.verified_high] for row in verified]),
    )


def _with_patterns(
    experiment: Experiment, looks: Looks, sets: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The sets that were judged, with pictures of their first examples and their pattern."""
    found = _with_looks(experiment, looks, sets) or []
    if not looks.pictured:
        return found
    inputs, ids = np.asarray(experiment.train.examples.inputs), experiment.train.ids.tolist()
    for one in found:
        rows = positions_of(ids, one["examples"])
        difference = pattern.common(inputs, rows).difference
        one["pattern"] = png(np.clip(np.rint(GREY + difference / 2), 0, 255).astype(np.uint8))
    return found


def _with_looks(
    experiment: Experiment, looks: Looks, sets: Sequence[dict[str, Any]] | None
) -> list[dict[str, Any]] | None:
    """Sets with pictures of their first examples; None where nothing was searched."""
    if sets is None:
        return None
    ids = experiment.train.ids.tolist()
    return [one | {"shown": _seen(looks, ids, one["examples"][:SHOWN_OF_SET])} for one in sets]


def _strangers(
    experiment: Experiment,
    looks: Looks,
    sets: Sequence[dict[str, Any]] | None,
    scores: dict[str, np.ndarray],
) -> list[dict[str, Any]] | None:
    """Clusters among other labels, as `_with_looks`, with how much of each was flagged, and how
    many of it are confirmed by themselves."""
    found = _with_looks(experiment, looks, sets)
    if found is None:
        return None
    ids, judged = scores["id"], np.isfinite(scores["held_out_margin"])
    return [
        one
        | {
            "flagged": float(scores["flagged"][rows].mean()),
            "judged": bool(judged[rows].all()),
            "confirmed": int(scores["contradicted"][rows].sum()),
        }
        for one in found
        for rows in [np.isin(ids, one["examples"])]
    ]


def _copies(
    experiment: Experiment, looks: Looks, copies: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The closest copies of targets, each with the pictures of both."""
    shown, first = copies[:SHOWN_COPIES], experiment.targets.clean.start
    return [
        row | {"pictures": [looks.picture(first + target), looks.picture(example)]}
        for row, (target, example) in zip(
            shown, leakage.positions(experiment, list(shown)), strict=True
        )
    ]


def _lowering(
    experiment: Experiment, looks: Looks, found: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The first of the examples that lower clean targets, with how they look."""
    shown = found[:SHOWN_OF_SET]
    seen = _seen(looks, experiment.train.ids.tolist(), [one["example"] for one in shown])
    return [
        one | {"picture": picture, "text": text}
        for one, (_, picture, text) in zip(shown, seen, strict=True)
    ]


def _subpopulations(
    experiment: Experiment, looks: Looks, found: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The kinds of examples, with how the first of their examples and targets look."""
    ids = experiment.targets.ids
    return [
        one
        | {
            "shown": _seen(looks, ids, [f"train:{id}" for id in one["examples"]]),
            "helped": _seen(looks, ids, one["targets"]),
        }
        for one in found
    ]


def _seen(looks: Looks, known: Sequence[Any], shown: Sequence[Any]) -> list[tuple[Any, str, str]]:
    """Id, picture and text of some of the known, which are the first that `looks` is of."""
    rows = positions_of(known, shown).tolist()
    return [(id, looks.picture(row), looks.text(row)) for id, row in zip(shown, rows, strict=True)]


def _inspection_plot(
    experiment: Experiment, metrics: dict[str, Any], scores: dict[str, np.ndarray]
) -> str | None:
    """The recall curves, among clean examples as the table beside; None where no truth is known."""
    curves = {}
    for entry in metrics["detection"].values():
        if entry["attack_worked"]:
            rank = scores[f"rank_{entry['protocol']}"]
            planted = scores["planted"] == entry["attack"]
            name = f"{entry['attack'].replace('_', ' ')} ({entry['protocol']})"
            scored = planted | (scores["planted"] == "")
            curves[name] = (rank[scored], planted[scored])
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
