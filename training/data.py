"""From a source of examples to the arrays of a run: columns, checks, split and content hash."""

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
from jaxtyping import Int, Int32, Int64, Num

from training.errors import UserError
from training.examples import Examples
from training.sources import Splits, load_source


@dataclass(frozen=True)
class DataConfig:
    """Where the examples come from, and which are trained on."""

    source: str = "digits"
    """digits, breast_cancer, fashion_mnist, a .parquet/.csv/.json file or glob, a folder of
    images or of a saved dataset, or a hub id."""
    folder: str = "data/fashion-mnist"
    """Folder of the four Fashion-MNIST files; not read for other sources."""
    input: tuple[str, ...] = ()
    """Input column(s); none given: the column "image", or else every column but the label."""
    label: str = "label"
    """Column of integer labels, counted from 0."""
    train_split: str = ""
    """Split to train on; "" takes the only one, or "train"."""
    train_count: int = 0
    """Training examples, drawn at random; 0 takes all that are not targets."""
    target_split: str = ""
    """Split to draw the targets from; "" draws them from the training split."""
    target_count: int = 0
    """Targets, drawn at random; 0 goes by target_fraction."""
    target_fraction: float = 0.2
    """Share of the split that becomes targets when target_count is 0."""
    targets: str = ""
    """A text file of target ids, one a line; replaces the random draw."""
    seed: int = 0
    """Decides the random draws of training examples and targets."""


class Table(NamedTuple):
    """Examples with their stable ids: rows of the loaded data set (its splits in order)."""

    examples: Examples
    ids: Int64[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, positions: Int[np.ndarray, " k"]) -> "Table":
        """The rows at `positions`."""
        inputs, labels = self.examples
        return Table(
            Examples(np.asarray(inputs)[positions], np.asarray(labels)[positions]),
            self.ids[positions],
        )


class Split(NamedTuple):
    """What a run reads: training examples, clean targets, and what neither uses."""

    train: Table
    targets: Table
    spare: Table
    class_names: tuple[str, ...]


def load(config: DataConfig) -> Split:
    """Load, split and check the examples.

    Raises:
        UserError: a source, split, column, id or value that is missing or unfit; the message
            names the config key, what was seen and the remedy.
    """
    splits = load_source(config.source, config.folder)
    train_name = _train_split(config, splits)
    dataset = splits[train_name]
    boundary = len(dataset)
    if config.target_split:
        _check_name("data.target_split", config.target_split, list(splits), "split")
        dataset = datasets.concatenate_datasets([dataset, splits[config.target_split]])
    _check_name("data.label", config.label, dataset.column_names, "column")
    columns = _input_columns(config, dataset)
    train, targets, spare = (
        _table(dataset, columns, config.label, rows)
        for rows in _split_rows(config, len(dataset), boundary)
    )
    return Split(train, targets, spare, _class_names(dataset, config.label))


def content_hash(table: Table) -> str:
    """SHA-256 of ids, labels and inputs: their bytes, dtypes and shapes."""
    digest = hashlib.sha256()
    for array in (table.ids, *table.examples):
        array = np.ascontiguousarray(array)
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint like ' (did you mean "label"?)', or nothing when no known name is near."""
    close = difflib.get_close_matches(name, known, n=1)
    return f' (did you mean "{close[0]}"?)' if close else ""


def _check_name(key: str, name: str, known: Sequence[str], what: str) -> None:
    if name not in known:
        shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
        raise UserError(
            f'{key} = "{name}": the data has no such {what}{nearest(name, known)}; it has {shown}'
        )


def _train_split(config: DataConfig, splits: Splits) -> str:
    names = list(splits)
    if config.train_split:
        _check_name("data.train_split", config.train_split, names, "split")
        return config.train_split
    if len(names) == 1:
        return names[0]
    _check_name("data.train_split", "train", names, "split")
    return "train"


def _split_rows(
    config: DataConfig, rows: int, boundary: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorted row numbers of (training examples, targets, the rest)."""
    shuffle = np.random.default_rng([config.seed, 0]).permutation(rows)
    # Targets come from the end and training examples from the beginning of one random order, so
    # that asking for more targets leaves the training examples as they are.
    pool = (shuffle[shuffle >= boundary] if config.target_split else shuffle)[::-1]
    if config.targets:
        targets = _read_ids(Path(config.targets), rows)
    else:
        if not 0 <= config.target_fraction <= 1:
            raise UserError(
                f"data.target_fraction = {config.target_fraction} must lie between 0 and 1"
            )
        count = config.target_count or round(config.target_fraction * len(pool))
        if not 0 < count <= len(pool):
            raise UserError(
                f"{count} targets asked for of {len(pool)} rows (data.target_count = "
                f"{config.target_count}, data.target_fraction = {config.target_fraction}); "
                f"at least one is needed and there can be no more than rows"
            )
        targets = pool[:count]
    free = shuffle[(shuffle < boundary) & ~np.isin(shuffle, targets)]
    count = config.train_count or len(free)
    if not 0 < count <= len(free):
        raise UserError(
            f"data.train_count = {config.train_count}, but {len(free)} rows remain beside the "
            f"{len(targets)} targets; lower it or the number of targets"
        )
    train = free[:count]
    spare = shuffle[~np.isin(shuffle, np.concatenate([train, targets]))]
    return np.sort(train), np.sort(targets), np.sort(spare)


def _read_ids(path: Path, rows: int) -> Int64[np.ndarray, " t"]:
    try:
        words = path.read_text(encoding="utf-8").split()
    except OSError as error:
        raise UserError(f'data.targets = "{path}" cannot be read: {error.strerror}') from error
    if not words:
        raise UserError(f'data.targets = "{path}" names no id; write one a line')
    for word in words:
        if not word.isdecimal() or int(word) >= rows:
            raise UserError(
                f'data.targets = "{path}" holds "{word}"; ids are the row numbers 0 to {rows - 1}'
            )
    ids = np.unique(np.array(words, np.int64))
    if len(ids) < len(words):
        raise UserError(f'data.targets = "{path}" names an id twice; keep one line of each')
    return ids


def _input_columns(config: DataConfig, dataset: datasets.Dataset) -> tuple[str, ...]:
    if config.input:
        for name in config.input:
            _check_name("data.input", name, dataset.column_names, "column")
        return config.input
    if "image" in dataset.column_names:
        return ("image",)
    columns = tuple(name for name in dataset.column_names if name != config.label)
    if not columns:
        raise UserError(
            f'the data has no column beside the label "{config.label}"; name data.input'
        )
    return columns


def _class_names(dataset: datasets.Dataset, label: str) -> tuple[str, ...]:
    feature = dataset.features[label]
    return tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()


def _table(
    dataset: datasets.Dataset, columns: tuple[str, ...], label: str, rows: np.ndarray
) -> Table:
    ids = rows.astype(np.int64)
    selected = dataset.select(rows)
    if len(columns) == 1:
        inputs = _column(selected, columns[0], ids)
    else:
        inputs = np.stack([_numbers(selected, name, ids) for name in columns], axis=1)
    return Table(Examples(inputs, _labels(selected, label, ids)), ids)


Ids = Int64[np.ndarray, " n"]


def _column(dataset: datasets.Dataset, name: str, ids: Ids) -> Num[np.ndarray, "n *shape"]:
    """One input column: images as uint8 (n, h, w, c), anything else as float32 (n, d)."""
    feature = dataset.features[name]
    if isinstance(feature, datasets.Image):
        return _decode_images(dataset, name, ids)
    if isinstance(feature, datasets.Array3D) and feature.dtype == "uint8":
        column = dataset.with_format("numpy", columns=[name], dtype=np.uint8)[:][name]
        return np.asarray(column).reshape(-1, *feature.shape)
    numbers = _numbers(dataset, name, ids)
    if numbers.ndim == 1:
        return numbers[:, None]
    return numbers[..., None] if numbers.ndim == 3 else numbers


def _decode_images(dataset: datasets.Dataset, name: str, ids: Ids) -> np.ndarray:
    images, mode = [], ""
    for row, image in zip(ids, dataset[name], strict=True):
        # The first image decides between grey and colour for all.
        mode = mode or ("L" if image.mode in ("1", "L", "I", "I;16", "F") else "RGB")
        array = np.asarray(image.convert(mode), np.uint8)
        if images and array.shape != images[0].shape:
            raise UserError(
                f'data.input = "{name}": image {row} has shape {array.shape}, the first '
                f"{images[0].shape}; resize all images to one size"
            )
        images.append(array)
    stacked = np.stack(images) if images else np.zeros((0, 1, 1), np.uint8)
    return stacked[..., None] if stacked.ndim == 3 else stacked


def _numbers(dataset: datasets.Dataset, name: str, ids: Ids) -> Num[np.ndarray, "n *shape"]:
    """A column of numbers, or of equally long lists of numbers, as float32."""
    values = dataset.with_format(None)[name][:]
    try:
        column = np.asarray(values, np.float32)
    except (ValueError, TypeError) as error:
        seen = next((value for value in values if not isinstance(value, int | float)), None)
        raise UserError(
            f'data.input: column "{name}" is not numbers of one shape (a value seen: '
            f"{str(seen)[:40]!r}); name the columns of numbers or images with data.input"
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


def _labels(dataset: datasets.Dataset, name: str, ids: Ids) -> Int32[np.ndarray, " n"]:
    values = dataset.with_format(None)[name][:]
    for row, value in zip(ids, values, strict=True):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
            raise UserError(
                f'data.label = "{name}" holds {value!r} in row {row}; labels must be integers '
                f"counted from 0, so number the classes 0, 1, 2, ..."
            )
    return np.asarray(values, np.int32)
