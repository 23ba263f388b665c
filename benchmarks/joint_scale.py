"""Claim: joint datamodels of thousands of groups and masks fit into 12 GB, and what time they take.

Outputs are drawn from known functions of the mask: every target has 40 main effects, and three sets
that act together among groups of their own: two copies, three copies, and two partners without any
single effect. Shown are seconds a target of the fit and of the terms, the peak of memory, R2 on
masks that nothing saw, of the joint and of the additive datamodel, and how many of the planted sets
are found: whole, in part (some groups of a set, which do act together), and how many terms are
neither. What masks beyond those that the covariance predicts from would have given is shown on a
size where all can be taken.

Time is the same for every target but for the additive part, so that of many follows from few;
`--targets 1000` runs them all.
"""

import argparse
import json
import resource
import time

import numpy as np
from jaxtyping import Bool, Float

import datamodels
from datamodels import background
from influence.jax_setup import set_up_jax

ALPHA = 0.5
NOISE = 0.5
"""Standard deviation over seeds."""
MAINS = 40
SETS = (2, 3, 2)
"""Groups of the planted sets: copies, copies, partners."""
UNSEEN = 2000
FULL = {"masks": 10_000, "groups": 5000}
QUICK = {"masks": 300, "groups": 100}


def planted(
    masks: Bool[np.ndarray, "m g"], seed: int
) -> tuple[Float[np.ndarray, " m"], set[tuple[int, ...]]]:
    """One target's output without noise, and its sets."""
    rng = np.random.default_rng(seed)
    groups = rng.permutation(masks.shape[1])[: MAINS + sum(SETS)]
    output = masks[:, groups[:MAINS]] @ (0.3 * rng.standard_normal(MAINS))
    two, three, partners = np.split(groups[MAINS:], np.cumsum(SETS)[:-1])
    output += 1.5 * masks[:, two].any(1) - 1.5 * masks[:, three].any(1)
    output += 0.6 * (2.0 * masks[:, partners] - 1).prod(1)
    return output, {tuple(sorted(each.tolist())) for each in (two, three, partners)}


def measure(masks: int, groups: int, targets: int) -> dict[str, float]:
    """Fit, find terms, and judge."""
    rng = np.random.default_rng(0)
    kept = rng.random((masks + UNSEEN, groups)) < ALPHA
    parts = [planted(kept, 1 + target) for target in range(targets)]
    outputs = np.stack([output for output, _ in parts], axis=1)
    actual = outputs[masks:].copy()
    outputs = (outputs + NOISE * rng.standard_normal(outputs.shape))[:masks]
    kept, unseen = kept[:masks], kept[masks:]
    begin = time.perf_counter()
    model = datamodels.fit_joint(kept, outputs, alpha=ALPHA)
    fitted = time.perf_counter()
    terms = model.terms()
    ended = time.perf_counter()
    found = {(term.target, term.groups) for term in terms}
    truth = {(target, groups) for target, (_, sets) in enumerate(parts) for groups in sets}
    additive = datamodels.fit(kept, outputs)
    within = {
        each for each in found if any(each[0] == t and set(each[1]) < set(s) for t, s in truth)
    }
    return {
        "masks": masks,
        "groups": groups,
        "targets": targets,
        "fit_seconds_a_target": (fitted - begin) / targets,
        "terms_seconds_a_target": (ended - fitted) / targets,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "r2": float(datamodels.r2(model.predict(unseen), actual).mean()),
        "additive_r2": float(datamodels.r2(additive.predict(unseen), actual).mean()),
        "found_whole": len(found & truth) / len(truth),
        "found_in_part": len(within) / len(truth),
        "none": len(found - truth - within) / max(len(found), 1),
    }


def cost_of_fewer_masks(groups: int, targets: int, most: tuple[int, ...]) -> dict[str, float]:
    """R2 where the covariance predicts from so many masks of all, the largest number being all."""
    found, before = {}, background.MOST_MASKS
    for count in most:
        background.MOST_MASKS = count
        found[f"r2_of_{count}"] = measure(max(most), groups, targets)["r2"]
    background.MOST_MASKS = before
    return found


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one line of JSON, last on stdout")
    parser.add_argument("--quick", action="store_true", help="fewer groups, masks and targets")
    parser.add_argument("--targets", type=int, default=8, help="of the full size (default: 8)")
    options = parser.parse_args()
    set_up_jax()
    if options.quick:
        row = measure(**QUICK, targets=1)
        fewer = cost_of_fewer_masks(QUICK["groups"], 1, (150, 300))
    else:
        row = measure(**FULL, targets=options.targets)
        fewer = cost_of_fewer_masks(200, 4, (750, 1500, 3000, 6000))
    for name, value in (row | fewer).items():
        print(f"{name:26s}{value:12,.3f}")
    if options.json:
        print(json.dumps({"scale": row, "fewer_masks": fewer}))


if __name__ == "__main__":
    main()
