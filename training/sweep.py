"""The sweep: train every member of an arm and commit its outputs, unit by unit."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from training.bank import Arm, Rows, Status
from training.examples import Examples
from training.models import Model
from training.outputs import OutputFunction
from training.parallel import Layout, map_members, replicate
from training.seeds import root_key, training_key
from training.train import Recipe, all_finite, make_evaluate, make_train


@dataclass(frozen=True)
class SweepConfig:
    """How many members are retrained, on which masks, and what they report."""

    members: int = 2000
    """Members of the main arm, each with a mask of its own."""
    alpha: float = 0.5
    """Probability that a training example is kept."""
    seed: int = 0
    """Root of all masks and training keys."""
    output: str = "margin"
    """margin, loss, probability, or your own "package.module:function"."""
    replicate_masks: int = 32
    """Masks that are retrained with several seeds, to measure the ceiling."""
    replicate_seeds: int = 8
    """Seeds of each of those masks."""
    width: int = 8
    """Members side by side on one device: several for small networks, 1 for convolutions on CPU.
    Fixed for a run, since low bits depend on it."""
    unit: int = 64
    """Members of one unit of work: what an interruption can lose; rounded up to fill devices."""
    allow_mixed: bool = False
    """Let a sweep go on with another device kind, layout or JAX version: low bits may differ."""


class Task(NamedTuple):
    """What every member does: train on masked examples, then report its targets."""

    recipe: Recipe
    model: Model
    examples: Examples
    targets: Examples
    output: OutputFunction


@runtime_checkable
class Design(Protocol):
    """What the sweep asks of a design (`datamodels.design` has them)."""

    def rows(self, members: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        """The mask row of each member."""
        ...

    def replicate_of(self, members: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
        """Which retrain of its row each member is, from 0."""
        ...

    def masks(
        self, root: Key[Array, ""], members: Int[np.ndarray, " m"], groups: int
    ) -> Bool[np.ndarray, "m g"]:
        """Their masks, True = kept."""
        ...

    def describe(self) -> dict[str, Any]:
        """What the bank records of the design."""
        ...


class _Shared(NamedTuple):
    """What all members read; on every device, once."""

    root: Key[Array, ""]
    examples: Examples
    targets: Examples


class Sweeper:
    """One compiled program that retrains any members of any arm of a task."""

    def __init__(self, task: Task, layout: Layout):
        self.layout = layout
        self._arrays = replicate((task.examples, task.targets), layout)
        self._run = map_members(_make_member(task), layout)

    def outputs(
        self,
        root: Key[Array, ""],
        masks: Bool[np.ndarray, "m n"],
        rows: Int[np.ndarray, " m"],
        replicates: Int[np.ndarray, " m"],
    ) -> tuple[Float[np.ndarray, "m t"], UInt8[np.ndarray, " m"]]:
        """Train members and return (outputs float32, status)."""
        shared = _Shared(replicate(root, self.layout), *self._arrays)
        packed = np.packbits(masks, axis=1)
        return self._run(shared, packed, rows.astype(np.int32), replicates.astype(np.int32))

    def made_on(self) -> dict[str, Any]:
        """Where this program runs, for the done-records."""
        return {
            "device_kind": self.layout.device_kind,
            "devices": len(self.layout.devices),
            "width": self.layout.width,
            "jax": jax.__version__,
        }


def _make_member(task: Task) -> Callable[..., tuple[Array, Array]]:
    count = len(task.examples)

    def member(
        shared: _Shared,
        packed: UInt8[Array, " bytes"],
        row: Int[Array, ""],
        replicate: Int[Array, ""],
    ) -> tuple[Float[Array, " t"], UInt8[Array, ""]]:
        mask = jnp.unpackbits(packed, count=count).astype(bool)
        train = make_train(task.recipe, task.model, shared.examples)
        state = train(training_key(shared.root, row, replicate), mask)
        evaluate = make_evaluate(task.recipe, task.model, shared.targets, task.output)
        outputs = evaluate(state).astype(jnp.float32)
        finite = all_finite(state) & jnp.isfinite(outputs).all()
        status = jnp.where(mask.any(), Status.OK.value, Status.EMPTY_MASK.value)
        status = jnp.where(finite, status, Status.NOT_FINITE.value)
        return outputs, status.astype(jnp.uint8)

    return member


def sweep(
    sweeper: Sweeper,
    arm: Arm,
    design: Design,
    on_unit: Callable[[int, Rows], None],
    *,
    allow_mixed: bool = False,
) -> None:
    """Make every unit of the arm that is missing; what is done is left alone.

    Interrupted at any point, a later call continues and ends with the same bits.

    Args:
        sweeper: the compiled task.
        arm: where the members go.
        design: gives each member its mask, row and replicate.
        on_unit: called after each commit with the unit's number and rows.
        allow_mixed: go on even where finished units were made on another device kind, layout or
            JAX version.

    Raises:
        UserError: they were, and it is not allowed; or a unit cannot be written.
    """
    if not allow_mixed:
        arm.check_made_on(sweeper.made_on())
    root = root_key(arm.spec.seed, arm.spec.stream)
    for unit in arm.missing_units():
        members = arm.spec.unit_rows(unit)
        masks = design.masks(root, members, arm.spec.groups)
        outputs, status = sweeper.outputs(
            root, masks, design.rows(members), design.replicate_of(members)
        )
        rows = Rows(masks, outputs, status)
        arm.commit(unit, rows, sweeper.made_on())
        on_unit(unit, rows)
