"""Claim: the demo finds its planted poison, and removing what was flagged undoes the attack.

Runs configs/digits.toml under several root seeds (split, poison, masks and training all follow
the seed) and prints one row a seed. `--quick` runs configs/smoke.toml, which is too small to
show the claim but shows that the script works.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path

from influence.config import Config, read_config
from training.parallel import use_all_cores

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def seeded(config: Config, seed: int) -> Config:
    """The config with every seed set to the root seed."""
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, seed=seed),
        poison=dataclasses.replace(config.poison, seed=seed),
        sweep=dataclasses.replace(config.sweep, seed=seed),
        audit=dataclasses.replace(config.audit, seed=seed),
    )


def row(config: Config, seed: int, folder: Path) -> dict[str, float]:
    """Run one seed and pick the figures."""
    from influence.pipeline import run_all

    started = time.monotonic()
    run = run_all(seeded(config, seed), folder / str(seed))
    audit = run.read_audit()
    detection, verify, fit = audit["detection"], audit["verify"], audit["fit"]
    unscored = float("nan")
    return {
        "seed": seed,
        "flip_auroc": detection["label_flip"].get("auroc", unscored),
        "backdoor_auroc": detection["backdoor"].get("auroc", unscored),
        "backdoor_blind_auroc": detection["backdoor_blind"].get("auroc", unscored),
        "attack_before": verify["attack_success"]["before"][0],
        "attack_after": verify["attack_success"]["after"][0],
        "attack_random": verify["attack_success"]["after_random"][0],
        "accuracy_before": verify["accuracy"]["before"][0],
        "accuracy_after": verify["accuracy"]["after"][0],
        "accuracy_random": verify["accuracy"]["after_random"][0],
        "lds": fit["lds"],
        "r2": fit["r2"],
        "ceiling": fit["ceiling"],
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> None:
    """Print the table; with --json also one line of JSON, last."""
    parser = argparse.ArgumentParser(description="Detection on the demo, seed by seed.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="the smoke config, one seed")
    parser.add_argument("--json", action="store_true", help="one line of JSON, last")
    arguments = parser.parse_args()
    use_all_cores()
    config = read_config(CONFIGS / ("smoke.toml" if arguments.quick else "digits.toml"))
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    with tempfile.TemporaryDirectory() as folder:
        rows = [row(config, seed, Path(folder)) for seed in seeds]
    print("  ".join(rows[0]))
    for values in rows:
        print("  ".join(f"{value:{len(name)}.4g}" for name, value in values.items()))
    if arguments.json:
        print(json.dumps({"config": "smoke" if arguments.quick else "digits", "rows": rows}))


if __name__ == "__main__":
    main()
