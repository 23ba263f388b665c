"""Where the time of one training step goes, on one core that nothing else of ours uses.

For each model of `benchmarks/retrain_throughput.py`: the median time of a step, ours and PyTorch's
interleaved; and, from JAX's profiler, what ours spends in matrix products and in everything else,
with the longest operations. Needs the extra `bench`.
"""

import argparse
import collections
import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from retrain_throughput import CASES, make_data, make_recipe
from torch_retraining import CLASSES, Case, as_data, seconds, use_one_thread
from torch_retraining import train as train_torch

from training.cost import program_flops
from training.examples import Examples
from training.models import ModelConfig, build_model
from training.train import make_train

PIECES = {"mlp": 0, "cnn": 20, "resnet": 16, "transformer": 16}
"""What the search finds on the machine of docs/performance.md; 0: the whole batch."""


@dataclass(frozen=True)
class Operation:
    """One instruction of the compiled program."""

    name: str
    milliseconds: float
    """A step."""
    is_product: bool
    text: str


def compile_training(case: Case, piece: int) -> tuple[jax.stages.Compiled, tuple, float]:
    """The program that trains one member, its arguments, and its FLOP of products a step."""
    images, labels = make_data()
    model = build_model(ModelConfig(name=case.name, width=case.width), (28, 28, 1), CLASSES)
    train = make_train(make_recipe(case, images), model, Examples(images, labels), piece)
    arguments = (jax.random.key(0), jnp.ones(len(labels), bool))
    flops = program_flops(jax.make_jaxpr(train)(*arguments)) / case.steps
    return jax.jit(train).lower(*arguments).compile(), arguments, flops


def profile(compiled: jax.stages.Compiled, arguments: tuple, steps: int) -> list[Operation]:
    """Its operations, the longest first."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(compiled(*arguments))
        (trace,) = Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(trace)).planes
        spent = collections.Counter()
        for event in (event for plane in planes for line in plane.lines for event in line.events):
            spent[event.name] += event.duration_ns
    instructions = _instructions(compiled.as_text() or "")
    found = [
        Operation(name, nanoseconds / 1e6 / steps, *instructions[name])
        for name, nanoseconds in spent.items()
        # A loop's own event covers those inside it.
        if name in instructions and " while(" not in instructions[name][1]
    ]
    return sorted(found, key=lambda operation: -operation.milliseconds)


def _instructions(hlo: str) -> dict[str, tuple[bool, str]]:
    """For each instruction of the program: whether it is a product, or calls one; its text."""
    with_product, computation = set(), ""
    instructions: dict[str, str] = {}
    for line in hlo.splitlines():
        if opened := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            computation = opened[1]
        elif found := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)", line):
            instructions[found[1]] = found[2]
            if " dot(" in found[2]:
                with_product.add(computation)

    def is_product(text: str) -> bool:
        called = re.search(r"calls=%?([\w.\-]+)", text)
        return " dot(" in text or bool(called and called[1] in with_product)

    return {name: (is_product(text), text) for name, text in instructions.items()}


def measure(case: Case, piece: int, repeats: int, shown: int) -> dict[str, float]:
    """Print what a step takes and where, and return it."""
    compiled, arguments, flops = compile_training(case, piece)
    data = as_data(*make_data(), CLASSES, case)
    kept = np.arange(len(data.labels))
    ways = {
        "ours": lambda: jax.block_until_ready(compiled(*arguments)),
        "torch": lambda: train_torch(case, data, kept),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            taken = seconds(way)
            if repeat:  # the first call compiles or starts threads
                times[name].append(1000 * taken / case.steps)
    ours, theirs = (float(np.median(times[name])) for name in ("ours", "torch"))
    operations = profile(compiled, arguments, case.steps)
    products = sum(one.milliseconds for one in operations if one.is_product)
    rest = sum(one.milliseconds for one in operations if not one.is_product)
    pieces = f"pieces of {piece}" if piece else "whole batches"
    print(
        f"{case.name} {case.width}, batch {case.batch_size}, {pieces}: {ours:.2f} ms a step, "
        f"PyTorch {theirs:.2f} ms; {flops / ours / 1e6:.0f} GFLOP/s. In the profile: products "
        f"{products:.2f} ms, the rest {rest:.2f} ms. The longest:"
    )
    for one in operations[:shown]:
        kind = "product" if one.is_product else ""
        print(f"  {one.milliseconds:7.3f} ms  {kind:8s}{one.name[:44]:46s}{one.text.split('{')[0]}")
    return {"ours": ours, "torch": theirs, "products": products, "rest": rest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one line of JSON, last on stdout")
    parser.add_argument("--quick", action="store_true", help="one repetition of a few steps")
    parser.add_argument("--only", choices=PIECES, help="one of the models")
    parser.add_argument("--piece", type=int, help="examples whose gradient is taken at once")
    parser.add_argument("--longest", type=int, default=8, help="operations to show")
    options = parser.parse_args()
    # Before JAX and PyTorch start their threads.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    use_one_thread()
    results = {}
    for case in CASES:
        if options.only not in (None, case.name):
            continue
        piece = PIECES[case.name] if options.piece is None else options.piece
        steps = 2 if options.quick else case.steps
        case = Case(case.name, case.width, case.batch_size, steps)
        results[case.name] = measure(case, piece, 1 if options.quick else 7, options.longest)
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
