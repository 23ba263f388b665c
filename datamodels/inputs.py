"""What is taken as masks and outputs, and what is refused."""

import warnings
from typing import get_args

import numpy as np
from jaxtyping import Bool, Float, Int

FEWEST_ROWS = 4
LARGEST = 1e30
"""Size of an output beyond which sums of squares in float32 overflow; one over it is the least."""


def as_masks(masks: np.ndarray) -> Bool[np.ndarray, "m g"]:
    """Masks as bool.

    Raises:
        ValueError: not two-dimensional, without groups, or with values other than zero and one.
    """
    masks = np.asarray(masks)
    if masks.ndim != 2 or not masks.shape[1]:
        raise ValueError(f"masks must be of shape (members, groups), got {masks.shape}")
    if masks.dtype == np.bool_:
        return masks
    if not np.issubdtype(masks.dtype, np.number):
        raise ValueError(f"masks must be bool (True = kept), got {masks.dtype}")
    strange = (masks != 0) & (masks != 1)
    if strange.any():
        row, group = np.argwhere(strange)[0]
        raise ValueError(
            f"masks must be bool (True = kept) or zeros and ones, got {masks[row, group]} in row "
            f"{row}, group {group}"
        )
    return masks.astype(bool)


def masks_of(groups: int, masks: np.ndarray) -> Bool[np.ndarray, "k g"]:
    """Masks as bool, of so many groups.

    Raises:
        ValueError: as `as_masks`, or of another number of groups.
    """
    masks = as_masks(masks)
    if masks.shape[1] != groups:
        raise ValueError(f"masks have {masks.shape[1]} groups, the datamodel has {groups}")
    return masks


def as_outputs(outputs: np.ndarray) -> Float[np.ndarray, "m t"]:
    """Outputs as floats of at least 32 bits.

    Raises:
        ValueError: not two-dimensional, without targets, no numbers, or numbers that float32 does
            not reckon with.
    """
    outputs = np.asarray(outputs)
    if outputs.ndim != 2 or not outputs.shape[1]:
        one = "; for one target, outputs[:, None]" if outputs.ndim == 1 else ""
        raise ValueError(f"outputs must be of shape (members, targets), got {outputs.shape}{one}")
    if not np.issubdtype(outputs.dtype, np.number) or np.iscomplexobj(outputs):
        raise ValueError(f"outputs must be real numbers, got {outputs.dtype}")
    size = float(np.abs(outputs[np.isfinite(outputs)]).max(initial=0))
    if size > LARGEST or 0 < size < 1 / LARGEST:
        raise ValueError(
            f"the largest output is of size {size:.3g}; scale outputs to between {1 / LARGEST:g} "
            f"and {LARGEST:g}"
        )
    wide = outputs.dtype in (np.float32, np.float64)
    return outputs if wide else outputs.astype(np.float64)


def as_replicates(replicates: np.ndarray) -> Float[np.ndarray, "r s t"]:
    """Outputs of masks, each with several seeds.

    Raises:
        ValueError: not three-dimensional, no masks, fewer than two seeds, or no numbers.
    """
    replicates = np.asarray(replicates)
    if replicates.ndim != 3 or not np.issubdtype(replicates.dtype, np.number):
        raise ValueError(
            f"replicates must be numbers of shape (masks, seeds, targets), got "
            f"{replicates.dtype} of shape {replicates.shape}"
        )
    masks, seeds, _ = replicates.shape
    if not masks or seeds < 2:
        raise ValueError(
            f"replicates of {masks} masks and {seeds} seeds show no noise; at least one mask and "
            f"2 seeds are needed"
        )
    return replicates


def require_same_shape(predicted: np.ndarray, actual: np.ndarray) -> None:
    """Refuse predictions of other members or targets.

    Raises:
        ValueError: naming both shapes.
    """
    if np.ndim(predicted) != 2 or np.shape(predicted) != np.shape(actual):
        raise ValueError(
            f"predicted and actual outputs must both be of shape (members, targets), got "
            f"{np.shape(predicted)} and {np.shape(actual)}"
        )


def require_rows(rows: int) -> None:
    """Refuse banks of hardly any member.

    Raises:
        ValueError: fewer than 4.
    """
    if rows < FEWEST_ROWS:
        raise ValueError(f"{rows} rows are too few; at least {FEWEST_ROWS} are needed")


def require_share(name: str, value: float) -> None:
    """Refuse what is no share, as a level of 95 instead of .95.

    Raises:
        ValueError: not strictly between 0 and 1.
    """
    if not 0 < value < 1:
        raise ValueError(f"{name} = {value} must lie strictly between 0 and 1")


def require_choice(name: str, value: str, choices: object) -> None:
    """Refuse what is none of a `Literal`'s values.

    Raises:
        ValueError: naming them.
    """
    if value not in get_args(choices):
        raise ValueError(f"{name} = {value!r} must be one of {', '.join(get_args(choices))}")


def usable_rows(
    masks: Bool[np.ndarray, "m g"], outputs: Float[np.ndarray, "n t"]
) -> Bool[np.ndarray, " m"]:
    """Rows whose outputs are all finite.

    Raises:
        ValueError: masks and outputs of different length.
    """
    if len(masks) != len(outputs):
        raise ValueError(
            f"masks (m, g) and outputs (m, t) must share m, got {masks.shape} and {outputs.shape}"
        )
    return np.asarray(np.isfinite(outputs).all(1))


def finite_rows(
    masks: Bool[np.ndarray, "m g"], outputs: Float[np.ndarray, "n t"]
) -> Bool[np.ndarray, " m"]:
    """The rows that a fit takes; a warning, for who called the fit, tells of others.

    Raises:
        ValueError: masks and outputs of different length, or a target without any finite output.
    """
    usable = usable_rows(masks, outputs)
    missing = ~np.isfinite(outputs).any(0)
    if missing.any() and len(outputs):
        raise ValueError(
            f"target {int(np.argmax(missing))} has no finite output in any of the {len(outputs)} "
            f"rows; leave it out"
        )
    if not usable.all():
        warnings.warn(
            f"{int((~usable).sum())} of {len(usable)} rows hold outputs that are not finite, and "
            f"are left out",
            stacklevel=3,
        )
    return usable


def require_finite(masks: Bool[np.ndarray, "m g"], outputs: Float[np.ndarray, "n t"]) -> None:
    """Refuse outputs that are not finite.

    Raises:
        ValueError: there are some, or masks and outputs differ in length.
    """
    usable = usable_rows(masks, outputs)
    if not usable.all():
        row, target = np.argwhere(~np.isfinite(outputs))[0]
        raise ValueError(
            f"{int((~usable).sum())} of {len(usable)} rows hold outputs that are not finite "
            f"(first: {outputs[row, target]} in row {row}, target {target}); leave them out"
        )


def mask_numbers(replicate_of: np.ndarray | None, rows: int) -> Int[np.ndarray, " m"]:
    """A number for every row, the same for retrains of one mask; None: every row has its own.

    Raises:
        ValueError: not one number a row.
    """
    if replicate_of is None:
        return np.arange(rows)
    if len(replicate_of) != rows:
        raise ValueError(f"replicate_of has {len(replicate_of)} numbers for {rows} masks")
    return np.asarray(replicate_of)
