"""Sets of groups that act together on several targets, in the same way.

A set that pushes one prediction may be an accident of the bank. One that is found again and again,
by datamodels of other targets, is behind a behaviour of the model, such as an attack's.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from influence.experiment import Experiment
from influence.levels import levels
from influence.terms_file import TermRow


class Recurring(NamedTuple):
    """A set that acts on several targets."""

    core: TermRow
    """The one of which most other targets have the like."""
    targets: tuple[str, ...]
    """Of the core, then the others."""


def same_way(one: TermRow, other: TermRow) -> bool:
    """Whether two sets are of a kind, push the output in one direction, and are half the same."""
    return (
        one.level == other.level
        and one.kind == other.kind
        and (one.group_effect > 0) == (other.group_effect > 0)
        and 2 * len(set(one.groups) & set(other.groups)) >= max(one.order, other.order)
    )


def other_targets(row: TermRow, rows: Sequence[TermRow]) -> list[str]:
    """Those on which a set acts in the same way that is half the same; each once, in order."""
    found = [other.target for other in rows if same_way(row, other)]
    return [target for target in dict.fromkeys(found) if target != row.target]


def recurring(rows: Sequence[TermRow]) -> list[Recurring]:
    """The sets that act on at least two targets, those on most of them first.

    Args:
        rows: the terms of a run. What is undecided, or has failed, does not count; each of the
            others is in at most one.
    """
    rows = [row for row in rows if row.status in ("found", "confirmed")]
    names = list(dict.fromkeys(row.target for row in rows))
    of_target = np.array([[row.target == name for name in names] for row in rows])
    same = np.array([[same_way(one, other) for other in rows] for one in rows])
    found, left = [], np.ones(len(rows), bool)
    while left.any():
        reached = same[:, left] @ of_target[left]
        at = int(np.where(left, reached.sum(1), 0).argmax())
        if reached[at].sum() < 2:
            break
        others = other_targets(
            rows[at], [row for row, here in zip(rows, left, strict=True) if here]
        )
        found.append(Recurring(rows[at], (rows[at].target, *others)))
        left &= ~same[at]
    return found


def targets_reached(experiment: Experiment, rows: Sequence[TermRow]) -> Int[np.ndarray, " n"]:
    """For each training example the most targets on which a recurring set that it is in acts.

    Args:
        experiment: of the run.
        rows: its terms.

    Returns:
        How many; 0 for an example that is in none.
    """
    found = np.zeros(len(experiment.train), int)
    of = {level.name: level.groups.of for level in levels(experiment)}
    for one in recurring(rows):
        within = np.isin(of[one.core.level], one.core.groups)
        found[within] = np.maximum(found[within], len(one.targets))
    return found
