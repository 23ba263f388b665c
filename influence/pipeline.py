"""The one way data flows, stage by stage. `run_all` reads from top to bottom.

Every stage can also be called alone on a run directory: it reads what earlier stages wrote.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from datamodels.checks import separation
from datamodels.design import from_description
from influence import (
    attribution,
    copies,
    detection,
    hidden_support,
    joint,
    joint_verification,
    judging,
    levels,
    quality,
    refinement,
    removal,
    subpopulations,
    tracing,
    verification,
)
from influence.arms import (
    arm_specs,
    kept_bytes,
    main_task,
    mask_columns,
    read_arms,
    stored_in,
)
from influence.artifacts import (
    load_datamodel,
    read_scores,
    save_datamodel,
    save_scores,
    save_trace,
)
from influence.audit import Scores, flag, lowering, redundant, score, suspect, suspect_judged
from influence.banks import bank_location, check_same, find_bank, join_bank, make_bank
from influence.caveats import caveats
from influence.cleaning import write_cleaned
from influence.config import Config, read_config
from influence.counterfactual import random_like
from influence.engines import Engine, LocalEngine, find_work
from influence.experiment import Experiment, prepare
from influence.layout import with_layout
from influence.progress import say
from influence.regression import divide
from influence.report import write_report
from influence.retrains import Planned
from influence.run import Run, open_run, write_run
from influence.terms_file import TermRow, read_terms, rows_of, save_terms
from training.bank import Bank, require_space
from training.errors import UserError
from training.shards import WHOLE, Shard
from training.store import Store
from training.sweep import Task

LOCAL = LocalEngine()


def run_all(config: Config, out: Path, *, retrain: bool = False) -> Run:
    """Everything, from examples to the report; members made before are not made again.

    `retrain` is as in `sweep_stage`.
    """
    run, experiment, bank = sweep_stage(prepare_for(config, out), out, retrain=retrain)
    fit_stage(run, experiment, bank)
    audit_stage(run, experiment, bank)
    verify_stage(run, experiment)
    report_stage(run, experiment)
    return run


def prepare_for(config: Config, out: Path) -> Experiment:
    """What a run at `out` computes with: with the clusters that its bank has, if it has any.

    Raises:
        UserError: as `prepare`; something else stands at `out`.
    """
    bank = find_bank(config, out)
    return prepare(config) if bank is None else prepare(config, stored_in(bank.manifest, config))


def load_experiment(path: Path) -> tuple[Run, Experiment, Bank]:
    """The run directory at `path`, its experiment from its own config, and its bank.

    Raises:
        UserError: there is none, or the data, code or config it came from has changed since.
    """
    run = open_run(path)
    config = read_config(run.config)
    bank = Bank.open(bank_location(config, path))
    experiment = prepare(config, stored_in(bank.manifest, config))
    check_same(path, bank, experiment, arm_specs(experiment))
    return run, experiment, bank


def sweep_stage(
    experiment: Experiment,
    out: Path,
    shard: Shard = WHOLE,
    *,
    retrain: bool = False,
    engine: Engine = LOCAL,
) -> tuple[Run, Experiment, Bank]:
    """Create or resume the run directory and retrain what is missing or damaged.

    Args:
        experiment: what to sweep.
        out: the run directory.
        shard: the part of the units that this process makes.
        retrain: train members again for targets that an older bank lacks.
        engine: what makes the units.

    Returns:
        The run, the experiment with the layout that the run has, and the bank.
    """
    for note in experiment.notes:
        say(f"Note: {note}")
    planned = engine.with_layout(experiment, out)
    if find_bank(planned.config, out) is None:
        # What cannot fit leaves no run directory that another config would not fit, either.
        engine.require_memory(planned)
        place, specs = Store(bank_location(planned.config, out)), arm_specs(planned)
        require_space(place, list(specs.values()), len(planned.targets), kept_bytes(planned))
        make_bank(out, planned, arm_specs(planned))
    # Another process may have been first, with another layout.
    experiment = with_layout(experiment, out)
    bank = join_bank(out, experiment, arm_specs(experiment), retrain=retrain)
    run = write_run(out, experiment.config, bank.manifest)
    arms = {
        f"Sweep: {name}": (bank.arm(name), from_description(spec.design))
        for name, spec in arm_specs(experiment).items()
    }
    task = main_task(experiment, bank.manifest)
    works = find_work(arms, shard, keep_params=experiment.config.sweep.keep_params)
    engine.make(experiment, bank, task, works, run.progress)
    return run, experiment, bank


def sweep_alone(
    config: Config, out: Path, shard: Shard, *, retrain: bool = False, engine: Engine = LOCAL
) -> str:
    """The sweep of one process of maybe many; returns what there is to say at its end."""
    _, _, bank = sweep_stage(prepare_for(config, out), out, shard, retrain=retrain, engine=engine)
    left = sum(len(arm.missing_units()) for arm in bank.arms.values())
    if left:
        return (
            f"Shard {shard} complete; {left:,} units of others are missing. Once all processes "
            f"have ended, the same command with --shard 0/1 makes what they left"
        )
    return f"Bank complete: {bank.store}"


def fit_stage(run: Run, experiment: Experiment, bank: Bank) -> None:
    """Fit the datamodels, judge them on the held-out masks, and estimate effects."""
    config, targets = experiment.config, experiment.targets
    regression = divide(read_arms(bank, experiment), config.fit, config.sweep.replicate_seeds)
    for note in separation(regression.fitted.masks).notes():
        say(f"Note: {note}")
    say(f"Fitting datamodels of {len(targets)} targets")
    fixed_size = config.sweep.design == "fixed_size"
    judged = slice(targets.clean.start, targets.incident.stop)
    save_datamodel(
        run,
        regression.fitted.masks.shape[1],
        targets,
        attribution.fit(regression, len(targets)),
        attribution.effects(regression, judged, fixed_size=fixed_size),
        attribution.mean_effects(
            regression, (targets.clean, targets.incident), fixed_size=fixed_size
        ),
    )
    model = load_datamodel(run)
    summary = quality.summary(regression, model.diagnostics, model.quality, model.predict, targets)
    run.replace_audit(
        fit=summary
        | {
            "effects": quality.effects_summary(model.found),
            "members_needed": quality.members_needed(regression, targets, model.quality),
            "joint": _fit_joint(run, experiment, bank, model.quality),
            "seeds": config.sweep.seeds,
        }
    )


def _fit_joint(
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
    chosen = joint.choose_targets(targets, additive, config.fit.joint_targets)
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
    say(f"Fitting joint datamodels of {len(targets)} targets over {groups:,} groups")
    try:
        found = joint.fit(divide(arms, level.fit, experiment.config.sweep.replicate_seeds))
    except UserError as error:  # nothing else of the run needs it
        say(f"Note: {error}")
        return {"reason_against": str(error)}, []
    rows = rows_of(found.terms, level.name, [experiment.targets.ids[t] for t in targets.tolist()])
    return found.summary, joint_verification.recalled(run, experiment, level, rows)


def audit_stage(run: Run, experiment: Experiment, bank: Bank) -> None:
    """Score and rank the training examples, and flag the first of the rank."""
    run.require(run.datamodel, "fit")
    run.require(run.audit, "fit")
    config = experiment.config
    model, columns = load_datamodel(run), mask_columns(experiment)
    say("Searching for examples that support one another, and no clean target")
    hidden = hidden_support.search(
        model.weights, experiment.targets, columns, experiment.higher_is_better
    )
    scores = score(
        [arm.main.take(arm.main.usable) for arm in read_arms(bank, experiment)],
        model.weights,
        model.mean_effects,
        experiment.targets,
        columns,
        hidden,
        experiment.higher_is_better,
    )
    suspicion = suspect(scores)
    flagged = flag(suspicion.rank(experiment.protocol), config.audit.budget)
    save_scores(run, experiment, scores, suspicion, flagged)
    run.replace_audit(
        fit=run.read_audit()["fit"],
        protocol=experiment.protocol,
        flagged=int(flagged.sum()),
        examples=len(experiment.train),
        hidden_sets=hidden_support.described(experiment, hidden),
        copies=copies.search(experiment, model.weights),
        redundant=int(redundant(scores, flagged).sum()),
        lowering=lowering(scores, experiment.train.ids, quality.FALSE_DISCOVERIES),
        subpopulations=subpopulations.described(experiment, model.weights),
    )


def verify_stage(run: Run, experiment: Experiment) -> None:
    """Judge what is suspicious by retraining, and retrain without what is confirmed.

    Then score detection.
    """
    run.require(run.scores, "audit")
    audited = run.read_audit()
    if "flagged" not in audited:
        raise UserError(
            f"the scores are older than the fit; run first: accomplice audit {run.path}"
        )
    if "redundant" not in audited:
        raise UserError(f"the audit is of an older version; run first: accomplice audit {run.path}")
    _judge(run, experiment)
    planned = verification.planned(run, experiment)
    _retrain(run, experiment, planned, verification.task(experiment), "Verify by retraining")
    found = verification.measure(run, experiment)
    leaked, scores = copies.positions(experiment, audited["copies"]), read_scores(run)
    metrics = run.read_audit() | {
        "verify": verification.summary(experiment, found),
        "detection": detection.summary(experiment.attacks, scores, found.success),
        "leaks": detection.leaks(experiment.attacks, leaked, scores["planted"]),
    }
    run.replace_audit(**metrics)
    for caveat in caveats(run.read_audit()):
        say(f"Warning: {caveat}")


def _judge(run: Run, experiment: Experiment) -> None:
    """Write the verdicts into scores.parquet and audit.json; the ranks then follow them."""
    columns, audit = read_scores(run), run.read_audit()
    trial = judging.trial(experiment, columns["flagged"], audit["hidden_sets"])
    planned = judging.planned(run, experiment, trial)
    _retrain(run, experiment, planned, judging.task(experiment, trial), "Judge by retraining")
    verdicts = judging.measure(planned, trial)
    scores = Scores(**{name: columns[name] for name in Scores._fields})
    margin = verdicts.examples.margin
    known = margin if experiment.config.sweep.output == "margin" else np.full_like(margin, np.nan)
    suspicion = suspect_judged(scores, verdicts.support, known)
    save_scores(run, experiment, scores, suspicion, columns["flagged"], verdicts)
    summary = judging.described(experiment, verdicts)
    run.replace_audit(**audit | {"verdict": summary})
    say(f"{summary['confirmed']:,} of {summary['suspects']:,} suspects are confirmed by retraining")


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
    additive, finest = load_datamodel(run).quality, levels.levels(experiment)[-1]
    if additive.r2.shape[1] != len(experiment.targets):
        raise UserError(f"the fit lacks targets of the bank; run first: accomplice fit {run.path}")
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
    chosen = joint.choose_targets(experiment.targets, additive, config.fit.joint_targets)
    summary, rows = _fit_level(run, experiment, bank, finest, chosen)
    save_terms(run, [*rows, *(row for row in read_terms(run) if row.level != finest.name)])
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


def _retrain(run: Run, experiment: Experiment, planned: Planned, task: Task, title: str) -> None:
    """Make what a verification planned and its bank lacks."""
    bank = Bank.create(planned.bank.store.location, planned.bank.manifest)
    arms = {title: (bank.arm(planned.arm.spec.name), planned.design)}
    LOCAL.make(experiment, bank, task, find_work(arms), run.progress)


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
        _retrain(run, experiment, planned, task, f"Verify joint effects: {level.name}")
        measured = joint_verification.measure(run, experiment, level, chosen)
        by_level[level.name] = [*measured, *own[len(chosen) :]]
        save_terms(run, [row for rows in by_level.values() for row in rows])
        for row in measured:
            say(joint_verification.line(experiment, level, row))
        verified += measured
    if not verified:
        say("No groups were found to act together, so there is nothing to verify")
        return
    confirmed = sum(row.status == "confirmed" for row in verified)
    say(f"{confirmed} of {len(verified)} joint effects are confirmed by retraining")


def trace_stage(
    run: Run, experiment: Experiment, named: Sequence[str], *, flip: bool = False
) -> str:
    """Rank what is behind some predictions, and find by retraining how few have to go.

    Args:
        run: that was fitted.
        experiment: of the run.
        named: ids of the targets, or a file of them.
        flip: of clean targets the right predictions are to end, in place of the bad ones.

    Returns:
        What was found.

    Raises:
        UserError: targets that are not there; a run that was not fitted.
    """
    run.require(run.datamodel, "fit")
    audit, targets, columns = experiment.config.audit, experiment.targets, mask_columns(experiment)
    chosen = tracing.target_positions(targets, named)
    model = load_datamodel(run)
    if len(model.intercept) != len(targets):
        raise UserError(f"the fit lacks targets of the bank; run first: accomplice fit {run.path}")
    to_end = tracing.label_is_bad(targets, chosen) | flip
    traced = tracing.trace(
        model.weights, targets, columns, chosen, to_end, experiment.higher_is_better
    )
    order = traced.order()

    def without(removed: Bool[np.ndarray, "s n"], *, judging: bool) -> removal.Removal:
        planned = removal.planned(run, experiment, chosen, ~removed, judging=judging)
        title = f"Retrain, left out: {int(removed[0].sum()):,}"
        _retrain(run, experiment, planned, removal.task(experiment, chosen), title)
        return removal.measure(planned, to_end)

    def first(count: int) -> Bool[np.ndarray, "s n"]:
        return np.tile(np.isin(columns, order[:count]), (audit.seeds, 1))

    def still_bad(count: int) -> bool:
        return without(first(count), judging=False).still_bad

    most = removal.most(len(order))
    count = removal.smallest(still_bad, most) if still_bad(0) else 0
    removed = first(most if count is None else count)
    labels = np.asarray(experiment.train.examples.labels)
    control = random_like(labels, removed[0], audit.seeds, (audit.seed, 3))
    before, after, after_random = (
        without(each, judging=True) for each in (first(0), removed, control)
    )
    summary = {
        "targets": [targets.ids[at] for at in chosen],
        "flip": flip,
        "smallest": count,
        "most": most,
        "removed": experiment.train.ids[removed[0]].tolist(),
        "bad": {"before": before.bad, "after": after.bad, "after_random": after_random.bad},
        "output": {
            "before": before.output,
            "after": after.output,
            "after_random": after_random.output,
        },
        "seeds": audit.seeds,
    }
    if experiment.config.sweep.output == "margin":
        rows = tracing.rows_of(model.weights, chosen)
        kept = model.intercept[chosen] + rows.sum(1)
        summary["predicted"] = removal.predicted(kept, rows[:, order], to_end, most)
    save_trace(run, experiment, traced, columns, summary)
    return removal.said(summary)


def clean_stage(run: Run, experiment: Experiment, out: Path) -> str:
    """Write the data without what is confirmed, and why; returns what was written.

    Raises:
        UserError: nothing was judged yet; another ending than .parquet; what cannot be written.
    """
    run.require(run.scores, "audit")
    if "verdict" not in run.read_audit():
        raise UserError(f"nothing is judged yet; run first: accomplice verify {run.path}")
    return write_cleaned(run, experiment, read_scores(run), out)


def report_stage(run: Run, experiment: Experiment) -> None:
    """Write report.html from what the other stages left."""
    metrics = run.read_audit()
    if "verify" not in metrics or "verdict" not in metrics:
        raise UserError(f"nothing is verified yet; run first: accomplice verify {run.path}")
    if "redundant" not in metrics:
        raise UserError(f"the audit is of an older version; run first: accomplice audit {run.path}")
    found = verification.measure(run, experiment)
    write_report(run, experiment, metrics, read_scores(run), load_datamodel(run), found.change)
