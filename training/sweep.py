"""The sweep: train every member of an arm and commit its outputs, unit by unit."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key, UInt8, UInt32

from training.arm import Arm, ArmSpec, Made, Report, Status, worst_status
from training.errors import UserError
from training.examples import Examples
from training.models import Model, State
from training.orbax_files import require_folder
from training.outputs import OutputFunction
from training.parallel import (
    LESS_MEMORY,
    Devices,
    Launched,
    Layout,
    MemberProgram,
    Memory,
    free_bytes,
)
from training.params import KeptParams, Params
from training.seeds import root_key, training_keys
from training.train import (
    EVALUATION_BLOCK,
    Recipe,
    all_finite,
    make_evaluate,
    make_train,
)
from training.variables import from_named, to_named


@dataclass(frozen=True)
class SweepConfig:
    """How many members are retrained, on which masks, and what they report."""

    members: int = 2000
    """Members of each alpha, every one with a mask of its own."""
    alpha: tuple[float, ...] = (0.5,)
    """Probability that a group of training examples is kept; several make an arm each."""
    design: Literal["bernoulli", "fixed_size", "pairs", "two_level"] = "bernoulli"
    """bernoulli: groups are kept independently. fixed_size: every mask keeps the same number.
    pairs: masks in complementary pairs (alpha 0.5). two_level: groups are chosen with alpha, and
    each example of a chosen one is kept with inner_alpha. See docs/designs.md."""
    inner_alpha: float = 0.5
    """For two_level."""
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
    keep_params: bool = False
    """Keep the parameters of every member, so that new targets cost only their outputs."""
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
    """What all members of a program read; on every device, once."""

    examples: Examples
    variables: dict[str, Any]
    """Of the model, by name: what members start from, or what none of them changes."""


class Finished(NamedTuple):
    """Members that were trained, or only evaluated."""

    reports: dict[int, Report]
    """By panel."""
    params: Params
    """Empty where they are not to be kept."""


class Sweeper:
    """Compiled programs that retrain any members of any arm of a task.

    One trains, and each panel of targets has one that evaluates what was trained. So the bits of a
    panel depend neither on other panels nor on whether parameters were kept or trained just now.
    """

    def __init__(self, task: Task, layout: Layout):
        self.task = task
        self.layout = layout
        self.state: State = jax.eval_shape(task.model.init, jax.random.key(0))
        """Shapes of what training gives."""
        self.param_shapes: dict[str, jax.ShapeDtypeStruct] = jax.eval_shape(
            lambda state: own_variables(task.model, state), self.state
        )
        """Of the variables that a member has for itself, by name."""
        self._shared = Devices(layout, Shared(task.examples, task.model.initial))
        self._evaluations = [
            MemberProgram(
                _make_evaluation(task, self.state, layout.microbatch),
                Devices(layout, Shared(targets, _common(task.model))),
                (self.param_shapes, packed_shape(task)),
            )
            for targets in _panels(task.targets, task.panels)
        ]

    @cached_property
    def _training(self) -> MemberProgram:
        task, microbatch = self.task, self.layout.microbatch

        def member(
            shared: Shared, key: UInt32[Array, " 2"], packed: UInt8[Array, " bytes"]
        ) -> dict[str, Array]:
            model = replace(task.model, initial=shared.variables)
            train = make_train(task.recipe, model, shared.examples, microbatch)
            mask = unpacked(packed, len(shared.examples))
            return own_variables(task.model, train(jax.random.wrap_key_data(key), mask))

        return MemberProgram(member, self._shared, (KEY, packed_shape(task)))

    def start(
        self, keys: UInt32[np.ndarray, "m 2"], masks: Bool[np.ndarray, "m n"], *, keep: bool = False
    ) -> Launched:
        """Begin to train members; what is fetched is `Finished`.

        Args:
            keys: their training keys (`training.seeds.training_keys`).
            masks: the examples they keep.
            keep: whether their parameters are wanted, too.
        """
        results = []
        for key, packed in self._shared.launches((keys, np.packbits(masks, axis=1))):
            results.append(self._finished(self._training.run((key, packed)), packed, keep))
        return Launched(results, len(keys))

    def evaluate(
        self, params: Params, masks: Bool[np.ndarray, "m n"], panels: Sequence[int]
    ) -> Launched:
        """Begin to evaluate members that were trained before; what is fetched is `Finished`.

        Args:
            params: theirs, with a leading axis of members.
            masks: the examples they kept.
            panels: on which targets.
        """
        launches = self._shared.launches((params, np.packbits(masks, axis=1)))
        results = [Finished(self._reports(own, packed, panels), {}) for own, packed in launches]
        return Launched(results, len(masks))

    def _finished(self, params: Any, packed: Any, keep: bool) -> Finished:
        """What is left of a launch, on the devices."""
        reports = self._reports(params, packed, range(len(self._evaluations)))
        return Finished(reports, params if keep else {})

    def _reports(self, params: Any, packed: Any, panels: Sequence[int]) -> dict[int, Report]:
        return {panel: self._evaluations[panel].run((params, packed)) for panel in panels}

    def start_unit(
        self,
        arm: Arm,
        unit: int,
        keys: UInt32[np.ndarray, "m 2"],
        masks: Bool[np.ndarray, "m n"],
        stop: Callable[[], bool],
        *,
        keep: bool = False,
    ) -> Launched | None:
        """Begin to train the members of a unit of an arm; None if `stop` said so before the end."""
        del arm, unit, stop
        return self.start(keys, masks, keep=keep)

    def finish_unit(self, arm: Arm, unit: int) -> None:
        """What there is to do once a unit is committed."""

    def require_memory(self) -> Memory:
        """Compile, and compare what a launch needs with what is free.

        Raises:
            UserError: it does not fit.
        """
        # Parameters and their gradient alone: the compiler does not survive far too large ones.
        parameters = sum(4 * leaf.size for leaf in jax.tree.leaves(self.state.parameters))
        self._require(2 * self.layout.width * parameters, free_bytes(self.layout))
        found = [program.memory() for program in (self._training, *self._evaluations)]
        memory = Memory(
            max(one.needed for one in found), found[-1].free, sum(one.data for one in found)
        )
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


KEY = jax.ShapeDtypeStruct((2,), jnp.uint32)
"""Shape of a member's training key, as numbers."""


def packed_shape(task: Task) -> jax.ShapeDtypeStruct:
    """Of a member's mask, as bits."""
    return jax.ShapeDtypeStruct((math.ceil(len(task.examples) / 8),), jnp.uint8)


def unpacked(packed: UInt8[Array, " bytes"], count: int) -> Bool[Array, " n"]:
    """A mask from its bits."""
    return jnp.unpackbits(packed, count=count).astype(bool)


def param_bytes(model: Model) -> int:
    """What the kept parameters of one member take."""
    own = jax.eval_shape(lambda key: own_variables(model, model.init(key)), jax.random.key(0))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in own.values())


def own_variables(model: Model, state: State) -> dict[str, Array]:
    """The variables of a member by name, without those that all members share."""
    return {name: value for name, value in to_named(state).items() if name not in model.common}


def _common(model: Model) -> dict[str, Any]:
    """The variables that all members share, by name."""
    return {name: model.initial[name] for name in sorted(model.common)}


def _make_evaluation(task: Task, like: State, microbatch: int) -> Callable[..., Report]:
    # Where pieces of a batch are what fits, more targets at once would not.
    block = microbatch or EVALUATION_BLOCK

    def member(shared: Shared, params: dict[str, Array], packed: UInt8[Array, " bytes"]) -> Report:
        state = from_named(shared.variables | params, like)
        mask = unpacked(packed, len(task.examples))
        evaluate = make_evaluate(task.recipe, task.model, shared.examples, task.output, block)
        outputs = evaluate(state).astype(jnp.float32)
        finite = all_finite(state) & jnp.isfinite(outputs).all()
        status = jnp.where(mask.any(), Status.OK.value, Status.EMPTY_MASK.value)
        status = jnp.where(finite, status, Status.NOT_FINITE.value)
        return Report(outputs, status.astype(jnp.uint8))

    return member


def _panels(targets: Examples, sizes: tuple[int, ...]) -> list[Examples]:
    """The targets of every panel."""
    if not sizes:
        return [targets]
    ends = np.cumsum(sizes)
    parts = [slice(int(end - size), int(end)) for end, size in zip(ends, sizes, strict=True)]
    return [targets.take(part) for part in parts]


def sweep(
    sweeper: Sweeper,
    arm: Arm,
    design: Design,
    units: Sequence[int],
    on_unit: Callable[[int, UInt8[np.ndarray, " u"]], None] = lambda unit, status: None,
    stop: Callable[[], bool] = lambda: False,
    *,
    keep_params: bool = False,
    allow_mixed: bool = False,
) -> None:
    """Make units of an arm.

    Of a unit whose parameters were kept, only what it lacks is evaluated.

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
        keep_params: keep the parameters of the members that are trained.
        allow_mixed: keep also what has other bits than it had before.

    Raises:
        UserError: a unit cannot be written, or has other bits.
    """
    if keep_params:
        require_folder(arm.store)
    root, kept = root_key(arm.spec.seed, arm.spec.stream), KeptParams(arm)

    def start(unit: int, examples: Bool[np.ndarray, "u n"], panels: list[int]) -> Launched | None:
        params = kept.read(unit)
        if params is not None:
            return sweeper.evaluate(params, examples, panels)
        keys = _keys(root, arm.spec, design, arm.spec.unit_rows(unit))
        return sweeper.start_unit(arm, unit, keys, examples, stop, keep=keep_params)

    def finish(unit: int, masks: Bool[np.ndarray, "u g"], launched: Launched) -> None:
        finished: Finished = launched.fetch()
        if finished.params:
            kept.write(unit, finished.params)
        made = Made(sweeper.made_on())
        arm.commit(unit, masks, finished.reports, made, allow_mixed=allow_mixed)
        sweeper.finish_unit(arm, unit)
        on_unit(unit, worst_status([report.status for report in finished.reports.values()]))

    other_thread = ThreadPoolExecutor(1)
    try:
        before = None
        for unit in units:
            if stop():
                break
            panels = arm.lacking_panels(unit)
            if not panels:
                continue
            masks = design.masks(root, arm.spec.unit_rows(unit), arm.spec.groups)
            launched = start(unit, arm.spec.examples(masks), panels)
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
