"""Sets of groups that act together on several targets, in the same way.

Such a set is one cause of several predictions, as a trigger's examples are of all that it led
astray. The targets are outputs of the same members, so they are no independent evidence: that is
retraining.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from datamodels.terms import mostly_same
from influence.experiment import Experiment
from influence.levels import levels
from influence.run import Run
from influence.tables import read_table, write_table
from influence.terms_file import TermRow


class Recurring(NamedTuple):
    """A set that acts on several targets."""

    rows: tuple[TermRow, ...]
    """The core, which most other targets have the like of, then these."""

    @property
    def core(self) -> TermRow:
        """The one that stands for all."""
        return self.rows[0]

    @property
    def targets(self) -> list[str]:
        """Each once, that of the core first."""
        return list(dict.fromkeys(row.target for row in self.rows))


def standing(rows: Sequence[TermRow]) -> list[TermRow]:
    """The terms that were found and that retraining, if it was asked, did not refute."""
    return [row for row in rows if row.status in ("found", "confirmed")]


def other_targets(row: TermRow, rows: Sequence[TermRow]) -> list[str]:
    """Those on which a set of mostly the same groups acts in the same way; each once, in order."""
    if not standing([row]):
        return []
    found = [other.target for other in standing(rows) if _same_way(row, other)]
    return [target for target in dict.fromkeys(found) if target != row.target]


def recurring(rows: Sequence[TermRow]) -> list[Recurring]:
    """The sets that act on at least two targets, those on most of them first.

    Args:
        rows: the terms of a run, of which the standing ones count, each in at most one set.
    """
    parts: dict[tuple[str, str, int], list[TermRow]] = defaultdict(list)
    for row in standing(rows):
        parts[_way(row)].append(row)
    found = [one for part in parts.values() for one in _recurring_in(part)]
    return sorted(found, key=lambda one: -len(one.targets))


def _recurring_in(rows: Sequence[TermRow]) -> list[Recurring]:
    """Of rows that all act in one way."""
    names = list(dict.fromkeys(row.target for row in rows))
    of_target = np.array([[row.target == name for name in names] for row in rows], np.float32)
    same = np.array([[mostly_same(one.groups, other.groups) for other in rows] for one in rows])
    found, left = [], np.ones(len(rows), bool)
    while left.any():
        reached = (same[:, left].astype(np.float32) @ of_target[left] > 0).sum(1)
        core = int(np.where(left, reached, 0).argmax())
        if reached[core] < 2:
            break
        of_it = same[core] & left
        others = [rows[at] for at in np.flatnonzero(of_it).tolist() if at != core]
        found.append(Recurring((rows[core], *others)))
        left &= ~of_it
    return found


def _same_way(one: TermRow, other: TermRow) -> bool:
    return _way(one) == _way(other) and mostly_same(one.groups, other.groups)


def _way(row: TermRow) -> tuple[str, str, int]:
    """Level, kind and direction; of a conflict, whose groups push against each other, none."""
    direction = 0 if row.kind == "conflict" else int(np.sign(row.group_effect))
    return row.level, row.kind, direction


def targets_reached(experiment: Experiment, rows: Sequence[TermRow]) -> Int[np.ndarray, " n"]:
    """For each training example the targets on which it acts in one recurring set.

    Args:
        experiment: of the run.
        rows: its terms. In a blind audit those on clean targets count.

    Returns:
        How many, of the recurring set with most; 0 where fewer than two.
    """
    targets = experiment.targets
    if experiment.protocol == "blind":
        clean = set(targets.ids[targets.clean])
        rows = [row for row in rows if row.target in clean]
    found = np.zeros(len(experiment.train), int)
    of = {level.name: level.groups.of for level in levels(experiment)}
    for one in recurring(rows):
        by_group: dict[int, set[str]] = defaultdict(set)
        for row in one.rows:
            for group in row.groups:
                by_group[group].add(row.target)
        for group, reached in by_group.items():
            if len(reached) > 1:
                within = of[one.core.level] == group
                found[within] = np.maximum(found[within], len(reached))
    return found


def update_scores(run: Run, experiment: Experiment, rows: Sequence[TermRow]) -> None:
    """Write the column `targets_reached` of scores.parquet anew, where it is there."""
    if not run.scores.exists():
        return
    table = read_table(run.scores, f"audit {run.path}")
    if "targets_reached" in table.column_names:
        at = table.column_names.index("targets_reached")
        column = pa.array(targets_reached(experiment, rows))
        write_table(run.scores, table.set_column(at, "targets_reached", column))
