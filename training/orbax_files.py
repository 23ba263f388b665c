"""Arrays that orbax writes and reads, with a digest that says whether they are what was written."""

import hashlib
import os
import platform
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import PyTree

from training.errors import UserError
from training.store import Store

FAILURES = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError)
"""What orbax raises where something cannot be written or read."""


def require_folder(store: Store) -> None:
    """Refuse places that orbax cannot write to.

    Raises:
        UserError: naming the place.
    """
    if has_folder(store):
        return
    remedy = "or set checkpoint.every_steps = 0 and sweep.keep_params = false"
    if store.location.startswith("gs://"):
        raise UserError(
            f"checkpoints and parameters in {store} need gcsfs, which is not installed: "
            f"pip install gcsfs, {remedy}"
        )
    raise UserError(
        f"checkpoints and parameters are kept in a folder or in gs://, not in {store}; choose "
        f"another sweep.bank, {remedy}"
    )


def has_folder(store: Store) -> bool:
    """Whether orbax can write to a place."""
    if store.location.startswith("gs://"):
        return find_spec("gcsfs") is not None
    return not store.location.startswith("s3://")


def folder_in(store: Store, name: str) -> epath.Path:
    """A folder of a place that orbax can write to."""
    return epath.Path(store.folder.absolute() if store.folder else store.location) / name


def unit_folder(store: Store, name: str, unit: int) -> epath.Path:
    """The folder of a unit in such a folder."""
    return folder_in(store, name) / f"{unit:06d}"


def this_process() -> str:
    """A name for what this process writes: orbax needs a folder to itself."""
    return f"{platform.node()}-{os.getpid()}"


def described(arrays: PyTree, about: dict[str, Any]) -> ocp.args.Composite:
    """What orbax is to write: arrays, and what is to be known of them as JSON."""
    return ocp.args.Composite(
        arrays=ocp.args.StandardSave(arrays),
        about=ocp.args.JsonSave(about | {"sha256": _digest(arrays)}),
    )


def restore(folder: epath.Path, like: PyTree = None) -> tuple[PyTree, dict[str, Any]] | None:
    """The arrays in a folder and what is known of them; None if they are not what was written.

    Args:
        folder: that `described` was written to.
        like: arrays of the same shape and dtype, or those alone; None: as they were written.

    Raises:
        FAILURES: they cannot be read.
    """
    blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        found = reader.restore(
            folder,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardRestore(blank), about=ocp.args.JsonRestore()
            ),
        )
    arrays = jax.tree.map(np.asarray, found["arrays"])
    about = dict(found["about"])
    return (arrays, about) if about.pop("sha256") == _digest(arrays) else None


def _digest(arrays: PyTree) -> str:
    digest = hashlib.sha256()
    for array in jax.tree.leaves(arrays):
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
