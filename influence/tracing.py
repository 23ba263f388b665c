"""Tracing: which training examples made some bad predictions.

A datamodel's weights on one prediction are noisy where many examples with a common trigger share
it. But those examples support one another as well, which thousands of other weights show: so an
example is ranked by how much it and the ones that drive the prediction support each other. Where
the audit found sets that do so, a set is ranked as the one thing that it is, by its weights added;
and first of all where retraining confirmed it, and the prediction's input has the set's pattern.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from influence import pattern
from influence.arms import mask_columns, positions_of
from influence.audit import Weights, rank_of
from influence.experiment import Experiment, Targets
from influence.hidden_support import (
    MOST_SEARCHED,
    majority_labels,
    on_each_other,
    weights_on,
)
from training.errors import UserError

OWN = 0.1
"""Share of an example's weight on itself that counts, since memorisation raises it. A single wrong
label that nothing else backs is first with it, and a trigger's examples stay before all others."""
USUAL = 0.95
"""Share of the clean targets to which a set that is behind a prediction adds less than to it."""
MOST_TARGETS = 10
"""That may be traced together: more are no incident but the audit of a class."""

By = Literal["backing", "drive"]
"""What groups are ranked by; by backing sets come first."""


class Traced(NamedTuple):
    """What weights say of each group, in output units."""

    drive: Float[np.ndarray, " g"]
    """How much keeping it adds to the bad predictions, in the mean."""
    backing: Float[np.ndarray, " g"]
    """How much it supports itself, by its drive, and, in the class that drives the predictions,
    how much it and the others support each other. 0 where there are too many groups for it."""
    together: Float[np.ndarray, " g"]
    """What the set that it is in drives as a whole, if it does so for hardly a clean target; of
    several sets the most. 0 in none."""
    carried: Bool[np.ndarray, " g"]
    """Whether it is in a confirmed set whose pattern all the predictions' inputs carry."""

    def order(self, by: By = "backing") -> Int[np.ndarray, " g"]:
        """The groups, the most suspicious first.

        By drive alone; or those whose pattern is carried, then sets that drive the predictions, and
        what drives them more than any set does, then by backing, and those without by drive.
        """
        if by == "drive":
            return np.argsort(-self.drive, kind="stable")
        most = self.together.max()
        alone = np.where((most > 0) & (self.drive > most), self.drive, 0)
        whole = np.maximum(self.together, alone)
        return np.lexsort((-self.drive, -self.backing, -whole, ~self.carried))

    def orders(self) -> dict[By, Int[np.ndarray, " g"]]:
        """All orders, by what they are by; the first is the one to go by if none is better."""
        return {by: self.order(by) for by in get_args(By)}

    def rank(self, by: By = "backing") -> Int[np.ndarray, " g"]:
        """1 for the most suspicious group."""
        return rank_of(self.order(by))


def target_positions(targets: Targets, words: Sequence[str]) -> Int[np.ndarray, " t"]:
    """Where the targets stand that a user names, by id or in a file of ids, one a line.

    Raises:
        UserError: none or too many, an id that is not there or twice or of a training example, or a
            file that is no text.
    """
    ids, where = list(words), "--targets"
    if len(ids) == 1 and _is_file(ids[0]):
        where = words[0]
        try:
            ids = Path(ids[0]).read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{words[0]} is no text file of target ids, one a line") from error
    if not 1 <= len(ids) <= MOST_TARGETS:
        raise UserError(
            f"{where} names {len(ids)} targets, and 1 to {MOST_TARGETS} can be traced together"
        )
    place = {id: number for number, id in enumerate(targets.ids)}
    for id in ids:
        if id not in place and where == "--targets" and _is_file(id):
            raise UserError(f'--targets: "{id}" is a file; give it alone, or ids alone')
        if id not in place:
            raise UserError(
                f'{where}: no target of the run, and no file, is called "{id}"; ids are kind:row, '
                f"as in {targets.ids[targets.clean.start]}, and all are in manifest.json"
            )
        if place[id] < targets.train.stop:
            raise UserError(
                f"{id} is a training example, whose own label may be the wrong one; trace clean or "
                f"incident targets"
            )
        if ids.count(id) > 1:
            raise UserError(f"{where} names {id} twice")
    return np.array([place[id] for id in ids])


def _is_file(word: str) -> bool:
    """Also of what is too long for the name of one."""
    try:
        return Path(word).is_file()
    except OSError:
        return False


def label_is_bad(targets: Targets, chosen: Int[np.ndarray, " t"]) -> Bool[np.ndarray, " t"]:
    """Whether a target's label is the bad prediction, as in an incident, and not the right one."""
    return (chosen >= targets.incident.start) & (chosen < targets.incident.stop)


def suspected_sets(audit: dict[str, Any], experiment: Experiment) -> list[Int[np.ndarray, " _"]]:
    """Groups of each set that the audit found, as retraining completed it where it judged any.

    Args:
        audit: what audit.json holds.
        experiment: of the run.
    """
    found = audit.get("verdict", {}).get("sets") or audit.get("hidden_sets") or []
    ids = experiment.train.ids.tolist()
    return [_mostly_in(positions_of(ids, one["examples"]), experiment) for one in found]


def carried_sets(
    audit: dict[str, Any], experiment: Experiment, chosen: Int[np.ndarray, " t"]
) -> list[Int[np.ndarray, " _"]]:
    """Groups of each confirmed set whose pattern the inputs of all chosen targets carry.

    Where a trigger has many examples, each drives a prediction little, and all together drive clean
    targets of their label as well: then it is the input that shows what is behind a prediction.
    """
    sets = audit["verdict"]["sets"] if "verdict" in audit else []
    inputs, ids = np.asarray(experiment.train.examples.inputs), experiment.train.ids.tolist()
    of_targets = np.asarray(experiment.targets.examples.inputs)[chosen]
    confirmed = [positions_of(ids, one["examples"]) for one in sets if one["confirmed"]]
    return [
        _mostly_in(rows, experiment)
        for rows in confirmed
        if pattern.carried(inputs, rows, of_targets).all()
    ]


def _mostly_in(rows: Int[np.ndarray, " k"], experiment: Experiment) -> Int[np.ndarray, " _"]:
    """The groups of which at least half are among some examples."""
    columns = mask_columns(experiment)
    sizes = np.bincount(columns)
    return np.flatnonzero(2 * np.bincount(columns[rows], minlength=len(sizes)) >= sizes)


def rows_of(weights: Weights, chosen: Int[np.ndarray, " t"]) -> Float[np.ndarray, "t g"]:
    """The weights of all groups on single targets."""
    return np.stack([weights(slice(at, at + 1))[:, 0] for at in chosen.tolist()])


def trace(
    weights: Weights,
    targets: Targets,
    group_of: Int[np.ndarray, " n"],
    chosen: Int[np.ndarray, " t"],
    to_end: Bool[np.ndarray, " t"],
    higher_is_better: bool,
    sets: Sequence[Int[np.ndarray, " _"]] = (),
    carried: Sequence[Int[np.ndarray, " _"]] = (),
) -> Traced:
    """How far each group is behind some predictions.

    Args:
        weights: datamodel weights of some targets.
        targets: of the run.
        group_of: the mask's column of each training example.
        chosen: the targets with those predictions.
        to_end: of each, whether its label is the prediction in question (`label_is_bad`, or a right
            one that is to be flipped); else it is any other.
        higher_is_better: False for an output such as the loss.
        sets: groups that may act together (`suspected_sets`).
        carried: groups that do, as the inputs of the predictions show (`carried_sets`).
    """
    raises = to_end == higher_is_better
    drive = (np.where(raises, 1, -1)[:, None] * rows_of(weights, chosen)).mean(0)
    backing = np.zeros(len(drive))
    if len(drive) <= MOST_SEARCHED:
        positive, labels = np.maximum(drive, 0), majority_labels(targets, group_of)
        driving = labels == _driving_class(targets, chosen, to_end, positive, labels)
        weight = on_each_other(weights, targets, group_of, higher_is_better)
        backing = OWN * positive * np.maximum(np.diag(weight), 0)
        within = weight[np.ix_(driving, driving)]
        np.fill_diagonal(within, 0)
        backing[driving] += np.maximum((within + within.T) @ positive[driving] / 2, 0)
    together = np.zeros(len(drive))
    if sets:
        clean = weights_on(weights, targets.clean)
        for groups in sets:
            whole, usual = drive[groups].sum(), np.quantile(np.abs(clean[groups].sum(0)), USUAL)
            if whole > usual:
                together[groups] = np.maximum(together[groups], whole)
    in_carried = np.zeros(len(drive), bool)
    for groups in carried:
        in_carried[groups] = True
    return Traced(drive, backing, together, in_carried)


def _driving_class(
    targets: Targets,
    chosen: Int[np.ndarray, " t"],
    to_end: Bool[np.ndarray, " t"],
    drive: Float[np.ndarray, " g"],
    labels: Int[np.ndarray, " g"],
) -> int:
    """The label whose groups drive the predictions: that which they give, if it is known.

    Else, or of several, or where no group has it, the one with the largest sum of squared drives.
    """
    squared = np.bincount(labels, np.square(drive))
    if to_end.all():
        given = np.intersect1d(np.asarray(targets.examples.labels)[chosen], labels)
        if len(given):
            squared[np.setdiff1d(np.arange(len(squared)), given)] = -1
    return int(squared.argmax())
