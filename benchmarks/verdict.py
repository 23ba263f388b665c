"""Claim: what the verdict calls probable is planted as often as it says.

Reads verified runs with planted poison, NAME_ATTACK_SEED, as `poison.py` makes them. Their retrains
show of every suspect its margin without any of them, and of every set its transfer. The two
logistic regressions of `influence.calibration` are judged on every run as they are, and as they
would be from the runs of other attacks and other seeds alone. --fit prints the coefficients of all
runs; those that are in the code come from runs that nothing is reported on.
"""

import argparse
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from sklearn.linear_model import LogisticRegression

from influence import calibration
from influence.artifacts import read_scores
from influence.run import open_run

BINS = (0.0, 0.1, 0.5, 0.9, 1.0)
HARDLY = 100.0
"""Inverse weight of the penalty of the regressions."""
TRIGGERS = ("backdoor", "blend", "sine", "consistent")
"""Attacks that sets are judged by; a set of flipped labels has nothing in common."""
CLEAN_LABELS = ("sine", "consistent", "leak")
"""Attacks whose examples are labelled rightly, so that each by itself is no suspect."""


class Seen(NamedTuple):
    """What the retrains of a run show."""

    attack: str
    seed: str
    features: Float[np.ndarray, "k f"]
    planted: Bool[np.ndarray, " k"]
    probability: Float[np.ndarray, " k"]
    """By the coefficients in the code."""


def examples_of(folder: Path) -> Seen:
    run = open_run(folder)
    scores, unit = read_scores(run), run.read_audit()["verdict"]["unit"]
    known = np.isfinite(scores["held_out_margin"])
    margins = scores["held_out_margin"][known] / unit
    planted = ~np.isin(scores["planted"][known], ["", *CLEAN_LABELS])
    return Seen(*_named(folder), margins[:, None], planted, calibration.of_example(margins))


def sets_of(folder: Path) -> Seen:
    """A set is planted where most of it has the same trigger."""
    run = open_run(folder)
    scores, audit = read_scores(run), run.read_audit()
    features, planted, probability = [], [], []
    for one in audit["verdict"]["sets"]:
        in_it = np.isin(scores["id"], one["examples"])
        seen = one["transfer"][0], one["sameness"], one["disputed"]
        features.append(calibration.set_features(*seen))
        probability.append(calibration.of_set(*seen))
        planted.append(max((scores["planted"][in_it] == name).mean() for name in TRIGGERS) > 0.5)
    return Seen(
        *_named(folder),
        np.array(features).reshape(-1, 3),
        np.array(planted, bool),
        np.array(probability),
    )


def _named(folder: Path) -> tuple[str, str]:
    attack, seed = folder.name.split("_", 1)[1].rsplit("_", 1)
    return attack, seed


def fitted(runs: list[Seen]) -> LogisticRegression:
    features = np.concatenate([run.features for run in runs])
    return LogisticRegression(C=HARDLY).fit(features, np.concatenate([r.planted for r in runs]))


def by_others(runs: list[Seen]) -> Float[np.ndarray, " k"]:
    """Probabilities for each run by the runs of other attacks and other seeds; NaN where those have
    nothing that is planted, or nothing else."""
    found = []
    for run in runs:
        others = [o for o in runs if o.attack != run.attack and o.seed != run.seed]
        found.append(np.full(len(run.features), np.nan))
        if len(run.features) and {p for o in others for p in o.planted.tolist()} == {False, True}:
            found[-1] = fitted(others).predict_proba(run.features)[:, 1]
    return np.concatenate(found)


def reliability(
    probability: Float[np.ndarray, " k"], planted: Bool[np.ndarray, " k"]
) -> dict[str, Any]:
    """How many have a probability in each bin, its mean, and the share that is planted; the Brier
    score of those that have one."""
    known = np.isfinite(probability)
    probability, planted = probability[known], planted[known]
    bins: list[dict[str, float]] = []
    for low, high in pairwise(BINS):
        within = (probability >= low) & ((probability < high) | (high == 1))
        if within.any():
            bins.append(
                {
                    "from": low,
                    "to": high,
                    "count": int(within.sum()),
                    "probability": float(probability[within].mean()),
                    "planted": float(planted[within].mean()),
                }
            )
    brier = float(np.square(probability - planted).mean()) if known.any() else None
    return {"brier": brier, "bins": bins}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+")
    parser.add_argument("--json", action="store_true", help="one line of JSON, last on stdout")
    parser.add_argument("--fit", action="store_true", help="print the coefficients of these runs")
    options = parser.parse_args()
    kinds: dict[str, Callable[[Path], Seen]] = {"examples": examples_of, "sets": sets_of}
    found = {}
    for kind, of in kinds.items():
        runs = [of(folder) for folder in options.runs]
        planted = np.concatenate([run.planted for run in runs])
        if options.fit:
            model = fitted(runs)
            coefficients = np.concatenate([np.ravel(model.intercept_), np.ravel(model.coef_)])
            print(f"{kind}: {coefficients.round(2)}")
        probabilities = {
            "as it is": np.concatenate([run.probability for run in runs]),
            "by others": by_others(runs),
        }
        for name, probability in probabilities.items():
            one = reliability(probability, planted)
            found[f"{kind}, {name}"] = one
            if one["brier"] is None:
                print(f"{kind}, {name}: no probabilities")
                continue
            print(f"{kind}, {name}: Brier score {one['brier']:.4f}")
            for row in one["bins"]:
                print(
                    f"  called {row['from']:.1f} to {row['to']:.1f} ({row['probability']:.2f} in "
                    f"the mean): {row['count']:4.0f}, of which planted {row['planted']:.2f}"
                )
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
