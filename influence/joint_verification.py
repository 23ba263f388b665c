"""Verification of terms: a set's cells of kept and dropped groups, retrained in many contexts."""

import dataclasses
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from datamodels.design import Listed
from datamodels.shapes import MOST_ORDER
from influence.arms import JOINT_STREAM, arm_specs, fresh_masks, main_task, positions_of
from influence.counterfactual import interval
from influence.experiment import Experiment
from influence.levels import Level, name_of
from influence.retrains import Planned, beside
from influence.run import Run
from influence.terms_file import TermRow
from training.errors import UserError
from training.seeds import root_key
from training.sweep import Task

ARM = "joint"
NAMED = 4
"""Groups of a set that are named in a line."""


class Cells(NamedTuple):
    """What is retrained of a set of k groups."""

    kept: Bool[np.ndarray, "c k"]
    weight: Float[np.ndarray, " c"]
    """Of each cell's output in the joint effect."""


def cells(order: int) -> Cells:
    """All 2^k cells; of a large set all kept, all dropped, and each alone.

    The joint effect is the alternating sum; of a large set, how much more all of them do together
    than each alone, added up, which for two groups is the same.
    """
    if order <= MOST_ORDER:
        kept = np.array(list(product([False, True], repeat=order)))
        return Cells(kept, (-1.0) ** (order - kept.sum(1)))
    kept = np.concatenate([np.zeros((1, order)), np.ones((1, order)), np.eye(order)]).astype(bool)
    return Cells(kept, np.concatenate([[order - 1.0, 1.0], np.full(order, -1.0)]))


def in_order(rows: Sequence[TermRow]) -> list[TermRow]:
    """The terms of a level, those first that are to be verified first.

    The surest of every set of groups, then those of sets that act on further targets; at last what
    is undecided.
    """
    undecided = [row for row in rows if row.status == "undecided"]
    rows = [row for row in rows if row.status != "undecided"]
    seen: dict[tuple[int, ...], int] = {}
    places = []
    for row in rows:
        places.append(seen.setdefault(row.groups, 0))
        seen[row.groups] += 1
    return [rows[at] for at in np.argsort(places, kind="stable")] + undecided


def chosen(experiment: Experiment, rows: Sequence[TermRow]) -> list[TermRow]:
    """Those terms of a level, given in order, that are verified."""
    found = [row for row in rows if row.status != "undecided"]
    return found[: experiment.config.audit.joint_terms]


def _contexts(experiment: Experiment, level: Level) -> Bool[np.ndarray, "s g"]:
    """Masks as the level's arms draw them, on draws of their own, in turn by alpha."""
    audit, specs = experiment.config.audit, arm_specs(experiment)
    root, contexts = root_key(audit.seed, JOINT_STREAM), np.arange(audit.joint_contexts)
    found = np.stack([fresh_masks(specs[arm.main], root, len(contexts)) for arm in level.arms])
    return found[contexts % len(level.arms), contexts]


def task(experiment: Experiment, rows: Sequence[TermRow]) -> Task:
    """What every member does: it reports the output of the terms' targets."""
    targets = experiment.targets
    inputs = targets.examples.take(positions_of(targets.ids, _target_ids(rows)))
    return main_task(experiment)._replace(targets=inputs, panels=(len(inputs),))


def _target_ids(rows: Sequence[TermRow]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(row.target for row in rows))


def _sets(rows: Sequence[TermRow]) -> dict[tuple[int, ...], slice]:
    """Which cells of all are each set's; one that acts on several targets is retrained once."""
    found, begin = {}, 0
    for row in rows:
        if row.groups not in found:
            found[row.groups] = slice(begin, begin + len(cells(row.order).weight))
            begin = found[row.groups].stop
    return found


def planned(run: Run, experiment: Experiment, level: Level, rows: Sequence[TermRow]) -> Planned:
    """The retrains of these terms of a level, and the bank that they go to. Nothing is written."""
    contexts, config = _contexts(experiment, level), experiment.config
    masks, numbers = [], []
    for groups in _sets(rows):
        for cell in cells(len(groups)).kept:
            own = contexts.copy()
            own[:, list(groups)] = cell[None]
            masks.append(own)
            # One training key a context, so that its cells differ in their masks alone.
            numbers.append(np.arange(len(contexts)))
    design = Listed(np.concatenate(masks), np.concatenate(numbers))
    main = arm_specs(experiment)[level.name]
    spec = dataclasses.replace(
        main,
        name=ARM,
        members=len(design.listed),
        seed=config.audit.seed,
        stream=JOINT_STREAM,
        design=design.describe(),
        common_seed=False,
    )
    return beside(run, experiment, spec, design, task(experiment, rows).targets, _target_ids(rows))


def recalled(
    run: Run, experiment: Experiment, level: Level, rows: Sequence[TermRow]
) -> list[TermRow]:
    """A level's terms in order, with what an earlier verification showed."""
    ordered = in_order(rows)
    first = chosen(experiment, ordered)
    if not first or planned(run, experiment, level, first).arm.missing_units():
        return ordered
    try:
        return [*measure(run, experiment, level, first), *ordered[len(first) :]]
    except UserError:  # which verifying tells
        return ordered


def measure(
    run: Run, experiment: Experiment, level: Level, rows: Sequence[TermRow]
) -> list[TermRow]:
    """The terms of a level with what their retrains show.

    Raises:
        UserError: fewer than two contexts of a term are finite.
    """
    ids = _target_ids(rows)
    read = planned(run, experiment, level, rows).arm.read()
    outputs = np.where(read.usable[:, None], read.outputs, np.nan)
    by_cell = outputs.reshape(-1, experiment.config.audit.joint_contexts, len(ids))
    sets, found = _sets(rows), []
    for row in rows:
        own = by_cell[sets[row.groups], :, ids.index(row.target)]
        effect, low, high = interval(cells(row.order).weight @ own)
        if not np.isfinite(low):
            raise UserError(
                f"fewer than two contexts of the groups {row.groups} have only finite members; "
                f"raise audit.joint_contexts, or lower optim.learning_rate and sweep into "
                f"another --out"
            )
        found.append(
            dataclasses.replace(
                row,
                verified_effect=effect,
                verified_low=low,
                verified_high=high,
                status="confirmed" if is_confirmed(row.joint_effect, low, high) else "failed",
            )
        )
    return found


def line(experiment: Experiment, level: Level, row: TermRow) -> str:
    """A term, predicted and measured, as one line."""
    names = [name_of(experiment, level, group) for group in row.groups[:NAMED]]
    others = f" and {row.order - NAMED} more" if row.order > NAMED else ""
    found = f"{row.joint_effect:+.2f} [{row.low:+.2f}, {row.high:+.2f}]"
    measured = f"{row.verified_effect:+.2f} [{row.verified_low:+.2f}, {row.verified_high:+.2f}]"
    return (
        f"{row.target}: {row.kind} of {', '.join(names)}{others}: predicted {found}, measured "
        f"{measured}, {row.status}"
    )


def is_confirmed(predicted: float, low: float, high: float) -> bool:
    """Whether the measured interval excludes zero, on the side that was predicted."""
    return low > 0 if predicted > 0 else high < 0
