"""What is taken as masks and outputs, and what is refused."""

import numpy as np
from jaxtyping import Bool, Float, Int


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


def as_outputs(outputs: np.ndarray) -> Float[np.ndarray, "m t"]:
    """Outputs as floats of at least 32 bits.

    Raises:
        ValueError: not two-dimensional, without targets, or no numbers.
    """
    outputs = np.asarray(outputs)
    if outputs.ndim != 2 or not outputs.shape[1]:
        raise ValueError(
            f"outputs must be of shape (members, targets), got {outputs.shape}; for one target, "
            f"outputs[:, None]"
        )
    if not np.issubdtype(outputs.dtype, np.number) or np.iscomplexobj(outputs):
        raise ValueError(f"outputs must be real numbers, got {outputs.dtype}")
    wide = outputs.dtype in (np.float32, np.float64)
    return outputs if wide else outputs.astype(np.float64)


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


def require_finite(masks: Bool[np.ndarray, "m g"], outputs: Float[np.ndarray, "n t"]) -> None:
    """Refuse outputs that are not finite.

    Raises:
        ValueError: there are some, or masks and outputs differ in length.
    """
    if not usable_rows(masks, outputs).all():
        raise ValueError("outputs hold values that are not finite; leave their rows out")


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
