"""The one way data flows, stage by stage. `run_all` reads from top to bottom.

Every stage can also be called alone on a run directory: it reads what earlier stages wrote.
"""

from collections.abc import Mapping
from pathlib import Path

from influence import attribution, detection, verification
from influence.arms import arm_specs, designs, main_task, own_units, read_arms
from influence.artifacts import (
    load_datamodel,
    read_scores,
    save_datamodel,
    save_scores,
)
from influence.audit import flag, score, suspect
from influence.banks import bank_location, check_same, find_bank, join_bank, make_bank
from influence.caveats import caveats
from influence.config import Config, read_config
from influence.experiment import Experiment, prepare
from influence.interruption import end_in_good_order
from influence.layout import sweeper_for, with_layout
from influence.progress import say, sweep_progress
from influence.report import write_report
from influence.run import Run, open_run, write_run
from training.arm import Arm
from training.bank import Bank, require_space
from training.checkpoints import delete_finished
from training.errors import UserError
from training.shards import WHOLE, Shard
from training.store import Store
from training.sweep import Design, Task, sweep


def run_all(config: Config, out: Path, *, retrain: bool = False) -> Run:
    """Everything, from examples to the report; members made before are not made again.

    `retrain` is as in `sweep_stage`.
    """
    run, experiment, bank = sweep_stage(prepare(config), out, retrain=retrain)
    fit_stage(run, experiment, bank)
    audit_stage(run, experiment, bank)
    verify_stage(run, experiment)
    report_stage(run, experiment)
    return run


def load_experiment(path: Path) -> tuple[Run, Experiment, Bank]:
    """The run directory at `path`, its experiment from its own config, and its bank.

    Raises:
        UserError: there is none, or the data, code or config it came from has changed since.
    """
    run = open_run(path)
    experiment = prepare(read_config(run.config))
    bank = Bank.open(bank_location(experiment.config, path))
    check_same(path, bank, experiment, arm_specs(experiment))
    return run, experiment, bank


def sweep_stage(
    experiment: Experiment, out: Path, shard: Shard = WHOLE, *, retrain: bool = False
) -> tuple[Run, Experiment, Bank]:
    """Create or resume the run directory and retrain what is missing or damaged.

    Args:
        experiment: what to sweep.
        out: the run directory.
        shard: the part of the units that this process makes.
        retrain: train members again for targets that an older bank lacks.

    Returns:
        The run, the experiment with the layout that the run has, and the bank.
    """
    for note in experiment.notes:
        say(f"Note: {note}")
    planned = with_layout(experiment, out)
    if find_bank(planned.config, out) is None:
        # What cannot fit leaves no run directory that another config would not fit, either.
        sweeper_for(planned, main_task(planned)).require_memory()
        place = Store(bank_location(planned.config, out))
        require_space(place, list(arm_specs(planned).values()), len(planned.targets))
        make_bank(out, planned, arm_specs(planned))
    # Another process may have been first, with another layout.
    experiment = with_layout(experiment, out)
    bank = join_bank(out, experiment, arm_specs(experiment), retrain=retrain)
    run = write_run(out, experiment.config, bank.manifest)
    arms = {
        f"Sweep: {name}": (bank.arm(name), design)
        for name, design in designs(experiment.config).items()
    }
    _make_missing(run, experiment, main_task(experiment, bank.manifest), arms, shard)
    return run, experiment, bank


def sweep_alone(config: Config, out: Path, shard: Shard, *, retrain: bool = False) -> str:
    """The sweep of one process of maybe many; returns what there is to say at its end."""
    _, _, bank = sweep_stage(prepare(config), out, shard, retrain=retrain)
    left = sum(len(arm.missing_units()) for arm in bank.arms.values())
    if left:
        return (
            f"Shard {shard} complete; {left:,} units of others are missing. Once all processes "
            f"have ended, the same command with --shard 0/1 makes what they left"
        )
    return f"Bank complete: {bank.store}"


def fit_stage(run: Run, experiment: Experiment, bank: Bank) -> None:
    """Fit the datamodels and judge them on the held-out masks."""
    config = experiment.config
    main, replicates = read_arms(bank, experiment)
    say(f"Fitting datamodels of {len(experiment.targets)} targets")
    parts = attribution.divide(main, config.fit)
    model = attribution.fit(parts, config.fit)
    quality = attribution.judge(model, parts, replicates, config.sweep.replicate_seeds)
    save_datamodel(run, model, quality)
    summary = attribution.summary(model, quality, experiment.targets, main, replicates)
    run.replace_audit(fit=summary | {"seeds": config.sweep.seeds})


def audit_stage(run: Run, experiment: Experiment, bank: Bank) -> None:
    """Score and rank the training examples, and flag the first of the rank."""
    run.require(run.datamodel, "fit")
    run.require(run.audit, "fit")
    config = experiment.config
    main, _ = read_arms(bank, experiment)
    model, _ = load_datamodel(run)
    scores = score(
        main.take(main.usable),
        model.weights,
        experiment.targets,
        higher_is_better=config.sweep.output != "loss",
    )
    suspicion = suspect(scores)
    flagged = flag(suspicion.rank, config.audit.budget)
    save_scores(run, experiment, scores, suspicion, flagged)
    run.replace_audit(
        fit=run.read_audit()["fit"],
        protocol=experiment.protocol,
        flagged=int(flagged.sum()),
        examples=len(experiment.train),
    )


def verify_stage(run: Run, experiment: Experiment) -> None:
    """Retrain without the flagged examples and without random ones; then score detection."""
    run.require(run.scores, "audit")
    planned = verification.planned(run, experiment)
    bank = Bank.create(planned.bank.store.location, planned.bank.manifest)
    arms = {"Verify by retraining": (bank.arm(verification.ARM), planned.design)}
    _make_missing(run, experiment, verification.task(experiment), arms)
    found = verification.measure(run, experiment)
    metrics = run.read_audit() | {
        "verify": verification.summary(experiment, found),
        "detection": detection.summary(experiment.attacks, read_scores(run), found.success),
    }
    run.replace_audit(**metrics)
    for caveat in caveats(run.read_audit()):
        say(f"Warning: {caveat}")


def report_stage(run: Run, experiment: Experiment) -> None:
    """Write report.html from what the other stages left."""
    metrics = run.read_audit()
    if "verify" not in metrics:
        raise UserError(f"nothing is verified yet; run first: accomplice verify {run.path}")
    _, quality = load_datamodel(run)
    change = verification.measure(run, experiment).change
    write_report(run, experiment, metrics, read_scores(run), quality, change)


def _make_missing(
    run: Run,
    experiment: Experiment,
    task: Task,
    arms: Mapping[str, tuple[Arm, Design]],
    shard: Shard = WHOLE,
) -> None:
    """Retrain what the shard's part of the arms lacks, compiled once for all of them."""
    config = experiment.config.sweep
    units, work = own_units([arm.spec for arm, _ in arms.values()], shard), []
    for title, (arm, design) in arms.items():
        own = units[arm.spec.name]
        delete_finished(arm)
        todo = arm.unfinished_units(own)
        if todo:
            work.append((title, arm, design, own, todo))
    if not work:
        return
    sweeper = sweeper_for(experiment, task)
    sweeper.require_memory()
    if not config.allow_mixed:
        for _, arm, *_ in work:
            arm.check_made_on(sweeper.made_on())
    say(f"Retraining on {sweeper.layout}")
    with end_in_good_order(config.grace, say) as stop:
        for title, arm, design, own, todo in work:
            if stop():
                break
            with sweep_progress(title, arm.spec, own, todo, run.progress) as on_unit:
                sweep(sweeper, arm, design, todo, on_unit, stop, allow_mixed=config.allow_mixed)
