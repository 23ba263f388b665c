"""Run by the Python of a clean environment, outside the checkout: what does the wheel install?"""

import importlib.metadata
import importlib.util

EXPECTED = {"influence", "training", "datamodels"}

files = importlib.metadata.files("accomplice") or []
top = {file.parts[0] for file in files if file.suffix == ".py"}
assert top == EXPECTED, f"the wheel installs {sorted(top)}, not {sorted(EXPECTED)}"
for name in EXPECTED:
    assert importlib.util.find_spec(name), f"{name} is not importable"
for name in ("configs", "tests", "docs", "examples", "benchmarks"):
    assert importlib.util.find_spec(name) is None, f"{name} is importable after an install"
print("installed packages:", *sorted(top))
