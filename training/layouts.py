"""Finding the layout that trains most members a second, by a short timed search."""

import dataclasses
import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr

from training.cache import read_cache, write_cache
from training.cost import member_flops, member_jaxpr, program_flops
from training.errors import UserError
from training.parallel import Layout, local_layout
from training.seeds import root_key, training_keys
from training.sweep import Sweeper, Task
from training.train import EVALUATION_BLOCK

SEARCH_VERSION = 3
"""Raised by hand when a change to layers or search makes kept results worthless."""

TRIAL_STEPS = (8, 500)
"""At the least and at the most."""
TRIAL_FLOPS = 4e9
"""What a member should take: with less, a launch's own time would decide."""
TRIAL_EXAMPLES = 1024
REPEATS = 5
SECONDS = 5.0
"""After which a layout is not timed once more."""
GAIN = 1.02
"""How much faster another layout must be to be preferred: smaller gains are noise."""
PATIENCE = 2
"""Layouts in a row that are no faster, before a direction is given up."""
CLEAR_LOSS = 0.85
"""A speed, as a share of the best, at which a direction is given up at once."""
SMALLEST_PIECE = 8


class Found(NamedTuple):
    """The fastest layout, and what was seen."""

    layout: Layout
    flops: float
    """FLOP a second of its matrix products, on all devices together."""
    timed: int
    """Layouts that were timed for it; 0: known from an earlier search."""


SHORT = 20.0
"""Seconds of a sweep for which nothing is searched: compiling the layouts would take longer."""


def find_layout(
    task: Task, width: int = 0, microbatch: int = 0, members: int | None = None
) -> Found:
    """The fastest layout of this task on the local devices.

    First the width is doubled while that pays. Then, for models that treat every example by
    itself, batches are cut into smaller and smaller pieces. For each layout a few steps of a few
    members are timed. What was found is kept (`training.cache`) for this model, shape of an
    example, batch, kind and number of devices, and version of JAX. A layout that does not fit into
    memory counts as infinitely slow: pieces are tried even where the whole batch is too large.

    Args:
        task: what will be swept.
        width: of the layout; 0 searches.
        microbatch: of the layout; 0 searches where the width is searched, too, and else means the
            whole batch.
        members: how many there are to train. Where one at a time takes less than `SHORT` seconds
            for all, that is the layout, and it is not kept.

    Raises:
        UserError: not even the smallest layout fits into memory.
    """
    trial = _trial(task)
    program = member_jaxpr(trial)
    kept = _read(_file(program, width, microbatch))
    if kept is not None:
        return kept
    flops = program_flops(program)
    times: dict[Layout, float] = {}
    refusals: list[UserError] = []

    def seconds(layout: Layout) -> float:
        if layout not in times:
            try:
                times[layout] = _seconds_a_member(trial, layout)
            except UserError as error:
                times[layout] = math.inf
                refusals.append(error)
        return times[layout]

    best = local_layout(width or 1, microbatch=microbatch)
    if members is not None and not width:
        longer = member_flops(task) / flops
        if members * longer * seconds(best) < SHORT:
            return Found(best, flops / times[best], 1)
    if not width and math.isfinite(seconds(best)):
        best = _fastest([dataclasses.replace(best, width=2**power) for power in range(11)], seconds)
    if not width and not microbatch and task.model.by_example:
        pieces = _pieces(task.recipe.optim.batch_size)
        best = _fastest([dataclasses.replace(best, microbatch=one) for one in pieces], seconds)
    if math.isinf(seconds(best)):
        raise refusals[-1]
    found = Found(best, flops / times[best], len(times))
    kept_text = {"width": best.width, "microbatch": best.microbatch, "flops": found.flops}
    # Also for those who ask later with what was found, as a run does that has fixed it.
    for asked in {(width, microbatch), (best.width, best.microbatch)}:
        write_cache(_file(program, *asked), json.dumps(kept_text))
    return found


def _read(name: str) -> Found | None:
    """What an earlier search kept; None if it cannot be read."""
    try:
        kept = json.loads(read_cache(name) or "")
        layout = local_layout(int(kept["width"]), microbatch=int(kept["microbatch"]))
        return Found(layout, float(kept["flops"]), 0)
    except (ValueError, KeyError, TypeError):
        return None


def _trial(task: Task) -> Task:
    """The same task with few steps, examples and targets: what is timed."""
    small = task._replace(
        examples=task.examples.take(slice(0, TRIAL_EXAMPLES)),
        # What is evaluated at once counts for the memory.
        targets=task.targets.take(slice(0, EVALUATION_BLOCK)),
        panels=(),
    )

    def with_steps(steps: int) -> Task:
        optim = dataclasses.replace(task.recipe.optim, steps=steps)
        return small._replace(recipe=dataclasses.replace(task.recipe, optim=optim))

    fewest, most = TRIAL_STEPS
    enough = math.ceil(TRIAL_FLOPS / member_flops(with_steps(1)))
    return with_steps(min(max(fewest, enough), most, task.recipe.optim.steps))


def _file(program: ClosedJaxpr, width: int, microbatch: int) -> str:
    """Named by a hash of the program, of where it runs, and of what is given."""
    # Functions show their address in memory, which says nothing.
    text = re.sub(r" at 0x[0-9a-f]+", "", str(program))
    layout = local_layout(1)
    where = [layout.device_kind, len(layout.devices), jax.__version__, SEARCH_VERSION]
    content = json.dumps([text, where, width, microbatch])
    return f"layouts/{hashlib.sha256(content.encode()).hexdigest()[:32]}.json"


def _fastest(layouts: Sequence[Layout], seconds: Callable[[Layout], float]) -> Layout:
    """The first layout, or a later one that is faster by more than noise."""
    best, worse = layouts[0], 0
    for layout in layouts[1:]:
        before, now = seconds(best), seconds(layout)
        best, worse = (layout, 0) if now * GAIN < before else (best, worse + 1)
        # While nothing fits there is nothing to lose.
        if math.isfinite(before) and (worse == PATIENCE or before < CLEAR_LOSS * now):
            break
    return best


def _pieces(batch_size: int) -> list[int]:
    """The whole batch (0), then divisors of the batch size, each clearly below the one before."""
    divisors = [d for d in range(batch_size // 2, SMALLEST_PIECE - 1, -1) if batch_size % d == 0]
    pieces = [0]
    for divisor in divisors:
        if divisor <= 0.8 * (pieces[-1] or batch_size):
            pieces.append(divisor)
    return pieces


def _seconds_a_member(trial: Task, layout: Layout) -> float:
    """Seconds of the fastest launch, for each of its members; the first one does not count."""
    sweeper = Sweeper(trial, layout)
    sweeper.require_memory()
    members = np.arange(layout.launch)
    keys = training_keys(root_key(0, 0), members, 0 * members)
    masks = np.random.default_rng(0).random((layout.launch, len(trial.examples))) < 0.5
    sweeper.start(keys, masks).fetch()
    times = []
    while len(times) < REPEATS and sum(times) < SECONDS:
        started = time.perf_counter()
        sweeper.start(keys, masks).fetch()
        times.append(time.perf_counter() - started)
    return min(times) / layout.launch
