"""Claim: planted poison of many kinds is found, blind and from an incident, better than by others.

Attacks on digits and, with its folder, on 5,000 examples of Fashion-MNIST, each under several seeds
of split, poison, masks and training. A cell is at most 2,048 retrains of the mlp: a bank of 1,472,
192 to judge and verify, and 32 for each set that is judged. It is kept in --runs, its rows in
--results: what was made is not made again. Then, by protocol:

blind       the blind rank, against standard detectors that see as much (`baselines.py`)
incident    the rank with ten bad predictions, after a verdict that did not see them; and the rank
            of a trace of one of them, by sets and backing, before it retrains: the mean over ten

An attack has worked when its success before cleaning is at least .5; one that has not is not
scored. Flipped labels are after no prediction: their success is the share that models fit, and they
always count. Of near copies of targets (leak), which have no rank, precision and recall. Cleaned
are the examples that the verdict confirms, which is blind; beside it, by retrains that are no part
of the cell, as many of those that each of the others finds first. Needs the extra `bench`.
"""

import argparse
import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np
from baselines import cleaned_by, suspicions
from jaxtyping import Bool, Float
from poison_table import protocol_of, table
from scipy.stats import rankdata

from influence.arms import mask_columns
from influence.artifacts import load_datamodel, read_scores
from influence.config import Config, override, read_config
from influence.detection import ATTACK_WORKED, detection_metrics
from influence.experiment import Experiment
from influence.jax_setup import set_up_jax
from influence.run import Run
from influence.tracing import carried_sets, suspected_sets, trace
from training.bank import Bank

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
NONE = ["--poison.label-flip-fraction", "0", "--poison.backdoor-fraction", "0"]
SWEEP = [
    *("--audit.protocol", "blind"),
    *("--sweep.members", "1408", "--sweep.replicate-masks", "8", "--sweep.replicate-seeds", "8"),
    *("--joint.share", "0", "--fit.joint-targets", "0"),
]
DATA = {
    "digits": ("digits.toml", []),
    "fashion": (
        "fashion_mnist.toml",
        [
            *("--model.name", "mlp", "--model.width", "128", "--optim.steps", "500"),
            *("--sweep.unit", "64", "--fit.held-out", "200", "--fit.penalty", "ridge"),
            *("--audit.seeds", "16"),
        ],
    ),
}
BLEND = {
    "digits": ["--poison.blend-fraction", "0.015", "--poison.blend-opacity", "0.3"],
    "fashion": ["--poison.blend-fraction", "0.015"],
}
SINE = {
    "digits": ["--poison.sine-fraction", "0.02", "--poison.sine-amplitude", "230",
               "--poison.sine-periods", "1"],
    "fashion": ["--poison.sine-fraction", "0.02", "--poison.sine-amplitude", "180",
                "--poison.sine-periods", "3"],
}  # fmt: skip
CONSISTENT = {
    "digits": ["--poison.consistent-fraction", "0.04", "--poison.consistent-size", "4"],
    "fashion": ["--poison.consistent-fraction", "0.02", "--poison.consistent-size", "4",
                "--poison.consistent-mix", "0.75"],
}  # fmt: skip
PATCH = ["--poison.backdoor-fraction", "0.015"]


def attacks(data: str) -> dict[str, list[str]]:
    """Options by the name of the cell; what is scored is what they plant."""
    return {
        "label_flip": ["--poison.label-flip-fraction", "0.05"],
        "backdoor": PATCH,
        "blend": BLEND[data],
        "sine": SINE[data],
        "pair_flip": ["--poison.pair-flip-fraction", "0.02", "--poison.pair-flip-from", "4",
                      "--poison.pair-flip-to", "9"],
        "consistent": CONSISTENT[data],
        "two": [*PATCH, *BLEND[data]],
        "leak": ["--poison.leak-fraction", "0.02" if data == "digits" else "0.004"],
    }  # fmt: skip


SEEDS = {"digits": (35, 36, 37, 38, 39), "fashion": (45, 46, 47, 48, 49)}
"""On which nothing was chosen."""
RANKED = (
    *("auroc", "average_precision", "least_average_precision"),
    *("recall_1", "recall_5", "recall_10"),
    *("best_baseline", "best_baseline_auroc"),
)
"""What a row has of an attack that is ranked, and null of others."""
QUICK = ("label_flip", "backdoor", "blend", "sine")
FEW = ["--sweep.members", "100", "--sweep.replicate-masks", "2", "--fit.held-out", "20",
       "--data.train-count", "300", "--optim.steps", "50"]  # fmt: skip


def config_of(data: str, fashion: Path, words: list[str]) -> Config:
    """Of a data set without poison, but for what the words plant or set.

    Args:
        data: of `DATA`.
        fashion: the folder of Fashion-MNIST.
        words: options.
    """
    file, flags = DATA[data]
    folder = ["--data.folder", str(fashion)] if data == "fashion" else []
    config, _ = override(
        read_config(CONFIGS / file), [*NONE, *SWEEP, *flags, *folder, *words], "benchmarks"
    )
    return config


def kept_run(config: Config, seed: int, path: Path) -> tuple[Run, Experiment]:
    """The run of a config under a seed, made where it is not there yet; `made_at` tells by what."""
    from influence.pipeline import run_all
    from influence.sweeping import load_experiment

    if not (path / "report.html").exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _commit_file(path).write_text(commit(), encoding="utf-8")
        run_all(seeded(config, seed), path)
    run, experiment, _ = load_experiment(path)
    return run, experiment


def seeded(config: Config, seed: int) -> Config:
    """The config with every seed set to the root seed."""
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, seed=seed),
        poison=dataclasses.replace(config.poison, seed=seed),
        sweep=dataclasses.replace(config.sweep, seed=seed),
        audit=dataclasses.replace(config.audit, seed=seed),
    )


def made_at(path: Path) -> str:
    """The commit of the code that last judged a kept run."""
    return _commit_file(path).read_text(encoding="utf-8")


def _commit_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.commit")


def rows_of(data: str, cell: str, config: Config, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Run a cell, and score each of its attacks in each protocol."""
    path = folder / f"{data}_{cell}_{seed}"
    run, experiment = kept_run(config, seed, path)
    scores, audit = read_scores(run), run.read_audit()
    made = {"commit": made_at(path), "swept_at": swept_at(path), "retrains": retrains(path)}
    common = {"data": data, "cell": cell, "seed": seed} | made
    found = [
        common
        | {"attack": "leak", "protocol": "blind", "bad_predictions": 0, "attack_worked": True}
        | dict.fromkeys(RANKED)
        | cleaned(scores, audit, "leak", "blind")
        | {name: leak[name] for name in ("precision", "recall")}
        for leak in audit["leaks"]
    ]
    ranked = [attack for attack in experiment.attacks if attack.copied is None]
    others = suspicions(experiment) if ranked else {}
    confirmed = int((scores["status"] == "confirmed").sum())
    left = cleaned_by(experiment, others, confirmed) if ranked else {}
    for attack in ranked:
        name = attack.name if cell != "two" else f"{attack.name} (of two)"
        planted = scores["planted"] == attack.name
        other = (scores["planted"] != "") & ~planted
        success = audit["verify"]["success_by_attack"][attack.name]
        worked = attack.incident is None or success["before"][0] >= ATTACK_WORKED
        ranks = {("blind", 0): [scores["rank_blind"]]}
        if attack is experiment.incident_attack:
            alone = list(traces(run, experiment))
            ranks["incident", len(alone)] = [scores["rank_incident"]]
            ranks["incident", 1] = alone
        baselines = {
            one: detection_metrics(ordered(values), planted, other)
            | {
                "attack_success_after": left[one].success[attack.name],
                "accuracy_after": left[one].accuracy,
            }
            for one, values in others.items()
        }
        best = max(baselines, key=lambda one: baselines[one]["auroc"])
        for (protocol, given), own in ranks.items():
            metrics = mean_metrics(own, planted, other)
            found.append(
                common
                | {"attack": name, "protocol": protocol, "bad_predictions": given}
                | {"attack_worked": worked}
                | (metrics if worked else dict.fromkeys(metrics))
                | cleaned(scores, audit, attack.name, protocol)
                | {
                    "best_baseline": best,
                    "best_baseline_auroc": baselines[best]["auroc"],
                    "baselines": baselines,
                }
            )
    return found


def retrains(path: Path) -> int:
    """All members of a kept run: of its bank, and of those beside it that judge and verify."""
    banks = [path, *(path / "verification").iterdir()]
    return sum(arm.spec.members for bank in banks for arm in Bank.open(bank).arms.values())


def cleaned(
    scores: dict[str, np.ndarray], audit: dict[str, Any], attack: str, protocol: str
) -> dict[str, Any]:
    """What retraining without the confirmed shows; of the blind protocol alone, as they are."""
    verify, planted = audit["verify"], scores["planted"] == attack
    success, accuracy = verify["success_by_attack"][attack], verify["accuracy"]
    confirmed = scores["status"] == "confirmed"
    known = {
        "attack_success_before": success["before"][0],
        "accuracy_before": accuracy["before"][0],
        "planted": int(planted.sum()),
    }
    after = {
        "attack_success_after": success["after"][0],
        "attack_success_change": verify["success_change"][attack],
        "accuracy_after": accuracy["after"][0],
        "accuracy_change": verify["accuracy_change"],
        "confirmed": int((planted & confirmed).sum()),
        "confirmed_clean": int((confirmed & (scores["planted"] == "")).sum()),
    }
    return known | (after if protocol == "blind" else dict.fromkeys(after))


def swept_at(path: Path) -> str:
    """The commit that was checked out when the members of a kept run's bank were trained."""
    return Bank.open(path).manifest.made_with["git_commit"]


def commit() -> str:
    """The commit of the code, and whether there are changes beside it."""
    words = ["git", "-C", str(CONFIGS), "describe", "--always", "--dirty", "--abbrev=40"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def traces(run: Run, experiment: Experiment) -> list[Float[np.ndarray, " n"]]:
    """The rank of every training example, from each prediction of the incident alone, by sets and
    backing: as a trace has it before it retrains."""
    targets, audit = experiment.targets, run.read_audited()
    weights, columns = load_datamodel(run, targets).weights, mask_columns(experiment)
    sets, ranks = suspected_sets(audit, experiment), []
    for at in range(targets.incident.start, targets.incident.stop):
        one = np.array([at])
        carried = carried_sets(audit, experiment, one)
        traced = trace(weights, targets, columns, one, np.array([True]), True, sets, carried)
        ranks.append(traced.rank())
    return [rank[columns] for rank in ranks]


def ordered(suspicion: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """A rank, 1 the most suspicious; what is equal shares the mean of its places."""
    return rankdata(-suspicion)


def mean_metrics(
    ranks: list[Any], planted: Bool[np.ndarray, " n"], other: Bool[np.ndarray, " n"]
) -> dict[str, float]:
    each = [detection_metrics(rank, planted, other) for rank in ranks]
    names = ("auroc", "average_precision", "recall_1", "recall_5", "recall_10")
    means = {name: float(np.mean([one[name] for one in each])) for name in names}
    least = min(one["average_precision"] for one in each)
    return means | {"least_average_precision": least}


def show(row: dict[str, Any]) -> None:
    if row["attack"] == "leak":
        precision = "none found" if row["precision"] is None else f"{row['precision']:.2f}"
        print(
            f"{row['data']:8s} leak, seed {row['seed']}: precision {precision}, recall "
            f"{row['recall']:.2f}",
            flush=True,
        )
        return
    own = (
        f"AUROC {row['auroc']:.4f}, AP {row['average_precision']:.3f}, recall at 5 % "
        f"{row['recall_5']:.2f}"
        if row["attack_worked"]
        else "failed as an attack"
    )
    after = row["attack_success_after"]
    cleaned = "" if after is None else f" -> {after:.2f} without {row['confirmed']} of "
    cleaned += "" if after is None else f"{row['planted']} and {row['confirmed_clean']} clean ones"
    print(
        f"{row['data']:8s} {row['attack']:18s} {protocol_of(row):21s} seed {row['seed']}: {own}; "
        f"best of others {row['best_baseline']} {row['best_baseline_auroc']:.4f}; success "
        f"{row['attack_success_before']:.2f}{cleaned}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON, last on stdout")
    parser.add_argument("--quick", action="store_true", help="digits, two seeds, four attacks")
    parser.add_argument(
        "--few", action="store_true", help="few short retrains, whose figures mean nothing"
    )
    parser.add_argument(
        "--data", choices=list(DATA), nargs="+", help="of these (default: those that are there)"
    )
    parser.add_argument(
        "--cells", choices=list(attacks("digits")), nargs="+", help="of these (default: all)"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/poisoned"), help="folder of cells")
    parser.add_argument(
        "--fashion", type=Path, default=Path("fashion-mnist"), help="folder of Fashion-MNIST"
    )
    parser.add_argument(
        "--results", type=Path, help="file of rows, as JSON: cells in it are not made again"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="(default: five of each data set)")
    options = parser.parse_args()
    set_up_jax()
    if options.few:
        options.runs /= "few"
    chosen = options.data or [*DATA][: 1 + options.fashion.is_dir()]
    runs = [(data, seed) for data in chosen for seed in options.seeds or SEEDS[data]]
    if options.quick:
        runs = [("digits", seed) for seed in (options.seeds or SEEDS["digits"])[:2]]
    cells = options.cells or (QUICK if options.quick else list(attacks("digits")))
    rows: list[dict[str, Any]] = []
    if options.results and options.results.exists():
        rows = json.loads(options.results.read_text(encoding="utf-8"))["rows"]
    made = {(row["data"], row["cell"], row["seed"]) for row in rows}
    # Seed by seed: what was stopped early has every attack, under fewer seeds.
    for data, seed in runs:
        for cell, own in attacks(data).items():
            if cell not in cells or (data, cell, seed) in made:
                continue
            config = config_of(data, options.fashion, own + FEW * options.few)
            for row in rows_of(data, cell, config, seed, options.runs):
                rows.append(row)
                show(row)
            if options.results:
                text = json.dumps({"rows": rows}, indent=1)
                options.results.write_text(text + "\n", encoding="utf-8")
            # Linux allows a process so many memory mappings, and every program takes some.
            jax.clear_caches()
    for data in dict.fromkeys(row["data"] for row in rows):
        print("", *table([row for row in rows if row["data"] == data]), sep="\n")
    if options.json:
        print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
