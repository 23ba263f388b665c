"""Banks of real retrains on clusters of digits and of Fashion-MNIST, kept in a folder.

What benchmarks of joint effects read: many members on random masks, masks that chose nothing to
score predictions on, and replicates, which show the seed noise and with it the ceiling.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt32

import datamodels
from influence.arms import main_task
from influence.config import override, read_config
from influence.experiment import Experiment, prepare
from influence.layout import sweeper_for, with_layout
from training.seeds import root_key, training_keys
from training.sweep import Sweeper

CONFIGS = Path(__file__).parent.parent / "configs"
CLEAN = ["--poison.label-flip-fraction", "0", "--poison.backdoor-fraction", "0"]
LAUNCH = 1024
"""Members whose outputs are fetched at once."""


class RealBank(NamedTuple):
    """Members of one alpha: `masks` to fit on, replicates, and rows to score predictions on."""

    masks: Bool[np.ndarray, "m g"]
    outputs: Float32[np.ndarray, "m t"]
    replicate_masks: Bool[np.ndarray, "r g"]
    replicate_outputs: Float32[np.ndarray, "r t"]
    replicate_of: Int[np.ndarray, " r"]
    test_masks: Bool[np.ndarray, "k g"]
    test_outputs: Float32[np.ndarray, "k t"]


class Retrainer(NamedTuple):
    """An experiment, and what trains its members on their clean targets."""

    experiment: Experiment
    sweeper: Sweeper

    @classmethod
    def of(cls, config: str, flags: Sequence[str]) -> "Retrainer":
        """From a file of `configs`, without poison, with what the flags change."""
        read, _ = override(read_config(CONFIGS / config), [*CLEAN, *flags], "benchmarks")
        experiment = with_layout(prepare(read), Path("nowhere"))
        experiment = replace(experiment, targets=replace(experiment.targets, train=slice(0, 0)))
        task = main_task(experiment)
        clean = task.targets.take(experiment.targets.clean)
        return cls(experiment, sweeper_for(experiment, task._replace(targets=clean, panels=())))

    @property
    def groups(self) -> int:
        return len(self.experiment.groups.names)

    def members(
        self, stream: int, count: int, alpha: float, replicates: int = 1
    ) -> tuple[Bool[np.ndarray, "m g"], Float32[np.ndarray, "m t"], Int[np.ndarray, " m"]]:
        """Masks of groups, outputs, and the number of each member's mask."""
        root = root_key(self.experiment.config.sweep.seed, stream)
        rows = np.arange(count * replicates) // replicates
        masks = datamodels.Bernoulli(alpha).masks(root, rows, self.groups)
        keys = training_keys(root, rows, np.arange(len(rows)) % replicates)
        return masks, self.outputs(masks, keys), rows

    def outputs(
        self, masks: Bool[np.ndarray, "m g"], keys: UInt32[np.ndarray, "m 2"]
    ) -> Float32[np.ndarray, "m t"]:
        """What members of some masks of groups and training keys report."""
        parts = []
        for first in range(0, len(keys), LAUNCH):
            rows = slice(first, first + LAUNCH)
            examples = masks[rows][:, self.experiment.groups.of]
            parts.append(self.sweeper.start(keys[rows], examples).fetch().reports[0].outputs)
        return np.concatenate(parts)


def real_bank(
    folder: Path,
    name: str,
    retrainer: Retrainer,
    alpha: float,
    *,
    members: int,
    tests: int,
    replicates: tuple[int, int] = (64, 16),
) -> RealBank:
    """The bank of this name in the folder; made first where it is not there."""
    path = folder / f"{name}.npz"
    if not path.exists():
        first = 10 + round(100 * alpha)
        main = retrainer.members(first, members, alpha)
        noise = retrainer.members(first + 100, replicates[0], alpha, replicates[1])
        test = retrainer.members(first + 200, tests, alpha)
        bank = RealBank(*main[:2], *noise, *test[:2])
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part.npz")
        np.savez_compressed(temporary, **bank._asdict())
        temporary.rename(path)
    with np.load(path) as stored:
        return RealBank(**stored)
