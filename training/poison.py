"""Planted poison with recorded truth, so that detection can be scored.

Every attack's own success is measured. That of a backdoor is measured on triggered inputs kept
apart for it: one that failed on the model is reported as failed, never scored as a detection. A
flipped label is wrong whether or not the model learns it, so flips cannot fail; their success is
the share of them that the model fits.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32, UInt8

from training.data import Split, Table
from training.errors import UserError
from training.examples import Examples

INCIDENT_INPUTS = 10
TRIAL_INPUTS = 200


@dataclass(frozen=True)
class PoisonConfig:
    """Poison to plant in the training examples, to measure detection; none by default."""

    label_flip_fraction: float = 0.0
    """Share of the training examples whose label becomes another class at random."""
    pair_flip_fraction: float = 0.0
    """Share of the training examples whose label goes from pair_flip_from to pair_flip_to."""
    pair_flip_from: int = 0
    """True class of the pair flips."""
    pair_flip_to: int = 1
    """Label that the pair flips give."""
    backdoor_fraction: float = 0.0
    """Share of the training examples that get the trigger and the target class."""
    backdoor_target: int = 0
    """Class that the backdoor's trigger should cause."""
    backdoor_size: int = 2
    """Side of the trigger, a bright square in the lower right corner, in pixels."""
    seed: int = 0
    """Decides which examples are poisoned."""


class Attack(NamedTuple):
    """One planted attack."""

    name: str
    """label_flip, pair_flip or backdoor."""
    positions: Int[np.ndarray, " k"]
    """The poisoned training examples, as positions in the training table."""
    original_labels: Int32[np.ndarray, " k"]
    """Their labels before."""
    trial: Examples
    """Inputs on which the attack succeeds where the model predicts the label given here."""
    incident: Table | None
    """At most 10 bad inputs that the incident protocol may see, labelled as the model was led
    to predict; None when the attack leads to no bad prediction of its own. Never in `trial`."""


class Poisoned(NamedTuple):
    """The training examples after planting, and the truth."""

    train: Table
    attacks: tuple[Attack, ...]


def plant(config: PoisonConfig, split: Split, classes: int) -> Poisoned:
    """Plant every attack the config asks for, each on training examples of its own.

    Raises:
        UserError: a fraction, class or size that the data does not allow.
    """
    rng = np.random.default_rng([config.seed, 1])
    train = split.train
    # Copies: the arrays may be read-only views of the data set.
    inputs, labels = np.array(train.examples.inputs), np.array(train.examples.labels)
    free = rng.permutation(len(train))
    attacks: list[Attack] = []

    def claim(name: str, fraction: float, allowed: np.ndarray) -> np.ndarray:
        """Positions of an attack: the first free ones whose label is allowed."""
        nonlocal free
        count = _count(name, fraction, len(train))
        chosen = free[allowed[labels[free]]][:count]
        if len(chosen) < count:
            raise UserError(
                f"poison.{name}_fraction = {fraction} asks for {count} training examples, but "
                f"only {len(chosen)} have a fitting label; lower it"
            )
        free = free[~np.isin(free, chosen)]
        return np.sort(chosen)

    def flip(name: str, positions: np.ndarray, new_labels: np.ndarray) -> None:
        original = labels[positions].copy()
        labels[positions] = new_labels
        trial = Examples(inputs[positions], labels[positions])
        attacks.append(Attack(name, positions, original, trial, None))

    if config.label_flip_fraction != 0:
        positions = claim("label_flip", config.label_flip_fraction, np.ones(classes, bool))
        shift = rng.integers(1, classes, len(positions))
        flip("label_flip", positions, (labels[positions] + shift) % classes)
    if config.pair_flip_fraction != 0:
        source = _class("pair_flip_from", config.pair_flip_from, classes)
        target = _class("pair_flip_to", config.pair_flip_to, classes)
        if source == target:
            raise UserError(f"poison.pair_flip_to = {target} must differ from pair_flip_from")
        allowed = np.arange(classes) == source
        positions = claim("pair_flip", config.pair_flip_fraction, allowed)
        flip("pair_flip", positions, np.full(len(positions), target))
    if config.backdoor_fraction != 0:
        target = _class("backdoor_target", config.backdoor_target, classes)
        _check_trigger(config, inputs)
        allowed = np.arange(classes) != target
        positions = claim("backdoor", config.backdoor_fraction, allowed)
        original = labels[positions].copy()
        inputs[positions] = add_trigger(inputs[positions], config.backdoor_size)
        labels[positions] = target
        incident, trial = _triggered(config, split.spare, target, rng)
        attacks.append(Attack("backdoor", positions, original, trial.examples, incident))
    return Poisoned(Table(Examples(inputs, labels), train.ids), tuple(attacks))


def add_trigger(images: UInt8[np.ndarray, "n h w c"], size: int) -> UInt8[np.ndarray, "n h w c"]:
    """Set a square of `size` pixels in the lower right corner to 255 (BadNets, Gu et al. 2017)."""
    triggered = images.copy()
    triggered[:, -size:, -size:] = 255
    return triggered


def _triggered(
    config: PoisonConfig, spare: Table, target: int, rng: np.random.Generator
) -> tuple[Table, Table]:
    """Triggered inputs for (the incident protocol, the success trial) from unused examples."""
    usable = rng.permutation(np.flatnonzero(np.asarray(spare.examples.labels) != target))
    if len(usable) < 2 * INCIDENT_INPUTS:
        raise UserError(
            f"the backdoor needs at least {2 * INCIDENT_INPUTS} examples that are neither trained "
            f"on nor targets, and finds {len(usable)}; lower data.train_count or the targets"
        )

    def make(positions: np.ndarray) -> Table:
        clean = spare.take(np.sort(positions))
        images = add_trigger(np.asarray(clean.examples.inputs), config.backdoor_size)
        return Table(Examples(images, np.full(len(clean), target, np.int32)), clean.ids)

    incident, trial = usable[:INCIDENT_INPUTS], usable[INCIDENT_INPUTS:][:TRIAL_INPUTS]
    return make(incident), make(trial)


def _count(name: str, fraction: float, examples: int) -> int:
    count = round(fraction * examples) if 0 < fraction < 0.5 else 0
    if count == 0:
        raise UserError(
            f"poison.{name}_fraction = {fraction} must be below 0.5 and reach at least one of "
            f"the {examples} training examples"
        )
    return count


def _class(key: str, value: int, classes: int) -> int:
    if not 0 <= value < classes:
        raise UserError(f"poison.{key} = {value}, but the classes are 0 to {classes - 1}")
    return value


def _check_trigger(config: PoisonConfig, inputs: np.ndarray) -> None:
    if inputs.dtype != np.uint8 or inputs.ndim != 4:
        raise UserError(
            f"poison.backdoor_fraction = {config.backdoor_fraction} stamps a trigger on 8-bit "
            f"images, but the inputs are {inputs.dtype} of shape {inputs.shape[1:]}; set it to 0"
        )
    side = min(inputs.shape[1:3])
    if not 1 <= config.backdoor_size <= side // 2:
        raise UserError(
            f"poison.backdoor_size = {config.backdoor_size} must be 1 to {side // 2} pixels for "
            f"images of {inputs.shape[1]}x{inputs.shape[2]}"
        )
