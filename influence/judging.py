"""The retrains behind the verdict (`verdict`), in a bank of their own beside the run's."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from datamodels.design import Listed
from datamodels.terms import mostly_same
from influence import pattern
from influence.arms import VERDICT_STREAM, main_task, positions_of
from influence.experiment import Experiment
from influence.hidden_support import commonest
from influence.retrains import Planned, beside, spec_of
from influence.run import Run
from influence.verdict import (
    Candidates,
    Cells,
    Margins,
    Verdicts,
    cells_of,
    judge,
    random_sets,
    suspects_of,
)
from training.arm import Status
from training.errors import UserError
from training.examples import Examples, concatenate
from training.outputs import margin
from training.sweep import Task

ARM = "verdict"
MOST_TRIED = 200
"""Clean targets that a pattern is put on."""


class Trial(NamedTuple):
    """What is retrained, and what its members look at."""

    candidates: Candidates
    cells: Cells
    patterned: tuple[Examples, ...]
    """Of each set, then of the random examples for each: clean targets of other classes with their
    pattern, labelled with the set's class."""


def trial(
    experiment: Experiment,
    flagged: Bool[np.ndarray, " n"],
    disputed: Bool[np.ndarray, " n"],
    hidden: Sequence[dict[str, Any]] | None,
    similar: Sequence[dict[str, Any]] | None,
    strangers: Sequence[dict[str, Any]] | None,
) -> Trial:
    """What to retrain.

    Args:
        experiment: of the run.
        flagged: of scores.parquet.
        disputed: training examples whose label models of the bank that did not see them
            contradict.
        hidden: the `hidden_sets` of audit.json. Texts have nothing that can be put on others: so
            their sets are not looked at, only each flagged example.
        similar: its `look_alikes`.
        strangers: its `strangers`.
    """
    audit, train = experiment.config.audit, experiment.train
    inputs, labels = np.asarray(train.examples.inputs), np.asarray(train.examples.labels)

    def rows_of(found: Sequence[dict[str, Any]] | None) -> list[Int[np.ndarray, " _"]]:
        return [positions_of(train.ids.tolist(), one["examples"]) for one in found or ()]

    sets = [] if experiment.vocabulary else _with_patterns(inputs, labels, rows_of(hidden))
    found = _of_one_pattern(inputs, [*sets, *rows_of(similar)])
    sets, own = [rows for rows, _ in found], [one for _, one in found]
    random = random_sets(labels, sets, audit.seed)
    patterns = [*own, *(pattern.common(inputs, rows) for rows in random)]
    classes = [commonest(labels[rows]) for rows in sets]
    sameness = tuple(one.sameness for one in own)
    suspects = suspects_of(flagged, labels, sets, rows_of(strangers))
    disputed_shares = tuple(float(disputed[rows].mean()) for rows in sets)
    candidates = Candidates(suspects, tuple(sets), tuple(random), sameness, disputed_shares)
    return Trial(
        candidates,
        cells_of(labels, candidates, audit.seeds, audit.seed),
        tuple(_put(experiment, *pair) for pair in zip(patterns, 2 * classes, strict=True)),
    )


def _with_patterns(
    inputs: np.ndarray, labels: Int[np.ndarray, " n"], hidden: Sequence[Int[np.ndarray, " _"]]
) -> list[Int[np.ndarray, " _"]]:
    """The examples that share a pattern of a hidden set; of those with most in common the first."""
    found: list[Int[np.ndarray, " _"]] = []
    for rows in hidden:
        for own in pattern.patterns_in(inputs, rows, labels == commonest(labels[rows])):
            if all(2 * np.isin(own, o).sum() <= min(len(own), len(o)) for o in found):
                found.append(own)
    return found


def _of_one_pattern(
    inputs: np.ndarray, sets: Sequence[Int[np.ndarray, " _"]]
) -> list[tuple[Int[np.ndarray, " _"], pattern.Pattern]]:
    """Of sets that are mostly the same the one in which most examples have the pattern, with it.

    That is about its size times its sameness, which falls by the share of its examples that lack
    the pattern, and where others that have it are left out and stand among its neighbours.
    """
    patterns = [pattern.common(inputs, rows) for rows in sets]
    having = [len(rows) * one.sameness for rows, one in zip(sets, patterns, strict=True)]
    kept: list[int] = []
    for at in np.argsort(-np.array(having), kind="stable").tolist():
        if not any(mostly_same(sets[at], sets[other]) for other in kept):
            kept.append(at)
    return [(sets[at], patterns[at]) for at in sorted(kept)]


def _put(experiment: Experiment, found: pattern.Pattern, label: int) -> Examples:
    """Clean targets of other classes with a pattern on them, labelled with a class."""
    targets = experiment.targets
    clean = targets.examples.take(targets.clean)
    others = np.flatnonzero(np.asarray(clean.labels) != label)
    chosen = np.random.default_rng(experiment.config.audit.seed).permutation(others)[:MOST_TRIED]
    inputs = pattern.put(np.asarray(clean.inputs)[np.sort(chosen)], found)
    return Examples(inputs, np.full(len(inputs), label, np.int32))


def task(experiment: Experiment, found: Trial) -> Task:
    """What every member does: it reports margins of training examples, clean targets and others."""
    targets = experiment.targets
    seen = targets.examples.take(slice(targets.train.start, targets.clean.stop))
    inputs = concatenate([seen, *found.patterned])
    return main_task(experiment)._replace(targets=inputs, output=margin, panels=(len(inputs),))


def planned(run: Run, experiment: Experiment, found: Trial) -> Planned:
    """The retrains that judge, and their bank."""
    cells, seeds = found.cells.all(), experiment.config.audit.seeds
    design = Listed(np.concatenate(cells), np.tile(np.arange(seeds), len(cells)))
    spec = spec_of(experiment, ARM, VERDICT_STREAM, design)
    inputs = task(experiment, found).targets
    return beside(run, experiment, spec, design, inputs, tuple(map(str, range(len(inputs)))))


def measure(plan: Planned, found: Trial) -> Verdicts:
    """What the retrains show.

    Raises:
        UserError: fewer than two members of a cell are finite.
    """
    rows = plan.arm.read()
    if min(part.sum() for part in np.split(rows.usable, len(found.cells.all()))) < 2:
        raise UserError(
            f"{int((~rows.usable).sum())} of {len(rows.usable)} members of the verdict are not "
            f"finite, too many to compare; lower optim.learning_rate and sweep into another --out"
        )
    outputs = np.where(rows.usable[:, None], rows.outputs, np.nan).astype(np.float64)
    train, sizes = len(found.candidates.suspects), [len(one) for one in found.patterned]
    clean = outputs.shape[1] - train - sum(sizes)
    train, clean, *patterned = np.split(outputs, np.cumsum([train, clean, *sizes])[:-1], axis=1)
    half = len(patterned) // 2
    margins = Margins(train, clean, tuple(patterned[:half]), tuple(patterned[half:]))
    return judge(found.candidates, found.cells, margins)


def described(
    experiment: Experiment, plan: Planned, found: Verdicts, flagged: Bool[np.ndarray, " n"]
) -> dict[str, Any]:
    """The `verdict` section of audit.json, with examples by id; `flagged` of scores.parquet."""
    ids, labels = experiment.train.ids, np.asarray(experiment.train.examples.labels)
    return {
        "judged": int(np.isfinite(found.probability).sum()),
        "not_judged": int((flagged & np.isnan(found.probability)).sum()),
        "confirmed": int(found.confirmed.sum()),
        "unit": found.unit,
        "not_finite": int((plan.arm.read_status() == Status.NOT_FINITE).sum()),
        "sets": [
            {
                "class": experiment.class_names[commonest(labels[one.rows])],
                "examples": ids[one.rows].tolist(),
                "given": one.given,
                "transfer": one.transfer,
                "random_transfer": one.random_transfer,
                "sameness": one.sameness,
                "disputed": one.disputed,
                "p": one.p,
                "probability": one.probability,
                "confirmed": one.confirmed,
            }
            for one in found.sets
        ],
    }
