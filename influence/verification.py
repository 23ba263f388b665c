"""Verification of a run: the retrains without what was confirmed, and what they show."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

import datamodels
from influence import counterfactual
from influence.arms import (
    VERIFICATION_STREAM,
    alpha_arms,
    arm_specs,
    fresh_masks,
    main_task,
    mask_columns,
)
from influence.artifacts import read_scores
from influence.audit import Weights
from influence.counterfactual import Change, Interval
from influence.experiment import Experiment
from influence.members import target_blocks
from influence.retrains import Planned, beside, spec_of
from influence.run import Run
from training.errors import UserError
from training.examples import Examples, concatenate
from training.outputs import both, lead
from training.seeds import root_key
from training.sweep import Task

ARM = "verification"


class Verification(NamedTuple):
    """What the retrains of the verification show."""

    accuracy: dict[str, Interval]
    """Of the clean targets; per cell."""
    accuracy_change: Interval
    """Without the confirmed, seed by seed."""
    success: dict[str, dict[str, Interval]]
    """Per attack, per cell."""
    success_change: dict[str, Interval]
    """Per attack: its share without the confirmed less that with all examples, seed by seed."""
    outputs: dict[str, Float[np.ndarray, "s t"]]
    """Of the clean and the incident targets, per cell; NaN where a member is not finite."""
    change: Change
    """Of those outputs."""
    not_finite: int
    """Members left out."""


def _blocks(experiment: Experiment) -> dict[str, Examples]:
    """The inputs that verification evaluates, by name."""
    targets = experiment.targets
    blocks = {"clean": targets.clean, "incident": targets.incident}
    inputs = {name: targets.examples.take(block) for name, block in blocks.items()}
    return inputs | {f"trial:{attack.name}": attack.trial for attack in experiment.attacks}


def task(experiment: Experiment) -> Task:
    """What every member of the verification does: it reports the run's output and the lead."""
    examples = concatenate(list(_blocks(experiment).values()))
    return main_task(experiment)._replace(
        targets=examples, output=both(experiment.output, lead), panels=(len(examples),)
    )


def _contexts(experiment: Experiment) -> dict[str, Bool[np.ndarray, "s n"]]:
    """By alpha, examples kept as the main arm of that alpha keeps them, on masks of their own."""
    audit = experiment.config.audit
    root = root_key(audit.seed, VERIFICATION_STREAM)
    specs = arm_specs(experiment)
    found = {}
    for arms in alpha_arms(experiment.config.sweep):
        spec = specs[arms.main]
        masks = fresh_masks(spec, root, audit.seeds)
        found[f"alpha {spec.design['alpha']:g}"] = spec.examples(masks)
    return found


def planned(run: Run, experiment: Experiment) -> Planned:
    """The retrains that check the current verdicts and flags, and the bank that they go to."""
    scores = read_scores(run)
    design = counterfactual.plan(
        np.asarray(experiment.train.examples.labels),
        scores["status"] == "confirmed",
        scores["redundant"],
        scores["flagged"],
        _contexts(experiment),
        experiment.config.audit.seed,
    )
    inputs = task(experiment).targets
    spec = spec_of(experiment, ARM, VERIFICATION_STREAM, design)
    ids = tuple(f"{number}:{kind}" for number in range(len(inputs)) for kind in ("output", "lead"))
    return beside(run, experiment, spec, design, inputs, ids)


def measure(run: Run, experiment: Experiment, weights: Weights) -> Verification:
    """What the retrains show, beside what datamodel weights foretell.

    Raises:
        UserError: they are not complete, or too few members are finite.
    """
    arm = planned(run, experiment).arm
    if arm.missing_units():
        raise UserError(
            f"the verification is not complete, or of other settings; run first: accomplice "
            f"verify {run.path}"
        )
    rows, contexts = arm.read(), list(_contexts(experiment))
    if counterfactual.fewest_seeds(rows.usable, contexts) < 2:
        raise UserError(
            f"{int((~rows.usable).sum())} of {len(rows.status)} members of the verification are "
            f"not finite, too many to compare; lower optim.learning_rate and sweep into another "
            f"--out"
        )
    blocks = _blocks(experiment)
    outputs = np.where(rows.usable[:, None], rows.outputs, np.nan)
    values = outputs.reshape(len(outputs), -1, 2)
    ends = np.cumsum([len(block) for block in blocks.values()])[:-1]
    leads = dict(zip(blocks, np.split(values[..., 1], ends, axis=1), strict=True))
    targets = experiment.targets
    kept = slice(targets.clean.start, targets.incident.stop)
    cells = counterfactual.by_cell(values[:, : kept.stop - kept.start, 0], contexts)
    removed = _removed(run, experiment)
    predicted = [-removed @ weights(block) for block in target_blocks(kept)]
    of_attacks = {attack.name: leads[f"trial:{attack.name}"] for attack in experiment.attacks}
    return Verification(
        _share_correct(leads["clean"], contexts),
        _change_of_share(leads["clean"], contexts),
        {name: _share_correct(own, contexts) for name, own in of_attacks.items()},
        {name: _change_of_share(own, contexts) for name, own in of_attacks.items()},
        cells,
        counterfactual.change(cells, np.concatenate(predicted), contexts),
        int((~rows.usable).sum()),
    )


def _removed(run: Run, experiment: Experiment) -> Float[np.ndarray, " g"]:
    """The share of each group that is flagged: of a part of one, its weight is taken in part."""
    columns = mask_columns(experiment)
    return np.bincount(columns, read_scores(run)["flagged"]) / np.bincount(columns)


def _share_correct(leads: Float[np.ndarray, "m k"], contexts: Sequence[str]) -> dict[str, Interval]:
    """Per cell, the share of inputs that get their label, over seeds."""
    cells = counterfactual.by_cell(counterfactual.share_positive(leads), contexts)
    inputs = leads.shape[1]
    return {
        cell: counterfactual.share_interval(per_seed, inputs) for cell, per_seed in cells.items()
    }


def _change_of_share(leads: Float[np.ndarray, "m k"], contexts: Sequence[str]) -> Interval:
    """Of the share of inputs that get their label: without the confirmed less with all examples,
    seed by seed; Student's, so without width where all seeds agree."""
    right = counterfactual.by_cell(counterfactual.share_positive(leads), contexts)
    return counterfactual.interval(right["after"] - right["before"])


def summary(experiment: Experiment, found: Verification) -> dict[str, Any]:
    """The `verify` section of audit.json."""
    success = {name: _shown(cells) for name, cells in found.success.items()}
    attack = experiment.incident_attack or next(iter(experiment.attacks), None)
    count = experiment.targets.clean.stop - experiment.targets.clean.start
    blocks = {"clean": slice(0, count), "incident": slice(count, None)}
    return {
        "attack_success": success[attack.name] if attack else None,
        "accuracy": _shown(found.accuracy),
        "accuracy_change": found.accuracy_change,
        "majority": _majority_share(experiment.targets.examples.take(experiment.targets.clean)),
        "success_by_attack": success,
        "success_change": found.success_change,
        "thinned": {cell: found.accuracy[cell] for cell in counterfactual.THINNED},
        "target_outputs": {
            name: _levels(found, block) | _change_summary(found.change, block)
            for name, block in blocks.items()
            if found.change.predicted[block].size
        },
        "seeds": experiment.config.audit.seeds,
        "not_finite": found.not_finite,
    }


def _majority_share(examples: Examples) -> float:
    """The accuracy of always naming the commonest class."""
    return float(np.bincount(examples.labels).max() / len(examples))


def _shown(cells: dict[str, Interval]) -> dict[str, Interval]:
    """The cells that a reader compares; the others serve the change in context."""
    return {cell: cells[cell] for cell in counterfactual.COMPARED}


def _levels(found: Verification, block: slice) -> dict[str, Interval]:
    """Mean output over a block of targets."""
    per_seed = {cell: outputs[:, block].mean(1) for cell, outputs in found.outputs.items()}
    return _shown({cell: counterfactual.interval(part) for cell, part in per_seed.items()})


def _change_summary(change: Change, block: slice) -> dict[str, Any]:
    """Mean change over a block of targets: predicted, and measured in every context."""
    predicted = change.predicted[block]

    def measured(seeds: Float[np.ndarray, "s t"]) -> dict[str, Any]:
        finite = seeds[np.isfinite(seeds).all(1)][:, block]
        return {
            "measured": counterfactual.interval(seeds[:, block].mean(1)),
            **datamodels.calibration(predicted, finite)._asdict(),
        }

    return {
        "predicted": float(predicted.mean()),
        "others_kept": {name: measured(seeds) for name, seeds in change.contexts.items()},
        "all_others_kept_extrapolation": measured(change.all_kept),
    }
