"""Small whole runs: their config, settings that make them smaller, and how tests read them."""

import json
from pathlib import Path

SMOKE = str(Path(__file__).parent.parent / "configs" / "smoke.toml")
SMALL = [
    "--sweep.members", "40", "--sweep.replicate-masks", "3", "--sweep.replicate-seeds", "2",
    "--optim.steps", "20", "--fit.held-out", "10", "--audit.seeds", "2", "--sweep.width", "8",
]  # fmt: skip
ALONE = [*SMALL, "--joint.share", "0"]
"""Without members over clusters."""
JUDGED = [*ALONE, "--optim.steps", "60", "--audit.seeds", "4"]
"""Trained well enough that retraining confirms what is planted."""


def write_config(folder, text):
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def read_json(path):
    return json.loads(path.read_text())
