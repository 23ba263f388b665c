"""The arms of a run's bank: their designs, and what every member of them does."""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float32, Int, Key

from datamodels.design import Bernoulli, Drawn, FixedSize, Pairs, TwoLevel, from_description
from influence.banks import bank_location
from influence.config import Config, JointConfig
from influence.experiment import Experiment, Stored, cluster_members
from influence.members import Members
from training.arm import TARGET_BLOCK, Arm, ArmSpec
from training.bank import Bank, Manifest, require_space
from training.errors import UserError
from training.groups import Groups, describe
from training.parallel import local_layout
from training.seeds import root_key
from training.shards import Shard
from training.store import Store
from training.sweep import SweepConfig, Task, param_bytes

VERIFICATION_STREAM = 2
"""Which root key the verification draws from; no arm of `alpha_arms` has it."""
CLUSTER_STREAM = 2**16
"""Which the first arm of clusters draws from, and its replicates from the next."""
REFINED_STREAM = 2**18
"""Which the first refined arm draws from."""
JOINT_STREAM = 2**20
"""Which the verification of terms draws from."""
TRACE_STREAM = 2**20 + 1
"""Which the retrains of a trace draw from."""
VERDICT_STREAM = 2**20 + 2
"""Which the retrains of the verdict draw from."""

CLUSTERS = "clusters"
REFINED = "refined_"
REPLICATES = "_replicates"
"""Names of arms."""


class AlphaArms(NamedTuple):
    """The arms of one alpha: members with a mask each, and replicates, which show seed noise."""

    alpha: float
    main: str
    replicates: str
    streams: tuple[int, int]
    """Which root keys the two draw from; a number is never given to another arm."""


def alpha_arms(sweep: SweepConfig) -> list[AlphaArms]:
    """The arms of each alpha of the sweep; the first are called "main" and "replicates"."""
    first, *others = sweep.alpha
    return [
        AlphaArms(first, "main", "replicates", (0, 1)),
        *(
            AlphaArms(alpha, f"main_{alpha:g}", f"replicates_{alpha:g}", (2 * at + 3, 2 * at + 4))
            for at, alpha in enumerate(others)
        ),
    ]


def cluster_arms(joint: JointConfig) -> list[AlphaArms]:
    """The arms of each alpha of the clusters; the first is called "clusters"."""
    return [
        _named_arms(
            CLUSTERS if at == 0 else f"{CLUSTERS}_{alpha:g}", alpha, CLUSTER_STREAM + 2 * at
        )
        for at, alpha in enumerate(joint.alpha)
    ]


def refined_arms(specs: Iterable[ArmSpec]) -> list[AlphaArms]:
    """The arms that were decided by what earlier ones showed, in their order."""
    mains = [spec for spec in specs if not spec.name.endswith(REPLICATES)]
    return [_named_arms(spec.name, spec.design["alpha"], spec.stream) for spec in mains]


def _named_arms(name: str, alpha: float, stream: int) -> AlphaArms:
    return AlphaArms(alpha, name, name + REPLICATES, (stream, stream + 1))


def measures_noise(sweep: SweepConfig) -> bool:
    """Whether replicates can show it: not where all members share one training key."""
    return sweep.seeds != "common"


def member_counts(experiment: Experiment) -> dict[str, int]:
    """How many members each arm has, by the arm's name."""
    sweep, joint = experiment.config.sweep, experiment.config.joint
    counts = _counts(sweep, alpha_arms(sweep), sweep.members, sweep.replicate_masks)
    if experiment.clusters is not None:
        members = cluster_members(experiment.config)
        counts |= _counts(sweep, cluster_arms(joint), members, joint.replicate_masks)
    return counts | {spec.name: spec.members for spec in experiment.refined}


def _counts(
    sweep: SweepConfig, arms: Sequence[AlphaArms], members: int, replicate_masks: int
) -> dict[str, int]:
    """Of arms whose main ones have so many members."""
    counts = {}
    for arm in arms:
        counts[arm.main] = members
        if measures_noise(sweep) and replicate_masks:
            counts[arm.replicates] = replicate_masks * sweep.replicate_seeds
    return counts


def arm_specs(experiment: Experiment) -> dict[str, ArmSpec]:
    """What each arm holds, by the arm's name."""
    sweep, groups = experiment.config.sweep, experiment.groups
    own = None if not masks_groups(experiment) else groups
    specs = _specs(
        experiment,
        alpha_arms(sweep),
        own,
        lambda alpha, replicates: _design(sweep, alpha, groups, replicates),
    )
    if experiment.clusters is not None:
        specs |= _specs(
            experiment,
            cluster_arms(experiment.config.joint),
            experiment.clusters,
            lambda alpha, replicates: Bernoulli(alpha, replicates=replicates),
        )
    return specs | {spec.name: spec for spec in experiment.refined}


def _specs(
    experiment: Experiment,
    arms: Sequence[AlphaArms],
    groups: Groups | None,
    design: Callable[[float, int], Drawn],
) -> dict[str, ArmSpec]:
    """Of arms whose masks have a column a group; None: a column an example."""
    sweep, members, specs = experiment.config.sweep, member_counts(experiment), {}
    columns = len(experiment.train) if groups is None else len(groups.names)
    # Some designs number the examples' groups themselves.
    made_by = experiment.groups.made_by if groups is None else groups.made_by
    for arm in arms:
        pair = zip((arm.main, arm.replicates), arm.streams, (1, sweep.replicate_seeds), strict=True)
        for name, stream, replicates in pair:
            if name not in members:
                continue
            specs[name] = ArmSpec(
                name=name,
                members=members[name],
                groups=columns,
                unit=unit_size(sweep),
                seed=sweep.seed,
                stream=stream,
                design=design(arm.alpha, replicates).describe(),
                common_seed=sweep.seeds == "common",
                group_of=None if groups is None else tuple(groups.of.tolist()),
                grouping=made_by,
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
    """What a column of the main masks is: an example by its id, or a group by its name."""
    if not masks_groups(experiment):
        return example_name(experiment, column)
    return sized_name(experiment.groups, column)


def example_name(experiment: Experiment, row: int) -> str:
    """A training example, by its id."""
    return f"example {experiment.train.ids[row]}"


def sized_name(groups: Groups, group: int) -> str:
    """A group's name, and of how many examples it is."""
    return f"{groups.names[group]} ({int((groups.of == group).sum())} examples)"


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


def stored_in(manifest: Manifest, config: Config) -> Stored:
    """What a bank has that its config does not give, or not on every machine with the same bits."""
    main, clusters = (manifest.arms.get(name) for name in ("main", CLUSTERS))
    groups = None
    if main is not None and main.grouping == describe(config.groups):
        groups = main.group_of or main.design.get("clusters")
    refined = [spec for name, spec in manifest.arms.items() if name.startswith(REFINED)]
    return Stored(groups, None if clusters is None else clusters.group_of, tuple(refined))


def unit_size(sweep: SweepConfig) -> int:
    """The unit of a new arm: whole launches of this machine, so that no device runs for nothing.

    `sweep` has its width, that is, no search is left to do.
    """
    launch = local_layout(sweep.width).launch
    return math.ceil(sweep.unit / launch) * launch


def kept_bytes(experiment: Experiment) -> int:
    """What the parameters of a member take on disk; 0 where they are not kept."""
    return param_bytes(experiment.model) if experiment.config.sweep.keep_params else 0


def require_bank_space(experiment: Experiment, out: Path) -> None:
    """Refuse a new bank, of a run at `out`, that the disk has no room for.

    Raises:
        UserError: with the arithmetic.
    """
    require_space(
        Store(bank_location(experiment.config, out)),
        list(arm_specs(experiment).values()),
        len(experiment.targets),
        kept_bytes(experiment),
    )


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
        examples = examples.take(positions_of(experiment.targets.ids, manifest.target_ids))
        panels = tuple(panel.targets for panel in manifest.panels)
    return Task(
        experiment.recipe,
        experiment.model,
        experiment.train.examples,
        examples,
        experiment.output,
        panels,
    )


def positions_of(ids: Iterable[Hashable], wanted: Iterable[Hashable]) -> Int[np.ndarray, " t"]:
    """Where each of the wanted ids stands."""
    order = {id: position for position, id in enumerate(ids)}
    return np.array([order[id] for id in wanted], np.int64)


class Arms(NamedTuple):
    """The members of one alpha."""

    name: str
    """Of the main arm."""
    alpha: float
    """Probability that a mask's group is kept."""
    main: Members
    replicates: Members | None


def read_arms(
    bank: Bank,
    experiment: Experiment,
    arms: Sequence[AlphaArms] | None = None,
    targets: Int[np.ndarray, " t"] | None = None,
) -> list[Arms]:
    """The members of every alpha, each unit checked.

    Outputs are in the order of the experiment's targets.

    Args:
        bank: that has them.
        experiment: of the run.
        arms: which; those of the sweep by default.
        targets: which, by the experiment's order; all by default.

    Raises:
        UserError: units are missing or damaged, or masks are not those of the design.
    """
    columns = positions_of(bank.target_ids, experiment.targets.ids)
    if targets is not None:
        columns = columns[targets]
    found = []
    for own in alpha_arms(experiment.config.sweep) if arms is None else arms:
        main = _members(bank.arm(own.main), columns)
        replicates = None
        if own.replicates in bank.arms:
            replicates = _members(bank.arm(own.replicates), columns)
        alpha = bank.arm(own.main).spec.design["alpha"]
        found.append(Arms(own.main, alpha, main, replicates))
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
        # Those of one stored block, which is read as a whole, come from one reading.
        blocks = np.split(wanted, np.flatnonzero(np.diff(wanted // TARGET_BLOCK)) + 1)
        parts = []
        for block in blocks:
            first, last = int(block.min()), int(block.max())
            parts.append(arm.read_outputs(slice(first, last + 1))[:, block - first])
        return np.concatenate(parts, axis=1)

    everyone = np.arange(spec.members)
    # Of replicates nobody asks for it.
    single = np.full((1, 1), spec.design["alpha"])
    alpha = design.probabilities(root, everyone, spec.groups) if design.replicates == 1 else single
    return Members(masks, arm.read_status(), outputs, alpha, design.draws(everyone))
