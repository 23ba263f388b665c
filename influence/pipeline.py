"""The one way data flows, stage by stage. `run_all` reads from top to bottom.

Every stage can also be called alone on a run directory: it reads what earlier stages wrote.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float

from datamodels.additive import AdditiveDatamodel, FitDiagnostics
from datamodels.design import Bernoulli, Listed
from influence import attribution, counterfactual, detection
from influence.attribution import Quality
from influence.audit import Scores, Suspicion, flag, score, suspect
from influence.config import Config, read_config
from influence.counterfactual import Change, Interval
from influence.experiment import Experiment, prepare
from influence.progress import say, sweep_progress
from influence.report import write_report
from influence.run import Run, create_or_resume, open_run
from training.bank import Arm, ArmSpec, Rows, open_arm
from training.examples import Examples
from training.outputs import both, lead
from training.parallel import local_layout
from training.sweep import Sweeper, Task, sweep

ATTACK_WORKED = 0.5
"""Mean success before cleaning from which an attack counts as having worked."""


def run_all(config: Config, out: Path) -> Run:
    """Everything, from examples to the report; what is done already is not done again."""
    experiment = prepare(config)
    run = sweep_stage(experiment, out)
    fit_stage(run, experiment)
    audit_stage(run, experiment)
    verify_stage(run, experiment)
    report_stage(run, experiment)
    return run


def load_experiment(path: Path) -> tuple[Run, Experiment]:
    """The run directory at `path` and its experiment, from its own config."""
    run = open_run(path)
    return run, prepare(read_config(run.config))


def sweep_stage(experiment: Experiment, out: Path) -> Run:
    """Create or resume the run directory and retrain every member that is missing."""
    designs, specs = _designs(experiment.config), _arm_specs(experiment)
    run = create_or_resume(out, experiment, tuple(specs.values()))
    arms = {name: open_arm(run.bank / name, spec) for name, spec in specs.items()}
    if any(arm.missing_units() for arm in arms.values()):
        sweeper = Sweeper(_task(experiment), local_layout(experiment.config.sweep.width))
        layout = sweeper.layout
        say(
            f"Training {sum(spec.members for spec in specs.values())} members on "
            f"{len(layout.devices)} {layout.device_kind} device(s), {layout.width} side by side"
        )
        for name, arm in arms.items():
            with sweep_progress(f"Sweep: {name}", arm, run.progress) as on_unit:
                sweep(sweeper, arm, designs[name], on_unit)
    return run


def fit_stage(run: Run, experiment: Experiment) -> None:
    """Fit the datamodels and judge them on the held-out masks."""
    config = experiment.config
    main, replicates = _read_arms(run, experiment)
    say(f"Fitting datamodels of {len(experiment.targets)} targets")
    parts = attribution.divide(main, config.fit)
    model = attribution.fit(parts, config.fit)
    quality = attribution.judge(model, parts, replicates, config.sweep.replicate_seeds)
    _save_datamodel(run, model, quality)
    summary = attribution.summary(model, quality, experiment.targets, main, replicates)
    run.update_audit(fit=summary)


def audit_stage(run: Run, experiment: Experiment) -> None:
    """Score and rank the training examples, and flag the first of the rank."""
    run.require(run.datamodel, "fit")
    main, _ = _read_arms(run, experiment)
    usable = Rows(*(part[main.usable] for part in main))
    model, _ = _load_datamodel(run)
    config = experiment.config
    scores = score(
        usable, model.weights, experiment.targets, higher_is_better=config.sweep.output != "loss"
    )
    suspicion = suspect(scores)
    flagged = flag(suspicion.rank, config.audit.budget)
    _save_scores(run, experiment, scores, suspicion, flagged)
    run.update_audit(
        protocol=experiment.protocol,
        flagged=int(flagged.sum()),
        examples=len(experiment.train),
    )


def verify_stage(run: Run, experiment: Experiment) -> None:
    """Retrain without the flagged examples and without random ones; then score detection."""
    run.require(run.scores, "audit")
    arm, design = _verification_arm(run, experiment)
    if arm.missing_units():
        sweeper = Sweeper(
            _verification_task(experiment), local_layout(experiment.config.sweep.width)
        )
        with sweep_progress("Verify by retraining", arm, run.progress) as on_unit:
            sweep(sweeper, arm, design, on_unit)
    verification = _measure(run, experiment, arm)
    run.update_audit(
        verify=_verify_summary(experiment, verification),
        detection=_detection(run, experiment, verification),
    )


def report_stage(run: Run, experiment: Experiment) -> None:
    """Write report.html from what the other stages left."""
    run.require(run.verification, "verify")
    arm, _ = _verification_arm(run, experiment)
    _, quality = _load_datamodel(run)
    write_report(
        run,
        experiment,
        run.read_audit(),
        read_scores(run),
        quality,
        _measure(run, experiment, arm).change,
    )


def read_scores(run: Run) -> dict[str, np.ndarray]:
    """The columns of scores.parquet."""
    table = pq.read_table(run.scores)
    return {name: table[name].to_numpy() for name in table.column_names}


# --- the bank ---------------------------------------------------------------------------------


def _designs(config: Config) -> dict[str, Bernoulli]:
    sweep = config.sweep
    return {
        "main": Bernoulli(sweep.alpha),
        "replicates": Bernoulli(sweep.alpha, sweep.replicate_seeds),
    }


def _arm_specs(experiment: Experiment) -> dict[str, ArmSpec]:
    sweep = experiment.config.sweep
    members = {"main": sweep.members, "replicates": sweep.replicate_masks * sweep.replicate_seeds}
    return {
        name: ArmSpec(
            name=name,
            members=members[name],
            groups=len(experiment.train),
            targets=len(experiment.targets),
            unit=sweep.unit,
            seed=sweep.seed,
            stream=stream,
            design=design.describe(),
        )
        for stream, (name, design) in enumerate(_designs(experiment.config).items())
    }


def _task(experiment: Experiment) -> Task:
    return Task(
        experiment.recipe,
        experiment.model,
        experiment.train.examples,
        experiment.targets.examples,
        experiment.output,
    )


def _read_arms(run: Run, experiment: Experiment) -> tuple[Rows, Rows]:
    specs = _arm_specs(experiment)
    run.require(run.bank, "sweep")
    main, replicates = (open_arm(run.bank / name, specs[name]).read() for name in specs)
    return main, replicates


# --- files of the stages ----------------------------------------------------------------------


def _save_datamodel(run: Run, model: AdditiveDatamodel, quality: Quality) -> None:
    run.datamodel.parent.mkdir(exist_ok=True)
    temporary = run.datamodel.with_suffix(".partial.npz")
    np.savez(
        temporary,
        weights=model.weights,
        intercept=model.intercept,
        **dataclasses.asdict(model.diagnostics),
        **quality._asdict(),
    )
    temporary.replace(run.datamodel)


def _load_datamodel(run: Run) -> tuple[AdditiveDatamodel, Quality]:
    with np.load(run.datamodel, allow_pickle=False) as stored:
        diagnostics = FitDiagnostics(
            **{field.name: stored[field.name] for field in dataclasses.fields(FitDiagnostics)}
        )
        model = AdditiveDatamodel(stored["intercept"], stored["weights"], diagnostics)
        return model, Quality(*(stored[name] for name in Quality._fields))


def _save_scores(
    run: Run,
    experiment: Experiment,
    scores: Scores,
    suspicion: Suspicion,
    flagged: Bool[np.ndarray, " n"],
) -> None:
    planted = np.full(len(flagged), "", dtype=object)
    for attack in experiment.attacks:
        planted[attack.positions] = attack.name
    columns: dict[str, Any] = {
        "id": experiment.train.ids,
        "label": np.asarray(experiment.train.examples.labels),
        **scores._asdict(),
        "rank_blind": suspicion.blind,
        **({} if suspicion.incident is None else {"rank_incident": suspicion.incident}),
        "suspicion": 1 - (suspicion.rank - 1) / len(flagged),
        "rank": suspicion.rank,
        "flagged": flagged,
        "planted": planted,
    }
    temporary = run.scores.with_suffix(".partial")
    pq.write_table(pa.table(columns), temporary)
    temporary.replace(run.scores)


# --- verification -----------------------------------------------------------------------------


class Verification(NamedTuple):
    """What the retrains of the verification show."""

    accuracy: dict[str, Interval]
    """Of the clean targets; per cell."""
    success: dict[str, dict[str, Interval]]
    """Per attack, per cell."""
    change: Change
    """Of the outputs of the clean and the incident targets."""


def _verification_blocks(experiment: Experiment) -> dict[str, Examples]:
    """The inputs that verification evaluates, by name."""
    targets = experiment.targets
    blocks = {"clean": targets.clean, "incident": targets.incident}
    return {
        **{name: Examples(*(part[block] for part in targets.examples)) for name, block in
           blocks.items()},
        **{f"trial:{attack.name}": attack.trial for attack in experiment.attacks},
    }  # fmt: skip


def _verification_task(experiment: Experiment) -> Task:
    parts = zip(*_verification_blocks(experiment).values(), strict=True)
    examples = Examples(*(np.concatenate(part) for part in parts))
    return _task(experiment)._replace(targets=examples, output=both(experiment.output, lead))


def _verification_arm(run: Run, experiment: Experiment) -> tuple[Arm, Listed]:
    """The arm of the current flags; it lives in a folder named after its masks."""
    config = experiment.config
    flagged = read_scores(run)["flagged"]
    design = counterfactual.plan(flagged, config.sweep.alpha, config.audit.seeds, config.audit.seed)
    inputs = sum(len(block) for block in _verification_blocks(experiment).values())
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


def _measure(run: Run, experiment: Experiment, arm: Arm) -> Verification:
    rows = arm.read()
    blocks = _verification_blocks(experiment)
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
            _load_datamodel(run)[0].weights[:, chosen],
            read_scores(run)["flagged"],
        ),
    )


def _share_correct(leads: Float[np.ndarray, "m k"]) -> dict[str, Interval]:
    """Per cell, the share of inputs that get their label, over seeds."""
    share = np.where(np.isnan(leads).any(1), np.nan, (leads > 0).mean(1))
    cells = counterfactual.by_cell(share)
    return {cell: counterfactual.interval(per_seed) for cell, per_seed in cells.items()}


def _verify_summary(experiment: Experiment, found: Verification) -> dict[str, Any]:
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


def _detection(run: Run, experiment: Experiment, found: Verification) -> dict[str, Any]:
    """The `detection` section of audit.json: each attack in the protocol that can find it."""
    scores = read_scores(run)
    planted = scores["planted"]
    entries = {}
    for attack in experiment.attacks:
        this = planted == attack.name
        other = (planted != "") & ~this
        worked = found.success[attack.name]["before"][0] >= ATTACK_WORKED
        blind = detection.entry("blind", worked, scores["rank_blind"], this, other)
        if attack.incident is None:
            entries[attack.name] = blind
        else:
            rank = scores["rank_incident"]
            entries[attack.name] = detection.entry("incident", worked, rank, this, other)
            entries[f"{attack.name}_blind"] = blind
    return entries
