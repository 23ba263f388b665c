"""What the report shows of the last trace: its predictions, what is behind them, and the proof."""

from typing import Any, NamedTuple

import numpy as np

from influence.artifacts import read_trace
from influence.experiment import Experiment
from influence.looks import Looks
from influence.run import Run
from influence.trace_words import headline

SHOWN = 12
"""Training examples, the most suspicious first; all are in trace.parquet."""


class Seen(NamedTuple):
    """A target, or a training example, as it looks."""

    id: str
    label: str
    picture: str
    text: str


class Ranked(NamedTuple):
    """A training example and what the trace says of it."""

    id: int
    seen: Seen
    drive: float
    """How much keeping it adds to the predictions, in the mean, in output units."""
    backing: float
    """How much it and those that drive them support each other: weights times weights."""
    removed: bool
    """Whether it is in the smallest removal, or the largest that was tried."""


class TracePart(NamedTuple):
    """The last trace."""

    summary: dict[str, Any]
    """What trace.json holds."""
    headline: str
    """What came of it, in a sentence."""
    of_sets: bool
    """Whether sets that were found to act as one come first."""
    targets: list[Seen]
    first: list[Ranked]
    total: int
    """Training examples that are ranked."""


def trace_part(run: Run, experiment: Experiment, looks: Looks) -> TracePart | None:
    """The last trace of a run; None where nothing was traced, or of targets that it has no more.

    Args:
        run: where it is.
        experiment: of the run.
        looks: of its targets, the first of which are the training examples.

    Raises:
        UserError: a file of the trace is damaged.
    """
    found = read_trace(run)
    place = {id: at for at, id in enumerate(experiment.targets.ids)}
    if found is None or not place.keys() >= set(found[0]["targets"]):
        return None
    summary, columns = found
    labels = np.asarray(experiment.targets.examples.labels)

    def seen(at: int) -> Seen:
        label = experiment.class_names[int(labels[at])]
        return Seen(experiment.targets.ids[at], label, looks.picture(at), looks.text(at))

    order = np.argsort(columns["rank"], kind="stable")
    return TracePart(
        summary,
        headline(summary),
        bool(columns["carried"].any() or (columns["together"] > 0).any()),
        [seen(place[id]) for id in summary["targets"]],
        [
            Ranked(
                int(columns["id"][at]),
                seen(at),
                float(columns["drive"][at]),
                float(columns["backing"][at]),
                int(columns["id"][at]) in summary["removed"],
            )
            for at in order[:SHOWN].tolist()
        ],
        len(order),
    )
