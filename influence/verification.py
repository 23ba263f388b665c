"""Verification of a run: the retrains without what was flagged, and what they show."""

import dataclasses
import hashlib
import json
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from datamodels.design import Listed
from influence import counterfactual
from influence.arms import STREAMS, main_task, unit_size
from influence.artifacts import load_datamodel, read_scores
from influence.banks import bank_location, new_manifest
from influence.counterfactual import Change, Interval
from influence.experiment import Experiment
from influence.members import target_blocks
from influence.run import Run
from training.arm import Arm, ArmSpec
from training.bank import Bank, Panel
from training.data import examples_hash
from training.errors import UserError
from training.examples import Examples, concatenate
from training.outputs import both, lead
from training.store import Store
from training.sweep import Task

ARM = "verification"


class Verification(NamedTuple):
    """What the retrains of the verification show."""

    accuracy: dict[str, Interval]
    """Of the clean targets; per cell."""
    success: dict[str, dict[str, Interval]]
    """Per attack, per cell."""
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


class Planned(NamedTuple):
    """The retrains that check the current flags."""

    bank: Bank
    """Of one arm; other flags or inputs make another bank."""
    design: Listed

    @property
    def arm(self) -> Arm:
        """Its only arm."""
        return self.bank.arm(ARM)


def planned(run: Run, experiment: Experiment) -> Planned:
    """The bank that the retrains go to, and their masks. Nothing is written."""
    config = experiment.config
    flagged = read_scores(run)["flagged"]
    design = counterfactual.plan(flagged, config.sweep.alpha, config.audit.seeds, config.audit.seed)
    inputs = task(experiment).targets
    content = examples_hash(inputs)
    digest = hashlib.sha256(
        json.dumps([design.describe() | {"inputs": content}, config.audit.seed]).encode()
    )
    spec = ArmSpec(
        name=ARM,
        members=len(design.listed),
        groups=len(flagged),
        unit=unit_size(config.sweep),
        seed=config.audit.seed,
        stream=STREAMS["verification"],
        design=design.describe(),
    )
    ids = tuple(f"{number}:{kind}" for number in range(len(inputs)) for kind in ("output", "lead"))
    manifest = new_manifest(experiment, {ARM: spec})
    panels = (Panel(len(ids), content),)
    manifest = dataclasses.replace(manifest, target_ids=ids, panels=panels)
    place = Store(bank_location(config, run.path)) / "verification" / digest.hexdigest()[:16]
    return Planned(Bank.find(place.location) or Bank(place, manifest), design)


def measure(run: Run, experiment: Experiment) -> Verification:
    """What the retrains show.

    Raises:
        UserError: they are not complete, or fewer than two members of a cell are finite.
    """
    rows = planned(run, experiment).arm.read()
    if min(part.sum() for part in counterfactual.by_cell(rows.usable).values()) < 2:
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
    cells = counterfactual.by_cell(values[:, : kept.stop - kept.start, 0])
    weights, flagged = load_datamodel(run).weights, read_scores(run)["flagged"]
    predicted = [-weights(block)[flagged].sum(0) for block in target_blocks(kept)]
    return Verification(
        _share_correct(leads["clean"]),
        {a.name: _share_correct(leads[f"trial:{a.name}"]) for a in experiment.attacks},
        cells,
        counterfactual.change(cells, np.concatenate(predicted)),
        int((~rows.usable).sum()),
    )


def _share_correct(leads: Float[np.ndarray, "m k"]) -> dict[str, Interval]:
    """Per cell, the share of inputs that get their label, over seeds."""
    share = np.where(np.isnan(leads).any(1), np.nan, (leads > 0).mean(1))
    cells = counterfactual.by_cell(share)
    inputs = leads.shape[1]
    return {
        cell: counterfactual.share_interval(per_seed, inputs) for cell, per_seed in cells.items()
    }


def summary(experiment: Experiment, found: Verification) -> dict[str, Any]:
    """The `verify` section of audit.json."""
    success = {name: _shown(cells) for name, cells in found.success.items()}
    attack = experiment.incident_attack or next(iter(experiment.attacks), None)
    count = experiment.targets.clean.stop - experiment.targets.clean.start
    blocks = {"clean": slice(0, count), "incident": slice(count, None)}
    return {
        "attack_success": success[attack.name] if attack else None,
        "accuracy": _shown(found.accuracy),
        "majority": _majority_share(experiment.targets.examples.take(experiment.targets.clean)),
        "success_by_attack": success,
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
    return {cell: cells[cell] for cell in ("before", "after", "after_random")}


def _levels(found: Verification, block: slice) -> dict[str, Interval]:
    """Mean output over a block of targets."""
    per_seed = {cell: outputs[:, block].mean(1) for cell, outputs in found.outputs.items()}
    return _shown({cell: counterfactual.interval(part) for cell, part in per_seed.items()})


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
