"""Claim: joint datamodels predict real retrains better than additive ones and than ProxySPEX.

Banks of real retrains: clusters of digits and of Fashion-MNIST as groups, at alpha 0.5, at 0.2, and
mixed, half of the members each. Every method is fitted to the same members and judged on the same
others, which chose nothing (of a mixed bank on those of each alpha, in the mean of both); the
ceiling comes from retrains of 64 masks, which also tell the noise to one of the two joint
datamodels. What rivals predict is kept beside the banks.

ProxySPEX (Butler et al. 2025) is shapiq's: its grid of boosted trees by cross-validation, and
Fourier coefficients read off the best and fitted again by ridge, here on our masks; its trees' own
predictions are judged as well. SPEX (Kang et al. 2025) retrains on masks of its own, as many as its
transform takes of the same number. Needs the extra `bench`; Fashion-MNIST needs a folder of its
files (README), else it is left out.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightgbm
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from real_banks import RealBank, Retrainer, real_bank
from shapiq import SPEX, ProxySPEX
from shapiq.approximator.sparse.base import SubsampledSignalFourier, sparse_fourier_transform
from sklearn.model_selection import GridSearchCV

import datamodels
from influence.jax_setup import set_up_jax
from training.seeds import root_key, training_keys

SEED = ["--sweep.seed", "1", "--groups.by", "cluster"]
CONFIG = {
    "digits": ("digits.toml", ["--groups.count", "100"]),
    "fashion": (
        "fashion_mnist.toml",
        ["--groups.count", "150", "--data.train-count", "2000", "--data.target-count", "200",
         "--model.name", "mlp", "--model.width", "64", "--optim.steps", "300",
         "--sweep.width", "8"],
    ),
}  # fmt: skip
ALPHAS = (0.5, 0.2)
TESTS = 600
TARGETS = 10
CHOSE = 10
"""Targets that the method was chosen on, with members of seed 0; they are not judged."""
DRAWS = 1000
"""Of the bootstrap over judged masks and targets."""
FEWER = {"digits 0.2": 4.0}
"""Ours is also fitted to the members over this number, of most banks over `FEWER_OF_MOST`."""
FEWER_OF_MOST = 1.5
SPEX_STREAM = 500

Masks = Bool[np.ndarray, "m g"]
Outputs = Float[np.ndarray, "m t"]
Noise = Float[np.ndarray, " t"]
Predict = Callable[[Masks], Outputs]
Fit = Callable[[Masks, Outputs, Noise], dict[str, Predict]]
"""What predicts unseen masks, by the name of the method."""


class Judged(NamedTuple):
    """Members of one alpha that no fit sees, and the ceiling of their outputs."""

    masks: Masks
    outputs: Outputs
    ceiling: Float[np.ndarray, " t"]


class Case(NamedTuple):
    """Members to fit to, of one alpha or two, and those to judge by."""

    name: str
    banks: list[RealBank]
    targets: list[int]

    def members(self, count: int) -> tuple[Masks, Outputs]:
        """The first members, as many of each alpha."""
        each = count // len(self.banks)
        return (
            np.concatenate([bank.masks[:each] for bank in self.banks]),
            np.concatenate([bank.outputs[:each][:, self.targets] for bank in self.banks]),
        )

    def noise(self) -> Noise:
        """Variance over seeds."""
        return np.mean([datamodels.noise_variance(r) for r in self._replicates()], axis=0)

    def judged(self) -> list[Judged]:
        """By alpha."""
        found = []
        for bank, replicates in zip(self.banks, self._replicates(), strict=True):
            actual = bank.test_outputs[:, self.targets]
            everyone = np.concatenate([bank.outputs[:, self.targets], actual])
            found.append(Judged(bank.test_masks, actual, datamodels.ceiling(everyone, replicates)))
        return found

    def _replicates(self) -> list[Float[np.ndarray, "r s t"]]:
        return [
            bank.replicate_outputs.reshape(bank.replicate_of.max() + 1, -1, bank.outputs.shape[1])[
                ..., self.targets
            ]
            for bank in self.banks
        ]


def joint(masks: Masks, outputs: Outputs, noise: Noise) -> dict[str, Predict]:
    return {"joint": datamodels.fit_joint(masks, outputs).predict}


def informed(masks: Masks, outputs: Outputs, noise: Noise) -> dict[str, Predict]:
    return {"noise known": datamodels.fit_joint(masks, outputs, noise_variance=noise).predict}


def additive(masks: Masks, outputs: Outputs, noise: Noise) -> dict[str, Predict]:
    return {
        "lasso": datamodels.fit(masks, outputs).predict,
        "ridge": datamodels.fit(masks, outputs, penalty="ridge").predict,
    }


def proxyspex(masks: Masks, outputs: Outputs, noise: Noise) -> dict[str, Predict]:
    """Target by target, as shapiq's `ProxySPEX.approximate` does it with masks of its own."""
    groups = masks.shape[1]
    names = [f"f{group}" for group in range(groups)]
    trees, sets, coefficients = [], [], []
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
        trees.append(best)
        sets.append(held(list(found), groups))
        coefficients.append(np.array(list(found.values())))

    def refitted(unseen: Masks) -> Outputs:
        parts = [
            parity(unseen, own) @ values for own, values in zip(sets, coefficients, strict=True)
        ]
        return np.stack(parts, axis=1)

    def of_trees(unseen: Masks) -> Outputs:
        table = pd.DataFrame(unseen, columns=names)
        return np.stack([each.predict(table) for each in trees], axis=1)

    return {"ProxySPEX": refitted, "its trees": of_trees}


def held(sets: list[tuple[int, ...]], groups: int) -> Float[np.ndarray, "s g"]:
    """Which groups each set holds."""
    found = np.zeros((len(sets), groups))
    for row, members in enumerate(sets):
        found[row, list(members)] = 1
    return found


def spex(retrainer: Retrainer, count: int, targets: list[int]) -> dict[str, Predict]:
    """On masks of its own, which are the same for every target."""
    known: dict[bytes, Float[np.ndarray, " t"]] = {}

    def outputs_of(masks: Masks) -> Outputs:
        new = {row.tobytes(): row for row in masks if row.tobytes() not in known}
        if new:
            root = root_key(retrainer.experiment.config.sweep.seed, SPEX_STREAM)
            numbers = np.arange(len(known), len(known) + len(new))
            keys = training_keys(root, numbers, np.zeros_like(numbers))
            made = retrainer.outputs(np.stack(list(new.values())), keys)[:, targets]
            known.update(zip(new, made, strict=True))
        return np.stack([known[row.tobytes()] for row in masks])

    parts = []
    for target in range(len(targets)):

        def output_of(masks: Masks, target: int = target) -> Float[np.ndarray, " m"]:
            return outputs_of(masks.astype(bool))[:, target].astype(np.float64)

        # As its `approximate` does it, whose result leaves out the transform itself.
        decoder = SPEX(n=retrainer.groups, max_order=2, index="FBII", random_state=0)
        try:
            decoder._set_transform_budget(count)
        except ValueError:  # too few for it
            return {}
        np.random.seed(0)  # which the transform draws from
        signal = SubsampledSignalFourier(
            func=output_of, n=retrainer.groups, q=2, query_args=decoder.query_args
        )
        found = sparse_fourier_transform(signal, **decoder.decoder_args)
        sets = np.array(list(found), float).reshape(-1, retrainer.groups)
        parts.append((sets, np.real(list(found.values()))))

    def predict(unseen: Masks) -> Outputs:
        return np.stack([parity(unseen, sets) @ values for sets, values in parts], axis=1)

    return {"SPEX": predict}


def parity(masks: Masks, sets: Float[np.ndarray, "s g"]) -> Float[np.ndarray, "m s"]:
    """Fourier's basis: the product of the set's signs, -1 kept and +1 dropped."""
    return np.cos(np.pi * (masks @ sets.T))


class Predicted(NamedTuple):
    """Predictions of one method for the judged members of each alpha."""

    outputs: list[Outputs]
    seconds: float
    """To fit a target."""

    def r2(self, judged: list[Judged]) -> Float[np.ndarray, " t"]:
        """The mean over alphas."""
        parts = zip(self.outputs, judged, strict=True)
        return np.mean([datamodels.r2(found, own.outputs) for found, own in parts], axis=0)


def predicted(fit: Callable[[], dict[str, Predict]], judged: list[Judged]) -> dict[str, Predicted]:
    """Fit, and predict the judged members."""
    begin = time.perf_counter()
    found = fit()
    seconds = (time.perf_counter() - begin) / judged[0].outputs.shape[1]
    return {
        name: Predicted([np.asarray(predict(own.masks)) for own in judged], seconds)
        for name, predict in found.items()
    }


def kept(path: Path, make: Callable[[], dict[str, Predicted]]) -> dict[str, Predicted]:
    """What was made before, or is made now and kept."""
    if not path.exists():
        columns: dict[str, Any] = {}
        for name, value in make().items():
            columns[f"{name}/seconds"] = np.array(value.seconds)
            columns |= {f"{name}/{n}": part for n, part in enumerate(value.outputs)}
        temporary = path.with_suffix(".part.npz")
        np.savez_compressed(temporary, **columns)
        temporary.rename(path)
    with np.load(path) as stored:
        names = dict.fromkeys(key.split("/")[0] for key in stored)
        return {
            name: Predicted(
                [stored[key] for key in stored if key.split("/")[0] == name and key[-1].isdigit()],
                float(stored[f"{name}/seconds"]),
            )
            for name in names
        }


def gap_ratio(ours: Predicted, rivals: list[Predicted], judged: list[Judged]) -> list[float]:
    """Our gap to the ceiling over that of the better rival of each target: mean, low and high."""
    rng = np.random.default_rng(0)
    ceiling, found = np.mean([own.ceiling for own in judged], axis=0), []
    for draw in range(DRAWS + 1):
        rows = [
            np.arange(len(own.masks)) if draw == 0 else rng.integers(0, len(own.masks), TESTS)
            for own in judged
        ]
        again = [
            own._replace(outputs=own.outputs[which])
            for own, which in zip(judged, rows, strict=True)
        ]

        def score(
            method: Predicted, again: list[Judged] = again, rows: list[np.ndarray] = rows
        ) -> Float[np.ndarray, " t"]:
            drawn = [part[which] for part, which in zip(method.outputs, rows, strict=True)]
            return method._replace(outputs=drawn).r2(again)

        own, other = score(ours), np.max([score(rival) for rival in rivals], axis=0)
        which = np.arange(len(own)) if draw == 0 else rng.integers(0, len(own), len(own))
        found.append(float((ceiling - own)[which].mean() / (ceiling - other)[which].mean()))
    return [found[0], *np.quantile(found[1:], [0.025, 0.975]).tolist()]


def compare(case: Case, count: int, folder: Path, retrainer: Retrainer) -> dict[str, Any]:
    """All methods on so many members of a case."""
    judged, noise = case.judged(), case.noise()
    masks, outputs = case.members(count)
    ceiling = np.mean([own.ceiling for own in judged], axis=0)
    found: dict[str, Predicted] = {}
    for fit in (joint, informed, additive):
        found |= predicted(lambda fit=fit: fit(masks, outputs, noise), judged)
    name = f"{case.name.replace(' ', '_')}_{count}_{len(case.targets)}"
    found |= kept(
        folder / f"proxyspex_{name}.npz",
        lambda: predicted(lambda: proxyspex(masks, outputs, noise), judged),
    )
    rivals = [found["ProxySPEX"], found["its trees"]]
    if case.name == "digits 0.5":
        found |= kept(
            folder / f"spex_{name}.npz",
            lambda: predicted(lambda: spex(retrainer, count, case.targets), judged),
        )
    fewer = FEWER.get(case.name, FEWER_OF_MOST)
    few = predicted(lambda: joint(*case.members(round(count / fewer)), noise), judged)["joint"]
    scores = {method: value.r2(judged) for method, value in found.items()}
    best = np.maximum(scores["ProxySPEX"], scores["its trees"])
    return {
        "bank": case.name,
        "members": count,
        "ceiling": float(ceiling.mean()),
        "r2": {method: float(score.mean()) for method, score in scores.items()},
        "share": {method: float((score / ceiling).mean()) for method, score in scores.items()},
        "gap_ratio": {
            method: gap_ratio(found[method], rivals, judged) for method in ("joint", "noise known")
        },
        "with_fewer": {
            "members": round(count / fewer),
            "joint": float(few.r2(judged).mean()),
            "rival": float(best.mean()),
        },
        "least_gain_over_additive": float(
            (scores["joint"] - np.maximum(scores["lasso"], scores["ridge"])).min()
        ),
        "seconds_a_target": {method: value.seconds for method, value in found.items()},
    }


def cases(
    data: str,
    retrainer: Retrainer,
    folder: Path,
    members: int,
    alphas: tuple[float, ...],
    few: bool,
) -> list[Case]:
    """A bank of each alpha, and both together."""
    banks = [
        real_bank(folder, f"{data}_{alpha}_{members}", retrainer, alpha, members=members,
                  tests=TESTS)
        for alpha in alphas
    ]  # fmt: skip
    drawn = np.random.default_rng(0).permutation(banks[0].outputs.shape[1])
    targets = drawn[CHOSE:][: 3 if few else TARGETS].tolist()
    single = [
        Case(f"{data} {alpha}", [bank], targets) for alpha, bank in zip(alphas, banks, strict=True)
    ]
    return single if len(banks) == 1 else [*single, Case(f"{data} mixed", banks, targets)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one line of JSON, last on stdout")
    parser.add_argument(
        "--quick", action="store_true", help="digits, 400 members, three targets, one alpha"
    )
    parser.add_argument("--banks", type=Path, default=Path("banks"), help="folder of the banks")
    parser.add_argument(
        "--fashion", type=Path, default=Path("fashion-mnist"), help="folder of Fashion-MNIST"
    )
    options = parser.parse_args()
    warnings.filterwarnings("ignore")  # of LightGBM, on every tree
    set_up_jax()
    sizes, alphas = ((400,), (0.2,)) if options.quick else ((400, 1000, 3000), ALPHAS)
    names = ["digits"]
    if options.fashion.is_dir() and not options.quick:
        names.append("fashion")
    rows = []
    for data in names:
        config, flags = CONFIG[data]
        folder = ["--data.folder", str(options.fashion)] if data == "fashion" else []
        retrainer = Retrainer.of(config, [*SEED, *flags, *folder])
        for case in cases(data, retrainer, options.banks, max(sizes), alphas, options.quick):
            for members in sizes:
                rows.append(compare(case, members, options.banks, retrainer))
                show(rows[-1])
    if options.json:
        print(json.dumps({"rows": rows}))


def show(row: dict[str, Any]) -> None:
    r2 = "  ".join(f"{method} {value:.3f}" for method, value in row["r2"].items())
    ratios = ", ".join(
        f"{method} {mean:.2f} ({low:.2f} to {high:.2f})"
        for method, (mean, low, high) in row["gap_ratio"].items()
    )
    seconds, fewer = row["seconds_a_target"], row["with_fewer"]
    print(
        f"{row['bank']} m {row['members']:5d}: ceiling {row['ceiling']:.3f}  {r2}  | gap ratio "
        f"{ratios}, with {fewer['members']} members {fewer['joint']:.3f} to the rival's "
        f"{fewer['rival']:.3f}, least gain over additive {row['least_gain_over_additive']:+.3f}, "
        f"seconds {seconds['joint']:.1f} and {seconds['ProxySPEX']:.1f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
