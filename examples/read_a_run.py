"""Read what a finished run left, with nothing but numpy, pyarrow and json.

accomplice run configs/smoke.toml
python examples/read_a_run.py runs/smoke
"""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/smoke")
audit = json.loads((run / "audit.json").read_text(encoding="utf-8"))
scores = pq.read_table(run / "scores.parquet").to_pydict()
manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))

before, after = (audit["verify"]["accuracy"][cell][0] for cell in ("before", "after"))
print(f"{audit['flagged']} of {audit['examples']} examples flagged")
print(f"{audit['verdict']['confirmed']} confirmed by retraining")
print(f"accuracy, retrained with and without the confirmed: {before:.3f}, {after:.3f}")

order = np.argsort(scores["rank"])[:5]
print("most suspicious ids:", [scores["id"][i] for i in order])

# (examples, targets), in output units; read as far as it is used.
weights = np.load(run / "datamodel" / "weights.npy", mmap_mode="r")
with np.load(run / "datamodel" / "additive.npz") as datamodel:
    targets = datamodel["target_ids"].tolist()
target = next(column for column, name in enumerate(targets) if "clean" in name)
strongest = int(np.argmax(np.abs(weights[:, target])))
print(
    f"target {targets[target]} depends most on example "
    f"{manifest['example_ids'][strongest]}: keeping it changes the output by "
    f"{weights[strongest, target]:+.2f}"
)
