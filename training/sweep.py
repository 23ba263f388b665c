"""The sweep: train every member of an arm and commit its outputs, unit by unit."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt8, UInt32

from training.arm import Arm, ArmSpec, Made, Rows, Status
from training.errors import UserError
from training.examples import Examples
from training.models import Model
from training.outputs import OutputFunction
from training.parallel import (
    LESS_MEMORY,
    Launched,
    Layout,
    MemberProgram,
    Memory,
    free_bytes,
)
from training.seeds import root_key, training_keys
from training.train import (
    EVALUATION_BLOCK,
    Recipe,
    State,
    all_finite,
    make_evaluate,
    make_train,
)


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
    """Masks that are retrained with several seeds, to measure the ceiling; 0: none, no ceiling."""
    replicate_seeds: int = 8
    """Seeds of each of those masks."""
    seeds: Literal["independent", "common"] = "independent"
    """independent: every member has a training key of its own. common: all share one, so that a
    member's outputs depend on its mask alone, and hold for this seed only."""
    width: int = 0
    """Members side by side on one device; 0: what trains most members a second, found by a short
    timed search. Fixed for a run, since low bits depend on it."""
    microbatch: int = 0
    """Examples whose gradient is taken at once; must divide optim.batch_size. 0: found with the
    width, or the whole batch where the width is given. Fixed for a run, like the width."""
    unit: int = 64
    """Members of one unit of work: what an interruption can lose; rounded up to fill devices."""
    bank: str = ""
    """Where the bank is kept: a folder, gs://BUCKET/PREFIX or s3://BUCKET/PREFIX; "": in the run
    directory."""
    grace: float = 25.0
    """Seconds that a sweep takes to finish what is in training, when it is interrupted."""
    allow_mixed: bool = False
    """Let a sweep go on with another device kind, layout or JAX version: low bits may differ."""


class Task(NamedTuple):
    """What every member does: train on masked examples, then report its targets."""

    recipe: Recipe
    model: Model
    examples: Examples
    targets: Examples
    output: OutputFunction
    panels: tuple[int, ...] = ()
    """How many of the targets are evaluated together, group by group; (): all of them. A panel's
    bits do not depend on the others."""


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


class Shared(NamedTuple):
    """What all members read; on every device, once."""

    examples: Examples
    targets: Examples


def own_shapes(task: Task) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Of what a member has for itself: its training key, and its mask as bits."""
    packed = jax.ShapeDtypeStruct((math.ceil(len(task.examples) / 8),), jnp.uint8)
    return jax.ShapeDtypeStruct((2,), jnp.uint32), packed


class Sweeper:
    """One compiled program that retrains any members of any arm of a task."""

    def __init__(self, task: Task, layout: Layout):
        self.layout = layout
        parameters, _ = jax.eval_shape(task.model.init, jax.random.key(0))
        self._parameter_bytes = sum(4 * leaf.size for leaf in jax.tree.leaves(parameters))
        self._program = self._make_program(task)

    def _make_program(self, task: Task) -> Any:
        shared = Shared(task.examples, task.targets)
        member = _make_member(task, self.layout.microbatch)
        return MemberProgram(member, self.layout, shared, *own_shapes(task))

    def start(self, keys: UInt32[np.ndarray, "m 2"], masks: Bool[np.ndarray, "m n"]) -> Launched:
        """Begin to train members; what `fetch` returns is (outputs (m, t) float32, status (m,)).

        Args:
            keys: their training keys (`training.seeds.training_keys`).
            masks: the examples they keep.
        """
        return self._program.start(keys, np.packbits(masks, axis=1))

    def start_unit(
        self,
        arm: Arm,
        unit: int,
        keys: UInt32[np.ndarray, "m 2"],
        masks: Bool[np.ndarray, "m n"],
        stop: Callable[[], bool],
    ) -> Launched | None:
        """Begin to train the members of a unit of an arm; None if `stop` said so before the end."""
        del arm, unit, stop
        return self.start(keys, masks)

    def finish_unit(self, arm: Arm, unit: int) -> None:
        """What there is to do once a unit is committed."""

    def require_memory(self) -> Memory:
        """Compile, and compare what a launch needs with what is free.

        Raises:
            UserError: it does not fit.
        """
        # Parameters and their gradient alone: the compiler does not survive far too large ones.
        self._require(2 * self.layout.width * self._parameter_bytes, free_bytes(self.layout))
        memory = self._program.memory()
        self._require(memory.needed, memory.free)
        return memory

    def _require(self, needed: int, free: int | None) -> None:
        layout = self.layout
        if free is not None and needed > free:
            raise UserError(
                f"training {layout.width} member(s) at a time on each of {len(layout.devices)} "
                f"{layout.device_kind} device(s) needs {needed / 1e9:.2f} GB a device "
                f"beside the data, but {free / 1e9:.2f} GB is free; {LESS_MEMORY}"
            )

    def made_on(self) -> dict[str, Any]:
        """Where this program runs, for the done-records."""
        return {
            "device_kind": self.layout.device_kind,
            "devices": len(self.layout.devices),
            "width": self.layout.width,
            "microbatch": self.layout.microbatch,
            "jax": jax.__version__,
        }


def _make_member(task: Task, microbatch: int) -> Callable[..., tuple[Array, Array]]:
    def member(
        shared: Shared, key: UInt32[Array, " 2"], packed: UInt8[Array, " bytes"]
    ) -> tuple[Float[Array, " t"], UInt8[Array, ""]]:
        mask = unpacked(packed, len(task.examples))
        train = make_train(task.recipe, task.model, shared.examples, microbatch)
        state = train(jax.random.wrap_key_data(key), mask)
        return report(task, microbatch, shared.targets, state, mask)

    return member


def unpacked(packed: UInt8[Array, " bytes"], count: int) -> Bool[Array, " n"]:
    """A mask from its bits."""
    return jnp.unpackbits(packed, count=count).astype(bool)


def report(
    task: Task, microbatch: int, targets: Examples, state: State, mask: Bool[Array, " n"]
) -> tuple[Float[Array, " t"], UInt8[Array, ""]]:
    """The outputs and the status of a trained member."""
    # Where pieces of a batch are what fits, more targets at once would not.
    block = microbatch or EVALUATION_BLOCK
    outputs = jnp.concatenate(
        [
            make_evaluate(task.recipe, task.model, panel, task.output, block)(state)
            for panel in _panels(targets, task.panels)
        ]
    ).astype(jnp.float32)
    finite = all_finite(state) & jnp.isfinite(outputs).all()
    status = jnp.where(mask.any(), Status.OK.value, Status.EMPTY_MASK.value)
    status = jnp.where(finite, status, Status.NOT_FINITE.value)
    return outputs, status.astype(jnp.uint8)


def _panels(targets: Examples, sizes: tuple[int, ...]) -> list[Examples]:
    """The targets of every panel."""
    if not sizes:
        return [targets]
    ends = np.cumsum(sizes)
    parts = [slice(int(end - size), int(end)) for end, size in zip(ends, sizes, strict=True)]
    return [Examples(targets.inputs[part], targets.labels[part]) for part in parts]


def sweep(
    sweeper: Sweeper,
    arm: Arm,
    design: Design,
    units: Sequence[int],
    on_unit: Callable[[int, UInt8[np.ndarray, " u"]], None] = lambda unit, status: None,
    stop: Callable[[], bool] = lambda: False,
    *,
    allow_mixed: bool = False,
) -> None:
    """Make units of an arm.

    While a unit trains, the one before is fetched, written and reported by a thread of its own.
    Interrupted at any point, a later call continues and ends with the same bits. A unit that
    another process finished in the meantime is left alone.

    Args:
        sweeper: the compiled task.
        arm: where the members go.
        design: gives each member its mask, row and replicate.
        units: which to make: missing or damaged ones.
        on_unit: called after each commit with the unit's number and its members' status, in that
            thread.
        stop: asked before each unit; once it says so, what is in training is finished, and no
            other unit begun.
        allow_mixed: keep also what has other bits than it had before.

    Raises:
        UserError: a unit cannot be written, or has other bits.
    """
    root = root_key(arm.spec.seed, arm.spec.stream)
    missing = set(arm.missing_units())

    def finish(unit: int, masks: Bool[np.ndarray, "u n"], launched: Launched) -> None:
        rows = Rows(masks, *launched.fetch())
        arm.commit(unit, rows, Made(sweeper.made_on()), allow_mixed=allow_mixed)
        sweeper.finish_unit(arm, unit)
        on_unit(unit, rows.status)

    other_thread = ThreadPoolExecutor(1)
    try:
        before = None
        for unit in units:
            if stop():
                break
            if unit in missing and arm.is_done(unit):
                continue
            members = arm.spec.unit_rows(unit)
            masks = design.masks(root, members, arm.spec.groups)
            keys = _keys(root, arm.spec, design, members)
            launched = sweeper.start_unit(arm, unit, keys, masks, stop)
            if launched is None:
                break
            # One unit in training and one in writing, so that memory stays flat.
            if before is not None:
                before.result()
            before = other_thread.submit(finish, unit, masks, launched)
        if before is not None:
            before.result()
    finally:
        # After an interruption, nothing waits for what is in training.
        other_thread.shutdown(wait=False, cancel_futures=True)


def _keys(
    root: Key[Array, ""], spec: ArmSpec, design: Design, members: Int[np.ndarray, " m"]
) -> UInt32[np.ndarray, "m 2"]:
    rows, replicates = design.rows(members), design.replicate_of(members)
    if spec.common_seed:
        rows, replicates = np.zeros_like(rows), np.zeros_like(replicates)
    return training_keys(root, rows, replicates)
