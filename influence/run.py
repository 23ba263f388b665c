"""The run directory: created in one step, and never mixed with another run."""

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from influence.config import Config, read_config, write_toml
from influence.experiment import Experiment, identity, identity_hash
from training.bank import ArmSpec
from training.data import examples_hash
from training.errors import UserError, reason
from training.files import write_atomically

COMPARED = ("parts", "arms", "target_ids", "targets")
"""Sections of the manifest that two calls on one run directory must share."""

RECORDED_VERSIONS = (
    "accomplice",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "datasets",
    "tokenizers",
)


class Run:
    """Paths of one run directory."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.toml"
        self.manifest = path / "manifest.json"
        self.bank = path / "bank"
        self.datamodel = path / "datamodel" / "additive.npz"
        self.scores = path / "scores.parquet"
        self.audit = path / "audit.json"
        self.verification = path / "verification"
        self.report = path / "report.html"
        self.progress = path / "metrics.jsonl"

    def read_audit(self) -> dict[str, Any]:
        """The metrics so far; empty before the first."""
        if not self.audit.exists():
            return {}
        return json.loads(self.audit.read_text(encoding="utf-8"))

    def replace_audit(self, **sections: Any) -> None:
        """Write audit.json anew: a stage drops what later stages made from older results."""
        text = json.dumps(_finite(sections), indent=1, allow_nan=False)
        write_atomically(self.audit, text + "\n")

    def require(self, path: Path, stage: str) -> None:
        """Refuse to go on without what an earlier stage makes."""
        if not path.exists():
            raise UserError(f"{path} does not exist yet; run first: accomplice {stage} {self.path}")


def _finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def open_run(path: Path) -> Run:
    """An existing run directory.

    Raises:
        UserError: there is none.
    """
    run = Run(path)
    if not run.manifest.is_file():
        raise UserError(f"{path} is no run directory (it has no manifest.json)")
    return run


def is_new(path: Path) -> bool:
    """Whether nothing stands where a run directory is wanted."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def existing(path: Path) -> Run:
    """The run directory that stands where one is wanted.

    Raises:
        UserError: something else stands there.
    """
    run = Run(path)
    if not run.manifest.is_file():
        raise UserError(f"{path} exists and is no run directory; choose another --out")
    return run


def create(path: Path, experiment: Experiment, arms: tuple[ArmSpec, ...]) -> None:
    """Make the run directory, unless something stands there already.

    It appears in one rename, config and manifest in it, so that several processes may start at
    once: the first one makes it.
    """
    if is_new(path):
        _create(Run(path), experiment.config, _manifest(experiment, arms))


def resume(path: Path, experiment: Experiment, arms: tuple[ArmSpec, ...]) -> Run:
    """The run directory of this experiment.

    Sections of the config that do not change the bank ([fit] and [audit]) may differ from what is
    stored; the new ones are written.

    Raises:
        UserError: the path holds something else, or another run; the message says what differs.
    """
    run = existing(path)
    check_same(run, experiment, arms)
    config = write_toml(experiment.config)
    if run.config.read_text(encoding="utf-8") != config:
        write_atomically(run.config, config)
    return run


def _create(run: Run, config: Config, manifest: dict[str, Any]) -> None:
    try:
        run.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{run.path.name}.", dir=run.path.parent))
    except OSError as error:
        raise UserError(f"cannot create {run.path}: {error}; choose another --out") from error
    (temporary / run.config.name).write_text(write_toml(config), encoding="utf-8")
    text = json.dumps(manifest, indent=1) + "\n"
    (temporary / run.manifest.name).write_text(text, encoding="utf-8")
    temporary.chmod(0o755)
    try:
        os.rename(temporary, run.path)
    except OSError:
        # Another process was first; the caller compares what it wrote with ours.
        shutil.rmtree(temporary)


def _manifest(experiment: Experiment, arms: tuple[ArmSpec, ...]) -> dict[str, Any]:
    parts = identity(experiment)
    versions = {name: importlib.metadata.version(name) for name in RECORDED_VERSIONS}
    manifest = {
        "format": 1,
        "identity": identity_hash(parts),
        "parts": parts,
        "arms": {arm.name: dataclasses.asdict(arm) for arm in arms},
        "example_ids": experiment.train.ids.tolist(),
        "target_ids": list(experiment.targets.ids),
        "targets": examples_hash(experiment.targets.examples),
        "versions": {"python": platform.python_version(), **versions},
        "git_commit": _git_commit(),
    }
    # As it comes back from disk, so that the two compare equal.
    return json.loads(json.dumps(manifest))


def _git_commit() -> str | None:
    """The commit of the code in use, when it runs from a checkout."""
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def check_same(run: Run, experiment: Experiment, arms: tuple[ArmSpec, ...]) -> None:
    """Refuse a run directory that was made from other data, another model or another design.

    Raises:
        UserError: naming what differs, and both values.
    """
    try:
        stored = json.loads(run.manifest.read_text(encoding="utf-8"))
        old = {section: stored[section] for section in COMPARED}
    except (ValueError, KeyError) as error:
        raise UserError(f"{run.manifest} is damaged ({reason(error)}); sweep again") from error
    manifest = _manifest(experiment, arms)
    before, now = _flat("", old), _flat("", {section: manifest[section] for section in COMPARED})
    # How the work is cut is no part of a run: the stored unit holds.
    differs = [
        name
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and not name.endswith(".unit")
    ]
    if not differs:
        return
    # A hash says little: name the key of the config behind it, if there is one.
    changes = _config_changes(read_config(run.config), experiment.config)
    changes += [(name, before.get(name), now.get(name)) for name in differs]
    name, left, right = changes[0]
    raise UserError(
        f"{run.path} holds a different run: {name} is {_shown(left)} there and {_shown(right)} "
        f"here; choose another --out"
    )


def _config_changes(old: Config, new: Config) -> list[tuple[str, Any, Any]]:
    """Keys that differ in the sections that a bank depends on, with both values."""
    return [
        (f"{section}.{key}", value, dataclasses.asdict(getattr(new, section))[key])
        for section in ("data", "poison", "model", "optim", "sweep")
        for key, value in dataclasses.asdict(getattr(old, section)).items()
        if value != dataclasses.asdict(getattr(new, section))[key]
        and (section, key) not in (("sweep", "unit"), ("sweep", "allow_mixed"))
    ]


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    """Nested tables as dotted names."""
    if not isinstance(value, dict):
        return {prefix: value}
    leaves: dict[str, Any] = {}
    for key, inner in value.items():
        leaves |= _flat(f"{prefix}.{key}".removeprefix("."), inner)
    return leaves


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return str(value)
