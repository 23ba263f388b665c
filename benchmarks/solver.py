"""Claim: whole lasso paths of many targets, certified, faster than scikit-learn, celer and skglm.

The same arrays and penalties (20, down to 0.05 of each target's largest) for all, from masks and
outputs to weights, interleaved in one run, medians over repetitions. Every solver is given the
loosest tolerance of its own, of a grid, with which its weights reach the same certified relative
duality gap. scikit-learn solves all targets with the Gram matrix, on one and on two processes;
celer and skglm solve ten targets drawn at random, scaled to all. Needs the extra `bench`.

Weights are heavy-tailed (Student t with 2 degrees of freedom) and explain 70 % of the variance, so
that at the end of the path 15 % of the groups have weight, as on the bank of the demo.
"""

import argparse
import json
import multiprocessing
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import celer
import numpy as np
import skglm
from jaxtyping import Bool, Float
from sklearn.linear_model import lasso_path
from threadpoolctl import threadpool_limits

from datamodels.moments import Moments, moments, regressors, select
from datamodels.solver import largest_lam, relative_gap, solve_path

FRACTIONS = np.geomspace(1, 0.05, 20)
GAPS = (1e-4, 1e-5)
TOLERANCES = np.geomspace(1e-2, 1e-8, 13)
"""Of the other solvers, loosest first."""
DRAWN = 10
"""Targets that celer and skglm solve."""
PROBED = 3
"""Targets that choose a solver's tolerance."""
PATIENCE = 120.0
"""Seconds of one repetition of scikit-learn beyond which it solves some of the targets, scaled."""


@dataclass(frozen=True)
class Problem:
    masks: Bool[np.ndarray, "m g"]
    outputs: Float[np.ndarray, "m t"]
    moments: Moments
    lams: Float[np.ndarray, "p t"]

    @classmethod
    def make(cls, members: int, groups: int, targets: int) -> "Problem":
        rng = np.random.default_rng(0)
        masks = rng.random((members, groups)) < 0.5
        signal = (masks - 0.5) @ rng.standard_t(2, (groups, targets))
        noise = np.sqrt(3 / 7) * rng.standard_normal((members, targets))
        outputs = (signal / signal.std(0) + noise).astype(np.float32)
        problem = moments(masks, regressors(masks), outputs)
        return cls(masks, outputs, problem, FRACTIONS[:, None] * largest_lam(problem))

    def gap(self, paths: Sequence[Float[np.ndarray, "g p"]], targets: Sequence[int]) -> float:
        """The largest certified gap of the paths of some targets."""
        problem = select(self.moments, np.array(targets))
        stacked = np.stack(paths, axis=2)
        gaps = [
            relative_gap(weights, problem, lam)
            for weights, lam in zip(
                stacked.transpose(1, 0, 2), self.lams[:, list(targets)], strict=True
            )
        ]
        return float(np.max(gaps))


def ours(problem: Problem, gap: float) -> float:
    """The largest certified gap of all targets."""
    own = moments(problem.masks, regressors(problem.masks), problem.outputs)
    lams = FRACTIONS[:, None] * largest_lam(own)
    solutions = solve_path(own, lams, tolerance=gap)
    return max(float(solution.relative_gap.max()) for solution in solutions)


class Centred:
    """The dense arrays that the other solvers work on."""

    def __init__(self, problem: Problem, *, gram: bool):
        centred = problem.masks - problem.masks.mean(0)
        self.masks = centred if gram else np.asfortranarray(centred)
        self.outputs = (problem.outputs - problem.outputs.mean(0)).T.astype(np.float64)
        self.lams = problem.lams
        if gram:
            self.gram = self.masks.T @ self.masks
            self.correlation = self.outputs @ self.masks

    def sklearn(self, target: int, tolerance: float) -> Float[np.ndarray, "g p"]:
        return lasso_path(
            self.masks,
            self.outputs[target],
            alphas=self.lams[:, target],
            precompute=self.gram,
            Xy=self.correlation[target],
            tol=tolerance,
            check_input=False,
        )[1]

    def celer(self, target: int, tolerance: float) -> Float[np.ndarray, "g p"]:
        found = celer.celer_path(
            self.masks, self.outputs[target], "lasso", alphas=self.lams[:, target], tol=tolerance
        )
        return found[1]

    def skglm(self, target: int, tolerance: float) -> Float[np.ndarray, "g p"]:
        solver = skglm.Lasso(tol=tolerance, fit_intercept=False)
        return solver.path(self.masks, self.outputs[target], self.lams[:, target])[1]


Solver = Callable[[Centred, int, float], Float[np.ndarray, "g p"]]


def loosest(problem: Problem, centred: Centred, solver: Solver, gap: float) -> float:
    """The loosest tolerance with which a solver reaches a certified gap."""
    probed = list(range(min(PROBED, problem.outputs.shape[1])))
    for tolerance in TOLERANCES:
        paths = [solver(centred, target, tolerance) for target in probed]
        if problem.gap(paths, probed) <= gap:
            return float(tolerance)
    raise SystemExit(f"{solver.__name__} does not reach a gap of {gap}")


SHARED: list[Centred] = []
"""What forked processes see without a copy."""


def sklearn_part(work: tuple[Sequence[int], float]) -> None:
    targets, tolerance = work
    with threadpool_limits(1):
        for target in targets:
            SHARED[0].sklearn(target, tolerance)


def sklearn_whole(problem: Problem, tolerance: float, processes: int, targets: int) -> float:
    """Seconds for some of the targets, scaled to all; the Gram matrix is for all."""
    begin = time.perf_counter()
    SHARED[:] = [Centred(problem, gram=True)]
    shared = time.perf_counter() - begin
    begin = time.perf_counter()
    parts = [(range(first, targets, processes), tolerance) for first in range(processes)]
    if processes == 1:
        sklearn_part(parts[0])
    else:
        with multiprocessing.get_context("fork").Pool(processes) as pool:
            pool.map(sklearn_part, parts)
    return shared + (time.perf_counter() - begin) * problem.outputs.shape[1] / targets


def drawn_seconds(problem: Problem, solver: Solver, tolerance: float) -> float:
    """Seconds for ten targets, scaled to all; what all share is counted once."""
    begin = time.perf_counter()
    centred = Centred(problem, gram=False)
    shared = time.perf_counter() - begin
    count = problem.outputs.shape[1]
    targets = np.random.default_rng(1).choice(count, min(DRAWN, count), replace=False)
    begin = time.perf_counter()
    for target in targets.tolist():
        solver(centred, target, tolerance)
    return shared + (time.perf_counter() - begin) * count / len(targets)


def compare(problem: Problem, gap: float, repetitions: int, others: bool) -> dict[str, dict]:
    """Median seconds and certified gaps of every solver."""
    count = problem.outputs.shape[1]
    solvers: dict[str, Solver] = {"celer": Centred.celer, "skglm": Centred.skglm} if others else {}
    with_gram, without = Centred(problem, gram=True), Centred(problem, gram=False)
    tolerance = {"sklearn": loosest(problem, with_gram, Centred.sklearn, gap)}
    tolerance |= {name: loosest(problem, without, by, gap) for name, by in solvers.items()}
    reached = {"ours": ours(problem, gap)}  # and compiles
    probed = list(range(min(PROBED, count)))
    for name, by in {"sklearn": Centred.sklearn, **solvers}.items():
        centred = with_gram if name == "sklearn" else without
        paths = [by(centred, target, tolerance[name]) for target in probed]
        reached[name] = problem.gap(paths, probed)
    begin = time.perf_counter()
    with_gram.sklearn(0, tolerance["sklearn"])
    one = time.perf_counter() - begin
    some = count if one * count < PATIENCE else max(10, int(PATIENCE / one) // 10 * 10)
    del with_gram, without
    seconds: dict[str, list[float]] = {}
    for _ in range(repetitions):
        begin = time.perf_counter()
        ours(problem, gap)
        seconds.setdefault("ours", []).append(time.perf_counter() - begin)
        for processes in (1, 2):
            taken = sklearn_whole(problem, tolerance["sklearn"], processes, some)
            seconds.setdefault(f"sklearn_gram_{processes}", []).append(taken)
        for name, by in solvers.items():
            taken = drawn_seconds(problem, by, tolerance[name])
            seconds.setdefault(f"{name}_scaled", []).append(taken)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    return {"seconds": medians, "gap": reached}


def ratios(seconds: dict[str, float]) -> dict[str, float]:
    """How many times as long as ours the fastest of the others takes."""
    sklearn = min(seconds["sklearn_gram_1"], seconds["sklearn_gram_2"])
    found = {"ratio_vs_sklearn_gram": sklearn / seconds["ours"]}
    if "celer_scaled" in seconds:
        other = min(seconds["celer_scaled"], seconds["skglm_scaled"])
        found["ratio_vs_celer_skglm"] = other / seconds["ours"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one line of JSON, last on stdout")
    parser.add_argument("--quick", action="store_true", help="a small problem, once")
    parser.add_argument("--sizes", choices=["one", "all"], default="one")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")  # of solvers that stop early at loose tolerances
    size = (1_000, 200, 50) if options.quick else (10_000, 2_000, 200)
    problem = Problem.make(*size)
    found = {}
    print(f"{'groups':>7s} {'masks':>7s} {'targets':>7s} {'gap':>6s}  seconds")
    for gap in GAPS:
        found[gap] = compare(problem, gap, 1 if options.quick else 3, others=True)
        show(size, gap, found[gap])
    if options.sizes == "all":
        for groups in (200, 1_000, 5_000):
            for targets in (1, 200, 2_000):
                size = (5 * groups, groups, targets)
                show(size, GAPS[0], compare(Problem.make(*size), GAPS[0], 1, others=False))
    if options.json:
        first = found[GAPS[0]]
        print(json.dumps(first | ratios(first["seconds"])))


def show(size: tuple[int, int, int], gap: float, found: dict[str, dict]) -> None:
    members, groups, targets = size
    seconds = "  ".join(f"{name} {value:.2f}" for name, value in found["seconds"].items())
    compared = "  ".join(f"{name} {value:.1f}" for name, value in ratios(found["seconds"]).items())
    print(f"{groups:7d} {members:7d} {targets:7d} {gap:6.0e}  {seconds}  | {compared}", flush=True)


if __name__ == "__main__":
    main()
