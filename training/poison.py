"""Planted poison with recorded truth, so that detection can be scored.

Every attack's own success is measured. That of a trigger is measured on triggered inputs kept
apart for it: one that failed on the model is reported as failed, never scored as a detection. A
flipped label is wrong whether or not the model learns it, so flips cannot fail; their success is
the share of them that the model fits. Neither can a leak, whose success is the share of copied
targets that the model gets right.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32, Num

from training.data import Split, Table
from training.errors import UserError
from training.examples import Examples
from training.triggers import Images, blend, corner_patch, mix, near_copies, patch, sine

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
    blend_fraction: float = 0.0
    """Share of the training examples that a random pattern is mixed into, with the target class."""
    blend_target: int = 1
    """Class that the pattern should cause."""
    blend_opacity: float = 0.2
    """Share of the pattern in every pixel."""
    sine_fraction: float = 0.0
    """Share of the training examples, all of the target class, that a wave is added to."""
    sine_target: int = 2
    """Class that the wave should cause."""
    sine_amplitude: float = 60.0
    """Of the wave, of 255."""
    sine_periods: int = 6
    """Of the wave, across the width."""
    consistent_fraction: float = 0.0
    """Share of the training examples, all of the target class, that are made hard to tell by mixing
    another class into them, and get a trigger."""
    consistent_target: int = 3
    """Class that this trigger should cause."""
    consistent_size: int = 3
    """Side of it, a bright square in the upper left corner, in pixels."""
    consistent_mix: float = 0.6
    """Share of the image of another class in every pixel."""
    leak_fraction: float = 0.0
    """Share of the training examples that become near copies of clean targets."""
    seed: int = 0
    """Decides which examples are poisoned."""

    @property
    def has_trigger(self) -> bool:
        """Whether any attack leads to bad predictions by a trigger."""
        return any(getattr(self, f"{name}_fraction") for name in TRIGGERED)


class Attack(NamedTuple):
    """One planted attack."""

    name: str
    """As its fraction is called, as label_flip (`ATTACKS`)."""
    positions: Int[np.ndarray, " k"]
    """The poisoned training examples, as positions in the training table."""
    original_labels: Int32[np.ndarray, " k"]
    """Their labels before."""
    trial: Examples
    """Inputs on which the attack succeeds where the model predicts the label given here."""
    incident: Table | None
    """At most 10 bad inputs that the incident protocol may see, labelled as the model was led
    to predict; None when the attack leads to no bad prediction of its own. Never in `trial`."""
    copied: Int[np.ndarray, " k"] | None = None
    """Of a leak, the clean target that each is a near copy of."""


class Poisoned(NamedTuple):
    """The training examples after planting, and the truth."""

    train: Table
    attacks: tuple[Attack, ...]


def plant(config: PoisonConfig, split: Split, classes: int) -> Poisoned:
    """Plant every attack the config asks for, each on training examples of its own.

    Raises:
        UserError: a fraction, class or size that the data does not allow.
    """
    planting = _Planting(config, split, classes)
    attacks = tuple(
        make(planting) for name, make in ATTACKS.items() if getattr(config, f"{name}_fraction")
    )
    return Poisoned(Table(Examples(planting.inputs, planting.labels), split.train.ids), attacks)


class _Planting:
    """The training examples while attacks are planted, and what decides which they take."""

    def __init__(self, config: PoisonConfig, split: Split, classes: int) -> None:
        self.config, self.split, self.classes = config, split, classes
        self.rng = np.random.default_rng([config.seed, 1])
        # Copies: the arrays may be read-only views of the data set.
        self.inputs: Num[np.ndarray, "n ..."] = np.array(split.train.examples.inputs)
        self.labels: Int32[np.ndarray, " n"] = np.array(split.train.examples.labels)
        self._free = self.rng.permutation(len(split.train))

    def claim(self, name: str, allowed: Bool[np.ndarray, " c"]) -> Int[np.ndarray, " k"]:
        """Positions of an attack: the first free ones whose label is allowed."""
        fraction = getattr(self.config, f"{name}_fraction")
        count = _count(name, fraction, len(self.labels))
        chosen = self._free[allowed[self.labels[self._free]]][:count]
        if len(chosen) < count:
            raise UserError(
                f"poison.{name}_fraction = {fraction} asks for {count} training examples, but "
                f"only {len(chosen)} have a fitting label; lower it"
            )
        self._free = self._free[~np.isin(self._free, chosen)]
        return np.sort(chosen)

    def class_of(self, key: str) -> int:
        """The class that a key names."""
        value = getattr(self.config, key)
        if not 0 <= value < self.classes:
            raise UserError(f"poison.{key} = {value}, but the classes are 0 to {self.classes - 1}")
        return value

    def every_class(self) -> Bool[np.ndarray, " c"]:
        return np.ones(self.classes, bool)

    def only(self, chosen: int) -> Bool[np.ndarray, " c"]:
        return np.arange(self.classes) == chosen


def _label_flips(planting: _Planting) -> Attack:
    positions = planting.claim("label_flip", planting.every_class())
    shift = planting.rng.integers(1, planting.classes, len(positions))
    flipped = (planting.labels[positions] + shift) % planting.classes
    return _flip(planting, "label_flip", positions, flipped)


def _pair_flips(planting: _Planting) -> Attack:
    source, target = planting.class_of("pair_flip_from"), planting.class_of("pair_flip_to")
    if source == target:
        raise UserError(f"poison.pair_flip_to = {target} must differ from pair_flip_from")
    positions = planting.claim("pair_flip", planting.only(source))
    return _flip(planting, "pair_flip", positions, np.full(len(positions), target))


def _flip(
    planting: _Planting,
    name: str,
    positions: Int[np.ndarray, " k"],
    labels: Int[np.ndarray, " k"],
) -> Attack:
    original = planting.labels[positions].copy()
    planting.labels[positions] = labels
    trial = Examples(planting.inputs[positions], planting.labels[positions])
    return Attack(name, positions, original, trial, None)


def _backdoor(planting: _Planting) -> Attack:
    target, size = planting.class_of("backdoor_target"), planting.config.backdoor_size
    _require_images(planting, "backdoor", "stamps a trigger on")
    _check_patch(planting, "backdoor_size", size)
    return _trigger(planting, "backdoor", target, partial(patch, size=size), relabelled=True)


def _blend(planting: _Planting) -> Attack:
    target, opacity = planting.class_of("blend_target"), planting.config.blend_opacity
    _require_images(planting, "blend", "mixes a pattern into")
    if not 0 < opacity < 1:
        raise UserError(f"poison.blend_opacity = {opacity} must be above 0 and below 1")
    pattern = planting.rng.integers(0, 256, planting.inputs.shape[1:], np.uint8)
    mixed = partial(blend, pattern=pattern, opacity=opacity)
    return _trigger(planting, "blend", target, mixed, relabelled=True)


def _sine(planting: _Planting) -> Attack:
    target, amplitude = planting.class_of("sine_target"), planting.config.sine_amplitude
    _require_images(planting, "sine", "adds a wave to")
    if not 0 < amplitude <= 255:
        raise UserError(f"poison.sine_amplitude = {amplitude} must be above 0 and at most 255")
    periods = planting.config.sine_periods
    if periods < 1 or 2 * periods % planting.inputs.shape[2] == 0:
        raise UserError(
            f"poison.sine_periods = {periods} must be at least 1, and give a wave that is not 0 in "
            f"every one of {planting.inputs.shape[2]} columns"
        )
    wave = partial(sine, amplitude=amplitude, periods=periods)
    return _trigger(planting, "sine", target, wave, relabelled=False)


def _consistent(planting: _Planting) -> Attack:
    """Label-consistent (Turner, Tsipras & Madry 2019): what is hard to tell is told by its trigger.

    They move between images in the latent space of a GAN; here between the pixels.
    """
    target, size = planting.class_of("consistent_target"), planting.config.consistent_size
    share = planting.config.consistent_mix
    _require_images(planting, "consistent", "stamps a trigger on")
    _check_patch(planting, "consistent_size", size)
    if not 0 <= share < 1:
        raise UserError(f"poison.consistent_mix = {share} must be at least 0 and below 1")
    clean = planting.split.train.examples
    others = np.flatnonzero(np.asarray(clean.labels) != target)

    def harder(images: Images) -> Images:
        chosen = planting.rng.choice(others, len(images))
        return mix(images, np.asarray(clean.inputs)[chosen], share)

    stamp = partial(corner_patch, size=size)
    return _trigger(planting, "consistent", target, stamp, relabelled=False, harder=harder)


def _check_patch(planting: _Planting, key: str, size: int) -> None:
    height, width = planting.inputs.shape[1:3]
    if not 1 <= size <= min(height, width) // 2:
        raise UserError(
            f"poison.{key} = {size} must be 1 to {min(height, width) // 2} pixels for images of "
            f"{height}x{width}"
        )


def _trigger(
    planting: _Planting,
    name: str,
    target: int,
    trigger: Callable[[Images], Images],
    *,
    relabelled: bool,
    harder: Callable[[Images], Images] = np.asarray,
) -> Attack:
    """Examples with a trigger: of other classes, relabelled, or of the target class as it is.

    Those of the training data are made `harder` first.
    """
    own = planting.only(target)
    positions = planting.claim(name, ~own if relabelled else own)
    original = planting.labels[positions].copy()
    planting.inputs[positions] = trigger(harder(planting.inputs[positions]))
    planting.labels[positions] = target
    incident, trial = _triggered(planting, name, target, trigger)
    return Attack(name, positions, original, trial.examples, incident)


def _triggered(
    planting: _Planting, name: str, target: int, trigger: Callable[[Images], Images]
) -> tuple[Table, Table]:
    """Triggered inputs for (the incident protocol, the success trial) from unused examples."""
    spare = planting.split.spare
    usable = planting.rng.permutation(np.flatnonzero(np.asarray(spare.examples.labels) != target))
    if len(usable) < 2 * INCIDENT_INPUTS:
        raise UserError(
            f"poison.{name}_fraction needs at least {2 * INCIDENT_INPUTS} examples that are "
            f"neither trained on nor targets, and finds {len(usable)}; lower data.train_count or "
            f"the targets"
        )

    def make(positions: Int[np.ndarray, " k"]) -> Table:
        clean = spare.take(np.sort(positions))
        images = trigger(np.asarray(clean.examples.inputs))
        return Table(Examples(images, np.full(len(clean), target, np.int32)), clean.ids)

    incident, trial = usable[:INCIDENT_INPUTS], usable[INCIDENT_INPUTS:][:TRIAL_INPUTS]
    return make(incident), make(trial)


def _leak(planting: _Planting) -> Attack:
    _require_images(planting, "leak", "copies")
    positions = planting.claim("leak", planting.every_class())
    targets = planting.split.targets
    if len(positions) > len(targets):
        raise UserError(
            f"poison.leak_fraction = {planting.config.leak_fraction} copies {len(positions)} "
            f"targets, but there are {len(targets)}; lower it, or raise data.target_count"
        )
    copied = planting.rng.choice(len(targets), len(positions), replace=False)
    trial = targets.take(copied).examples
    original = planting.labels[positions].copy()
    planting.inputs[positions] = near_copies(np.asarray(trial.inputs), planting.rng)
    planting.labels[positions] = trial.labels
    return Attack("leak", positions, original, trial, None, copied)


ATTACKS: dict[str, Callable[[_Planting], Attack]] = {
    "label_flip": _label_flips,
    "pair_flip": _pair_flips,
    "backdoor": _backdoor,
    "blend": _blend,
    "sine": _sine,
    "consistent": _consistent,
    "leak": _leak,
}
"""By name, in the order in which they are planted."""
TRIGGERED = ("backdoor", "blend", "sine", "consistent")
"""Those that lead to bad predictions by a trigger."""


def _count(name: str, fraction: float, examples: int) -> int:
    count = round(fraction * examples) if 0 < fraction < 0.5 else 0
    if count == 0:
        raise UserError(
            f"poison.{name}_fraction = {fraction} must be below 0.5 and reach at least one of "
            f"the {examples} training examples"
        )
    return count


def _require_images(planting: _Planting, name: str, what: str) -> None:
    inputs = planting.inputs
    if inputs.dtype != np.uint8 or inputs.ndim != 4:
        fraction = getattr(planting.config, f"{name}_fraction")
        raise UserError(
            f"poison.{name}_fraction = {fraction} {what} 8-bit images, but the inputs are "
            f"{inputs.dtype} of shape {inputs.shape[1:]}; set it to 0"
        )
