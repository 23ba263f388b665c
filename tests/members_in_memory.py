"""Members of an arm that no sweep made, and what is fitted to them."""

import jax
import numpy as np

from influence import attribution, quality
from influence.arms import Arms
from influence.config import FitConfig
from influence.members import Members
from influence.regression import divide


def members_of(masks, outputs, status=None):
    status = np.zeros(len(masks), np.uint8) if status is None else status
    half, draws = np.full((1, 1), 0.5), np.arange(len(masks))
    return Members(masks, status, lambda targets: outputs[:, targets], half, draws)


def regression_of(main, replicates=None, seeds=2):
    return divide([Arms("main", 0.5, main, replicates)], FitConfig(held_out=20), seeds)


def make_bank(rows=60, groups=8, targets=3, seed=0):
    rng = np.random.default_rng(seed)
    masks = rng.random((rows, groups)) < 0.5
    outputs = masks @ rng.standard_normal((groups, targets))
    return masks, outputs.astype(np.float32)


def fitted(main, replicates=None, seeds=2, targets=3):
    parts = list(attribution.fit(regression_of(main, replicates, seeds), targets))
    model = jax.tree.map(
        lambda *values: np.concatenate(values, axis=-1), *(model for model, _ in parts)
    )
    joined = zip(*(found for _, found in parts), strict=True)
    return model, quality.Quality(*(np.concatenate(part, axis=1) for part in joined))
