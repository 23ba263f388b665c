"""A sweep of long members, whose units are saved while they train."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Int, UInt8, UInt32

from training.arm import Arm
from training.checkpoints import Reached, UnitCheckpoints, require_folder
from training.parallel import Launched, Layout, SteppedProgram
from training.sweep import Shared, Sweeper, Task, own_shapes, report, unpacked
from training.train import Progress, make_steps


class SteppedSweeper(Sweeper):
    """Retrains members like `Sweeper`, some steps at a time; the unit in training is kept.

    Interrupted at any moment, it goes on from the last checkpoint that was written whole, with the
    same bits as if nothing had happened. They do not depend on how many steps are made at a time.
    """

    def __init__(self, task: Task, layout: Layout, every_steps: int):
        self._steps = task.recipe.optim.steps
        self._every = every_steps
        self._units: dict[tuple[str, int], UnitCheckpoints] = {}
        super().__init__(task, layout)

    def _make_program(self, task: Task) -> Any:
        count, microbatch = len(task.examples), self.layout.microbatch

        def begin(shared: Shared, key: UInt32[Array, " 2"], packed: UInt8[Array, " b"]) -> Progress:
            del packed
            steps = make_steps(task.recipe, task.model, shared.examples, microbatch)
            return steps.begin(jax.random.wrap_key_data(key))

        def advance(
            shared: Shared,
            progress: Progress,
            key: UInt32[Array, " 2"],
            packed: UInt8[Array, " b"],
            first: Int[Array, ""],
            last: Int[Array, ""],
        ) -> Progress:
            steps = make_steps(task.recipe, task.model, shared.examples, microbatch)
            mask = unpacked(packed, count)
            return steps.advance(progress, jax.random.wrap_key_data(key), mask, first, last)

        def end(
            shared: Shared, progress: Progress, key: UInt32[Array, " 2"], packed: UInt8[Array, " b"]
        ) -> tuple[Array, Array]:
            steps = make_steps(task.recipe, task.model, shared.examples, microbatch)
            mask = unpacked(packed, count)
            state = steps.end(progress, steps.begin(jax.random.wrap_key_data(key)), mask)
            return report(task, microbatch, shared.targets, state, mask)

        shared = Shared(task.examples, task.targets)
        return SteppedProgram(begin, advance, end, self.layout, shared, *own_shapes(task))

    def start(self, keys: UInt32[np.ndarray, "m 2"], masks: Bool[np.ndarray, "m n"]) -> Launched:
        """As `Sweeper.start`, without any checkpoint."""
        launched = self._train(keys, masks, None, lambda: False)
        assert launched is not None
        return launched

    def start_unit(
        self,
        arm: Arm,
        unit: int,
        keys: UInt32[np.ndarray, "m 2"],
        masks: Bool[np.ndarray, "m n"],
        stop: Callable[[], bool],
    ) -> Launched | None:
        """Train the members of a unit, from its last checkpoint if it has one.

        Asked to stop, it saves what it has reached, waits until that is written, and returns None.
        """
        require_folder(arm.store)
        of = hashlib.sha256(json.dumps(self.made_on(), sort_keys=True).encode())
        of.update(keys.tobytes() + np.packbits(masks, axis=1).tobytes())
        checkpoints = UnitCheckpoints(arm.store, unit, of.hexdigest())
        self._units[arm.store.location, unit] = checkpoints
        return self._train(keys, masks, checkpoints, stop)

    def finish_unit(self, arm: Arm, unit: int) -> None:
        """Delete the checkpoints of a unit that is committed."""
        checkpoints = self._units.pop((arm.store.location, unit), None)
        if checkpoints is not None:
            checkpoints.delete()

    def _train(
        self,
        keys: UInt32[np.ndarray, "m 2"],
        masks: Bool[np.ndarray, "m n"],
        checkpoints: UnitCheckpoints | None,
        stop: Callable[[], bool],
    ) -> Launched | None:
        program = self._program
        launches = program.launches(keys, np.packbits(masks, axis=1))
        results = [np.zeros((len(launches), *s.shape), s.dtype) for s in program.result_shapes]
        launch, step = 0, 0
        progress = program.begin(launches[0])
        if checkpoints is not None:
            arrays = program.to_host(progress)
            reached = checkpoints.newest([*arrays, *results])
            if reached is not None:
                launch, step = reached.launch, reached.step
                progress = program.to_devices(reached.arrays[: len(arrays)], like=progress)
                results = reached.arrays[len(arrays) :]
        while True:
            last = min(step + self._every, self._steps)
            progress = program.advance(launches[launch], progress, step, last)
            step = last
            if step == self._steps:
                for all_launches, own in zip(
                    results, program.end(launches[launch], progress), strict=True
                ):
                    all_launches[launch] = own
                launch, step = launch + 1, 0
                if launch == len(launches):
                    return Launched(list(zip(*results, strict=True)), len(keys))
                progress = program.begin(launches[launch])
            if checkpoints is not None:
                checkpoints.save(Reached(launch, step, [*program.to_host(progress), *results]))
                if stop():
                    checkpoints.wait()
                    return None
