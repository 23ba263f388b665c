"""Claim: more members are retrained a second than PyTorch retrains on the same machine.

For each model the same data, batch, steps and optimiser in one run, interleaved: ours with the
layout that its own search finds, and three ways of PyTorch (`benchmarks/torch_retraining.py`).
Medians over repetitions. GFLOP/s are counted from the model; the machine's peak is that of large
matrix products on all cores, JAX's or PyTorch's, measured in the same run. Needs the extra `bench`.
"""

import argparse
import json
import os
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int
from torch_retraining import (
    CLASSES,
    LEARNING_RATE,
    MOMENTUM,
    Case,
    Data,
    Processes,
    as_data,
    one_process,
    product_flops,
    seconds,
    stacked,
)

from training.cost import member_flops
from training.examples import Examples, fit_normaliser
from training.layouts import find_layout
from training.models import ModelConfig, build_model
from training.optim import OptimConfig
from training.outputs import margin
from training.parallel import use_all_cores
from training.seeds import root_key, training_keys
from training.sweep import Sweeper, Task
from training.train import Recipe

CASES = (
    Case("mlp", 128, batch_size=100, steps=100),
    Case("cnn", 16, batch_size=100, steps=50),
    Case("resnet", 16, batch_size=128, steps=20),
    Case("transformer", 64, batch_size=128, steps=20),
)
EXAMPLES, TARGETS = 1000, 10
STACKS = (1, 2, 4, 8)
"""Members that `torch.func.vmap` is tried with."""
SLICE = 3.0
"""Seconds that one repetition of one way takes, about."""


@dataclass(frozen=True)
class Ours:
    """Our sweeper at the layout that was found."""

    sweeper: Sweeper
    flops: int
    """Of one member."""
    layout: str

    def run(self, members: int) -> None:
        rows = np.arange(members)
        keys = training_keys(root_key(0, 0), rows, 0 * rows)
        masks = np.random.default_rng(0).random((members, EXAMPLES)) < 0.5
        self.sweeper.start(keys, masks).fetch()


def make_data() -> tuple[np.ndarray, Int[np.ndarray, " n"]]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (EXAMPLES, 28, 28, 1)).astype(np.uint8)
    return images, rng.integers(0, CLASSES, EXAMPLES).astype(np.int32)


def make_recipe(case: Case, images: np.ndarray) -> Recipe:
    optim = OptimConfig(
        name="sgd", schedule="constant", learning_rate=LEARNING_RATE, momentum=MOMENTUM,
        steps=case.steps, batch_size=case.batch_size,
    )  # fmt: skip
    return Recipe(optim, fit_normaliser(images))


def make_ours(case: Case, images: np.ndarray, labels: np.ndarray) -> Ours:
    examples = Examples(images, labels)
    model = build_model(ModelConfig(name=case.name, width=case.width), (28, 28, 1), CLASSES)
    task = Task(
        make_recipe(case, images), model, examples, examples.take(slice(0, TARGETS)), margin
    )
    layout = find_layout(task).layout
    return Ours(Sweeper(task, layout), member_flops(task), str(layout))


def gemm_peak() -> float:
    """FLOP a second of square float32 products on all cores, JAX's or PyTorch's; the best."""
    size, devices = 1024, jax.local_devices()
    square = jnp.ones((len(devices), size, size), jnp.float32)
    product = jax.pmap(lambda x: x @ x)
    square = product(square)  # now on the devices: a copy to them is no part of the peak
    jax.block_until_ready(product(square))
    ours = min(seconds(lambda: jax.block_until_ready(product(square))) for _ in range(20))
    return max(2 * size**3 * len(devices) / ours, product_flops(size))


def best_stack(case: Case, data: Data) -> int:
    """How many members side by side suit `torch.func.vmap`, as our layout is searched, too."""

    def rate(members: int) -> float:
        stacked(case, data, members)  # the first call starts threads
        return members / seconds(lambda: stacked(case, data, members))

    return max(STACKS, key=rate)


def compare(case: Case, repeats: int, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Members a second of every way, and the ratios."""
    ours = make_ours(case, images, labels)
    data = as_data(images, labels, TARGETS, case)
    processes = Processes(images, labels, TARGETS)
    cores = len(processes.connections)
    stack = best_stack(case, data)
    ways = {
        "ours": (ours.run, ours.sweeper.layout.launch, 1),
        "one process": (lambda members: one_process(case, data, members), 1, 1),
        "a process a core": (lambda members: processes.run(case, members), 1, cores),
        "torch.func.vmap": (lambda members: stacked(case, data, members), stack, 1),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    members = {}
    for name, (work, smallest, _) in ways.items():
        work(smallest)  # the first call compiles or starts threads
        once = seconds(lambda work=work, smallest=smallest: work(smallest))
        # The stacked way is one program of a fixed size, so it runs once.
        times = 1 if name == "torch.func.vmap" else max(1, round(SLICE / once))
        members[name] = smallest * times
    peaks = []
    for _ in range(repeats):
        peaks.append(gemm_peak())
        for name, (work, _, workers) in ways.items():
            count = members[name]
            taken = seconds(lambda work=work, count=count: work(count))
            rates[name].append(workers * count / taken)
    processes.close()
    median = {name: float(np.median(values)) for name, values in rates.items()}
    best = max(rate for name, rate in median.items() if name != "ours")
    flops = ours.flops * median["ours"]
    shown = {name: round(rate, 2) for name, rate in median.items()}
    print(
        f"{case.name} {case.width}, {case.steps} steps of {case.batch_size}: {ours.layout}; {shown}"
    )
    return {
        "ours": median["ours"],
        "torch_best": best,
        "ratio": float(np.median(np.array(rates["ours"]) / best)),
        "share_of_peak": flops / float(np.median(peaks)),
        "gflops": flops / 1e9,
        "peak_gflops": float(np.median(peaks)) / 1e9,
        "torch_one_process": median["one process"],
        "torch_process_a_core": median["a process a core"],
        "torch_vmap": median["torch.func.vmap"],
        "ratio_one_process": median["ours"] / median["one process"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one line of JSON, last on stdout")
    parser.add_argument("--quick", action="store_true", help="once, two models, both small")
    parser.add_argument("--only", help="one of the models")
    options = parser.parse_args()
    use_all_cores()
    images, labels = make_data()
    cases = [case for case in CASES if options.only in (None, case.name)]
    if options.quick:
        cases = [Case(case.name, case.width // 2, 32, 4) for case in cases[:2]]
    results = {
        case.name: compare(case, 1 if options.quick else 5, images, labels) for case in cases
    }
    print(
        f"\n{'members a second':18s}{'ours':>8s}{'1 process':>11s}{'a process':>11s}{'vmap':>8s}"
        f"{'ratio to':>10s}{'ratio to':>11s}{'GFLOP/s':>9s}{'share of':>10s}\n"
        f"{'':18s}{'':8s}{'':11s}{'a core':>11s}{'':8s}{'the best':>10s}{'1 process':>11s}"
        f"{'':9s}{'the peak':>10s}"
    )
    for name, row in results.items():
        print(
            f"{name:18s}{row['ours']:8.2f}{row['torch_one_process']:11.2f}"
            f"{row['torch_process_a_core']:11.2f}{row['torch_vmap']:8.2f}{row['ratio']:10.2f}"
            f"{row['ratio_one_process']:11.2f}{row['gflops']:9.0f}{row['share_of_peak']:10.0%}"
        )
    print(
        f"Peak of matrix products: {next(iter(results.values()))['peak_gflops']:.0f} GFLOP/s on "
        f"{len(os.sched_getaffinity(0))} cores"
    )
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
