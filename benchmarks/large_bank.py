"""A bank that is larger than memory may be: what each stage of a run needs at most.

Every stage runs as a process of its own, on a bank of many targets and on one of few. What a stage
needs beyond the small bank should be far below the size of the outputs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

STAGES = ("sweep", "fit", "audit", "verify", "report")
TRAINED = 200
FEATURES = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one line of JSON, last on stdout")
    parser.add_argument("--quick", action="store_true", help="a smaller bank, of one arm")
    options = parser.parse_args()
    targets, members = (2_000, 60) if options.quick else (200_000, 2_000)
    with tempfile.TemporaryDirectory() as place:
        words = ["--joint.share", "0", "--fit.joint-targets", "0"] if options.quick else []
        small = peaks(Path(place) / "small", 1_000, members, words)
        large = peaks(Path(place) / "large", targets, members, words)
    outputs = 4 * members * (TRAINED + targets)
    print(f"outputs: {members:,} members x {TRAINED + targets:,} targets, {outputs / 1e9:.2f} GB")
    for stage in STAGES:
        more = large[stage] - small[stage]
        print(
            f"{stage:7s} {large[stage] / 1e9:5.2f} GB, {more / 1e9:+.2f} GB for "
            f"{targets - 1_000:,} targets more"
        )
    if options.json:
        print(json.dumps({"outputs": outputs, "peak": large, "peak_of_1000_targets": small}))


def peaks(folder: Path, targets: int, members: int, words: list[str]) -> dict[str, int]:
    """Bytes that each stage held at most; the words are options of the run."""
    folder.mkdir()
    table, run = folder / "rows.parquet", folder / "run"
    write_table(table, TRAINED + targets)
    own = [
        "--data.source", str(table), "--data.train-count", str(TRAINED),
        "--data.target-count", str(targets), "--model.name", "linear", "--optim.steps", "20",
        "--optim.batch-size", "20", "--sweep.members", str(members), "--sweep.width", "8",
        "--sweep.replicate-masks", "8", "--sweep.replicate-seeds", "4", "--fit.held-out", "40",
        "--audit.seeds", "4",
    ]  # fmt: skip
    config = folder / "rows.toml"
    config.write_text("")
    found = {"sweep": peak("sweep", str(config), "--out", str(run), *own, *words)}
    return found | {stage: peak(stage, str(run)) for stage in STAGES[1:]}


def write_table(path: Path, rows: int) -> None:
    """Two classes that a linear model tells apart, most of the time."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, rows)
    inputs = rng.standard_normal((rows, FEATURES)).astype(np.float32) + 0.3 * labels[:, None]
    columns = {f"x{number}": values for number, values in enumerate(inputs.T)}
    pq.write_table(pa.table({**columns, "label": labels}), path)


def peak(*words: str) -> int:
    """Bytes that a command held at most; it must succeed."""
    process = subprocess.Popen([sys.executable, "-m", "influence.cli", *words])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"accomplice {words[0]} ended with {process.returncode}")
    return 1024 * usage.ru_maxrss  # kilobytes on Linux


if __name__ == "__main__":
    main()
