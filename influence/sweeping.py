"""The stage that retrains, what it begins from, and the few retrains that later stages ask for."""

from pathlib import Path

from datamodels.design import from_description
from influence.arms import arm_specs, main_task, require_bank_space, stored_in
from influence.banks import bank_location, check_same, find_bank, join_bank, make_bank
from influence.config import Config, read_config
from influence.engines import Engine, LocalEngine, find_work
from influence.experiment import Experiment, prepare
from influence.layout import with_layout
from influence.progress import say
from influence.retrains import Planned
from influence.run import Run, open_run, write_run
from training.bank import Bank
from training.shards import WHOLE, Shard
from training.sweep import Task

LOCAL = LocalEngine()


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
        require_bank_space(planned, out)
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


def make_planned(
    run: Run, experiment: Experiment, planned: Planned, task: Task, title: str
) -> None:
    """Make what a verification planned and its bank lacks."""
    bank = Bank.create(planned.bank.store.location, planned.bank.manifest)
    arms = {title: (bank.arm(planned.arm.spec.name), planned.design)}
    LOCAL.make(experiment, bank, task, find_work(arms), run.progress)
