"""Claim: intervals of joint effects cover the truth, known by retraining on every mask.

All 2^g masks of g clusters of digits are retrained with several seeds, so that the joint effect of
every set of clusters is known by its definition, up to the noise that is left of those seeds. Joint
datamodels are then fitted to random masks, with one seed each, and the 95 % intervals of the
effects of *all* sets are compared with that truth: of every order, named beforehand, so that
nothing was chosen. Also how near the prediction is to the truth on every mask.
"""

import argparse
import json
from itertools import combinations

import numpy as np
from jaxtyping import Float
from real_banks import Retrainer

import datamodels
from influence.jax_setup import set_up_jax
from training.seeds import root_key, training_keys

TRUTH = 77
"""Stream of the training keys of the retrains on every mask."""
TARGETS = 10


def every_mask(groups: int) -> np.ndarray:
    """All masks; bit b of a row's number is group b."""
    return (np.arange(2**groups)[:, None] >> np.arange(groups) & 1).astype(bool)


def fourier(outputs: Float[np.ndarray, "k t"]) -> Float[np.ndarray, "k t"]:
    """Coefficients of every set (by its bits) of the outputs of every mask, averaged over masks.

    The fast Walsh-Hadamard transform, with +1 for kept and -1 for dropped.
    """
    found, step = outputs.astype(np.float64), 1
    while step < len(found):
        pairs = found.reshape(-1, 2, step, outputs.shape[1])
        dropped, kept = pairs[:, 0], pairs[:, 1]
        found = np.stack([dropped + kept, kept - dropped], axis=1).reshape(found.shape)
        step *= 2
    return found / len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one line of JSON, last on stdout")
    parser.add_argument("--quick", action="store_true", help="fewer groups, seeds and targets")
    options = parser.parse_args()
    set_up_jax()
    groups, seeds, members, targets = (10, 2, 200, 1) if options.quick else (12, 8, 1000, TARGETS)
    flags = ["--groups.by", "cluster", "--groups.count", str(groups)]
    retrainer = Retrainer.of("digits.toml", flags)
    if retrainer.groups != groups:
        raise SystemExit(f"{retrainer.groups} clusters instead of {groups}")
    masks = every_mask(groups)
    root = root_key(0, TRUTH)
    rows = np.repeat(np.arange(len(masks)), seeds)
    keys = training_keys(root, rows, np.arange(len(rows)) % seeds)
    outputs = retrainer.outputs(masks[rows], keys).reshape(len(masks), seeds, -1)
    own = np.random.default_rng(0).permutation(outputs.shape[2])[:targets]
    outputs = outputs[..., own].astype(np.float64)
    truth = fourier(outputs.mean(1))
    left_noise = np.sqrt(outputs.var(1, ddof=1).mean(0) / seeds / len(masks))

    drawn, seen, _ = retrainer.members(0, members, 0.5)
    model = datamodels.fit_joint(drawn, seen[:, own], alpha=0.5)
    sets = [each for order in range(groups + 1) for each in combinations(range(groups), order)]
    numbers = [sum(1 << group for group in each) for each in sets]
    scale = 2.0 ** np.array([len(each) for each in sets])
    inside, largest = [], []
    for target in range(targets):
        found = model.effects(target, sets)
        error = np.hypot(found.standard_error / scale, left_noise[target])
        off = np.abs(found.value / scale - truth[numbers, target])
        inside.append(off <= 1.96 * error)
        largest.append(inside[-1][np.argsort(-np.abs(truth[numbers, target]))[1:51]])
    predicted = datamodels.r2(model.predict(masks), outputs.mean(1))
    result = {
        "groups": groups,
        "seeds": seeds,
        "members": members,
        "targets": targets,
        "coverage": float(np.mean(inside)),
        "coverage_by_target": np.mean(inside, axis=1).tolist(),
        "coverage_of_the_50_largest": float(np.mean(largest)),
        "r2_on_every_mask": float(predicted.mean()),
    }
    print(
        f"{groups} clusters, all {len(masks):,} masks with {seeds} seeds, {members} members "
        f"fitted, {targets} targets: 95 % intervals cover {result['coverage']:.1%} of all "
        f"{len(sets):,} joint effects, {result['coverage_of_the_50_largest']:.1%} of the 50 "
        f"largest of a target; R2 of the prediction on every mask {result['r2_on_every_mask']:.3f}"
    )
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
