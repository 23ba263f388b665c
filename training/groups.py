"""Groups of training examples: what a mask keeps or drops as one."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from training.errors import UserError, reason
from training.examples import Examples
from training.models import Model
from training.seeds import root_key, training_key
from training.train import EVALUATION_BLOCK, Recipe, make_train

NPY = b"\x93NUMPY"
"""How files of NumPy arrays begin."""


@dataclass(frozen=True)
class GroupsConfig:
    """Which training examples are kept or dropped together."""

    by: Literal["example", "column", "cluster", "file"] = "example"
    """example: every example is its own group. column: those with one value of a column. cluster:
    similar examples of one class. file: as a file says."""
    column: str = ""
    """Of the data, whose values name the groups (an author, a session, a source)."""
    file: str = ""
    """A .npy file of one number or name for each training example, in the order of their ids."""
    count: int = 100
    """Clusters, over all classes in proportion to their examples."""
    features: Literal["inputs", "model"] = "inputs"
    """What clusters are of: the normalised inputs, or what the last layer of a model trained on
    everything reads."""
    seed: int = 0
    """Of the clustering, and of that model."""

    @property
    def named_by(self) -> str:
        """The column whose values name the groups, which is then no input; "" where none does."""
        return self.column if self.by == "column" else ""


class Groups(NamedTuple):
    """A group for every training example."""

    of: Int[np.ndarray, " n"]
    """Numbers from 0, each of them given."""
    names: tuple[str, ...]
    """Of the groups."""
    made_by: dict[str, Any]
    """How; empty where every example is its own group."""

    @property
    def is_single(self) -> bool:
        """Whether every example is its own group."""
        return not self.made_by


def single(ids: Int[np.ndarray, " n"]) -> Groups:
    """Every example its own group."""
    return Groups(np.arange(len(ids)), tuple(map(str, ids.tolist())), {})


def describe(config: GroupsConfig) -> dict[str, Any]:
    """What of the config decides the groups; empty where every example is its own."""
    match config.by:
        case "column":
            return {"by": "column", "column": config.column}
        case "file":
            return {"by": "file"}
        case "cluster":
            keys = ("by", "count", "features", "seed")
            return {key: value for key, value in asdict(config).items() if key in keys}
    return {}


def from_values(values: tuple[Any, ...], config: GroupsConfig) -> Groups:
    """Groups of equal values of a column, in the order in which they first occur.

    Raises:
        UserError: a value is missing or no plain value, or all are the same.
    """
    for row, value in enumerate(values):
        if value is None or not isinstance(value, str | int | float):
            raise UserError(
                f'groups.column = "{config.column}" holds {value!r} for training example {row}; '
                f"every example needs a number or a text there"
            )
    return _named([str(value) for value in values], config, f'groups.column = "{config.column}"')


def from_file(config: GroupsConfig, examples: int) -> Groups:
    """Groups as a file says.

    Raises:
        UserError: it cannot be read, or has another shape.
    """
    where = f'groups.file = "{config.file}"'
    try:
        with Path(config.file).open("rb") as file:
            if file.read(len(NPY)) != NPY:
                raise UserError(
                    f"{where} is no .npy file; write one number or name for each training example "
                    f"with numpy.save"
                )
        values = np.load(Path(config.file), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{where} cannot be read as a .npy array: {reason(error)}") from error
    if values.shape != (examples,):
        raise UserError(
            f"{where} has shape {values.shape}; it must hold one value for each of the {examples} "
            f"training examples, in the order of their ids"
        )
    if not (np.issubdtype(values.dtype, np.integer) or values.dtype.kind == "U"):
        raise UserError(f"{where} holds {values.dtype}; it must hold whole numbers or names")
    return _named([str(value) for value in values.tolist()], config, where)


def _named(values: list[str], config: GroupsConfig, where: str) -> Groups:
    order = {value: number for number, value in enumerate(dict.fromkeys(values))}
    if len(order) < 2:
        raise UserError(f"{where} gives all examples one group; at least two are needed")
    of = np.array([order[value] for value in values])
    return Groups(of, tuple(order), describe(config))


def clusters(
    config: GroupsConfig,
    examples: Examples,
    model: Model,
    recipe: Recipe,
    known: Int[np.ndarray, " n"] | None = None,
) -> Groups:
    """Groups of similar examples within each class, by k-means (Lloyd 1982, k-means++).

    Args:
        config: how many, of what.
        examples: all training examples.
        model: gives the features, if those are asked for.
        recipe: normalises inputs, and trains the model.
        known: these clusters, found before: low bits of another machine could change a few.

    Raises:
        UserError: more clusters than examples, or fewer than classes; inputs or a model that
            cannot be clustered.
    """
    labels = np.asarray(examples.labels)
    present = np.unique(labels)
    if not len(present) <= config.count <= len(examples):
        raise UserError(
            f"groups.count = {config.count} must be from {len(present)}, the number of classes, to "
            f"{len(examples)}, the number of examples"
        )
    if known is not None:
        return _clusters(known, labels, config)
    features = features_of(config, examples, model, recipe)
    of, first = np.empty(len(labels), np.int64), 0
    sizes = np.array([(labels == label).sum() for label in present])
    for label, count in zip(present, _shares(sizes, config.count), strict=True):
        rows = np.flatnonzero(labels == label)
        number = _parts(features[rows], count, config.seed)
        of[rows] = first + number
        first += int(number.max()) + 1
    return _clusters(of, labels, config)


def split(
    groups: Groups,
    chosen: Sequence[int],
    parts: int,
    config: GroupsConfig,
    examples: Examples,
    model: Model,
    recipe: Recipe,
) -> Int[np.ndarray, " n"]:
    """The group of each example once some groups are split into parts of similar examples.

    Args:
        groups: that are split, or stay whole.
        chosen: which are split.
        parts: of each, by k-means; of a group with no more examples, every one of them.
        config: of what features, and the seed.
        examples: all training examples.
        model: as in `clusters`.
        recipe: as in `clusters`.

    Raises:
        UserError: inputs or a model that cannot be clustered.
    """
    features = features_of(config, examples, model, recipe)
    of, first = np.empty(len(groups.of), np.int64), 0
    for group in range(len(groups.names)):
        rows = np.flatnonzero(groups.of == group)
        number = np.zeros(len(rows), np.int64)
        if group in chosen:
            number = _parts(features[rows], parts, config.seed)
            if not number.any():  # all of them are equal
                number = np.arange(len(rows)) % parts
        of[rows] = first + number
        first += int(number.max()) + 1
    return of


def _parts(features: Float[np.ndarray, "r d"], count: int, seed: int) -> Int[np.ndarray, " r"]:
    """At most so many parts of similar rows, numbered from 0."""
    if len(features) <= count:
        return np.arange(len(features))
    with warnings.catch_warnings():
        # Equal examples may leave a cluster empty.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(count, n_init="auto", random_state=seed).fit_predict(features)
    return np.unique(found, return_inverse=True)[1]


def _clusters(
    of: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], config: GroupsConfig
) -> Groups:
    first = np.unique(of, return_index=True)[1]
    names = tuple(f"cluster {group} of class {labels[row]}" for group, row in enumerate(first))
    return Groups(of, names, describe(config))


def _shares(sizes: Int[np.ndarray, " c"], count: int) -> list[int]:
    """`count` in proportion to sizes: at least one each, and no more than the size."""
    shares = np.maximum(np.floor(count * sizes / sizes.sum()), 1).astype(int)
    while shares.sum() != count:
        step = 1 if shares.sum() < count else -1
        allowed = shares < sizes if step > 0 else shares > 1
        # Where the exact share is most above what is given, or most below.
        lack = np.where(allowed, step * (count * sizes / sizes.sum() - shares), -np.inf)
        shares[int(np.argmax(lack))] += step
    return shares.tolist()


def features_of(
    config: GroupsConfig, examples: Examples, model: Model, recipe: Recipe
) -> Float[np.ndarray, "n d"]:
    """What examples are clustered by: their inputs, or what a model's last layer reads of them.

    Raises:
        UserError: texts as inputs, a model without features, or one whose training diverged.
    """
    if config.features == "inputs":
        if np.asarray(examples.inputs).dtype == np.int32:
            raise UserError(
                'groups.features = "inputs" cannot cluster texts, whose inputs are token ids; set '
                'groups.features = "model"'
            )
        return np.asarray(recipe.normalise(jnp.asarray(examples.inputs))).reshape(len(examples), -1)
    features = model.features
    if features is None:
        raise UserError(
            'groups.features = "model" needs a module with a method features(inputs) -> (b, d); '
            'give your module one, or set groups.features = "inputs"'
        )
    train = jax.jit(make_train(recipe, model, examples))
    root = root_key(config.seed, FEATURES_STREAM)
    state = train(training_key(root, 0, 0), jnp.ones(len(examples), bool))

    @jax.jit
    def of_block(inputs: Any) -> Any:
        return features(state.parameters, state.rest, recipe.normalise(inputs))

    inputs = np.asarray(examples.inputs)
    blocks = [
        np.asarray(of_block(inputs[first : first + EVALUATION_BLOCK]))
        for first in range(0, len(inputs), EVALUATION_BLOCK)
    ]
    found = np.concatenate(blocks)
    if not np.isfinite(found).all():
        raise UserError(
            'groups.features = "model": training on everything diverged; lower optim.learning_rate'
        )
    return found


FEATURES_STREAM = 4_096
"""Of the root key of the model that gives features; no arm draws from it."""
