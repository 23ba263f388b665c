"""From one column of a data set to an array of numbers or images, or to texts.

Each function takes the rows and their ids, which messages name; a value that is unfit raises
`UserError`.
"""

from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import PIL.Image
from jaxtyping import Float32, Int64, Num, UInt8

from training.errors import UserError, reason

Ids = Int64[np.ndarray, " n"]
"""Of the rows."""


def holds_text(dataset: datasets.Dataset, name: str) -> bool:
    """Whether a column is text. Where most texts read as numbers, numbers are meant."""
    if not is_text(dataset.features[name]):
        return False
    values = dataset.with_format(None)[name][:]
    return 2 * sum(number_in(value) is not None for value in values) <= len(values)


def is_text(feature: Any) -> bool:
    """Whether a feature holds texts, whatever they mean."""
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def texts_of(dataset: datasets.Dataset, name: str, ids: Ids) -> list[str]:
    """A column of texts, none of which is missing."""
    texts = dataset.with_format(None)[name][:]
    if None in texts:
        raise UserError(
            f'data.input: column "{name}" has no text in {texts.count(None)} row(s), first in row '
            f"{ids[texts.index(None)]} (counted from 0); drop them, or fill them, with a space "
            f"where the text is empty"
        )
    return texts


def numbers_or_images(
    dataset: datasets.Dataset, name: str, ids: Ids
) -> Num[np.ndarray, "n *shape"]:
    """A column of inputs: images as uint8 (n, h, w, c), anything else as float32 (n, d)."""
    feature = dataset.features[name]
    if isinstance(feature, datasets.Image):
        return _decode_images(dataset, name, ids)
    if isinstance(feature, datasets.Array3D) and feature.dtype == "uint8":
        if feature.shape[2] not in (1, 3):
            raise UserError(
                f'data.input = "{name}" holds images of shape {feature.shape}; store them as '
                f"(height, width, channels) with 1 or 3 channels"
            )
        column = dataset.with_format("numpy", columns=[name], dtype=np.uint8)[:][name]
        return np.asarray(column).reshape(-1, *feature.shape)
    numbers = _numbers(dataset, name, ids)
    if numbers.ndim == 1:
        return numbers[:, None]
    return numbers[..., None] if numbers.ndim == 3 else numbers


def single_numbers(dataset: datasets.Dataset, name: str, ids: Ids) -> Float32[np.ndarray, " n"]:
    """A column of one number a row."""
    numbers = _numbers(dataset, name, ids)
    if numbers.ndim != 1:
        raise UserError(
            f'data.input: column "{name}" holds lists of shape {numbers.shape[1:]}; several input '
            f"columns must hold one number each, so name this one alone or leave it out"
        )
    return numbers


# What pillow raises on bad files.
_UNREADABLE = (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError)


def _decode_images(dataset: datasets.Dataset, name: str, ids: Ids) -> UInt8[np.ndarray, "n h w c"]:
    images: list[np.ndarray] = []
    rows = iter(dataset[name])
    for number in ids:
        try:
            array = _pixels(next(rows))
        except _UNREADABLE as error:
            raise UserError(
                f'data.input = "{name}": the image of row {number} cannot be read '
                f"({reason(error)}); mend or remove it"
            ) from error
        if images and array.shape[:2] != images[0].shape[:2]:
            raise UserError(
                f'data.input = "{name}": the image of row {number} has {array.shape[:2]} pixels, '
                f"others {images[0].shape[:2]}; resize all images to one size"
            )
        images.append(array)
    channels = max((image.shape[2] for image in images), default=1)
    # One colour image makes all of them colour images.
    return np.stack([np.broadcast_to(image, (*image.shape[:2], channels)) for image in images])


def _pixels(image: PIL.Image.Image | None) -> UInt8[np.ndarray, "h w c"]:
    """8-bit grey (one channel) or colour (three); 16-bit grey keeps its upper 8 bits."""
    if image is None:
        raise ValueError("it is missing")
    if image.mode.startswith("I"):
        return (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)[..., None]
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"), np.uint8)[..., None]
    return np.asarray(image.convert("RGB"), np.uint8)


def _numbers(dataset: datasets.Dataset, name: str, ids: Ids) -> Num[np.ndarray, "n *shape"]:
    """A column of numbers, or of equally long lists of numbers, as float32."""
    values = dataset.with_format(None)[name][:]
    try:
        with np.errstate(over="ignore"):  # too large a number becomes infinite, and is named
            column = np.asarray(values, np.float32)
    except (ValueError, TypeError) as error:
        row, seen = telling(ids, values, lambda value: number_in(value) is not None)
        raise UserError(
            f'data.input: column "{name}" is not numbers of one shape (row {row} holds '
            f"{str(seen)[:40]!r}); name columns of numbers in data.input, or one column of images "
            f"or text alone"
        ) from error
    finite = np.isfinite(column).all(axis=tuple(range(1, column.ndim)))
    if not finite.all():
        first = int(np.argmin(finite))
        seen = column[first][~np.isfinite(column[first])].flat[0]
        raise UserError(
            f'data.input: column "{name}" holds {seen} in row {ids[first]}; '
            f"every input must be a finite number, so fill or drop such rows"
        )
    return column


def telling(ids: Ids, values: list[Any], fits: Callable[[Any], bool]) -> tuple[int, Any]:
    """Row and value that shows best what is wrong: the first that does not fit, else the first."""
    rows = zip(ids.tolist(), values, strict=True)
    return next((pair for pair in rows if not fits(pair[1])), (int(ids[0]), values[0]))


def number_in(value: Any) -> float | None:
    """The number that a value is, or means as a text, if it does."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
