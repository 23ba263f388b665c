"""Members that start from a checkpoint, and parts of a model by name."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from training.errors import UserError, nearest, reason
from training.orbax_files import FAILURES
from training.variables import names


def is_part(name: str, parts: Iterable[str]) -> bool:
    """Whether a variable is in one of some parts of a model, all by dotted names."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def require_parts(key: str, parts: Iterable[str], variables: Iterable[str]) -> None:
    """Refuse parts that a model does not have.

    Args:
        key: of the config, to name in the message.
        parts: by name.
        variables: of the model, by name.

    Raises:
        UserError: naming the part, and the nearest one that there is.
    """
    known = sorted({".".join(name.split(".")[:depth]) for name in variables for depth in (1, 2)})
    for part in parts:
        if not any(is_part(name, [part]) for name in variables):
            raise UserError(
                f'{key} names "{part}", which the model does not have{nearest(part, known)}; it '
                f"has {', '.join(known)}"
            )


def starting_values(
    path: str, fresh: tuple[str, ...], shapes: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The variables that members start from, by name.

    Numbers are taken, random keys and their counters are not: they are each member's own.

    Args:
        path: of the checkpoint; what else it holds does not matter.
        fresh: parts of the model that it is not asked for.
        shapes: of all variables of the model, by name.

    Raises:
        UserError: it cannot be read, or lacks a variable, or has it in another shape.
    """
    require_parts("model.fresh", fresh, shapes)
    stored = _read(path)
    values = {}
    for name, wanted in shapes.items():
        if is_part(name, fresh) or not jnp.issubdtype(wanted.dtype, jnp.floating):
            continue
        if name not in stored:
            raise UserError(
                f'model.init_from = "{path}" has no {name}{nearest(name, list(stored))}; name '
                f"parts that are to start anew in model.fresh"
            )
        if stored[name].shape != wanted.shape:
            raise UserError(
                f'model.init_from = "{path}" has {name} of shape {stored[name].shape}, but the '
                f"model needs {wanted.shape}; if that part is to start anew, name it in model.fresh"
            )
        values[name] = stored[name].astype(wanted.dtype)
    return values


def _read(path: str) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint by their dotted names."""
    folder = epath.Path(path if "://" in path else Path(path).absolute())
    try:
        if not folder.is_dir():
            raise FileNotFoundError("there is no such folder")
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            stored: Any = reader.metadata(folder)
            tree = stored.item_metadata.tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            found = reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    except (*FAILURES, AttributeError) as error:
        raise UserError(
            f'model.init_from = "{path}" is no checkpoint that orbax can read ({reason(error)}); '
            f"name the folder that holds the arrays themselves, as in "
            f"CHECKPOINTS/STEP/default for a CheckpointManager"
        ) from error
    arrays = jax.tree.leaves(found)
    # Variables of flax's modules are stored as a tree of their own.
    known = [name.removesuffix(".value") for name in names(found)]
    return {name: np.asarray(array) for name, array in zip(known, arrays, strict=True)}
