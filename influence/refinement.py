"""Where the next members pay: groups that act together are split, and kept as often as shows most.

Groups of the finest level that are in a set which was found, or is undecided, are split into parts
of similar examples; all others stay whole. The new arm's masks are drawn independently of all
members before it, and its joint effects are estimated from them alone, so they are unbiased
whatever led to the split.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from scipy.stats import binom

from datamodels.design import Bernoulli, Pairs
from influence.arms import (
    REFINED,
    REFINED_STREAM,
    REPLICATES,
    arm_specs,
    measures_noise,
    refined_arms,
    unit_size,
)
from influence.experiment import Experiment, clustering
from influence.levels import Level
from influence.terms_file import TermRow
from training.arm import ArmSpec
from training.groups import split

PARTS = 4
"""Of a group that is split."""
GROWTH = 2
"""How many times as many groups a level may have as the one before."""
ALPHAS = (0.5, 0.35, 0.2, 0.1)
"""From which the new arm's is chosen."""
PAIRED = 0.5
"""At which masks come in complementary pairs, so that main effects are no noise to pairs."""


class Refinement(NamedTuple):
    """A finer level that is to come."""

    specs: tuple[ArmSpec, ...]
    """Its arm, and its replicates."""
    split: tuple[int, ...]
    """Groups of the level before that are split."""
    sets: int
    """For whose sake."""

    def __str__(self) -> str:
        main, design = self.specs[0], self.specs[0].design
        others = sum(spec.members for spec in self.specs[1:])
        return (
            f"{main.name}: {len(self.split)} groups of {self.sets} sets are split, which makes "
            f"{main.groups}; {main.members:,} members at alpha {design['alpha']:g}"
            + (" in complementary pairs" if design["kind"] == "pairs" else "")
            + (f", and {others:,} replicates" if others else "")
        )


def refine(
    experiment: Experiment, level: Level, rows: Sequence[TermRow], members: int | None
) -> Refinement:
    """What to make next.

    Args:
        experiment: with its layout.
        level: the finest so far.
        rows: its terms, some of which `matter`.
        members: of the new arm; None: as many as those of the level so far.
    """
    sizes = np.bincount(level.groups.of)
    own = matter(rows)
    chosen = to_split(own, sizes)
    config, specs = experiment.config, arm_specs(experiment)
    pieces = np.ones(len(sizes), int)
    pieces[chosen] = np.minimum(sizes[chosen], PARTS)
    alpha = best_alpha(own, pieces)
    if members is None:
        members = sum(specs[arm.main].members for arm in level.arms)
    examples = experiment.train.examples
    by = clustering(config, examples)
    of = split(level.groups, chosen, PARTS, by, examples, experiment.model, experiment.recipe)
    number = len(refined_arms(experiment.refined))
    name, seeds = f"{REFINED}{number + 1}", config.sweep.replicate_seeds
    main = ArmSpec(
        name=name,
        # Complementary masks come in pairs.
        members=members + members % 2,
        groups=int(of.max()) + 1,
        unit=unit_size(config.sweep),
        seed=config.sweep.seed,
        stream=REFINED_STREAM + 2 * number,
        design=(Pairs() if alpha == PAIRED else Bernoulli(alpha)).describe(),
        common_seed=config.sweep.seeds == "common",
        group_of=tuple(of.tolist()),
        grouping={"by": "split", "of": level.name, "groups": chosen, "parts": PARTS},
    )
    replicates = dataclasses.replace(
        main,
        name=name + REPLICATES,
        members=config.joint.replicate_masks * seeds,
        stream=main.stream + 1,
        design=Bernoulli(alpha, replicates=seeds).describe(),
    )
    noise = measures_noise(config.sweep) and replicates.members
    return Refinement((main, replicates) if noise else (main,), tuple(chosen), len(own))


def matter(rows: Sequence[TermRow]) -> list[TermRow]:
    """Sets that more members may say more of: all that were not refuted."""
    return [row for row in rows if row.status != "failed"]


def reason_against(level: Level, rows: Sequence[TermRow]) -> str | None:
    """Why there is nothing to refine in a level's terms; None where there is."""
    if not matter(rows):
        return (
            f"no groups of {level.name} were found to act together, nor nearly, so there is "
            f"nothing to refine; more members may show some (joint.share, sweep.members)"
        )
    if not to_split(matter(rows), np.bincount(level.groups.of)):
        return f"all sets of {level.name} are of single examples, which cannot be split"
    return None


def to_split(rows: Sequence[TermRow], sizes: Int[np.ndarray, " g"]) -> list[int]:
    """The groups with most at stake, as many as a finer level has room for.

    A group has at stake its share of the joint effect of each set that it is in, as far as that
    set is sure.

    Args:
        rows: terms of one level.
        sizes: of its groups, in examples; single ones cannot be split.
    """
    stake = np.zeros(len(sizes))
    for row in rows:
        effect = row.joint_effect if row.verified_effect is None else row.verified_effect
        stake[list(row.groups)] += abs(effect) * (1 - row.q_value) / row.order
    # Of few groups one may always be split.
    room, chosen = max((GROWTH - 1) * len(sizes), PARTS - 1), []
    for group in np.argsort(-stake, kind="stable").tolist():
        more = min(int(sizes[group]), PARTS) - 1
        if stake[group] > 0 and 0 < more <= room:
            chosen.append(group)
            room -= more
    return sorted(chosen)


def best_alpha(rows: Sequence[TermRow], pieces: Int[np.ndarray, " g"]) -> float:
    """The probability at which the sets' joint action gives the outputs most variance.

    Args:
        rows: the sets.
        pieces: into how many each of their groups is split.
    """

    def shown(alpha: float) -> float:
        parts = [int(pieces[list(row.groups)].sum()) for row in rows]
        return sum(
            (1 - row.q_value) * joint_variance(row.response, count, alpha)
            for row, count in zip(rows, parts, strict=True)
        )

    return max(ALPHAS, key=shown)


def joint_variance(response: Sequence[float], pieces: int, alpha: float) -> float:
    """Variance of the output that a set's joint action gives, beyond what its pieces add up to.

    Args:
        response: with none, one, ... of its groups kept; between, a straight line.
        pieces: that the groups are split into, all of them together.
        alpha: the probability of each piece to be kept.
    """
    kept = np.arange(pieces + 1)
    output = np.interp(kept / pieces, np.linspace(0, 1, len(response)), response)
    chance = binom.pmf(kept, pieces, alpha)
    output, more = output - chance @ output, kept - chance @ kept
    along = (chance @ (output * more)) ** 2 / (chance @ more**2)
    return float(chance @ output**2 - along)
