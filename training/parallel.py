"""Where members run. The only module that names devices, `pmap` or meshes."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import PyTree


@dataclass(frozen=True)
class Layout:
    """The local devices of a sweep, and how many members run side by side on each.

    Low bits of the outputs depend on `width`, so a run fixes it once.
    """

    devices: tuple[jax.Device, ...]  # pyright: ignore[reportInvalidTypeForm]
    width: int

    @property
    def launch(self) -> int:
        """Members in one launch of the compiled program."""
        return len(self.devices) * self.width

    @property
    def device_kind(self) -> str:
        """For example "cpu" or "TPU v5 lite"."""
        return self.devices[0].device_kind


def use_all_cores() -> None:
    """Make every CPU core a JAX device of its own; call before JAX starts.

    XLA uses several cores well within one large operation, and members are small: one device a
    core is faster. It changes nothing where an accelerator is found, and the user's own
    `JAX_NUM_CPU_DEVICES` is respected.
    """
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        affinity = getattr(os, "sched_getaffinity", None)  # not on every system
        cores = len(affinity(0)) if affinity else os.cpu_count()
        jax.config.update("jax_num_cpu_devices", cores)


def local_layout(width: int, count: int | None = None) -> Layout:
    """All local devices (or the first `count`), `width` members side by side on each."""
    return Layout(tuple(jax.local_devices()[:count]), width)


def map_members(member: Callable[..., PyTree], layout: Layout) -> Callable[..., PyTree]:
    """`member(shared, *own)` over any number of members: `pmap` over devices, `vmap` on each.

    The result is called as `run(shared, *own)`, every array of `own` with a leading axis of
    members, and returns numpy arrays with that axis. It always launches full batches of
    `layout.launch` members, the last one filled up by repeating its last member, so it is
    compiled once, and a member's bits do not depend on how many others were asked for.
    """

    def side_by_side(shared: PyTree, *own: PyTree) -> PyTree:
        if layout.width == 1:
            # A vmap of one is still a batched matrix product, twice as slow on CPU.
            alone = member(shared, *(part[0] for part in own))
            return jax.tree.map(lambda part: part[None], alone)
        return jax.vmap(lambda *one: member(shared, *one))(*own)

    mapped = jax.pmap(
        lambda shared, own: side_by_side(shared, *own),
        in_axes=(None, 0),
        devices=list(layout.devices),
    )

    def run(shared: PyTree, *own: np.ndarray) -> PyTree:
        count = len(own[0])
        filled = np.minimum(np.arange(count + -count % layout.launch), count - 1)
        launches = filled.reshape(-1, len(layout.devices), layout.width)
        # All launches are queued before the first result is fetched.
        results = [mapped(shared, tuple(array[rows] for array in own)) for rows in launches]
        fetched = [jax.tree.map(np.asarray, result) for result in results]
        return jax.tree.map(
            lambda *parts: np.concatenate([p.reshape(-1, *p.shape[2:]) for p in parts])[:count],
            *fetched,
        )

    return run


def replicate(shared: PyTree, layout: Layout) -> PyTree:
    """Place what all members share on every device, once."""
    mesh = jax.sharding.Mesh(np.array(layout.devices), ("devices",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.device_put(shared, everywhere)
