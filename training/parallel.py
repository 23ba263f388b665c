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
import jax.numpy as jnp
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


class _Devices:
    """The devices of a layout, with what all members share on each of them, once."""

    def __init__(self, layout: Layout, shared: PyTree):
        self.layout = layout
        mesh = jax.sharding.Mesh(np.array(layout.devices), ("devices",))
        self._by_device = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("devices"))
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        # As plain arrays: JAX rebuilds trees with placeholders, which a checked dataclass refuses.
        leaves, self._structure = jax.tree.flatten(shared)
        with _short_of_memory():
            self.shared = jax.device_put(leaves, everywhere)

    def mapped(self, member: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """`member(shared, *own, *common)` for a launch: called with (shared, own, common)."""

        def side_by_side(leaves: list[Array], own: tuple, common: tuple) -> PyTree:
            shared = jax.tree.unflatten(self._structure, leaves)
            if self.layout.width == 1:
                # A vmap of one is still a batched matrix product, twice as slow on CPU.
                alone = jax.tree.map(lambda part: part[0], own)
                return jax.tree.map(lambda part: part[None], member(shared, *alone, *common))
            return jax.vmap(lambda *one: member(shared, *one, *common))(*own)

        devices = list(self.layout.devices)
        return jax.pmap(side_by_side, in_axes=(None, 0, None), devices=devices)

    def shapes(self, *own: PyTree) -> tuple:
        """Shapes of a launch, from those of one member."""
        lead = (len(self.layout.devices), self.layout.width)
        return jax.tree.map(lambda one: jax.ShapeDtypeStruct((*lead, *one.shape), one.dtype), own)

    def launches(self, own: tuple[np.ndarray, ...]) -> Iterator[tuple]:
        """Members in full launches, the last one filled up by repeating its last member."""
        count = len(own[0])
        filled = np.minimum(np.arange(count + -count % self.layout.launch), count - 1)
        lead = (len(self.layout.devices), self.layout.width)
        for rows in filled.reshape(-1, *lead):
            yield self.place(tuple(part[rows] for part in own))

    def zeros(self, *own: jax.ShapeDtypeStruct) -> tuple:
        """The arrays of a launch, on the devices.

        A `pmap` is lowered for them and not for shapes, which JAX refuses where several hosts are
        one job.
        """
        return self.place(
            jax.tree.map(lambda one: np.zeros(one.shape, one.dtype), self.shapes(*own))
        )

    def place(self, own: PyTree) -> PyTree:
        """Put the arrays of a launch on the devices."""
        return jax.device_put(own, self._by_device)

    def memory(self, compiled: jax.stages.Compiled) -> Memory:
        """What a launch needs, as the compiler counts it, and what is free."""
        stats: Any = compiled.memory_analysis()
        needed = stats.temp_size_in_bytes + 2 * stats.output_size_in_bytes
        return Memory(needed, free_bytes(self.layout), sum(part.nbytes for part in self.shared))


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
        self.layout = layout
        self._devices = _Devices(layout, shared)
        self._own = own
        self._mapped: Any = self._devices.mapped(member)

    @cached_property
    def _compiled(self) -> jax.stages.Compiled:
        with _short_of_memory():
            own = self._devices.zeros(*self._own)
            return self._mapped.lower(self._devices.shared, own, ()).compile()

    def memory(self) -> Memory:
        """What a launch needs, as the compiler counts it, and what is free."""
        return self._devices.memory(self._compiled)

    def start(self, *own: np.ndarray) -> Launched:
        """Begin to compute members; every array has a leading axis of members.

        Raises:
            UserError: a device ran out of memory.
        """
        placed = self._devices.launches(own)
        with _short_of_memory():
            results = [self._compiled(self._devices.shared, arrays, ()) for arrays in placed]
            return Launched(results, len(own[0]))


class SteppedProgram:
    """Members that train some steps at a time, so that what they have reached can be kept.

    Launches follow one another, so that the devices hold the progress of one.
    """

    def __init__(
        self,
        begin: Callable[..., PyTree],
        advance: Callable[..., PyTree],
        end: Callable[..., PyTree],
        layout: Layout,
        shared: PyTree,
        *own: jax.ShapeDtypeStruct,
    ):
        """Place what all members share on every device, and set three programs up.

        Args:
            begin: (shared, *own) -> the progress of a member before its first step.
            advance: (shared, progress, *own, first, last) -> after the steps in between.
            end: (shared, progress, *own) -> its results.
            layout: where to run.
            shared: arrays that every member reads; placed on each device, once.
            own: shape and dtype of each of a member's own arrays, without the axis of members.
        """
        self.layout = layout
        self._devices = devices = _Devices(layout, shared)
        self._own = own
        self._begin, self._end = devices.mapped(begin), devices.mapped(end)
        self._advance: Any = devices.mapped(advance)
        progress = jax.eval_shape(begin, shared, *own)
        results = jax.eval_shape(end, shared, progress, *own)
        self.result_shapes: list[jax.ShapeDtypeStruct] = jax.tree.leaves(devices.shapes(results))
        """Of the arrays of a launch's results."""

    @cached_property
    def _advance_compiled(self) -> jax.stages.Compiled:
        launch, step = self._devices.zeros(*self._own), np.int32(0)
        with _short_of_memory():
            own = (self.begin(launch), *launch)
            return self._advance.lower(self._devices.shared, own, (step, step)).compile()

    def memory(self) -> Memory:
        """What a launch needs, as the compiler counts it, and what is free."""
        return self._devices.memory(self._advance_compiled)

    def launches(self, *own: np.ndarray) -> list[tuple]:
        """The launches of some members, on the devices."""
        return list(self._devices.launches(own))

    def begin(self, launch: tuple) -> PyTree:
        """The progress of a launch before the first step, on the devices."""
        with _short_of_memory():
            return self._begin(self._devices.shared, launch, ())

    def advance(self, launch: tuple, progress: PyTree, first: int, last: int) -> PyTree:
        """After the steps from `first` to below `last`; returns when they are done."""
        span = (np.int32(first), np.int32(last))
        with _short_of_memory():
            own = (progress, *launch)
            return jax.block_until_ready(self._advance_compiled(self._devices.shared, own, span))

    def end(self, launch: tuple, progress: PyTree) -> PyTree:
        """The results of a launch, on the devices."""
        with _short_of_memory():
            return self._end(self._devices.shared, (progress, *launch), ())

    def to_host(self, progress: PyTree) -> list[np.ndarray]:
        """The arrays of a progress, of a launch's shape, as plain numbers."""
        return [np.asarray(_plain(leaf)) for leaf in jax.tree.leaves(progress)]

    def to_devices(self, arrays: list[np.ndarray], like: PyTree) -> PyTree:
        """What `to_host` was given, from what it returned and any progress of the same shape."""
        leaves, structure = jax.tree.flatten(like)
        same = [_as(array, leaf) for array, leaf in zip(arrays, leaves, strict=True)]
        return self._devices.place(jax.tree.unflatten(structure, same))


def _is_key(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Array) -> Array:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _as(array: np.ndarray, leaf: Array) -> Array | np.ndarray:
    if _is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
    return array


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
