"""Estimated effects against dedicated retrains, on real digits.

A bank of members on random halves of 100 clusters of digits gives, for every cluster and target,
a weight of the lasso and a debiased effect. Dedicated retrains then measure the effects: in many
random contexts each cluster is flipped alone, with the same training key. Which effects are large
is taken from one half of the contexts, and all errors from the other.
"""

import argparse
import json
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from real_banks import Retrainer

import datamodels
from influence.jax_setup import set_up_jax
from training.seeds import root_key, training_keys

CLUSTERS = ["--groups.by", "cluster", "--groups.count", "100"]
LARGE = 10
"""Effects of a target that count as large."""


class Measured(NamedTuple):
    """Effects by dedicated retrains, from one half of the contexts."""

    effect: Float[np.ndarray, "g t"]
    error: Float[np.ndarray, "g t"]


def measure(retrainer: Retrainer, contexts: int, alpha: float) -> tuple[Measured, Measured]:
    """Flip every group alone in each context; the two halves of the contexts, apart."""
    root, groups = root_key(retrainer.experiment.config.sweep.seed, 9), retrainer.groups
    masks = datamodels.Bernoulli(alpha).masks(root, np.arange(contexts), groups)
    keys = training_keys(root, np.arange(contexts), np.zeros(contexts, int))
    changes = []
    for mask, key in zip(masks, keys, strict=True):
        flipped = np.concatenate([mask[None], mask ^ np.eye(groups, dtype=bool)])
        outputs = retrainer.outputs(flipped, np.tile(key, (groups + 1, 1)))
        # From dropped to kept, whichever of the two the context has.
        changes.append(np.where(mask, 1, -1)[:, None] * (outputs[:1] - outputs[1:]))
    halves = np.array_split(np.stack(changes).astype(np.float64), 2)
    found = [Measured(h.mean(0), h.std(0, ddof=1) / np.sqrt(len(h))) for h in halves]
    return found[0], found[1]


def compare(
    estimate: Float[np.ndarray, "g t"], truth: Measured, chosen: Bool[np.ndarray, "g t"]
) -> float:
    """Mean squared error of the chosen effects, less what the measurement's own noise adds."""
    return float((np.square(estimate - truth.effect) - np.square(truth.error))[chosen].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one line of JSON, last on stdout")
    parser.add_argument("--quick", action="store_true", help="few members and contexts")
    parser.add_argument("--alpha", type=float, default=0.5)
    options = parser.parse_args()
    set_up_jax()
    members, contexts = (150, 4) if options.quick else (1000, 300)
    retrainer = Retrainer.of("digits.toml", CLUSTERS)
    masks, outputs, _ = retrainer.members(0, members, options.alpha)

    lasso = datamodels.fit(masks, outputs).weights
    effects = datamodels.effects(masks, outputs, alpha=options.alpha)
    plain = datamodels.average_marginal_effects(masks, outputs, alpha=options.alpha)
    choosing, truth = measure(retrainer, contexts, options.alpha)

    least = np.sort(np.abs(choosing.effect), axis=0)[-LARGE]
    large = np.abs(choosing.effect) >= least
    spread = np.hypot(effects.standard_error, truth.error)
    inside = np.abs(effects.estimate - truth.effect) <= 1.96 * spread
    result = {
        "members": members,
        "contexts": contexts,
        "alpha": options.alpha,
        "large_effect": float(np.abs(truth.effect[large]).mean()),
        "measurement_error": float(np.sqrt(np.square(truth.error).mean())),
        "mse_large": {
            "lasso": compare(lasso, truth, large),
            "debiased": compare(effects.estimate, truth, large),
            "without a fit": compare(plain.estimate, truth, large),
        },
        "mse_all": {
            "lasso": compare(lasso, truth, np.ones_like(large)),
            "debiased": compare(effects.estimate, truth, np.ones_like(large)),
            "without a fit": compare(plain.estimate, truth, np.ones_like(large)),
        },
        "coverage": {"large": float(inside[large].mean()), "all": float(inside.mean())},
    }
    for kind in ("mse_large", "mse_all"):
        print(kind, {name: round(value, 4) for name, value in result[kind].items()})
    print("coverage of 95 % intervals", result["coverage"])
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
