"""The one way data flows, stage by stage. `run_all` reads from top to bottom.

Every stage can also be called alone on a run directory: it reads what earlier stages wrote.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from datamodels.additive import AdditiveDatamodel
from datamodels.checks import separation
from influence import (
    attribution,
    detection,
    hidden_support,
    image_clusters,
    joint_stages,
    judging,
    leakage,
    look_alikes,
    quality,
    removal,
    strangers,
    subpopulations,
    trace_words,
    tracing,
    verification,
)
from influence.arms import mask_columns, positions_of, read_arms
from influence.artifacts import (
    load_datamodel,
    read_scores,
    require_space_to_fit,
    save_datamodel,
    save_scores,
    save_trace,
)
from influence.audit import (
    Scores,
    Suspicion,
    flag,
    lowering,
    mostly_confirmed,
    redundant,
    score,
    suspect,
    suspect_judged,
    unseen,
)
from influence.caveats import caveats
from influence.cleaning import write_cleaned
from influence.config import Config
from influence.counterfactual import RANDOM_TRACED
from influence.experiment import Experiment
from influence.likeness import mean_of_alike
from influence.progress import progress, say, working
from influence.recurring import targets_reached
from influence.regression import divide
from influence.report import write_report
from influence.run import AUDIT_VERSION, Run
from influence.sweeping import make_planned, prepare_for, sweep_stage
from influence.terms_file import read_terms
from influence.verdict import Verdicts
from training.bank import Bank
from training.errors import UserError

JUDGED = ("verdict", "verify", "detection", "leaks")
"""Parts of audit.json that `verify_stage` makes."""


def run_all(config: Config, out: Path, *, retrain: bool = False) -> Run:
    """Everything, from examples to the report; members made before are not made again.

    `retrain` is as in `sweep_stage`.

    Raises:
        UserError: as each stage.
    """
    experiment = prepare_for(config, out)
    require_space_to_fit(experiment, out)
    run, experiment, bank = sweep_stage(experiment, out, retrain=retrain)
    fit_stage(run, experiment, bank)
    audit_stage(run, experiment, bank)
    verify_stage(run, experiment)
    report_stage(run, experiment)
    return run


def fit_stage(run: Run, experiment: Experiment, bank: Bank) -> None:
    """Fit the datamodels, judge them on the held-out masks, and estimate effects.

    Raises:
        UserError: members are missing, too few are finite, or the fit does not fit on the disk.
    """
    config, targets = experiment.config, experiment.targets
    require_space_to_fit(experiment, run.path)
    regression = divide(read_arms(bank, experiment), config.fit, config.sweep.replicate_seeds)
    for note in separation(regression.fitted.masks).notes():
        say(f"Note: {note}")
    prepared = attribution.prepare_effects(
        regression, fixed_size=config.sweep.design == "fixed_size"
    )
    judged = slice(targets.clean.start, targets.incident.stop)
    with progress("Fit datamodels", len(targets), "targets") as advance:

        def told() -> Iterator[tuple[AdditiveDatamodel, quality.Quality]]:
            for model, how_good in attribution.fit(regression, len(targets)):
                advance(len(model.intercept))
                yield model, how_good

        save_datamodel(
            run,
            regression.fitted.masks.shape[1],
            targets,
            told(),
            attribution.effects(regression, prepared, judged),
            attribution.mean_effects(regression, prepared, (targets.clean, targets.incident)),
        )
    model = load_datamodel(run, targets)
    summary = quality.summary(regression, model.diagnostics, model.quality, model.predict, targets)
    run.replace_audit(
        fit=summary
        | {
            "effects": quality.effects_summary(model.found),
            "members_needed": quality.members_needed(regression, targets, model.quality),
            "joint": joint_stages.fit_joint(run, experiment, bank, model.quality),
            "seeds": config.sweep.seeds,
        }
    )


def audit_stage(run: Run, experiment: Experiment, bank: Bank) -> None:
    """Score and rank the training examples, and flag the most suspicious.

    Raises:
        UserError: a run that was not fitted.
    """
    run.require(run.datamodel, "fit")
    run.require(run.audit, "fit")
    config = experiment.config
    model, columns = load_datamodel(run, experiment.targets), mask_columns(experiment)
    with working("Searching for examples that support one another, and no clean target"):
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
        experiment.vocabulary,
    )
    suspicion = suspect(scores)
    # Texts have no pattern that sets could be judged by.
    with_sets = experiment.vocabulary > 0
    flagged = flag(scores, experiment.protocol, config.audit.budget, with_sets=with_sets)
    replaced = redundant(scores, flagged)
    clusters = image_clusters.of_training(experiment)
    fit = run.read_audit()["fit"]
    found = {
        "version": AUDIT_VERSION,
        "protocol": experiment.protocol,
        "flagged": int(flagged.sum()),
        "examples": len(experiment.train),
        "hidden_sets": hidden_support.described(experiment, hidden),
        "look_alikes": image_clusters.described(experiment, clusters, look_alikes.search),
        "strangers": image_clusters.described(experiment, clusters, strangers.search),
        "copies": leakage.search(experiment, model.weights),
        "redundant": int(replaced.sum()),
        "lowering": lowering(scores, columns, experiment.train.ids, quality.FALSE_DISCOVERIES),
        "subpopulations": subpopulations.described(experiment, model.weights),
    }
    reached = targets_reached(experiment, read_terms(run))
    # An interruption between the two files leaves no audit that is not of the scores.
    run.replace_audit(fit=fit)
    save_scores(run, experiment, scores, suspicion, flagged, replaced, reached)
    run.replace_audit(fit=fit, **found)


def verify_stage(run: Run, experiment: Experiment) -> None:
    """Judge what is suspicious by retraining, and retrain without what is confirmed.

    Then score detection.

    Raises:
        UserError: a run that was not audited; too many members that are not finite.
    """
    audited = run.read_audited()
    # A fit of other targets is refused before anything is retrained.
    weights = load_datamodel(run, experiment.targets).weights
    _judge(run, experiment)
    planned = verification.planned(run, experiment)
    make_planned(run, experiment, planned, verification.task(experiment), "Verify by retraining")
    found = verification.measure(run, experiment, weights)
    leaked, scores = leakage.positions(experiment, audited["copies"]), read_scores(run)
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
    columns, audit = read_scores(run), run.read_audited()
    sets = (audit["hidden_sets"], audit["look_alikes"], audit["strangers"])
    disputed = (columns["out_of_bag"] < 0) & experiment.gives_margins
    trial = judging.trial(experiment, columns["flagged"], disputed, *sets)
    planned = judging.planned(run, experiment, trial)
    make_planned(run, experiment, planned, judging.task(experiment, trial), "Judge by retraining")
    verdicts = judging.measure(planned, trial)
    scores = Scores(**{name: columns[name] for name in Scores._fields})
    suspicion = _rank_judged(experiment, scores, verdicts, audit["strangers"] or ())
    flagged, reached = columns["flagged"], columns["targets_reached"]
    # What is confirmed is not left out as what others replace.
    replaced = redundant(scores, flagged | verdicts.confirmed)
    summary = judging.described(experiment, planned, verdicts, flagged)
    audit = {name: part for name, part in audit.items() if name not in JUDGED}
    run.replace_audit(**audit)
    save_scores(run, experiment, scores, suspicion, flagged, replaced, reached, verdicts)
    run.replace_audit(**audit | {"redundant": int(replaced.sum()), "verdict": summary})
    say(f"Confirmed by retraining: {summary['confirmed']:,} of {summary['judged']:,} examples")


def _rank_judged(
    experiment: Experiment, scores: Scores, verdicts: Verdicts, strange: Sequence[dict[str, Any]]
) -> Suspicion:
    """The ranks that follow the verdicts; `strange` are the `strangers` of audit.json.

    The bad predictions of an incident decide which examples are judged by themselves: there the
    blind rank follows only what retraining showed of sets, which are found without them.
    """
    train, examples = experiment.train, verdicts.examples
    inputs, labels = np.asarray(train.examples.inputs), np.asarray(train.examples.labels)
    clusters = [positions_of(train.ids.tolist(), one["examples"]) for one in strange]

    def ranked(margin: Float[np.ndarray, " n"], confirmed: Bool[np.ndarray, " n"]) -> Suspicion:
        outputs = unseen(scores.out_of_bag, margin)
        alike = mean_of_alike(np.minimum(outputs, 0), inputs, labels, experiment.vocabulary)
        first = mostly_confirmed(confirmed, clusters)
        return suspect_judged(scores, verdicts.support, outputs, alike, first)

    unknown = np.full_like(examples.margin, np.nan)
    judged = ranked(examples.margin if experiment.gives_margins else unknown, verdicts.confirmed)
    if experiment.protocol == "incident":
        of_sets = ranked(unknown, np.zeros_like(verdicts.confirmed))
        return judged._replace(blind=of_sets.blind)
    return judged


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
    model = load_datamodel(run, targets)
    to_end = tracing.label_is_bad(targets, chosen) | flip
    # What supports a right prediction is to be ended by the fewest, not by whole sets.
    audited = run.read_audit()
    if "flagged" in audited:
        audited = run.read_audited()
    sets = [] if flip else tracing.suspected_sets(audited, experiment)
    carried = [] if flip else tracing.carried_sets(audited, experiment, chosen)
    higher = experiment.higher_is_better
    traced = tracing.trace(model.weights, targets, columns, chosen, to_end, higher, sets, carried)

    def retrain(removed: Bool[np.ndarray, "s n"], judging: bool) -> removal.Removal:
        planned = removal.planned(run, experiment, chosen, ~removed, judging=judging)
        title = f"Retrain, left out: {int(removed[0].sum()):,}"
        make_planned(run, experiment, planned, removal.task(experiment, chosen), title)
        return removal.measure(planned, to_end)

    labels = np.asarray(experiment.train.examples.labels)
    found = removal.search(
        retrain,
        traced.orders(),
        1.0 if flip else removal.SHARE,
        columns,
        labels,
        audit.seeds,
        (audit.seed, RANDOM_TRACED),
    )
    order = traced.order(found.by)
    summary = {
        "targets": [targets.ids[at] for at in chosen],
        "flip": flip,
        "removed": experiment.train.ids[found.removed].tolist(),
        "seeds": audit.seeds,
    } | removal.described(found)
    if experiment.gives_margins:
        rows = tracing.rows_of(model.weights, chosen)
        kept = model.intercept[chosen] + rows.sum(1)
        foretold = removal.predicted(kept, rows[:, order], to_end, found.most)
        # Where no class has half of the probability, a prediction stands with a margin below 0.
        if foretold != 0:
            summary["predicted"] = foretold
    save_trace(run, experiment, traced, columns, summary)
    shown = f"\nSee it in the report: accomplice report {run.path}" if run.report.exists() else ""
    return trace_words.said(summary) + shown


def clean_stage(run: Run, experiment: Experiment, out: Path) -> str:
    """Write the data without what is confirmed, and why; returns what was written.

    Raises:
        UserError: nothing was judged yet; another ending than .parquet; what cannot be written.
    """
    if "verdict" not in run.read_audited():
        raise UserError(f"nothing is judged yet; run first: accomplice verify {run.path}")
    return write_cleaned(run, experiment, read_scores(run), out)


def report_stage(run: Run, experiment: Experiment) -> None:
    """Write report.html from what the other stages left.

    Raises:
        UserError: a run that was not verified.
    """
    metrics = run.read_verified()
    model = load_datamodel(run, experiment.targets)
    found = verification.measure(run, experiment, model.weights)
    write_report(run, experiment, metrics, read_scores(run), model, found.change)
