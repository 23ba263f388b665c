"""Where members run. The only module that names devices, `pmap` or meshes."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, PyTree

from training.errors import UserError, reason

LESS_MEMORY = "lower optim.batch_size, model.width or sweep.width, or set sweep.microbatch"


@dataclass(frozen=True)
class Layout:
    """The local devices of a sweep, and how members run on each.

    Low bits of the outputs depend on `width` and `microbatch`, so a run fixes them once.
    """

    devices: tuple[jax.Device, ...]  # pyright: ignore[reportInvalidTypeForm]
    width: int
    """Members side by side on one device; further ones follow in turn."""
    microbatch: int = 0
    """Examples whose gradient is taken at once; 0: the whole batch."""

    @property
    def launch(self) -> int:
        """Members in one launch of the compiled program."""
        return len(self.devices) * self.width

    @property
    def device_kind(self) -> str:
        """For example "cpu" or "TPU v5 lite"."""
        return self.devices[0].device_kind

    def __str__(self) -> str:
        together = "one member" if self.width == 1 else f"{self.width} members side by side"
        pieces = f", batches in pieces of {self.microbatch}" if self.microbatch else ""
        return f"{len(self.devices)} {self.device_kind} device(s), {together} on each{pieces}"


CONTROL_GROUP = Path("/sys/fs/cgroup")


class Memory(NamedTuple):
    """Bytes on one device."""

    needed: int
    """By a launch and the results of the one before, beside the data that all members share."""
    free: int | None
    """None where the device does not say."""
    data: int
    """What all members share, which is on the device already."""


def use_all_cores() -> None:
    """Make every CPU core a JAX device of its own; call before JAX starts.

    XLA uses several cores well within one large operation, and members are small: one device a
    core is faster. It changes nothing where an accelerator is found, and the user's own
    `JAX_NUM_CPU_DEVICES` is respected.
    """
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", usable_cores())


def usable_cores() -> int:
    """Cores that this process may use; a container's share is rounded up."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    match _control_group("cpu.max"):
        case [quota, period] if quota != "max":
            return min(cores, math.ceil(int(quota) / int(period)))
    return cores


def _control_group(name: str) -> list[str]:
    """Words of a limit that a container has (Linux's control groups, version 2); [] if none."""
    try:
        return (CONTROL_GROUP / name).read_text().split()
    except OSError:
        return []


def keep_compiled_programs(folder: Path) -> None:
    """Let JAX keep compiled programs in a folder, so that the same one is compiled once.

    The user's own `JAX_COMPILATION_CACHE_DIR` is respected.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(folder))


def local_layout(width: int, count: int | None = None, microbatch: int = 0) -> Layout:
    """All local devices (or the first `count`), `width` members side by side on each."""
    return Layout(tuple(jax.local_devices()[:count]), width, microbatch)


@contextlib.contextmanager
def _short_of_memory() -> Iterator[None]:
    """Make the refusal of a device or of the host one line.

    Raises:
        UserError: in place of its error.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(f"out of memory ({reason(error)}); {LESS_MEMORY}") from error


@dataclass(frozen=True)
class Launched:
    """Members that are being computed."""

    results: list[PyTree]
    count: int

    def fetch(self) -> PyTree:
        """Wait for them; every array on the host, with a leading axis of members.

        Raises:
            UserError: a device ran out of memory.
        """
        with _short_of_memory():
            fetched = [jax.device_get(result) for result in self.results]

        def joined(*parts: np.ndarray) -> np.ndarray:
            return np.concatenate([p.reshape(-1, *p.shape[2:]) for p in parts])[: self.count]

        return jax.tree.map(joined, *fetched)


class MemberProgram:
    """`member(shared, *own)` for any number of members: `pmap` over devices, `vmap` on each.

    It always launches full batches of `layout.launch` members, the last one filled up by
    repeating its last member, so it is traced and compiled once, and a member's bits do not
    depend on how many others were asked for.
    """

    def __init__(
        self,
        member: Callable[..., PyTree],
        layout: Layout,
        shared: PyTree,
        *own: jax.ShapeDtypeStruct,
    ):
        """Place what all members share on every device, and set the program up.

        Args:
            member: a pure function of what is shared and of one member's own arrays.
            layout: where to run.
            shared: arrays that every member reads; placed on each device, once.
            own: shape and dtype of each of a member's own arrays, without the axis of members.
        """

        # As plain arrays: JAX rebuilds trees with placeholders, which a checked dataclass refuses.
        leaves, structure = jax.tree.flatten(shared)

        def side_by_side(leaves: list[Array], own: tuple[Array, ...]) -> PyTree:
            shared = jax.tree.unflatten(structure, leaves)
            if layout.width == 1:
                # A vmap of one is still a batched matrix product, twice as slow on CPU.
                alone = member(shared, *(part[0] for part in own))
                return jax.tree.map(lambda part: part[None], alone)
            return jax.vmap(lambda *one: member(shared, *one))(*own)

        self.layout = layout
        mesh = jax.sharding.Mesh(np.array(layout.devices), ("devices",))
        self._by_device = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("devices"))
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        with _short_of_memory():
            self._shared = jax.device_put(leaves, everywhere)
        self._own = tuple(
            jax.ShapeDtypeStruct((len(layout.devices), layout.width, *one.shape), one.dtype)
            for one in own
        )
        self._mapped = jax.pmap(side_by_side, in_axes=(None, 0), devices=list(layout.devices))

    @cached_property
    def _compiled(self) -> jax.stages.Compiled:
        with _short_of_memory():
            return self._mapped.lower(self._shared, self._own).compile()

    def memory(self) -> Memory:
        """What a launch needs, as the compiler counts it, and what is free."""
        stats: Any = self._compiled.memory_analysis()
        needed = stats.temp_size_in_bytes + 2 * stats.output_size_in_bytes
        return Memory(needed, free_bytes(self.layout), sum(part.nbytes for part in self._shared))

    def start(self, *own: np.ndarray) -> Launched:
        """Begin to compute members; every array has a leading axis of members.

        Raises:
            UserError: a device ran out of memory.
        """
        count = len(own[0])
        filled = np.minimum(np.arange(count + -count % self.layout.launch), count - 1)
        launches = filled.reshape(-1, len(self.layout.devices), self.layout.width)
        placed = (jax.device_put(tuple(x[rows] for x in own), self._by_device) for rows in launches)
        with _short_of_memory():
            return Launched([self._compiled(self._shared, arrays) for arrays in placed], count)


def free_bytes(layout: Layout) -> int | None:
    """Free memory of one device; CPU devices share what the machine has left."""
    stats = layout.devices[0].memory_stats()
    if stats is not None:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    meminfo = Path("/proc/meminfo")  # on Linux
    if layout.devices[0].platform != "cpu" or not meminfo.exists():
        return None
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
    free = 1024 * int(lines["MemAvailable"].split()[0])
    limit, used = _control_group("memory.max"), _control_group("memory.current")
    if limit and used and limit != ["max"]:
        free = min(free, int(limit[0]) - int(used[0]))
    return free // len(layout.devices)
