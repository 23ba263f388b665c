"""The demo's promises, read from its own files: detection, cleaning and the control."""

import json
import sys
from pathlib import Path

run = Path(sys.argv[1])
audit = json.loads((run / "audit.json").read_text(encoding="utf-8"))
success, detection = audit["verify"]["attack_success"], audit["detection"]
print("AUROC:", {name: entry.get("auroc") for name, entry in detection.items()})
print("attack success:", {cell: mean for cell, (mean, _, _) in success.items()})
assert detection["label_flip"]["auroc"] >= 0.97
assert detection["backdoor"]["auroc"] >= 0.97
assert detection["backdoor_blind"]["recall_5"] >= 0.95
assert any(one["confirmed"] and one["class"] == "0" for one in audit["verdict"]["sets"])
assert success["before"][0] >= 0.5
assert success["after"][0] < 0.1
assert success["after_random"][0] >= 0.5
assert (run / "report.html").stat().st_size > 10_000
