"""Retraining without some examples, to see whether bad predictions still come."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from datamodels.design import Listed
from influence.arms import TRACE_STREAM, main_task
from influence.counterfactual import Interval, interval, share_interval
from influence.experiment import Experiment
from influence.retrains import Planned, beside, spec_of
from influence.run import Run
from training.errors import UserError
from training.outputs import both, lead
from training.sweep import Task

ARM = "removal"
SHOWN = 20
"""Examples that are named in a line."""
STILL_BAD = 0.5
"""Share of retrains from which on the bad predictions are taken to come still."""
MOST_SHARE = 0.1
"""Of all groups, which may have to go."""


class Removal(NamedTuple):
    """Predictions with some examples left out."""

    bad: Interval
    """Share of the predictions that are bad."""
    output: Interval
    """The mean output of the targets, as the run has it."""

    @property
    def still_bad(self) -> bool:
        """Whether most predictions are bad."""
        return self.bad[0] >= STILL_BAD


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


def measure(plan: Planned, label_is_bad: Bool[np.ndarray, " t"]) -> Removal:
    """What the retrains show.

    Args:
        plan: of retrains that were made.
        label_is_bad: of each target; else its label is the right prediction.

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
    bad = (values[..., 1] > 0) == label_is_bad[None]
    return Removal(share_interval(bad.mean(1), len(bad)), interval(values[..., 0].mean(1)))


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


def said(summary: dict[str, Any]) -> str:
    """What came of a trace, as a few lines.

    Args:
        summary: of trace.json.
    """
    bad, removed = summary["bad"], len(summary["removed"])
    before, after, random = (
        f"{100 * bad[cell][0]:.0f} %" for cell in ("before", "after", "after_random")
    )
    if summary["smallest"] == 0:
        return (
            f"Trained on everything, {before} of the predictions are bad, fewer than half: there "
            f"is nothing to end. The ranking is in trace.parquet"
        )
    shown = ", ".join(map(str, summary["removed"][:SHOWN]))
    more = f" and {removed - SHOWN:,} more" if removed > SHOWN else ""
    if summary["smallest"] is None:
        head = f"No removal of up to {summary['most']:,} groups ends most of the bad predictions"
    else:
        head = f"Without {removed:,} examples most of the bad predictions end"
    return (
        f"{head}. With fresh seeds ({summary['seeds']}): bad are {before} with all, {after} "
        f"without these, {random} without as many random ones of the same labels\n"
        f"They are {shown}{more}; the ranking is in trace.parquet"
    )
