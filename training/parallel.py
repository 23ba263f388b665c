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
from training.shards import Shard

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


def process_shard(shard: Shard) -> Shard:
    """The part of a shard that is this process's, where several hosts are one JAX job.

    On a slice of a TPU pod, say, every host runs the same command; each works on its own devices.
    """
    index, count = jax.process_index(), jax.process_count()
    return Shard(shard.index * count + index, shard.count * count)


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


class Devices:
    """The devices of a layout, with what all members share on each of them, once."""

    def __init__(self, layout: Layout, shared: PyTree):
        """Place what is shared.

        Args:
            layout: where to run.
            shared: arrays that every member reads.
        """
        self.layout = layout
        mesh = jax.sharding.Mesh(np.array(layout.devices), ("devices",))
        self._by_device = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("devices"))
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        # As plain arrays: JAX rebuilds trees with placeholders, which a checked dataclass refuses.
        leaves, self.structure = jax.tree.flatten(shared)
        with _short_of_memory():
            self.shared = jax.device_put(leaves, everywhere)

    def launches(self, own: PyTree) -> Iterator[PyTree]:
        """Members in full launches, the last one filled up by repeating its last member.

        Args:
            own: arrays with a leading axis of members.
        """
        count = len(jax.tree.leaves(own)[0])
        filled = np.minimum(np.arange(count + -count % self.layout.launch), count - 1)
        for rows in filled.reshape(-1, *self._lead):
            yield self.place(jax.tree.map(lambda part, rows=rows: part[rows], own))

    def zeros(self, own: PyTree) -> PyTree:
        """The arrays of a launch, from the shapes of one member's.

        A `pmap` is lowered for them and not for shapes, which JAX refuses where several hosts are
        one job.
        """
        return self.place(
            jax.tree.map(lambda one: np.zeros((*self._lead, *one.shape), one.dtype), own)
        )

    def place(self, own: PyTree) -> PyTree:
        """Put the arrays of a launch on the devices."""
        return jax.device_put(own, self._by_device)

    @property
    def _lead(self) -> tuple[int, int]:
        return len(self.layout.devices), self.layout.width


class MemberProgram:
    """`member(shared, *own, *common)` for a launch of members: `pmap` over devices, `vmap` on each.

    Launches are always full, so it is traced and compiled once, and a member's bits do not depend
    on how many others were asked for.
    """

    def __init__(
        self,
        member: Callable[..., PyTree],
        devices: Devices,
        own: tuple[PyTree, ...],
        common: tuple[np.generic, ...] = (),
    ):
        """Set the program up.

        Args:
            member: a pure function of what is shared, of one member's own arrays, and of numbers
                that all members of a launch have in common. Its results are arrays of numbers.
            devices: where to run, and what is shared.
            own: shape and dtype of a member's own arrays, without the axis of members.
            common: numbers like those that are given when it runs.
        """
        self._devices = devices
        self._member = member
        self._own, self._common = own, common
        width, structure = devices.layout.width, devices.structure
        places, own_structure = jax.tree.flatten(own)
        ends = len(devices.shared), len(devices.shared) + len(places)

        # Flat, since `pmap` guesses which axes are meant where there are as many arrays as trees.
        def side_by_side(*arrays: Array) -> PyTree:
            shared = jax.tree.unflatten(structure, arrays[: ends[0]])
            own = jax.tree.unflatten(own_structure, arrays[ends[0] : ends[1]])
            common = arrays[ends[1] :]
            if width == 1:
                # A vmap of one is still a batched matrix product, twice as slow on CPU.
                alone = jax.tree.map(lambda part: part[0], own)
                return jax.tree.map(lambda part: part[None], member(shared, *alone, *common))
            return jax.vmap(lambda *one: member(shared, *one, *common))(*own)

        in_axes = (*[None] * ends[0], *[0] * len(places), *[None] * len(common))
        self._mapped: Any = jax.pmap(
            side_by_side, in_axes=in_axes, devices=list(devices.layout.devices)
        )

    def member_shapes(self) -> PyTree:
        """Shape and dtype of one member's results."""
        shared = jax.tree.unflatten(self._devices.structure, self._devices.shared)
        return jax.eval_shape(self._member, shared, *self._own, *self._common)

    @cached_property
    def _compiled(self) -> jax.stages.Compiled:
        with _short_of_memory():
            own = self._devices.zeros(self._own)
            return self._mapped.lower(*self._arguments(own, self._common)).compile()

    def _arguments(self, own: tuple[PyTree, ...], common: tuple[np.generic, ...]) -> tuple:
        return (*self._devices.shared, *jax.tree.leaves(own), *common)

    def memory(self) -> Memory:
        """What a launch needs, as the compiler counts it, and what is free."""
        stats: Any = self._compiled.memory_analysis()
        needed = stats.temp_size_in_bytes + 2 * stats.output_size_in_bytes
        data = sum(part.nbytes for part in self._devices.shared)
        return Memory(needed, free_bytes(self._devices.layout), data)

    def run(self, own: tuple[PyTree, ...], *common: np.generic) -> PyTree:
        """Begin to compute a launch.

        Args:
            own: its arrays, on the devices (`Devices.launches`, or results of another program).
            common: what its members have in common.

        Returns:
            The results, on the devices.

        Raises:
            UserError: a device ran out of memory.
        """
        with _short_of_memory():
            return self._compiled(*self._arguments(own, common))


def wait_for(results: PyTree) -> PyTree:
    """The same, once it is computed.

    Raises:
        UserError: a device ran out of memory.
    """
    with _short_of_memory():
        return jax.block_until_ready(results)


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
