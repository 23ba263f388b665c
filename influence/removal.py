"""Retraining without some examples, to see whether bad predictions still come."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from datamodels.design import Listed
from influence.arms import TRACE_STREAM, main_task
from influence.counterfactual import Interval, interval, random_like, share_interval
from influence.experiment import Experiment
from influence.retrains import Planned, beside, spec_of
from influence.run import Run
from influence.tracing import By
from training.errors import UserError
from training.outputs import both, lead
from training.sweep import Task

ARM = "removal"
STILL_BAD = 0.5
"""Share of retrains from which on the bad predictions are taken to come still."""
MOST_SHARE = 0.1
"""Of all groups, which may have to go."""
SHARE = 1 / 3
"""Of the groups that have to go in one order, from which down another is the one that tells what is
behind bad predictions. Examples that act together back one another: then backing ranks all of them,
while the few that drive most may be enough to end a prediction."""


class Removal(NamedTuple):
    """Predictions with some examples left out."""

    bad: Interval
    """Share of the predictions that are as they are to end: bad, or to be flipped."""
    output: Interval
    """The mean output of the targets, as the run has it."""

    @property
    def still_bad(self) -> bool:
        """Whether most predictions are."""
        return self.bad[0] >= STILL_BAD


class Search(NamedTuple):
    """How few removals end some predictions."""

    by: By
    """The order in which they go."""
    smallest: int | None
    """Number of groups; None where even the most do not."""
    in_first: int | None
    """The same in the first of the orders."""
    most: int
    """Groups that were tried to be removed at once."""
    removed: Bool[np.ndarray, " n"]
    """Examples of the smallest removal, or of the largest where none is enough."""
    before: Removal
    """With all examples, in retrains that chose nothing, as are those that follow."""
    after: Removal
    """Without the removed."""
    after_random: Removal
    """Without as many random ones of the same labels."""


def task(experiment: Experiment, chosen: Int[np.ndarray, " t"]) -> Task:
    """What every member does: it reports the run's output and the lead, of the chosen targets."""
    return main_task(experiment)._replace(
        targets=experiment.targets.examples.take(chosen),
        output=both(experiment.output, lead),
        panels=(len(chosen),),
    )


def planned(
    run: Run,
    experiment: Experiment,
    chosen: Int[np.ndarray, " t"],
    kept: Bool[np.ndarray, "s n"],
    *,
    judging: bool,
) -> Planned:
    """The retrains with these examples kept, each with a seed of its own, and their bank.

    Those that judge have other seeds than those of the search, which chose what they judge.
    """
    numbers = np.arange(len(kept)) + (len(kept) if judging else 0)
    design = Listed(kept, numbers)
    spec = spec_of(experiment, ARM, TRACE_STREAM, design)
    ids = tuple(f"{at}:{kind}" for at in chosen.tolist() for kind in ("output", "lead"))
    return beside(run, experiment, spec, design, task(experiment, chosen).targets, ids)


def measure(plan: Planned, to_end: Bool[np.ndarray, " t"]) -> Removal:
    """What the retrains show.

    Args:
        plan: of retrains that were made.
        to_end: of each target, whether its label is the prediction in question; else any other is.

    Raises:
        UserError: fewer than two of them are finite.
    """
    rows = plan.arm.read()
    if rows.usable.sum() < 2:
        raise UserError(
            "fewer than two retrains are finite, too few to compare; lower optim.learning_rate and "
            "sweep into another --out"
        )
    values = rows.outputs[rows.usable].reshape(int(rows.usable.sum()), -1, 2)
    bad = (values[..., 1] > 0) == to_end[None]
    return Removal(share_interval(bad.mean(1), len(bad)), interval(values[..., 0].mean(1)))


def search(
    retrain: Callable[[Bool[np.ndarray, "s n"], bool], Removal],
    orders: Mapping[By, Int[np.ndarray, " g"]],
    share: float,
    columns: Int[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    seeds: int,
    control: tuple[int, ...],
) -> Search:
    """Find the smallest removal by bisection, and judge it by retrains that chose nothing.

    Args:
        retrain: with what is removed in each retrain, and whether to judge by it.
        orders: groups, in which they may go. The first counts, unless in another fewer have to go.
        share: of the removals in the first order, at most so many have to go in the other.
        columns: the group of every example.
        labels: of the examples.
        seeds: retrains of a removal.
        control: seed of the random removals.
    """

    def without(by: By, count: int) -> Bool[np.ndarray, "s n"]:
        return np.tile(np.isin(columns, orders[by][:count]), (seeds, 1))

    def still_bad(by: By, count: int) -> bool:
        return retrain(without(by, count), False).still_bad

    first, *others = orders
    largest = most(len(orders[first]))
    by, count = first, 0
    if still_bad(first, 0):
        count = smallest(partial(still_bad, first), largest)
    in_first = count
    for other in others:
        limit = largest if count is None else min(int(share * count), count - 1)
        fewer = smallest(partial(still_bad, other), limit) if limit > 0 else None
        if fewer is not None:
            by, count = other, fewer
    removed = without(by, largest if count is None else count)
    random = random_like(labels, removed[0], seeds, control)
    judged = (retrain(each, True) for each in (without(by, 0), removed, random))
    return Search(by, count, in_first, largest, removed[0], *judged)


def most(groups: int) -> int:
    """How many groups may have to go: a tenth, but one at least, and never all."""
    return min(max(1, round(MOST_SHARE * groups)), groups - 1)


def smallest(still_bad: Callable[[int], bool], most: int) -> int | None:
    """The smallest number of removals that end the bad predictions, by bisection.

    Args:
        still_bad: whether they come still when so many are removed; taken to end for good.
        most: to try.

    Returns:
        None where even the most do not.
    """
    if still_bad(most):
        return None
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if still_bad(middle) else (low, middle)
    return high


def predicted(
    kept: Float[np.ndarray, " t"],
    rows: Float[np.ndarray, "t g"],
    to_end: Bool[np.ndarray, " t"],
    most: int,
) -> int | None:
    """How many removals would end most of the predictions, were effects to add up.

    Args:
        kept: margin of every target with all groups kept, as its datamodel has it.
        rows: weights of the groups on the targets, in the order in which they go.
        to_end: as for `measure`.
        most: to try.

    Returns:
        None where even the most would not.
    """
    gone = np.cumsum(np.concatenate([np.zeros((len(rows), 1)), rows[:, :most]], axis=1), axis=1)
    still = ((kept[:, None] - gone > 0) == to_end[:, None]).mean(0) >= STILL_BAD
    return None if still.all() else int(still.argmin())


def described(found: Search) -> dict[str, Any]:
    """What a search found, as trace.json has it."""
    cells = {"before": found.before, "after": found.after, "after_random": found.after_random}
    return {
        "by": found.by,
        "smallest": found.smallest,
        "by_backing": found.in_first,
        "most": found.most,
        "bad": {name: cell.bad for name, cell in cells.items()},
        "output": {name: cell.output for name, cell in cells.items()},
    }
