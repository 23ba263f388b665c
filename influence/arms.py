"""The arms of a run's bank: their designs, and what every member of them does."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float32, Int, Key

from datamodels.design import Bernoulli, Drawn, FixedSize, Pairs, TwoLevel, from_description
from influence.config import Config
from influence.experiment import Experiment
from influence.members import Members
from training.arm import Arm, ArmSpec
from training.bank import Bank, Manifest
from training.errors import UserError
from training.groups import Groups, describe
from training.parallel import local_layout
from training.seeds import root_key
from training.shards import Shard
from training.sweep import SweepConfig, Task, param_bytes

VERIFICATION_STREAM = 2
"""Which root key the verification draws from; no arm of `alpha_arms` has it."""
JOINT_STREAM = 2**20
"""Which the verification of terms draws from."""


class AlphaArms(NamedTuple):
    """The arms of one alpha: members with a mask each, and replicates, which show seed noise."""

    alpha: float
    main: str
    replicates: str
    streams: tuple[int, int]
    """Which root keys the two draw from; a number is never given to another arm."""


def alpha_arms(sweep: SweepConfig) -> list[AlphaArms]:
    """The arms of each alpha; the first are called "main" and "replicates"."""
    first, *others = sweep.alpha
    return [
        AlphaArms(first, "main", "replicates", (0, 1)),
        *(
            AlphaArms(alpha, f"main_{alpha:g}", f"replicates_{alpha:g}", (2 * at + 3, 2 * at + 4))
            for at, alpha in enumerate(others)
        ),
    ]


def has_replicates(sweep: SweepConfig) -> bool:
    """Whether seed noise is measured.

    Not where no replicates are asked for, nor where all members share one training key: they would
    all be the same.
    """
    return sweep.seeds != "common" and sweep.replicate_masks > 0


def member_counts(config: Config) -> dict[str, int]:
    """How many members each arm has, by the arm's name."""
    sweep, counts = config.sweep, {}
    for arms in alpha_arms(sweep):
        counts[arms.main] = sweep.members
        if has_replicates(sweep):
            counts[arms.replicates] = sweep.replicate_masks * sweep.replicate_seeds
    return counts


def arm_specs(experiment: Experiment) -> dict[str, ArmSpec]:
    """What each arm holds, by the arm's name."""
    sweep, groups = experiment.config.sweep, experiment.groups
    members, specs = member_counts(experiment.config), {}
    of_groups, columns = masks_groups(experiment), mask_columns(experiment)
    for arms in alpha_arms(sweep):
        pair = zip(
            (arms.main, arms.replicates), arms.streams, (1, sweep.replicate_seeds), strict=True
        )
        for name, stream, replicates in pair:
            if name not in members:
                continue
            specs[name] = ArmSpec(
                name=name,
                members=members[name],
                groups=int(columns.max()) + 1,
                unit=unit_size(sweep),
                seed=sweep.seed,
                stream=stream,
                design=_design(sweep, arms.alpha, groups, replicates).describe(),
                common_seed=sweep.seeds == "common",
                group_of=tuple(groups.of.tolist()) if of_groups else None,
                grouping=groups.made_by,
            )
    return specs


def mask_columns(experiment: Experiment) -> Int[np.ndarray, " n"]:
    """The column of a mask that keeps or drops each training example."""
    groups = experiment.groups.of
    return groups if masks_groups(experiment) else np.arange(len(groups))


def masks_groups(experiment: Experiment) -> bool:
    """Whether a mask's columns are groups, and not examples: two levels draw every example."""
    return not experiment.groups.is_single and experiment.config.sweep.design != "two_level"


def group_name(experiment: Experiment, column: int) -> str:
    """What a column of the masks is: an example by its id, or a group by its name."""
    if not masks_groups(experiment):
        return f"example {experiment.train.ids[column]}"
    size = int((experiment.groups.of == column).sum())
    return f"{experiment.groups.names[column]} ({size} examples)"


def fresh_masks(spec: ArmSpec, root: Key[Array, ""], count: int) -> Bool[np.ndarray, "s g"]:
    """Masks as the arm draws them, on independent draws of another root."""
    # Of complementary masks the first ones.
    members = np.arange(count) * (2 if spec.design["kind"] == "pairs" else 1)
    return from_description(spec.design).masks(root, members, spec.groups)


def _design(sweep: SweepConfig, alpha: float, groups: Groups, replicates: int) -> Drawn:
    match sweep.design:
        case "fixed_size":
            return FixedSize(alpha, replicates=replicates)
        case "pairs":
            return Pairs(replicates=replicates)
        case "two_level":
            clusters = tuple(groups.of.tolist())
            return TwoLevel(alpha, sweep.inner_alpha, clusters, replicates=replicates)
    return Bernoulli(alpha, replicates=replicates)


def clusters_of(manifest: Manifest, config: Config) -> Sequence[int] | None:
    """The clusters of training examples that a bank has; None where others are asked for."""
    spec = manifest.arms.get("main")
    if spec is None or spec.grouping != describe(config.groups):
        return None
    return spec.group_of or spec.design.get("clusters")


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


class Arms(NamedTuple):
    """The members of one alpha."""

    name: str
    """Of the main arm."""
    alpha: float
    """Probability that a mask's group is kept."""
    main: Members
    replicates: Members | None


def read_arms(bank: Bank, experiment: Experiment) -> list[Arms]:
    """The members of every alpha, each unit checked.

    Outputs are in the order of the experiment's targets.

    Raises:
        UserError: units are missing or damaged, or masks are not those of the design.
    """
    columns = _positions(bank.target_ids, experiment.targets.ids)
    sweep, found = experiment.config.sweep, []
    for arms in alpha_arms(sweep):
        main = bank.arm(arms.main)
        replicates = None
        if has_replicates(sweep):
            replicates = _members(bank.arm(arms.replicates), columns)
        alpha = main.spec.design["alpha"]
        found.append(Arms(arms.main, alpha, _members(main, columns), replicates))
    return found


def _members(arm: Arm, columns: Int[np.ndarray, " t"]) -> Members:
    masks, spec = arm.read_masks(), arm.spec
    root, design = root_key(spec.seed, spec.stream), from_description(spec.design)
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

    everyone = np.arange(spec.members)
    # Of replicates nobody asks for it.
    single = np.full((1, 1), spec.design["alpha"])
    alpha = design.probabilities(root, everyone, spec.groups) if design.replicates == 1 else single
    return Members(masks, arm.read_status(), outputs, alpha, design.draws(everyone))
