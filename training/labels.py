"""From the column of labels to integers, and back."""

import itertools
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
from jaxtyping import Int32

from training.columns import Ids, holds_text, is_text, number_in, telling
from training.errors import UserError

TRUTH = datasets.Value("bool")
"""The feature of a column of true and false."""


def class_names(dataset: datasets.Dataset, name: str) -> tuple[str, ...]:
    """Of the labels 0, 1, ..., in the order of the alphabet; none where they are numbers.

    Args:
        dataset: all rows, so that a class has the same number in every split.
        name: of the column of labels.
    """
    feature = dataset.features[name]
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    if feature == TRUTH:
        return ("False", "True")
    if not holds_text(dataset, name):
        return ()
    return tuple(sorted(set(dataset.with_format(None)[name][:]) - {None}))


def numbered_labels(
    dataset: datasets.Dataset, name: str, ids: Ids, names: Sequence[str]
) -> Int32[np.ndarray, " n"]:
    """The labels of all rows, counted from 0.

    Args:
        dataset: the rows.
        name: of the column of labels.
        ids: of the rows, for messages.
        names: of the classes, as `class_names`.

    Raises:
        UserError: a label that is missing, or no whole number from 0 on.
    """
    values = dataset.with_format(None)[name][:]
    if None in values:
        raise UserError(
            f'data.label = "{name}" is missing in row {ids[values.index(None)]}; fill it'
        )
    if is_text(dataset.features[name]) and names:
        number = {value: label for label, value in enumerate(names)}
        return np.array([number[value] for value in values], np.int32)
    if not all(map(_is_label, values)):
        row, seen = telling(ids, values, _is_label)
        raise UserError(
            f'data.label = "{name}" holds {seen!r} in row {row}; labels must be names of classes, '
            f"or integers counted from 0, so number the classes 0, 1, 2, ..."
        )
    return np.array([int(float(value)) for value in values], np.int32)


def label_as_held(feature: Any, label: int, names: Sequence[str]) -> Any:
    """A label as a column of this feature holds it: the way back from `numbered_labels`.

    Args:
        feature: of the column.
        label: counted from 0.
        names: of every label: where the column names no class, its number.
    """
    if is_text(feature):
        return names[label]
    return bool(label) if feature == TRUTH else label


def untrained_classes(labels: Int32[np.ndarray, " n"], names: Sequence[str]) -> tuple[str, ...]:
    """A line that names the classes of which no training example is, if there are any."""
    present = set(np.unique(labels).tolist())
    classes = max(len(names), *(label + 1 for label in present))
    absent = classes - len(present)
    if not absent:
        return ()
    # Labels may be large numbers by mistake: never a list of them all.
    first = itertools.islice((label for label in range(classes) if label not in present), 5)
    shown = ", ".join(names[label] if label < len(names) else str(label) for label in first)
    more = ", ..." if absent > 5 else ""
    return (f"no training example is of {absent} of {classes} classes ({shown}{more})",)


def _is_label(value: Any) -> bool:
    number = number_in(value)
    return number is not None and number.is_integer() and 0 <= number < 2**31
