"""Everything a run computes with, built from its config: data, attacks, model and recipe."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from influence.config import Config
from training.arm import ArmSpec
from training.augment import check_augmentation
from training.data import Table, content_hash, load
from training.errors import UserError
from training.examples import Examples, concatenate, fit_normaliser
from training.groups import Groups, GroupsConfig, clusters, from_file, from_values, single
from training.models import Model, build_model, module_source
from training.outputs import BUILTIN, OutputFunction, output_function
from training.poison import Attack, plant
from training.train import Recipe

NUMERICS_VERSION = 6
"""Raised by hand when a change to the code changes the bits of a sweep."""

FEWEST_EXAMPLES = 10
"""Training examples below which nothing can be said."""

FEWEST_OF_CLUSTERS = 10
"""Members of an alpha over clusters below which there are none."""

SPARE_ROWS = 1000
"""Unused rows that attacks may try their triggers on."""


@dataclass(frozen=True)
class Targets:
    """What every member of the sweep reports on, in three blocks.

    First the training examples themselves (what finds mislabels), then the clean targets, then
    the bad inputs of the incident protocol, if any, labelled as the model was led to predict.
    """

    examples: Examples
    ids: tuple[str, ...]
    train: slice
    clean: slice
    incident: slice

    def __len__(self) -> int:
        return len(self.ids)


class Stored(NamedTuple):
    """What a bank has that its config does not give, or not on every machine with the same bits."""

    groups: Sequence[int] | None = None
    """The group of each training example; None: to be found."""
    clusters: Sequence[int] | None = None
    """The same of the clusters of the joint effects."""
    refined: tuple[ArmSpec, ...] = ()
    """Arms that were decided by what earlier ones showed."""


@dataclass(frozen=True)
class Experiment:
    """The loaded and poisoned data, and how members are trained on it."""

    config: Config
    train: Table
    groups: Groups
    """Of the training examples."""
    clusters: Groups | None
    """Of the training examples, for joint effects, which the masks of the sweep do not show; None
    where they do, or where none are wanted."""
    refined: tuple[ArmSpec, ...]
    """Arms that were decided by what earlier ones showed."""
    targets: Targets
    attacks: tuple[Attack, ...]
    class_names: tuple[str, ...]
    model: Model
    recipe: Recipe
    output: OutputFunction
    vocabulary: int
    """For text: every token id is below it; 0 for images and numbers."""
    notes: tuple[str, ...]
    """What a user should know of how the inputs were made, one line each."""

    @property
    def incident_attack(self) -> Attack | None:
        """The attack that gave the incident its bad inputs."""
        return next((attack for attack in self.attacks if attack.incident is not None), None)

    @property
    def gives_margins(self) -> bool:
        """Whether the output is a margin, in logits: below 0 where the label is contradicted."""
        return self.config.sweep.output == "margin"

    @property
    def higher_is_better(self) -> bool:
        """Whether a high output is good for the label, as all are but the loss."""
        return self.config.sweep.output != "loss"

    @property
    def protocol(self) -> str:
        """What the audit may see: as the config says, but blind where there is no incident."""
        return "blind" if self.incident_attack is None else self.config.audit.protocol

    @property
    def bad_targets(self) -> range:
        """Where the targets of the incident stand; none in a blind audit, which sees none."""
        incident = range(self.targets.incident.start, self.targets.incident.stop)
        return incident[:0] if self.protocol == "blind" else incident


NOTHING_STORED = Stored()


def prepare(config: Config, stored: Stored = NOTHING_STORED) -> Experiment:
    """Load the data, plant the poison asked for, build groups, model, recipe and targets.

    Args:
        config: what to prepare.
        stored: what the bank has, if there is one.

    Raises:
        UserError: anything in the data or the config that does not fit.
    """
    spare = SPARE_ROWS if config.poison.has_trigger else 0
    split = load(config.data, spare, config.groups.named_by)
    labels = np.concatenate(
        [np.asarray(table.examples.labels) for table in (split.train, split.targets, split.spare)]
    )
    classes = _classes(config, labels, split.class_names)
    if len(split.train) < FEWEST_EXAMPLES:
        raise UserError(
            f"{len(split.train)} training examples are too few to audit; at least "
            f"{FEWEST_EXAMPLES} are needed"
        )
    train, attacks = plant(config.poison, split, classes)
    shape = train.examples.inputs.shape[1:]
    check_augmentation(config.optim.augment, shape)
    model = build_model(config.model, shape, classes, split.vocabulary)
    if config.sweep.microbatch and not model.by_example:
        raise UserError(
            f"sweep.microbatch = {config.sweep.microbatch}, but the model keeps state while it "
            f"trains (dropout) or looks at a batch as a whole (batch statistics), which pieces of "
            f"a batch would lose; set it to 0"
        )
    recipe = Recipe(config.optim, fit_normaliser(np.asarray(train.examples.inputs)))
    groups = _groups(config, train, split.group_values, model, recipe, stored.groups)
    for alpha in config.sweep.alpha:
        if min(alpha, 1 - alpha) * len(groups.names) < 1:
            raise UserError(
                f"sweep.alpha = {alpha} keeps {alpha * len(groups.names):.3g} of the "
                f"{len(groups.names)} groups in the mean, so nearly all masks would be alike; at "
                f"least one must be kept, and one dropped"
            )
    names = split.class_names + tuple(map(str, range(len(split.class_names), classes)))
    incident = next((attack.incident for attack in attacks if attack.incident is not None), None)
    return Experiment(
        config,
        train,
        groups,
        _clusters(config, train, groups, model, recipe, stored.clusters),
        stored.refined,
        _targets(train, split.targets, incident),
        attacks,
        names,
        model,
        recipe,
        output_function(config.sweep.output, classes),
        split.vocabulary,
        split.notes,
    )


def shows_joint_effects(config: Config, groups: Groups) -> bool:
    """Whether the masks of the sweep show how groups act together.

    They do where groups are kept independently, and are not every one of many examples: what few of
    those do together is less than the noise of a few thousand members.
    """
    few = not groups.is_single or len(groups.of) <= config.joint.clusters
    return few and config.sweep.design in ("bernoulli", "pairs")


def identity(experiment: Experiment) -> dict[str, Any]:
    """The parts that make two runs the same run; the bits of every output follow from them."""
    config, recipe = experiment.config, experiment.recipe
    normaliser = np.concatenate([recipe.normalise.mean, recipe.normalise.scale])
    output = config.sweep.output
    return {
        "data": content_hash(experiment.train),
        "recipe": {
            **dataclasses.asdict(recipe.optim),
            "normaliser": _short_hash(normaliser.tobytes()),
        },
        "model": {
            **dataclasses.asdict(config.model),
            # Where it lies does not matter.
            "init_from": _variables_hash(experiment.model.initial),
            "classes": experiment.model.classes,
            # The ids are in the data; how many there may be is the size of the model's table.
            "vocabulary": experiment.vocabulary,
            "source": _short_hash(experiment.model.source.encode()),
        },
        "output": {
            "name": output,
            "source": "" if output in BUILTIN else _short_hash(module_source(output).encode()),
        },
        "numerics": {
            "version": NUMERICS_VERSION,
            "precision": str(jax.config.values["jax_default_matmul_precision"] or "default"),
            "width": config.sweep.width,
            "microbatch": config.sweep.microbatch,
            # Another program than without; how many steps are made at a time does not matter.
            "stepped": config.checkpoint.every_steps > 0,
        },
    }


def identity_hash(parts: dict[str, Any]) -> str:
    """One hash of all parts."""
    return _short_hash(json.dumps(parts, sort_keys=True).encode())


def _variables_hash(variables: Mapping[str, Any]) -> str:
    """Of the names and values of variables; "" if there are none."""
    if not variables:
        return ""
    described = [f"{n}{v.dtype.str}{v.shape}".encode() + v.tobytes() for n, v in variables.items()]
    return _short_hash(b"".join(described))


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _classes(config: Config, labels: Int[np.ndarray, " n"], names: Sequence[str]) -> int:
    largest = int(labels.max())
    classes = config.model.classes or largest + 1
    if classes > 1000 and classes > 10 * len(np.unique(labels)):
        raise UserError(
            f'data.label = "{config.data.label}" holds {len(np.unique(labels))} different labels '
            f"up to {largest}; number the classes 0, 1, 2, ..."
        )
    if (labels == largest).all():
        raise UserError(
            f'data.label = "{config.data.label}" holds {names[largest] if names else largest} '
            f"alone; at least two classes are needed"
        )
    if classes < 2 or largest >= classes:
        raise UserError(
            f"the labels run from 0 to {largest}, which does not fit model.classes = "
            f"{config.model.classes}; at least two classes are needed, and every label must be "
            f"below model.classes (0 = as many as the labels need)"
        )
    return classes


def _groups(
    config: Config,
    train: Table,
    values: tuple[Any, ...],
    model: Model,
    recipe: Recipe,
    stored: Sequence[int] | None,
) -> Groups:
    match config.groups.by:
        case "column":
            return from_values(values, config.groups)
        case "file":
            return from_file(config.groups, len(train))
        case "cluster":
            known = _of_these(stored, train)
            return clusters(config.groups, train.examples, model, recipe, known)
    return single(train.ids)


def _clusters(
    config: Config,
    train: Table,
    groups: Groups,
    model: Model,
    recipe: Recipe,
    stored: Sequence[int] | None,
) -> Groups | None:
    """What joint effects are looked for among, where the sweep does not show them."""
    if reason_against_clusters(config, groups, model, train.examples):
        return None
    if not groups.is_single:
        return groups
    count = min(max(config.joint.clusters, model.classes), len(train))
    by = dataclasses.replace(clustering(config, train.examples), count=count)
    return clusters(by, train.examples, model, recipe, _of_these(stored, train))


def cluster_members(config: Config) -> int:
    """Members of each alpha over clusters."""
    return round(config.joint.share * config.sweep.members)


def clustering(config: Config, examples: Examples) -> GroupsConfig:
    """How single examples are clustered for joint effects: as groups are, but texts by a model."""
    features = "model" if _is_text(examples) else config.groups.features
    return GroupsConfig(by="cluster", features=features, seed=config.groups.seed)


def reason_against_clusters(
    config: Config, groups: Groups, model: Model, examples: Examples
) -> str | None:
    """Why a run has no arms of clusters; None where it has them."""
    if shows_joint_effects(config, groups):
        return "the masks of the sweep show joint effects"
    if not config.joint.share:
        return "joint.share = 0"
    members = cluster_members(config)
    if members < FEWEST_OF_CLUSTERS:
        return f"joint.share = {config.joint.share} of the members are {members}, too few"
    fewest = max(1 / min(alpha, 1 - alpha) for alpha in config.joint.alpha)
    if not groups.is_single and len(groups.names) < fewest:
        return f"{len(groups.names)} groups are too few to keep a share of joint.alpha of them"
    if groups.is_single and _is_text(examples) and model.features is None:
        return "texts can be clustered only by a model with a method features(inputs) -> (b, d)"
    return None


def _is_text(examples: Examples) -> bool:
    return np.asarray(examples.inputs).dtype == np.int32


def _of_these(stored: Sequence[int] | None, train: Table) -> Int[np.ndarray, " n"] | None:
    """Stored groups; of another number of examples they are of another run, as is told later."""
    return np.array(stored) if stored is not None and len(stored) == len(train) else None


def _targets(train: Table, clean: Table, incident: Table | None) -> Targets:
    blocks = {
        "train": train,
        "clean": clean,
        **({} if incident is None else {"incident": incident}),
    }
    ends = np.cumsum([len(table) for table in blocks.values()])
    examples = concatenate([table.examples for table in blocks.values()])
    ids = tuple(f"{kind}:{number}" for kind, table in blocks.items() for number in table.ids)
    return Targets(
        examples,
        ids,
        slice(0, int(ends[0])),
        slice(int(ends[0]), int(ends[1])),
        slice(int(ends[1]), int(ends[-1])),
    )
