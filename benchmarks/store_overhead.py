"""Claim: writing every unit durably costs a sweep less than a twentieth of its time.

The main arm of the digits demo, with the layout that the search finds: swept into a bank on disk,
and swept with the same program into nothing. Interleaved; medians over repetitions.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from datamodels.design import from_description
from influence.arms import arm_specs, main_task
from influence.config import override, read_config
from influence.experiment import prepare
from influence.jax_setup import set_up_jax
from influence.layout import sweeper_for, with_layout
from training.arm import Arm
from training.store import Store
from training.sweep import sweep

DIGITS = Path(__file__).parent.parent / "configs" / "digits.toml"


class Nowhere(Arm):
    """An arm that forgets what it is given."""

    def commit(self, *unit: Any, **options: Any) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one line of JSON, last on stdout")
    parser.add_argument("--quick", action="store_true", help="few members, one repetition")
    options = parser.parse_args()
    set_up_jax()
    few = ["--sweep.members", "256"] if options.quick else []
    config, _ = override(read_config(DIGITS), few, "store_overhead")
    with tempfile.TemporaryDirectory() as place:
        experiment = with_layout(prepare(config), Path(place) / "run")
        task, spec = main_task(experiment), arm_specs(experiment)["main"]
        sweeper, design = sweeper_for(experiment, task), from_description(spec.design)
        times: dict[str, list[float]] = {"bank": [], "nowhere": []}
        for repeat in range(1 if options.quick else 7):
            for name, kind in (("nowhere", Nowhere), ("bank", Arm)):
                arm: Any = kind(Store(Path(place) / f"{name}{repeat}"), spec, [len(task.targets)])
                started = time.perf_counter()
                sweep(sweeper, arm, design, range(spec.units))
                times[name].append(time.perf_counter() - started)
    # The first one compiles.
    medians = {name: statistics.median(seconds[1:] or seconds) for name, seconds in times.items()}
    overhead = medians["bank"] / medians["nowhere"] - 1
    print(
        f"{spec.members} members in {spec.units} units: {medians['bank']:.2f} s into a bank, "
        f"{medians['nowhere']:.2f} s into nothing: {overhead:+.1%}"
    )
    if options.json:
        print(json.dumps(medians | {"overhead": overhead}))


if __name__ == "__main__":
    main()
