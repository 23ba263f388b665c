"""What the report shows of sets of groups that act together: alone, and of a target as a graph."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from influence.experiment import Experiment
from influence.levels import Level, levels, name_of
from influence.looks import Looks
from influence.recurring import Recurring, other_targets
from influence.terms_file import TermRow

SHOWN = 30
"""Sets of one level, the surest; all are in terms.parquet."""
EXAMPLES = 8
"""Examples of a group whose pictures are shown."""

RADIUS = 80
"""Of a graph, in pixels, around the middle of a square of `SIZE`."""
SIZE = 220


class GroupPart(NamedTuple):
    """A group of a set."""

    name: str
    examples: list[tuple[int, str]]
    """The first of it: id, and picture, if any."""


class TermPart(NamedTuple):
    """A set of groups that act together on a target."""

    row: TermRow
    groups: list[GroupPart]
    curve: str
    """Points of a line in a box of 60 by 24: the output with none, one, ... all kept."""
    alike: list[str]
    """Other targets that a set acts on in the same way which is mostly of the same groups."""

    @property
    def joint(self) -> tuple[float, float, float]:
        """The joint effect as the bank shows it."""
        return self.row.joint_effect, self.row.low, self.row.high

    @property
    def verified(self) -> tuple[float | None, float | None, float | None]:
        """The joint effect as retraining measured it."""
        return self.row.verified_effect, self.row.verified_low, self.row.verified_high


class RecurringPart(NamedTuple):
    """A set that acts on several targets in the same way."""

    number: int
    """Of the set of which most targets have the like, among those shown, from 1."""
    term: TermPart
    """That set."""
    targets: list[str]
    confirmed: int
    """Of the targets, by retraining of the set for itself."""


class Node(NamedTuple):
    """A group in a graph."""

    number: int
    """By which the graph names it."""
    name: str
    x: float
    y: float


class Shape(NamedTuple):
    """A set in a graph: a line between two groups, or the area between more."""

    kind: str
    points: str


class Graph(NamedTuple):
    """The sets that act on one target."""

    nodes: list[Node]
    shapes: list[Shape]


def term_parts(
    experiment: Experiment,
    looks: Looks,
    rows: Sequence[TermRow],
    found: Sequence[Recurring],
) -> list[TermPart]:
    """The surest terms of every level and those that recur, the finest level first.

    Args:
        experiment: of the run.
        looks: of which the first are the training examples.
        rows: the terms, by level the surest first.
        found: those of them that act on several targets.
    """
    cores = {one.core for one in found}
    parts = []
    for level in reversed(levels(experiment)):
        own = [row for row in rows if row.level == level.name]
        parts += [
            TermPart(
                row,
                [_group(experiment, looks, level, group) for group in row.groups],
                curve(row),
                other_targets(row, rows),
            )
            for at, row in enumerate(own)
            if at < SHOWN or row in cores
        ]
    return parts


def recurring_parts(found: Sequence[Recurring], shown: Sequence[TermPart]) -> list[RecurringPart]:
    """The sets that act on several targets.

    Args:
        found: what there is to show of them.
        shown: by `term_parts`.
    """
    number = {part.row: at for at, part in enumerate(shown)}
    return [
        RecurringPart(
            number[one.core] + 1,
            shown[number[one.core]],
            one.targets,
            len({row.target for row in one.rows if row.status == "confirmed"}),
        )
        for one in found
    ]


def _group(experiment: Experiment, looks: Looks, level: Level, group: int) -> GroupPart:
    rows = np.flatnonzero(level.groups.of == group)[:EXAMPLES].tolist()
    ids = experiment.train.ids
    return GroupPart(
        name_of(experiment, level, group), [(int(ids[row]), looks.picture(row)) for row in rows]
    )


def curve(row: TermRow) -> str:
    """The points of a term's response, in a box of 60 by 24."""
    low, high = min(row.response), max(row.response)
    across, up = 56 / (len(row.response) - 1), 20 / max(high - low, 1e-30)
    return " ".join(
        f"{2 + across * kept:.1f},{22 - up * (output - low):.1f}"
        for kept, output in enumerate(row.response)
    )


def graph(terms: Sequence[TermPart]) -> Graph:
    """The terms of one target: its groups on a circle, a shape a term."""
    names = list(dict.fromkeys(group.name for term in terms for group in term.groups))
    nodes = {}
    for place, name in enumerate(names):
        angle = 2 * math.pi * place / len(names) - math.pi / 2
        middle = SIZE / 2
        x, y = middle + RADIUS * math.cos(angle), middle + RADIUS * math.sin(angle)
        nodes[name] = Node(place + 1, name, round(x, 1), round(y, 1))
    shapes = [
        Shape(
            term.row.kind,
            " ".join(
                f"{node.x},{node.y}"
                # Around the circle, so that no two sides of an area cross.
                for node in sorted(nodes[group.name] for group in term.groups)
            ),
        )
        for term in terms
    ]
    return Graph(list(nodes.values()), shapes)
