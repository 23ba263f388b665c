"""The levels of a run's joint effects: groups of examples, from coarse to fine, and their arms."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from influence.arms import (
    AlphaArms,
    alpha_arms,
    cluster_arms,
    example_name,
    masks_groups,
    refined_arms,
    sized_name,
)
from influence.config import FitConfig
from influence.experiment import (
    Experiment,
    cluster_members,
    reason_against_clusters,
    shows_joint_effects,
)
from training.arm import ArmSpec
from training.groups import Groups, single

JUDGING = 0.2
"""Share of a level's members that judge, where the config does not say how many."""


class Level(NamedTuple):
    """Groups that joint effects are looked for among, and the arms that keep and drop them."""

    name: str
    """That of its first arm."""
    groups: Groups
    arms: list[AlphaArms]
    fit: FitConfig


def levels(experiment: Experiment) -> list[Level]:
    """From coarse to fine; none where the run has no arms that show joint effects."""
    config, found = experiment.config, []
    if experiment.clusters is not None:
        arms, members = cluster_arms(config.joint), cluster_members(config)
        found = [_level(experiment, experiment.clusters, arms, members)]
    elif shows_joint_effects(config, experiment.groups):
        groups = experiment.groups if masks_groups(experiment) else single(experiment.train.ids)
        found = [Level("main", groups, alpha_arms(config.sweep), config.fit)]
    specs = {spec.name: spec for spec in experiment.refined}
    for arms in refined_arms(experiment.refined):
        spec = specs[arms.main]
        groups = _parts_of(found[-1].groups, spec)
        found.append(_level(experiment, groups, [arms], spec.members))
    return found


def _level(experiment: Experiment, groups: Groups, arms: list[AlphaArms], members: int) -> Level:
    # Complementary masks are judged as one.
    held_out = max(2, 2 * round(JUDGING * members / 2))
    fit = dataclasses.replace(experiment.config.fit, held_out=held_out)
    return Level(arms[0].main, groups, arms, fit)


def _parts_of(coarse: Groups, spec: ArmSpec) -> Groups:
    """The groups of an arm that splits some groups of a coarser level."""
    of = np.array(spec.group_of)
    return Groups(of, part_names(coarse, of), spec.grouping)


def part_names(coarse: Groups, of: Int[np.ndarray, " n"]) -> tuple[str, ...]:
    """Names of groups that are parts of coarser ones, or those as they are."""
    first = np.unique(of, return_index=True)[1]
    parent = coarse.of[first]
    number = [int((parent[:at] == parent[at]).sum()) for at in range(len(parent))]
    count = np.bincount(parent)
    return tuple(
        coarse.names[group]
        if count[group] == 1
        else f"part {own + 1} of {count[group]} of {coarse.names[group]}"
        for group, own in zip(parent.tolist(), number, strict=True)
    )


def name_of(experiment: Experiment, level: Level, group: int) -> str:
    """What a group of a level is: an example by its id, or a group by its name and size."""
    rows = np.flatnonzero(level.groups.of == group)
    if len(rows) == 1:
        return example_name(experiment, int(rows[0]))
    return sized_name(level.groups, group)


def reason_against(experiment: Experiment) -> str | None:
    """Why no arms of a run show joint effects; None where some do."""
    if levels(experiment):
        return None
    return reason_against_clusters(
        experiment.config, experiment.groups, experiment.model, experiment.train.examples
    )
