"""The arms of a run's bank: their designs, and what every member of them does."""

import math

import numpy as np

from datamodels.design import Bernoulli
from influence.config import Config
from influence.experiment import Experiment
from training.arm import ArmSpec, Rows
from training.bank import Bank
from training.errors import UserError
from training.parallel import local_layout
from training.seeds import root_key
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


def read_arms(bank: Bank, config: Config) -> tuple[Rows, Rows | None]:
    """The members of (the main arm, the replicates if there are any), each unit checked.

    Raises:
        UserError: units are missing or damaged, or masks are not those of the design.
    """
    arms = {name: bank.arm(name).read() for name in designs(config)}
    for name, design in designs(config).items():
        spec = bank.arm(name).spec
        root, members = root_key(spec.seed, spec.stream), np.arange(spec.members)
        if (design.masks(root, members, spec.groups) != arms[name].masks).any():
            raise UserError(
                f"{bank.store}: the masks of {name} are not those of its design, so they come from "
                f"another version of the code or of JAX; sweep again into another --out"
            )
    return arms["main"], arms.get("replicates")
