"""A sweep of long members, whose units are saved while they train."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree, UInt8, UInt32

from training.arm import Arm
from training.checkpoints import Reached, UnitCheckpoints
from training.orbax_files import require_folder
from training.parallel import Launched, Layout, MemberProgram, wait_for
from training.sweep import (
    KEY,
    Finished,
    Shared,
    Sweeper,
    Task,
    own_variables,
    packed_shape,
    unpacked,
)
from training.train import Steps, make_steps
from training.variables import from_numbers, to_numbers


class SteppedSweeper(Sweeper):
    """Retrains members like `Sweeper`, some steps at a time; the unit in training is kept.

    Interrupted at any moment, it goes on from the last checkpoint that was written whole, with the
    same bits as if nothing had happened. They do not depend on how many steps are made at a time.
    """

    def __init__(self, task: Task, layout: Layout, every_steps: int):
        super().__init__(task, layout)
        self._steps = task.recipe.optim.steps
        self._every = every_steps
        self._units: dict[tuple[str, int], UnitCheckpoints] = {}
        self._progress = jax.eval_shape(
            lambda key: self._steps_of(Shared(task.examples, task.model.initial)).begin(key),
            jax.random.key(0),
        )

    def _steps_of(self, shared: Shared) -> Steps:
        model = replace(self.task.model, initial=shared.variables)
        return make_steps(self.task.recipe, model, shared.examples, self.layout.microbatch)

    @property
    def _progress_shapes(self) -> list[jax.ShapeDtypeStruct]:
        return jax.eval_shape(to_numbers, self._progress)

    @cached_property
    def _begin(self) -> MemberProgram:
        def begin(shared: Shared, key: UInt32[Array, " 2"]) -> list[Array]:
            return to_numbers(self._steps_of(shared).begin(jax.random.wrap_key_data(key)))

        return MemberProgram(begin, self._shared, (KEY,))

    @cached_property
    def _training(self) -> MemberProgram:
        count = len(self.task.examples)

        def advance(
            shared: Shared,
            progress: list[Array],
            key: UInt32[Array, " 2"],
            packed: UInt8[Array, " b"],
            first: Int[Array, ""],
            last: Int[Array, ""],
        ) -> list[Array]:
            before, mask = from_numbers(progress, self._progress), unpacked(packed, count)
            steps = self._steps_of(shared)
            return to_numbers(
                steps.advance(before, jax.random.wrap_key_data(key), mask, first, last)
            )

        own = (self._progress_shapes, KEY, packed_shape(self.task))
        return MemberProgram(advance, self._shared, own, (np.int32(0), np.int32(0)))

    @cached_property
    def _end(self) -> MemberProgram:
        count = len(self.task.examples)

        def end(
            shared: Shared,
            progress: list[Array],
            key: UInt32[Array, " 2"],
            packed: UInt8[Array, " b"],
        ) -> dict[str, Array]:
            after, mask = from_numbers(progress, self._progress), unpacked(packed, count)
            steps = self._steps_of(shared)
            before = steps.begin(jax.random.wrap_key_data(key))
            return own_variables(self.task.model, steps.end(after, before, mask))

        return MemberProgram(
            end, self._shared, (self._progress_shapes, KEY, packed_shape(self.task))
        )

    def start(
        self, keys: UInt32[np.ndarray, "m 2"], masks: Bool[np.ndarray, "m n"], *, keep: bool = False
    ) -> Launched:
        """As `Sweeper.start`, without any checkpoint."""
        launched = self._train(keys, masks, keep, None, lambda: False)
        assert launched is not None
        return launched

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
        """Train the members of a unit, from its last checkpoint if it has one.

        Asked to stop, it saves what it has reached, waits until that is written, and returns None.
        """
        require_folder(arm.store)
        of = hashlib.sha256(json.dumps(self.made_on(), sort_keys=True).encode())
        of.update(keys.tobytes() + np.packbits(masks, axis=1).tobytes())
        checkpoints = UnitCheckpoints(arm.store, unit, of.hexdigest())
        self._units[arm.store.location, unit] = checkpoints
        return self._train(keys, masks, keep, checkpoints, stop)

    def finish_unit(self, arm: Arm, unit: int) -> None:
        """Delete the checkpoints of a unit that is committed."""
        checkpoints = self._units.pop((arm.store.location, unit), None)
        if checkpoints is not None:
            checkpoints.delete()

    def _train(
        self,
        keys: UInt32[np.ndarray, "m 2"],
        masks: Bool[np.ndarray, "m n"],
        keep: bool,
        checkpoints: UnitCheckpoints | None,
        stop: Callable[[], bool],
    ) -> Launched | None:
        """One launch after the other, so that the devices hold the progress of one."""
        launches = list(self._shared.launches((keys, np.packbits(masks, axis=1))))
        shapes, structure = jax.tree.flatten(self._finished_shapes(keep))
        results = [np.zeros((len(launches), *one.shape), one.dtype) for one in shapes]
        launch, step = 0, 0
        progress = self._begin.run((launches[0][0],))
        if checkpoints is not None:
            reached = checkpoints.newest([*map(np.asarray, progress), *results])
            if reached is not None:
                launch, step = reached.launch, reached.step
                progress = self._shared.place(reached.arrays[: len(progress)])
                results = reached.arrays[len(progress) :]
        while True:
            key, packed = launches[launch]
            last = min(step + self._every, self._steps)
            steps = np.int32(step), np.int32(last)
            progress = wait_for(self._training.run((progress, key, packed), *steps))
            step = last
            if step == self._steps:
                params = self._end.run((progress, key, packed))
                finished = self._finished(params, packed, keep)
                for all_launches, own in zip(results, jax.tree.leaves(finished), strict=True):
                    all_launches[launch] = own
                launch, step = launch + 1, 0
                if launch == len(launches):
                    parts = zip(*results, strict=True)
                    return Launched([jax.tree.unflatten(structure, p) for p in parts], len(keys))
                progress = self._begin.run((launches[launch][0],))
            if checkpoints is not None:
                arrays = [np.asarray(part) for part in progress]
                checkpoints.save(Reached(launch, step, [*arrays, *results]))
                if stop():
                    checkpoints.wait()
                    return None

    def _finished_shapes(self, keep: bool) -> PyTree:
        """Of the arrays of a launch."""
        reports = {p: program.member_shapes() for p, program in enumerate(self._evaluations)}
        params: Any = self.param_shapes if keep else {}
        lead = (len(self.layout.devices), self.layout.width)
        return jax.tree.map(
            lambda one: jax.ShapeDtypeStruct((*lead, *one.shape), one.dtype),
            Finished(reports, params),
        )
