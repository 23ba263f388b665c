"""The stages of joint effects: fitted at every level, verified, and refined by more retrains."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int

from influence import joint, joint_verification, levels, quality, refinement
from influence.arms import read_arms
from influence.artifacts import load_datamodel
from influence.experiment import Experiment
from influence.progress import say, working
from influence.recurring import update_scores
from influence.regression import divide
from influence.run import Run
from influence.sweeping import make_planned, sweep_stage
from influence.terms_file import TermRow, read_terms, rows_of, save_terms
from training.bank import Bank
from training.errors import UserError


def fit_joint(
    run: Run, experiment: Experiment, bank: Bank, additive: quality.Quality
) -> dict[str, Any]:
    """Fit joint datamodels of some targets and write their terms; returns what there is to say."""
    config, targets = experiment.config, experiment.targets
    against = levels.reason_against(experiment)
    if not config.fit.joint_targets:
        against = "fit.joint_targets = 0"
    if against is not None:
        run.terms.unlink(missing_ok=True)
        return {"reason_against": against}
    chosen = joint.choose_targets(
        targets, additive, config.fit.joint_targets, experiment.bad_targets
    )
    by_level, rows = {}, []
    for level in levels.levels(experiment):
        by_level[level.name], own = _fit_level(run, experiment, bank, level, chosen)
        # The finest level first: it says most exactly which examples.
        rows = [*own, *rows]
    save_terms(run, rows)
    return {
        "targets": len(chosen),
        "false_discovery_rate": quality.FALSE_DISCOVERIES,
        "levels": by_level,
    }


def _fit_level(
    run: Run,
    experiment: Experiment,
    bank: Bank,
    level: levels.Level,
    targets: Int[np.ndarray, " t"],
) -> tuple[dict[str, Any], list[TermRow]]:
    """What joint datamodels of some targets say at one level, or why they say nothing."""
    arms = read_arms(bank, experiment, level.arms, targets)
    groups = len(level.groups.names)
    try:
        with working(f"Fitting joint datamodels of {len(targets)} targets over {groups:,} groups"):
            found = joint.fit(divide(arms, level.fit, experiment.config.sweep.replicate_seeds))
    except UserError as error:  # nothing else of the run needs it
        say(f"Note: {error}")
        return {"reason_against": str(error)}, []
    rows = rows_of(found.terms, level.name, [experiment.targets.ids[t] for t in targets.tolist()])
    return found.summary, joint_verification.recalled(run, experiment, level, rows)


def verify_joint_stage(run: Run, experiment: Experiment) -> None:
    """Retrain the cells of the surest terms, and write what they show beside what was found."""
    _joint_summary(run)
    by_level: dict[str, list[TermRow]] = {}
    for row in read_terms(run):
        by_level.setdefault(row.level, []).append(row)
    verified = []
    for level in levels.levels(experiment):
        own = by_level.get(level.name, [])
        chosen = joint_verification.chosen(experiment, own)
        if not chosen:
            continue
        planned = joint_verification.planned(run, experiment, level, chosen)
        task = joint_verification.task(experiment, chosen)
        make_planned(run, experiment, planned, task, f"Verify joint effects: {level.name}")
        measured = joint_verification.measure(run, experiment, level, chosen)
        by_level[level.name] = [*measured, *own[len(chosen) :]]
        rows = [row for rows in by_level.values() for row in rows]
        _replace_terms(run, experiment, rows)
        for row in measured:
            say(joint_verification.line(experiment, level, row))
        verified += measured
    if not verified:
        say("No groups were found to act together, so there is nothing to verify")
        return
    confirmed = sum(row.status == "confirmed" for row in verified)
    say(f"{confirmed} of {len(verified)} joint effects are confirmed by retraining")


def refine_stage(
    run: Run,
    experiment: Experiment,
    members: int | None = None,
    *,
    dry_run: bool = False,
) -> str:
    """Split the groups that act together, retrain with the parts kept and dropped, and fit them.

    A refinement that was begun and interrupted is finished instead.

    Args:
        run: that was fitted.
        experiment: of the run, whose bank gets one more arm.
        members: of that arm; None: as many as the level before it.
        dry_run: only say what it would be.

    Returns:
        What came of it.

    Raises:
        UserError: the run has no joint effects.
    """
    fitted = _joint_summary(run)
    additive = load_datamodel(run, experiment.targets).quality
    finest = levels.levels(experiment)[-1]
    if finest.name not in fitted["levels"]:
        if dry_run:
            return f"Would go on with {finest.name}, which was begun"
        say(f"Going on with {finest.name}, which was begun, with as many members as it has")
    elif "reason_against" in fitted["levels"][finest.name]:
        reason = fitted["levels"][finest.name]["reason_against"]
        return f"Nothing is retrained: of {finest.name}, {reason}"
    else:
        rows = [row for row in read_terms(run) if row.level == finest.name]
        against = refinement.reason_against(finest, rows)
        if against is not None:
            return f"Nothing is retrained: {against}"
        plan = refinement.refine(experiment, finest, rows, members)
        if dry_run:
            return f"Would make {plan}"
        say(f"Making {plan}")
        experiment = dataclasses.replace(experiment, refined=(*experiment.refined, *plan.specs))
    run, experiment, bank = sweep_stage(experiment, run.path)
    finest, config = levels.levels(experiment)[-1], experiment.config
    chosen = joint.choose_targets(
        experiment.targets, additive, config.fit.joint_targets, experiment.bad_targets
    )
    summary, own = _fit_level(run, experiment, bank, finest, chosen)
    rows = [*own, *(row for row in read_terms(run) if row.level != finest.name)]
    _replace_terms(run, experiment, rows)
    metrics = run.read_audit()
    metrics["fit"]["joint"] = fitted | {"levels": fitted["levels"] | {finest.name: summary}}
    run.replace_audit(**metrics)
    if "reason_against" in summary:
        return f"Nothing can be said of {finest.name}: {summary['reason_against']}"
    if not summary["terms"]:
        return f"No sets of {finest.name} were found to act together"
    return (
        f"{summary['terms']} sets of {finest.name} act together; check them by retraining: "
        f"accomplice verify {run.path} --joint"
    )


def _replace_terms(run: Run, experiment: Experiment, rows: list[TermRow]) -> None:
    """Write the terms, and anew what scores.parquet says of them."""
    save_terms(run, rows)
    update_scores(run, experiment, rows)


def _joint_summary(run: Run) -> dict[str, Any]:
    """What the fit said of joint effects.

    Raises:
        UserError: it is of an older version, or has none.
    """
    run.require(run.datamodel, "fit")
    run.require(run.audit, "fit")
    fitted = run.read_audit()["fit"].get("joint")
    if fitted is None or ("levels" not in fitted and "reason_against" not in fitted):
        raise UserError(f"the fit is of an older version; run first: accomplice fit {run.path}")
    if "reason_against" in fitted:
        raise UserError(f"the run has no joint effects: {fitted['reason_against']}")
    return fitted
