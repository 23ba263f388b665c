"""From a source of examples to the arrays of a run: which columns, split, and content hash."""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from jaxtyping import Int, Int64, Num

from training.columns import Ids, holds_text, numbers_or_images, single_numbers, texts_of
from training.errors import UserError, nearest, reason
from training.examples import Examples
from training.labels import class_names, numbered_labels, untrained_classes
from training.sources import Splits, load_source
from training.text import encode, load_tokenizer, train_tokenizer


@dataclass(frozen=True)
class DataConfig:
    """Where the examples come from, and which are trained on."""

    source: str = "digits"
    """digits, breast_cancer, fashion_mnist, a .parquet/.csv/.json file or glob, a folder of
    images or of a saved dataset, or a hub id."""
    folder: str = "fashion-mnist"
    """Folder of the four Fashion-MNIST files; not read for other sources."""
    input: tuple[str, ...] = ()
    """Input column(s); none given: "image", else "text", else every column but the label."""
    label: str = "label"
    """Column of labels: names of classes, or integers counted from 0."""
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
    tokenizer: str = ""
    """For text: a tokenizer.json file; "" trains one on the training examples."""
    vocabulary: int = 4096
    """Token ids of a trained tokenizer, at most."""
    length: int = 128
    """Tokens of a text that are read; the rest is cut off."""


@dataclass(frozen=True, eq=False)
class Table:
    """Examples with their stable ids: rows of the loaded data set (its splits in order)."""

    examples: Examples
    ids: Int64[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, positions: Int[np.ndarray, " k"]) -> "Table":
        """The rows at `positions`."""
        return Table(self.examples.take(positions), self.ids[positions])


class Split(NamedTuple):
    """What a run reads: training examples, clean targets, and some rows of neither."""

    train: Table
    targets: Table
    spare: Table
    class_names: tuple[str, ...]
    vocabulary: int = 0
    """For text: every token id is below it; 0 for images and numbers."""
    notes: tuple[str, ...] = ()
    """What a user should know of how the inputs were made, one line each."""
    group_values: tuple[Any, ...] = ()
    """Of the training examples in the column that groups them, if one does."""


def load(config: DataConfig, spare_rows: int = 0, group_column: str = "") -> Split:
    """Load, split and check the examples.

    Args:
        config: where from, and how to split.
        spare_rows: how many rows to load that are neither trained on nor targets, if there are
            so many.
        group_column: the column that groups the examples; no input unless `config.input` names it.

    Raises:
        UserError: a source, split, column, id or value that is missing or unfit; the message
            names the config key, what was seen and the remedy.
    """
    dataset, boundary = _all_rows(config)
    _check_name("data.label", config.label, dataset.column_names, "column")
    if group_column:
        _check_name("groups.column", group_column, dataset.column_names, "column")
    columns = _input_columns(config, dataset, group_column)
    parts = _split_rows(config, len(dataset), boundary, spare_rows)
    ids = np.concatenate(parts).astype(np.int64)
    selected = dataset.select(ids)
    inputs = _inputs(config, selected, columns, ids, len(parts[0]))
    names = class_names(dataset, config.label)
    table = Table(Examples(inputs.values, numbered_labels(selected, config.label, ids, names)), ids)
    ends = np.cumsum([0, *map(len, parts)])
    train, targets, spare = (
        table.take(np.arange(start, end)) for start, end in itertools.pairwise(ends)
    )
    groups = selected.with_format(None)[group_column][: len(train)] if group_column else ()
    notes = (*inputs.notes, *untrained_classes(np.asarray(train.examples.labels), names))
    return Split(train, targets, spare, names, inputs.vocabulary, notes, tuple(groups))


def load_rows(config: DataConfig) -> datasets.Dataset:
    """The split that is trained on, with all columns: a row's number is the example's id.

    Raises:
        UserError: as `load`.
    """
    splits = load_source(config.source, config.folder)
    return splits[_train_split(config, splits)]


def load_texts(
    config: DataConfig, ids: Int64[np.ndarray, " n"], group_column: str = ""
) -> list[str]:
    """The texts of some examples, of data whose inputs are texts; `group_column` as for `load`.

    Raises:
        UserError: as `load`.
    """
    dataset, _ = _all_rows(config)
    return dataset.select(ids).with_format(None)[first_input(config, dataset, group_column)][:]


def _all_rows(config: DataConfig) -> tuple[datasets.Dataset, int | None]:
    """All rows, whose numbers are the ids, and the first that only targets are taken from."""
    splits = load_source(config.source, config.folder)
    train_name = _train_split(config, splits)
    dataset = splits[train_name]
    if config.target_split:
        _check_name("data.target_split", config.target_split, list(splits), "split")
    if config.target_split in ("", train_name):
        return dataset, None
    return _append(dataset, splits[config.target_split]), len(dataset)


def first_input(config: DataConfig, dataset: datasets.Dataset, group_column: str) -> str:
    """The column that the inputs come from, or the first of several."""
    return _input_columns(config, dataset, group_column)[0]


def content_hash(table: Table) -> str:
    """Short hash of ids, inputs and labels: their bytes, dtypes and shapes."""
    return _hash(table.ids, table.examples.inputs, table.examples.labels)


def examples_hash(examples: Examples) -> str:
    """Short hash of inputs and labels."""
    return _hash(examples.inputs, examples.labels)


def _hash(*arrays: Any) -> str:
    digest = hashlib.sha256()
    for array in map(np.ascontiguousarray, arrays):
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


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


def _append(dataset: datasets.Dataset, targets: datasets.Dataset) -> datasets.Dataset:
    try:
        return datasets.concatenate_datasets([dataset, targets])
    except (ValueError, TypeError) as error:
        raise UserError(
            f"data.target_split differs from the training split in its columns ({reason(error)}); "
            f"give both the same columns and types"
        ) from error


def _split_rows(
    config: DataConfig, rows: int, boundary: int | None, spare_rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorted row numbers of (training examples, targets, some of the rest).

    From row `boundary` on, rows belong to a target split of their own.
    """
    shuffle = np.random.default_rng([config.seed, 0]).permutation(rows)
    # Targets come from the end and training examples from the beginning of one random order, so
    # that asking for more targets leaves the training examples as they are.
    pool = (shuffle if boundary is None else shuffle[shuffle >= boundary])[::-1]
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
    free = shuffle[~np.isin(shuffle, targets)]
    free = free if boundary is None else free[free < boundary]
    if not len(free):
        raise UserError(
            f"{len(targets)} targets leave no row of {rows} to train on (data.target_count = "
            f"{config.target_count}, data.target_fraction = {config.target_fraction}); ask for "
            f"fewer"
        )
    count = config.train_count or len(free)
    if not 0 < count <= len(free):
        raise UserError(
            f"data.train_count = {config.train_count} must be from 1 to {len(free)}, the rows "
            f"beside the {len(targets)} targets, or 0 for all of them"
        )
    train = free[:count]
    spare = shuffle[~np.isin(shuffle, np.concatenate([train, targets]))]
    return np.sort(train), np.sort(targets), np.sort(spare[:spare_rows])


def _read_ids(path: Path, rows: int) -> Int64[np.ndarray, " t"]:
    try:
        words = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'data.targets = "{path}" cannot be read: {reason(error)}') from error
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


def _input_columns(
    config: DataConfig, dataset: datasets.Dataset, group_column: str
) -> tuple[str, ...]:
    if config.input:
        for name in config.input:
            _check_name("data.input", name, dataset.column_names, "column")
        if config.label in config.input:
            raise UserError(f'data.input holds the label column "{config.label}"; take it out')
        return config.input
    for name in ("image", "text"):
        if name in dataset.column_names and name != config.label:
            return (name,)
    columns = tuple(
        name for name in dataset.column_names if name not in (config.label, group_column)
    )
    if not columns:
        raise UserError(
            f'the data has no column beside the label "{config.label}"; name data.input'
        )
    return columns


class _Inputs(NamedTuple):
    values: Num[np.ndarray, "n *shape"]
    vocabulary: int = 0
    notes: tuple[str, ...] = ()


def _inputs(
    config: DataConfig, dataset: datasets.Dataset, columns: tuple[str, ...], ids: Ids, train: int
) -> _Inputs:
    """The input columns of all rows, of which the first `train` are the training examples."""
    first, *others = columns
    if others:
        return _Inputs(np.stack([single_numbers(dataset, name, ids) for name in columns], axis=1))
    if holds_text(dataset, first):
        return _tokens(config, texts_of(dataset, first, ids), train)
    return _Inputs(numbers_or_images(dataset, first, ids))


def _tokens(config: DataConfig, texts: list[str], train: int) -> _Inputs:
    """Texts as token ids; a tokenizer to train sees the training examples alone.

    As with the normalisation: so neither the targets nor how many they are change an example.
    """
    if config.tokenizer:
        tokenizer = load_tokenizer(config.tokenizer)
    else:
        tokenizer = train_tokenizer(texts[:train], config.vocabulary)
    tokens = encode(tokenizer, texts, config.length)
    if not tokens.ids[:train].any():
        raise UserError(
            f"data.input: none of the {train} training texts has a token of data.tokenizer = "
            f'"{config.tokenizer}"; name another column or tokenizer'
        )
    notes = (
        (tokens.cut, f"had to be cut to data.length = {config.length} tokens"),
        (tokens.empty, "gave no token and became padding alone"),
    )
    lines = tuple(f"{count:,} of {len(texts):,} texts {what}" for count, what in notes if count)
    return _Inputs(tokens.ids, tokens.vocabulary, lines)
