"""Verification of a run: the retrains without what was flagged, and what they show."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from datamodels.design import Listed
from influence import counterfactual
from influence.arms import main_task
from influence.artifacts import load_datamodel, read_scores
from influence.counterfactual import Change, Interval
from influence.experiment import Experiment
from influence.run import Run
from training.bank import Arm, ArmSpec, open_arm
from training.examples import Examples, concatenate
from training.outputs import both, lead
from training.sweep import Task


class Verification(NamedTuple):
    """What the retrains of the verification show."""

    accuracy: dict[str, Interval]
    """Of the clean targets; per cell."""
    success: dict[str, dict[str, Interval]]
    """Per attack, per cell."""
    change: Change
    """Of the outputs of the clean and the incident targets."""


def _blocks(experiment: Experiment) -> dict[str, Examples]:
    """The inputs that verification evaluates, by name."""
    targets = experiment.targets
    blocks = {"clean": targets.clean, "incident": targets.incident}
    inputs = {name: targets.examples.take(block) for name, block in blocks.items()}
    return inputs | {f"trial:{attack.name}": attack.trial for attack in experiment.attacks}


def task(experiment: Experiment) -> Task:
    """What every member of the verification does: it reports the run's output and the lead."""
    examples = concatenate(list(_blocks(experiment).values()))
    return main_task(experiment)._replace(targets=examples, output=both(experiment.output, lead))


def arm(run: Run, experiment: Experiment) -> tuple[Arm, Listed]:
    """The arm of the current flags; it lives in a folder named after its masks."""
    config = experiment.config
    flagged = read_scores(run)["flagged"]
    design = counterfactual.plan(flagged, config.sweep.alpha, config.audit.seeds, config.audit.seed)
    inputs = sum(len(block) for block in _blocks(experiment).values())
    spec = ArmSpec(
        name="verification",
        members=len(design.listed),
        groups=len(flagged),
        targets=2 * inputs,
        unit=config.sweep.unit,
        seed=config.audit.seed,
        stream=2,
        design=design.describe(),
    )
    return open_arm(run.verification / spec.design["sha256"][:16], spec), design


def measure(run: Run, experiment: Experiment, retrained: Arm) -> Verification:
    """What the retrains show."""
    rows = retrained.read()
    blocks = _blocks(experiment)
    outputs = np.where(rows.usable[:, None], rows.outputs, np.nan)
    values = outputs.reshape(len(outputs), -1, 2)
    ends = np.cumsum([len(block) for block in blocks.values()])[:-1]
    leads = dict(zip(blocks, np.split(values[..., 1], ends, axis=1), strict=True))
    targets = experiment.targets
    chosen = np.r_[targets.clean, targets.incident]
    return Verification(
        _share_correct(leads["clean"]),
        {a.name: _share_correct(leads[f"trial:{a.name}"]) for a in experiment.attacks},
        counterfactual.change(
            counterfactual.by_cell(values[:, : len(chosen), 0]),
            load_datamodel(run)[0].weights[:, chosen],
            read_scores(run)["flagged"],
        ),
    )


def _share_correct(leads: Float[np.ndarray, "m k"]) -> dict[str, Interval]:
    """Per cell, the share of inputs that get their label, over seeds."""
    share = np.where(np.isnan(leads).any(1), np.nan, (leads > 0).mean(1))
    cells = counterfactual.by_cell(share)
    return {cell: counterfactual.interval(per_seed) for cell, per_seed in cells.items()}


def summary(experiment: Experiment, found: Verification) -> dict[str, Any]:
    """The `verify` section of audit.json."""
    attack, shown = experiment.incident_attack, ("before", "after", "after_random")
    success = {name: {cell: cells[cell] for cell in shown} for name, cells in found.success.items()}
    count = experiment.targets.clean.stop - experiment.targets.clean.start
    blocks = {"clean": slice(0, count), "incident": slice(count, None)}
    return {
        "attack_success": success[attack.name] if attack else None,
        "accuracy": {cell: found.accuracy[cell] for cell in shown},
        "success_by_attack": success,
        "target_outputs": {
            name: _change_summary(found.change, block)
            for name, block in blocks.items()
            if found.change.predicted[block].size
        },
        "seeds": experiment.config.audit.seeds,
    }


def _change_summary(change: Change, block: slice) -> dict[str, Any]:
    """Mean change over a block of targets: predicted, and measured in both contexts."""
    predicted = change.predicted[block]

    def measured(mean: np.ndarray, seeds: np.ndarray) -> dict[str, Any]:
        constant = np.ptp(predicted) == 0 or np.ptp(mean[block]) == 0
        return {
            "measured": counterfactual.interval(seeds[:, block].mean(1)),
            "correlation": None if constant else float(np.corrcoef(predicted, mean[block])[0, 1]),
        }

    return {
        "predicted": float(predicted.mean()),
        "others_kept_with_alpha": measured(change.context, change.context_seeds),
        "all_others_kept_extrapolation": measured(change.all_kept, change.all_kept_seeds),
    }
