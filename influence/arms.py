"""The arms of a run's bank: their designs, and what every member of them does."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float32, Int

from datamodels.design import Bernoulli
from influence.config import Config
from influence.experiment import Experiment
from influence.members import Members
from training.arm import Arm, ArmSpec
from training.bank import Bank, Manifest
from training.errors import UserError
from training.parallel import local_layout
from training.seeds import root_key
from training.shards import Shard
from training.sweep import SweepConfig, Task, param_bytes

STREAMS = {"main": 0, "replicates": 1, "verification": 2}
"""Which root key each arm draws from; a number is never given to another arm."""


def designs(config: Config) -> dict[str, Bernoulli]:
    """The design of each arm, by the arm's name.

    There are no replicates where none are asked for, or where all members share one training key:
    they would all be the same.
    """
    sweep = config.sweep
    main = {"main": Bernoulli(sweep.alpha)}
    if sweep.seeds == "common" or not sweep.replicate_masks:
        return main
    return main | {"replicates": Bernoulli(sweep.alpha, replicates=sweep.replicate_seeds)}


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
            unit=unit_size(sweep),
            seed=sweep.seed,
            stream=STREAMS[name],
            design=design.describe(),
            common_seed=sweep.seeds == "common",
        )
        for name, design in designs(experiment.config).items()
    }


def unit_size(sweep: SweepConfig) -> int:
    """The unit of a new arm: whole launches of this machine, so that no device runs for nothing.

    `sweep` has its width, that is, no search is left to do.
    """
    launch = local_layout(sweep.width).launch
    return math.ceil(sweep.unit / launch) * launch


def kept_bytes(experiment: Experiment) -> int:
    """What the parameters of a member take on disk; 0 where they are not kept."""
    return param_bytes(experiment.model) if experiment.config.sweep.keep_params else 0


def own_units(specs: Iterable[ArmSpec], shard: Shard) -> dict[str, list[int]]:
    """The units of each arm, by its name, that are of a shard; counted over all arms."""
    own, first = {}, 0
    for spec in specs:
        own[spec.name] = [unit for unit in range(spec.units) if shard.owns(first + unit)]
        first += spec.units
    return own


def main_task(experiment: Experiment, manifest: Manifest | None = None) -> Task:
    """What every member of the sweep does.

    Args:
        experiment: what is trained, and on what targets.
        manifest: of a bank, whose order and panels the targets get.
    """
    examples, panels = experiment.targets.examples, (len(experiment.targets),)
    if manifest is not None:
        examples = examples.take(_positions(experiment.targets.ids, manifest.target_ids))
        panels = tuple(panel.targets for panel in manifest.panels)
    return Task(
        experiment.recipe,
        experiment.model,
        experiment.train.examples,
        examples,
        experiment.output,
        panels,
    )


def _positions(ids: Sequence[str], wanted: Sequence[str]) -> Int[np.ndarray, " t"]:
    """Where each of the wanted ids stands."""
    order = {id: position for position, id in enumerate(ids)}
    return np.array([order[id] for id in wanted])


def read_arms(bank: Bank, experiment: Experiment) -> tuple[Members, Members | None]:
    """The members of (the main arm, the replicates if there are any), each unit checked.

    Outputs are in the order of the experiment's targets.

    Raises:
        UserError: units are missing or damaged, or masks are not those of the design.
    """
    columns = _positions(bank.target_ids, experiment.targets.ids)
    found = {
        name: _members(bank.arm(name), design, columns)
        for name, design in designs(experiment.config).items()
    }
    return found["main"], found.get("replicates")


def _members(arm: Arm, design: Bernoulli, columns: Int[np.ndarray, " t"]) -> Members:
    masks, spec = arm.read_masks(), arm.spec
    root = root_key(spec.seed, spec.stream)
    for unit in range(spec.units):
        if (
            design.masks(root, spec.unit_rows(unit), spec.groups) != masks[spec.unit_slice(unit)]
        ).any():
            raise UserError(
                f"{arm.store}: its masks are not those of its design, so they come from another "
                f"version of the code or of JAX; sweep again into another --out"
            )

    def outputs(targets: slice) -> Float32[np.ndarray, "m b"]:
        wanted = columns[targets]
        # Targets that came later stand elsewhere in the bank, but seldom one by one.
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1)
        parts = [arm.read_outputs(slice(int(run[0]), int(run[-1]) + 1)) for run in runs]
        return np.concatenate(parts, axis=1)

    return Members(masks, arm.read_status(), outputs)
