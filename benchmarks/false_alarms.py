"""Claim: where outputs have nothing to do with masks, retraining hardly ever confirms anything.

A run on unpoisoned digits is swept once. Then, twenty times, its outputs are exchanged over the
masks of each arm, and those of training examples among examples of the same label as well:
otherwise the mean output of an example would still tell the hard ones. Everything else is done as
ever: fit, audit, and the verdict's own retrains, whose outputs are what they are. Weights, ranks
and sets are then noise. Examples and sets are each tested at 5 %, so each run may confirm something
with a probability between 5 and 10 %; at most three of twenty are allowed.

With --masks-alone outputs are exchanged over masks and no further. Weights and sets are noise, but
margins are not: what is then confirmed is to be compared with what is where nothing is exchanged,
which is judged first.
"""

import argparse
import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
from jaxtyping import Int
from poison import CONFIGS, FEW, NONE, SWEEP, commit

from influence.artifacts import read_scores
from influence.config import override, read_config
from influence.jax_setup import set_up_jax
from training.arm import Made, Report
from training.bank import Bank

RUNS = 20


def exchanged(source: Path, out: Path, labels: Int[np.ndarray, " _"], seed: int) -> None:
    """The run with its outputs exchanged over masks, and over training examples of one label.

    Of replicates, which tell the noise, the masks stay as they are. Of no labels, examples do, too.
    """
    out.mkdir(parents=True)
    shutil.copy(source / "config.toml", out / "config.toml")
    bank = Bank.open(source)
    new, rng = Bank.create(out, bank.manifest), np.random.default_rng(seed)
    columns = np.arange(len(bank.target_ids))
    for label in np.unique(labels):
        # Training examples come first among the targets.
        own = np.flatnonzero(labels == label)
        columns[own] = rng.permutation(own)
    for name, arm in bank.arms.items():
        rows, records = arm.read(), arm.records()
        order = np.arange(len(rows.status))
        if not name.startswith("replicates"):
            order = rng.permutation(order)
        for unit, record in records.items():
            own = arm.spec.unit_slice(unit)
            report = Report(rows.outputs[order][own][:, columns], rows.status[order][own])
            new.arm(name).commit(unit, rows.masks[own], {0: report}, Made(record["made_on"]))


def judged(path: Path) -> dict[str, Any]:
    """Of a swept run how much the verdict judged, and the ids of what it confirms."""
    from influence.pipeline import audit_stage, fit_stage, verify_stage
    from influence.sweeping import load_experiment

    run, experiment, bank = load_experiment(path)
    fit_stage(run, experiment, bank)
    audit_stage(run, experiment, bank)
    verify_stage(run, experiment)
    scores = read_scores(run)
    ids = scores["id"][scores["status"] == "confirmed"].tolist()
    verdict = run.read_audit()["verdict"]
    return {"judged": verdict["judged"], "sets": len(verdict["sets"]), "confirmed": ids}


def said(one: dict[str, Any]) -> str:
    ids = f": {', '.join(map(str, one['confirmed']))}" if one["confirmed"] else ""
    return (
        f"{len(one['confirmed'])} of {one['judged']} judged examples confirmed, "
        f"{one['sets']} sets{ids}"
    )


def main() -> None:
    from influence.sweeping import load_experiment, prepare_for, sweep_stage

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON, last on stdout")
    parser.add_argument("--quick", action="store_true", help="few members, two runs")
    parser.add_argument(
        "--masks-alone", action="store_true", help="exchange nothing over training examples"
    )
    parser.add_argument("--results", type=Path, help="file of both exchanges, as JSON, to add to")
    options = parser.parse_args()
    set_up_jax()
    words = [*NONE, *SWEEP, "--data.seed", "20"]
    if options.quick:
        words += FEW
    config, _ = override(read_config(CONFIGS / "digits.toml"), words, "benchmarks")
    runs: list[dict[str, Any]] = []
    whole: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        sweep_stage(prepare_for(config, source), source)
        labels = np.asarray(load_experiment(source)[1].train.examples.labels)
        if options.masks_alone:
            labels = labels[:0]
            whole = judged(source)
            print(f"nothing exchanged: {said(whole)}", flush=True)
        for seed in range(2 if options.quick else RUNS):
            path = Path(folder) / str(seed)
            exchanged(source, path, labels, seed)
            runs.append(judged(path))
            print(f"exchange {seed}: {said(runs[-1])}", flush=True)
            shutil.rmtree(path)
            # Linux allows a process so many memory mappings, and every program takes some.
            jax.clear_caches()
    found = {
        "commit": commit(),
        "alarms": sum(bool(one["confirmed"]) for one in runs),
        "runs": runs,
    }
    print(f"{found['alarms']} of {len(runs)} runs confirmed something")
    if options.masks_alone:
        beyond = sum(not set(whole["confirmed"]).issuperset(one["confirmed"]) for one in runs)
        found |= {"nothing_exchanged": whole, "alarms_beyond": beyond}
        print(f"{beyond} of them something that is not confirmed where nothing is exchanged")
    if options.results:
        kept = json.loads(options.results.read_text()) if options.results.exists() else {}
        kept["masks" if options.masks_alone else "masks_and_labels"] = found
        options.results.write_text(json.dumps(kept, indent=1) + "\n")
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
