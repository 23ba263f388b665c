"""From a source of examples to the arrays of a run: columns, checks, split and content hash."""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import PIL.Image
from jaxtyping import Float32, Int, Int32, Int64, Num, UInt8

from training.errors import UserError, nearest, reason
from training.examples import Examples
from training.sources import Splits, load_source
from training.text import encode, load_tokenizer, train_tokenizer

TRUTH = datasets.Value("bool")
"""The feature of a column of true and false."""


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
    names = _class_names(dataset, config.label)
    table = Table(Examples(inputs.values, _labels(selected, config.label, ids, names)), ids)
    ends = np.cumsum([0, *map(len, parts)])
    train, targets, spare = (
        table.take(np.arange(start, end)) for start, end in itertools.pairwise(ends)
    )
    groups = selected.with_format(None)[group_column][: len(train)] if group_column else ()
    notes = (*inputs.notes, *_untrained(np.asarray(train.examples.labels), names))
    return Split(train, targets, spare, names, inputs.vocabulary, notes, tuple(groups))


def load_rows(config: DataConfig) -> datasets.Dataset:
    """The split that is trained on, with all columns: a row's number is the example's id.

    Raises:
        UserError: as `load`.
    """
    splits = load_source(config.source, config.folder)
    return splits[_train_split(config, splits)]


def label_of(feature: Any, label: int, class_names: Sequence[str]) -> Any:
    """A label as a column of this feature holds it.

    Args:
        feature: of the column.
        label: counted from 0.
        class_names: of every label; the number itself where the column names none.
    """
    if _is_text(feature):
        return class_names[label]
    return bool(label) if feature == TRUTH else label


def load_texts(config: DataConfig, ids: Int64[np.ndarray, " n"]) -> list[str]:
    """The texts of some examples, of data whose inputs are texts.

    Raises:
        UserError: as `load`.
    """
    dataset, _ = _all_rows(config)
    return dataset.select(ids).with_format(None)[first_input(config, dataset, "")][:]


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


def _class_names(dataset: datasets.Dataset, label: str) -> tuple[str, ...]:
    """Of the labels 0, 1, ..., in the order of the alphabet; none where they are numbers."""
    feature = dataset.features[label]
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    if feature == TRUTH:
        return ("False", "True")
    if not _holds_text(dataset, label):
        return ()
    return tuple(sorted(set(dataset.with_format(None)[label][:]) - {None}))


def _untrained(labels: Int32[np.ndarray, " n"], names: Sequence[str]) -> tuple[str, ...]:
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


Ids = Int64[np.ndarray, " n"]


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
        return _Inputs(np.stack([_single_numbers(dataset, name, ids) for name in columns], axis=1))
    if _holds_text(dataset, first):
        return _tokens(config, _texts(dataset, first, ids), train)
    return _Inputs(_column(dataset, first, ids))


def _holds_text(dataset: datasets.Dataset, name: str) -> bool:
    """Whether a column is text. Where most texts read as numbers, numbers are meant."""
    if not _is_text(dataset.features[name]):
        return False
    values = dataset.with_format(None)[name][:]
    return 2 * sum(isinstance(_number(value), float) for value in values) <= len(values)


def _is_text(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def _texts(dataset: datasets.Dataset, name: str, ids: Ids) -> list[str]:
    texts = dataset.with_format(None)[name][:]
    if None in texts:
        raise UserError(
            f'data.input: column "{name}" has no text in {texts.count(None)} row(s), first in row '
            f"{ids[texts.index(None)]} (counted from 0); drop them, or fill them, with a space "
            f"where the text is empty"
        )
    return texts


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


def _column(dataset: datasets.Dataset, name: str, ids: Ids) -> Num[np.ndarray, "n *shape"]:
    """One input column: images as uint8 (n, h, w, c), anything else as float32 (n, d)."""
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


def _single_numbers(dataset: datasets.Dataset, name: str, ids: Ids) -> Float32[np.ndarray, " n"]:
    numbers = _numbers(dataset, name, ids)
    if numbers.ndim != 1:
        raise UserError(
            f'data.input: column "{name}" holds lists of shape {numbers.shape[1:]}; several input '
            f"columns must hold one number each, so name this one alone or leave it out"
        )
    return numbers


# What pillow raises on bad files.
UNREADABLE = (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError)


def _decode_images(dataset: datasets.Dataset, name: str, ids: Ids) -> UInt8[np.ndarray, "n h w c"]:
    images: list[np.ndarray] = []
    rows = iter(dataset[name])
    for number in ids:
        try:
            array = _pixels(next(rows))
        except UNREADABLE as error:
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
        row, seen = _telling(ids, values, lambda value: isinstance(_number(value), float))
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


def _labels(
    dataset: datasets.Dataset, name: str, ids: Ids, names: Sequence[str]
) -> Int32[np.ndarray, " n"]:
    values = dataset.with_format(None)[name][:]
    if None in values:
        raise UserError(
            f'data.label = "{name}" is missing in row {ids[values.index(None)]}; fill it'
        )
    if _is_text(dataset.features[name]) and names:
        number = {value: label for label, value in enumerate(names)}
        return np.array([number[value] for value in values], np.int32)
    if not all(map(_is_label, values)):
        row, seen = _telling(ids, values, _is_label)
        raise UserError(
            f'data.label = "{name}" holds {seen!r} in row {row}; labels must be names of classes, '
            f"or integers counted from 0, so number the classes 0, 1, 2, ..."
        )
    return np.array([int(float(value)) for value in values], np.int32)


def _is_label(value: Any) -> bool:
    number = _number(value)
    return isinstance(number, float) and number.is_integer() and 0 <= number < 2**31


def _telling(ids: Ids, values: list[Any], fits: Callable[[Any], bool]) -> tuple[int, Any]:
    """Row and value that shows best what is wrong: the first that does not fit, else the first."""
    rows = zip(ids.tolist(), values, strict=True)
    return next((pair for pair in rows if not fits(pair[1])), (int(ids[0]), values[0]))


def _number(value: Any) -> Any:
    """The number that a text means, if it means one."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return value
