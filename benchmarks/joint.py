"""Claim: joint datamodels predict real retrains better than additive ones and than ProxySPEX.

Banks of real retrains: clusters of digits as groups, at alpha 0.5 and 0.2. Every method is fitted
to the same members and judged on the same others, which chose nothing; the ceiling comes from
retrains of 64 masks, which also tell the noise to one of the two joint datamodels. ProxySPEX
(Butler et al. 2025) is shapiq's: its grid of boosted trees by cross-validation, and Fourier
coefficients read off the best and fitted again by ridge, here on our masks; its trees' own
predictions are judged as well. Needs the extra `bench`.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import lightgbm
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from real_banks import RealBank, Retrainer, real_bank
from shapiq import ProxySPEX
from sklearn.model_selection import GridSearchCV

import datamodels
from influence.jax_setup import set_up_jax

CLUSTERS = ["--groups.by", "cluster", "--groups.count", "100", "--sweep.seed", "1"]
TESTS = 600
TARGETS = 10
CHOSE = 10
"""Targets that the method was chosen on, with members of seed 0; they are not judged."""
DRAWS = 1000
"""Of the bootstrap over judged masks and targets."""


class Predicted(NamedTuple):
    """Predictions of one method."""

    outputs: Float[np.ndarray, "k t"]
    seconds: float
    """To fit a target."""


Masks = Bool[np.ndarray, "m g"]
Outputs = Float[np.ndarray, "m t"]
Noise = Float[np.ndarray, " t"]


Found = dict[str, Float[np.ndarray, "k t"]]
"""Predictions by the name of the method."""


def joint(masks: Masks, outputs: Outputs, noise: Noise, unseen: Masks) -> Found:
    return {"joint": datamodels.fit_joint(masks, outputs).predict(unseen)}


def informed(masks: Masks, outputs: Outputs, noise: Noise, unseen: Masks) -> Found:
    model = datamodels.fit_joint(masks, outputs, noise_variance=noise)
    return {"noise known": model.predict(unseen)}


def additive(masks: Masks, outputs: Outputs, noise: Noise, unseen: Masks) -> Found:
    return {
        "lasso": datamodels.fit(masks, outputs).predict(unseen),
        "ridge": datamodels.fit(masks, outputs, penalty="ridge").predict(unseen),
    }


def proxyspex(masks: Masks, outputs: Outputs, noise: Noise, unseen: Masks) -> Found:
    """Target by target, as shapiq's `ProxySPEX.approximate` does it with masks of its own."""
    groups = masks.shape[1]
    names = [f"f{group}" for group in range(groups)]
    trees, refitted = [], []
    for target in range(outputs.shape[1]):
        proxy = ProxySPEX(n=groups, max_order=2, index="FBII", random_state=0)
        search = GridSearchCV(
            lightgbm.LGBMRegressor(verbose=-1, n_jobs=1, random_state=0),
            proxy.decoder_args,
            scoring="r2",
            cv=5,
            n_jobs=1,
        )
        search.fit(pd.DataFrame(masks, columns=names), outputs[:, target])
        best = search.best_estimator_
        read_off = proxy._lgboost_to_fourier(best.booster_.dump_model())
        found = proxy._refine(read_off, masks.astype(int), outputs[:, target])
        sets = np.zeros((len(found), groups))
        for row, members in enumerate(found):
            sets[row, list(members)] = 1
        parity = np.cos(np.pi * (unseen @ sets.T))
        refitted.append(parity @ np.array(list(found.values())))
        trees.append(best.predict(pd.DataFrame(unseen, columns=names)))
    return {"ProxySPEX": np.stack(refitted, axis=1), "its trees": np.stack(trees, axis=1)}


def judge(
    bank: RealBank, members: int, targets: list[int], fit: Callable[..., Found]
) -> dict[str, Predicted]:
    noise = datamodels.noise_variance(replicates(bank)[..., targets])
    begin = time.perf_counter()
    outputs = bank.outputs[:members][:, targets]
    found = fit(bank.masks[:members], outputs, noise, bank.test_masks)
    seconds = (time.perf_counter() - begin) / len(targets)
    return {name: Predicted(values, seconds) for name, values in found.items()}


def replicates(bank: RealBank) -> Float[np.ndarray, "r s t"]:
    return bank.replicate_outputs.reshape(bank.replicate_of.max() + 1, -1, bank.outputs.shape[1])


def gap_ratio(
    ours: Float[np.ndarray, "k t"],
    rivals: list[Float[np.ndarray, "k t"]],
    actual: Float[np.ndarray, "k t"],
    ceiling: Float[np.ndarray, " t"],
) -> list[float]:
    """Our gap to the ceiling over that of the better rival of each target: mean, low and high."""
    rng = np.random.default_rng(0)
    found = []
    for draw in range(DRAWS + 1):
        every = draw == 0
        rows = np.arange(len(actual)) if every else rng.integers(0, len(actual), len(actual))
        own = datamodels.r2(ours[rows], actual[rows])
        other = np.max([datamodels.r2(rival[rows], actual[rows]) for rival in rivals], axis=0)
        which = np.arange(len(own)) if every else rng.integers(0, len(own), len(own))
        found.append(float((ceiling - own)[which].mean() / (ceiling - other)[which].mean()))
    return [found[0], *np.quantile(found[1:], [0.025, 0.975]).tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one line of JSON, last on stdout")
    parser.add_argument(
        "--quick", action="store_true", help="400 members, three targets, one alpha"
    )
    parser.add_argument("--banks", type=Path, default=Path("banks"), help="folder of the banks")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")  # of LightGBM, on every tree
    set_up_jax()
    retrainer = Retrainer.of("digits.toml", CLUSTERS)
    sizes = (400,) if options.quick else (400, 1000, 3000)
    rows = []
    for alpha in (0.2,) if options.quick else (0.5, 0.2):
        name = f"digits_{alpha}_{max(sizes)}"
        bank = real_bank(options.banks, name, retrainer, alpha, members=max(sizes), tests=TESTS)
        drawn = np.random.default_rng(0).permutation(bank.outputs.shape[1])
        targets = drawn[CHOSE:][: 3 if options.quick else TARGETS].tolist()
        actual = bank.test_outputs[:, targets]
        everyone = np.concatenate([bank.outputs, bank.test_outputs])[:, targets]
        ceiling = datamodels.ceiling(everyone, replicates(bank)[..., targets])
        for members in sizes:
            found: dict[str, Predicted] = {}
            for fit in (joint, informed, additive, proxyspex):
                found |= judge(bank, members, targets, fit)
            scores = {
                method: datamodels.r2(value.outputs, actual) for method, value in found.items()
            }
            rivals = [found["ProxySPEX"].outputs, found["its trees"].outputs]
            row = {
                "data": "digits",
                "alpha": alpha,
                "members": members,
                "ceiling": float(ceiling.mean()),
                "r2": {method: float(score.mean()) for method, score in scores.items()},
                "share": {
                    method: float((score / ceiling).mean()) for method, score in scores.items()
                },
                "gap_ratio": {
                    method: gap_ratio(found[method].outputs, rivals, actual, ceiling)
                    for method in ("joint", "noise known")
                },
                "least_gain_over_additive": float(
                    (scores["joint"] - np.maximum(scores["lasso"], scores["ridge"])).min()
                ),
                "seconds_a_target": {method: value.seconds for method, value in found.items()},
            }
            rows.append(row)
            show(row)
    if options.json:
        print(json.dumps({"rows": rows}))


def show(row: dict) -> None:
    r2 = "  ".join(f"{method} {value:.3f}" for method, value in row["r2"].items())
    ratios = ", ".join(
        f"{method} {mean:.2f} ({low:.2f} to {high:.2f})"
        for method, (mean, low, high) in row["gap_ratio"].items()
    )
    seconds = row["seconds_a_target"]
    print(
        f"{row['data']} alpha {row['alpha']} m {row['members']:5d}: ceiling {row['ceiling']:.3f}  "
        f"{r2}  | gap ratio {ratios}, least gain over additive "
        f"{row['least_gain_over_additive']:+.3f}, seconds {seconds['joint']:.1f} and "
        f"{seconds['ProxySPEX']:.1f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
