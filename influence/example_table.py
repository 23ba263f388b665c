"""The report's table of examples: a row an example, its cells as they are read."""

from typing import Any, NamedTuple

import numpy as np

from influence.experiment import Experiment
from influence.formats import number, small
from influence.looks import Looks

SHOWN = 10_000
"""Rows, at most: the first of the rank."""


class Column(NamedTuple):
    """A column of the table."""

    name: str
    head: str
    number: bool
    """Whether its cells begin with a number and are sorted by it."""


class ExampleTable(NamedTuple):
    """The rows that a page shows."""

    columns: list[Column]
    rows: list[list[str]]
    """By rank; the cells of the columns."""
    total: int
    """Of the run, shown or not."""
    sheets: list[str]
    """Pictures of the first rows, as data addresses; empty where the examples are no images."""


def example_table(
    experiment: Experiment, scores: dict[str, np.ndarray], looks: Looks, known: bool
) -> ExampleTable:
    """The table of a run's training examples.

    Args:
        experiment: of the run.
        scores: the columns of scores.parquet.
        looks: of which the first are the training examples.
        known: whether what was planted is shown.
    """
    order = np.argsort(scores["rank"], kind="stable")[:SHOWN]
    value = {name: values[order].tolist() for name, values in scores.items()}
    planted = (one.replace("_", " ") or "not planted" for one in value["planted"])
    text = [looks.text(row) for row in order.tolist()]
    incident = experiment.protocol == "incident"
    groups = not experiment.groups.is_single
    found = [
        (Column("rank", "rank", True), value["rank"]),
        (Column("id", "id", True), value["id"]),
        (Column("example", "example", False), text if any(text) else None),
        (Column("label", "label", False), [experiment.class_names[x] for x in value["label"]]),
        (Column("verdict", "verdict", False), [_said(status) for status in value["status"]]),
        (Column("truth", "truth", False), planted if known else None),
        (Column("out_of_bag", "out of bag", True), _with_error(value, "out_of_bag")),
        (Column("alike", "its like", True), [number(x) for x in value["alike"]]),
        (Column("memorisation", "memorisation", True), _with_error(value, "memorisation")),
        (Column("held_out", "held out", True), [number(x, 1) for x in value["held_out_margin"]]),
        (Column("probability", "probability", True), map(number, value["probability"])),
        *(
            [
                (
                    Column("incident", "incident effect", True),
                    _with_error(value, "incident_effect"),
                ),
                (Column("q", "q", True), map(small, value["incident_q"])),
                (Column("blind", "rank, blind", True), value["rank_blind"]),
            ]
            if incident
            else []
        ),
        (
            Column("group", "group", False),
            [experiment.groups.names[x] for x in value["group"]] if groups else None,
        ),
    ]
    shown = [(column, [*map(str, cells)]) for column, cells in found if cells is not None]
    rows = [list(cells) for cells in zip(*(cells for _, cells in shown), strict=True)]
    return ExampleTable(
        [column for column, _ in shown], rows, len(scores["rank"]), looks.sheets(order)
    )


def _said(status: str) -> str:
    """A status as the table names it: what was only scored has no verdict."""
    return "" if status == "scored" else status


def _with_error(value: dict[str, list[Any]], name: str) -> list[str]:
    pairs = zip(value[name], value[f"{name}_error"], strict=True)
    return [f"{number(one)} ± {number(error)}" for one, error in pairs]
