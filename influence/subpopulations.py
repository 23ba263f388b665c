"""Kinds of examples, as the model sees them: which examples help the same clean targets.

Ilyas et al. (2022, section 4.3) find subpopulations as principal components of datamodel weights. A
part of a non-negative factorisation (Lee & Seung 1999) is easier to read: it only adds, so that its
examples are those that help its targets.
"""

import warnings
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning

from influence.arms import mask_columns
from influence.audit import Weights
from influence.experiment import Experiment
from influence.members import target_blocks

PARTS = 20
"""Kinds, at most; and at most a fifth of the targets."""
MOST_TARGETS = 1000
"""Clean targets that are looked at, the first ones."""
MOST_VALUES = 2e8
"""Weights that are factorised, at most: 800 MB."""
STEPS = 200
"""Of the factorisation."""
SHOWN_EXAMPLES, SHOWN_TARGETS = 12, 6
"""Of a kind, those that belong to it most."""


def described(experiment: Experiment, weights: Weights) -> list[dict[str, Any]]:
    """The `subpopulations` of audit.json, those that explain most first; none of few targets."""
    clean, columns = experiment.targets.clean, mask_columns(experiment)
    sign = 1.0 if experiment.higher_is_better else -1.0
    groups = int(columns.max()) + 1
    count = min(clean.stop - clean.start, MOST_TARGETS, int(MOST_VALUES / groups))
    parts = min(PARTS, count // 5, groups // 5)
    if parts < 2:
        return []
    block = slice(clean.start, clean.start + count)
    positive = np.concatenate(
        [np.maximum(sign * weights(part), 0) for part in target_blocks(block)], axis=1
    )
    of_groups, of_targets = factorised(positive, parts)
    of_examples = of_groups[columns]
    share = of_groups.sum(0) * of_targets.sum(1)
    share = share / max(share.sum(), 1e-30)
    labels = np.asarray(experiment.train.examples.labels)
    found = []
    for part in np.argsort(-share, kind="stable").tolist():
        belongs = of_examples[:, part]
        rows = np.argsort(-belongs, kind="stable")[:SHOWN_EXAMPLES]
        at = np.argsort(-of_targets[part], kind="stable")[:SHOWN_TARGETS]
        by_class = np.bincount(labels, belongs, minlength=len(experiment.class_names))
        if not by_class.sum():
            continue
        found.append(
            {
                "share": float(share[part]),
                "class": experiment.class_names[int(by_class.argmax())],
                "of_class": float(by_class.max() / by_class.sum()),
                "examples": experiment.train.ids[rows].tolist(),
                "targets": [experiment.targets.ids[clean.start + one] for one in at.tolist()],
            }
        )
    return found


def factorised(
    values: Float[np.ndarray, "g t"], parts: int
) -> tuple[Float[np.ndarray, "g p"], Float[np.ndarray, "p t"]]:
    """Two factors without negative values whose product is nearest to the values."""
    settings: dict[str, Any] = {"n_components": parts, "init": "nndsvda", "random_state": 0}
    model = NMF(**settings, max_iter=STEPS, tol=1e-3)
    with warnings.catch_warnings():
        # What is nearly there can be read as well.
        warnings.simplefilter("ignore", ConvergenceWarning)
        left = model.fit_transform(values.astype(np.float32))
    return left, model.components_
