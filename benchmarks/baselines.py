"""Standard detectors of bad training examples, on the same data, model and recipe as a run's.

Each gives every training example a suspicion; high is suspicious.

cleanlab    its quality of each label (Northcutt et al. 2021; Kuan & Mueller 2022), given
            probabilities out of sample, of five folds with several seeds each
loss        the loss of the label under models trained on everything
knn         share of the ten nearest examples, by what the last layer reads, of another label
spectral    spectral signatures (Tran, Li & Madry 2018): squared projection of a class's features on
            their first singular direction
clustering  activation clustering (Chen et al. 2018): how small the smaller of two clusters is of a
            class's features
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from cleanlab.rank import get_label_quality_scores
from jaxtyping import Array, Bool, Float, Int, UInt32
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from influence.arms import main_task
from influence.counterfactual import share_positive
from influence.experiment import Experiment
from influence.layout import sweeper_for
from training.examples import Examples, concatenate
from training.groups import GroupsConfig, features_of
from training.outputs import lead
from training.seeds import root_key, training_keys

FOLDS, SEEDS = 5, 4
NEIGHBOURS = 10
DIRECTIONS = 10
"""That activation clustering looks at."""
STREAM, CLEANED_STREAM = 700, 701
CLEANED_SEEDS = 16
"""Retrains without what a detector finds first."""

Suspicion = Float[np.ndarray, " n"]


class Cleaned(NamedTuple):
    """Of models trained without what a detector finds first: shares, from 0 to 1."""

    accuracy: float
    """On the clean targets."""
    success: dict[str, float]
    """Per attack."""


def cleaned_by(
    experiment: Experiment, found: dict[str, Suspicion], count: int
) -> dict[str, Cleaned]:
    """What is left of the attacks without what each detector finds first.

    Args:
        experiment: of a run.
        found: suspicions, by the detector's name.
        count: examples that are left out.

    Returns:
        By the detector's name; means over the seeds whose members are finite.
    """
    blocks = {"clean": experiment.targets.examples.take(experiment.targets.clean)}
    blocks |= {attack.name: attack.trial for attack in experiment.attacks}
    inputs, rows = concatenate(list(blocks.values())), np.arange(len(found) * CLEANED_SEEDS)
    kept = [np.argsort(np.argsort(-values, kind="stable")) >= count for values in found.values()]
    # The same seeds for every detector.
    seeds = root_key(experiment.config.audit.seed, CLEANED_STREAM)
    keys = training_keys(seeds, rows % CLEANED_SEEDS, np.zeros(len(rows), np.int64))
    masks = np.repeat(np.stack(kept), CLEANED_SEEDS, axis=0)
    leads = _retrained(experiment, inputs, lead, keys, masks)
    ends = np.cumsum([len(block) for block in blocks.values()])[:-1]
    parts = zip(blocks, np.split(leads, ends, axis=1), strict=True)
    shares = {
        name: np.nanmean(share_positive(part).reshape(len(found), CLEANED_SEEDS), 1)
        for name, part in parts
    }
    accuracy = shares.pop("clean")
    return {
        name: Cleaned(float(accuracy[at]), {one: float(of[at]) for one, of in shares.items()})
        for at, name in enumerate(found)
    }


def suspicions(experiment: Experiment) -> dict[str, Suspicion]:
    """Of every training example, by the detector's name."""
    labels = np.asarray(experiment.train.examples.labels).astype(int)
    fold = np.random.default_rng(0).permutation(len(labels)) % FOLDS
    kept = np.stack([fold != number for number in range(FOLDS)] + [np.ones(len(labels), bool)])
    probabilities = _probabilities(experiment, kept)
    rows = np.arange(len(labels))
    by_model = GroupsConfig(features="model")
    features = features_of(by_model, experiment.train.examples, experiment.model, experiment.recipe)
    return {
        "cleanlab": -get_label_quality_scores(labels, probabilities[fold, rows]),
        "loss": -np.log(np.maximum(probabilities[FOLDS, rows, labels], 1e-30)),
        "knn": _other_neighbours(features, labels),
        "spectral": _by_class(features, labels, _spectral),
        "clustering": _by_class(features, labels, _clustering),
    }


def _retrained(
    experiment: Experiment,
    targets: Examples,
    output: Callable[..., Array],
    keys: UInt32[np.ndarray, "m 2"],
    masks: Bool[np.ndarray, "m n"],
) -> Float[np.ndarray, "m _"]:
    """The outputs of members with these keys and masks, which are kept nowhere."""
    task = main_task(experiment)._replace(targets=targets, output=output, panels=(len(targets),))
    return sweeper_for(experiment, task).start(keys, masks).fetch().reports[0].outputs


def _logits(logits: Float[Array, "b c"], labels: Int[Array, " b"]) -> Float[Array, "b c"]:
    return logits


def _probabilities(experiment: Experiment, kept: np.ndarray) -> Float[np.ndarray, "k n c"]:
    """Of every class, for every training example: the mean over seeds, with some examples kept."""
    examples = experiment.train.examples
    masks = np.repeat(kept, SEEDS, axis=0)
    keys = training_keys(root_key(0, STREAM), np.arange(len(masks)), np.zeros(len(masks), np.int64))
    outputs = _retrained(experiment, examples, _logits, keys, masks)
    shaped = outputs.reshape(len(kept), SEEDS, len(examples), -1)
    return np.asarray(jax.nn.softmax(shaped, axis=-1)).mean(1)


def _other_neighbours(
    features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]
) -> Suspicion:
    near = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(features).kneighbors(return_distance=False)
    return (labels[near] != labels[:, None]).mean(1)


def _by_class(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    of_class: Callable[[Float[np.ndarray, "r d"]], Suspicion],
) -> Suspicion:
    found = np.zeros(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        found[rows] = of_class(features[rows])
    return found


def _spectral(features: Float[np.ndarray, "r d"]) -> Suspicion:
    centred = features - features.mean(0)
    return (centred @ np.linalg.svd(centred, full_matrices=False)[2][0]) ** 2


def _clustering(features: Float[np.ndarray, "r d"]) -> Suspicion:
    reduced = PCA(min(DIRECTIONS, *features.shape), random_state=0).fit_transform(features)
    cluster = KMeans(2, n_init=10, random_state=0).fit_predict(reduced)
    share = np.bincount(cluster, minlength=2) / len(cluster)
    return 1 - share[cluster]
