"""Claim: a sweep takes time in proportion to members, examples and targets, and bounded memory.

Each figure is a sweep in a process of its own, so that its peak memory is its own: members at a
fixed task, examples at a fixed number of epochs, targets at a fixed number of examples. Prints
seconds of sweeping (compilation apart), peak memory, and the largest slope of log time on log
size between two neighbours.
"""

import argparse
import itertools
import json
import math
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

SIZES = {
    "members": (100, 1_000, 10_000),
    "examples": (1_000, 8_000, 60_000),
    "targets": (100, 1_000, 10_000),
}
QUICK = {"members": (160, 320), "examples": (500, 1_000), "targets": (50, 100)}
FIXED = {"members": 320, "examples": 2_000, "targets": 100}
LARGEST = {"members": 64, "examples": 60_000, "targets": 10_000}
"""Everything large at once: the memory that a whole Fashion-MNIST needs."""
EPOCHS, BATCH_SIZE = 2, 100


def measure(members: int, examples: int, targets: int) -> dict[str, float]:
    """Seconds and peak memory of one sweep, into a bank on disk."""
    from datamodels.design import Bernoulli
    from training.arm import Arm, ArmSpec
    from training.examples import Examples, fit_normaliser
    from training.models import ModelConfig, build_model
    from training.optim import OptimConfig
    from training.outputs import margin
    from training.parallel import local_layout, use_all_cores
    from training.store import Store
    from training.sweep import Sweeper, Task, sweep
    from training.train import Recipe

    use_all_cores()
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 256, (max(examples, targets), 28, 28, 1)).astype(np.uint8)
    labels = rng.integers(0, 10, len(inputs)).astype(np.int32)
    everything = Examples(inputs, labels)
    # Half of the examples are kept.
    steps = EPOCHS * examples // 2 // BATCH_SIZE
    recipe = Recipe(OptimConfig(steps=steps, batch_size=BATCH_SIZE), fit_normaliser(inputs[:1000]))
    model = build_model(ModelConfig(name="mlp", width=32), (28, 28, 1), 10)
    trained, reported = (everything.take(slice(0, count)) for count in (examples, targets))
    task = Task(recipe, model, trained, reported, margin)
    sweeper = Sweeper(task, local_layout(1))
    sweeper.require_memory()
    design = Bernoulli(0.5)
    spec = ArmSpec("main", members, examples, min(64, members), 0, 0, design.describe())
    with tempfile.TemporaryDirectory() as folder:
        arm = Arm(Store(folder), spec, [targets])
        started = time.perf_counter()
        sweep(sweeper, arm, design, range(spec.units))
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "peak_gb": peak / 1e9}


def in_own_process(sizes: dict[str, int]) -> dict[str, float]:
    words = [sys.executable, __file__, "--one", json.dumps(sizes)]
    found = subprocess.run(words, check=True, capture_output=True, text=True)
    return json.loads(found.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one line of JSON, last on stdout")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(**json.loads(options.one))))
        return
    results = {}
    for name, sizes in (QUICK if options.quick else SIZES).items():
        rows = {size: in_own_process(FIXED | {name: size}) for size in sizes}
        for size, row in rows.items():
            print(
                f"{name:10s}{size:8,d}{row['seconds']:10.1f} s{row['peak_gb']:8.2f} GB", flush=True
            )
        slope = max(
            math.log(rows[after]["seconds"] / rows[before]["seconds"]) / math.log(after / before)
            for before, after in itertools.pairwise(sizes)
        )
        print(f"{name}: largest slope {slope:.2f}", flush=True)
        results[name] = {"slope": slope, "rows": rows}
    if not options.quick:
        results["largest"] = in_own_process(LARGEST)
        print(
            f"{LARGEST}: {results['largest']['seconds']:.1f} s, "
            f"{results['largest']['peak_gb']:.2f} GB"
        )
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
