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
print(f"accuracy, retrained with and without them: {before:.3f}, {after:.3f}")

order = np.argsort(scores["rank"])[:5]
print("most suspicious ids:", [scores["id"][i] for i in order])

with np.load(run / "datamodel" / "additive.npz") as datamodel:
    weights = datamodel["weights"]  # (examples, targets), in output units
target = manifest["target_ids"].index(next(t for t in manifest["target_ids"] if "clean" in t))
strongest = int(np.argmax(np.abs(weights[:, target])))
print(
    f"target {manifest['target_ids'][target]} depends most on example "
    f"{manifest['example_ids'][strongest]}: keeping it changes the output by "
    f"{weights[strongest, target]:+.2f}"
)
