"""The arms of a run's bank: their designs, and what every member of them does."""

import math

from datamodels.design import Bernoulli
from influence.config import Config
from influence.experiment import Experiment
from influence.run import Run
from training.bank import ArmSpec, Rows, open_arm
from training.parallel import local_layout
from training.sweep import SweepConfig, Task

STREAMS = {"main": 0, "replicates": 1, "verification": 2}
"""Which root key each arm draws from; a number is never given to another arm."""


def designs(config: Config) -> dict[str, Bernoulli]:
    """The design of each arm, by the arm's name.

    Where all members share one training key, replicates would all be the same.
    """
    sweep = config.sweep
    main = {"main": Bernoulli(sweep.alpha)}
    if sweep.seeds == "common":
        return main
    return main | {"replicates": Bernoulli(sweep.alpha, sweep.replicate_seeds)}


def member_counts(config: Config) -> dict[str, int]:
    """How many members each arm has, by the arm's name."""
    sweep = config.sweep
    counts = {"main": sweep.members, "replicates": sweep.replicate_masks * sweep.replicate_seeds}
    return {name: counts[name] for name in designs(config)}


def arm_specs(experiment: Experiment) -> dict[str, ArmSpec]:
    """What each arm holds, by the arm's name."""
    sweep = experiment.config.sweep
    members = member_counts(experiment.config)
    return {
        name: ArmSpec(
            name=name,
            members=members[name],
            groups=len(experiment.train),
            targets=len(experiment.targets),
            unit=unit_size(sweep, members[name]),
            seed=sweep.seed,
            stream=STREAMS[name],
            design=design.describe(),
            common_seed=sweep.seeds == "common",
        )
        for name, design in designs(experiment.config).items()
    }


def unit_size(sweep: SweepConfig, members: int) -> int:
    """The unit of a new arm: whole launches of this machine, so that no device runs for nothing.

    `sweep` has its width, that is, no search is left to do.
    """
    launch = local_layout(sweep.width).launch
    return min(math.ceil(sweep.unit / launch) * launch, members)


def main_task(experiment: Experiment) -> Task:
    """What every member of the sweep does."""
    return Task(
        experiment.recipe,
        experiment.model,
        experiment.train.examples,
        experiment.targets.examples,
        experiment.output,
    )


def read_arms(run: Run, experiment: Experiment) -> tuple[Rows, Rows | None]:
    """The members of (the main arm, the replicates if there are any), each unit checked."""
    run.require(run.bank, "sweep")
    arms = {
        name: open_arm(run.bank / name, spec).read() for name, spec in arm_specs(experiment).items()
    }
    return arms["main"], arms.get("replicates")
