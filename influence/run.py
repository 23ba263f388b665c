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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from influence.config import Config, read_config, write_toml
from influence.experiment import Experiment, identity, identity_hash
from training.arm import ArmSpec
from training.bank import Bank, Manifest, Panel, differences
from training.data import examples_hash
from training.errors import UserError
from training.files import write_atomically

FREE_KEYS = (("sweep", "unit"), ("sweep", "grace"), ("sweep", "allow_mixed"), ("sweep", "bank"))
"""Keys of those sections that may change in a run: they decide how the work is done."""

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
        write_atomically(self.audit, (text + "\n").encode())

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


def bank_location(config: Config, path: Path) -> str:
    """Where the bank of a run is: the place that the config names, or the run directory."""
    return config.sweep.bank or str(path)


def find_bank(config: Config, path: Path) -> Bank | None:
    """The bank that a run at `path` has, or would go on with; None if there is none yet.

    Raises:
        UserError: something else stands at `path`.
    """
    if not is_new(path) and not Run(path).manifest.is_file():
        raise UserError(f"{path} exists and is no run directory; choose another --out")
    return Bank.find(bank_location(config, path))


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


def start(path: Path, experiment: Experiment, arms: Mapping[str, ArmSpec]) -> Bank:
    """Make bank and run directory, where they do not exist yet.

    Each appears in one step, so that several processes may start at once: what the first one
    made holds.

    Raises:
        UserError: the directory cannot be made.
    """
    manifest = new_manifest(experiment, arms)
    if experiment.config.sweep.bank:
        manifest = Bank.create(experiment.config.sweep.bank, manifest).manifest
    if is_new(path):
        _create(Run(path), experiment.config, manifest)
    return Bank.open(bank_location(experiment.config, path))


def keep_up_to_date(run: Run, experiment: Experiment, bank: Bank) -> None:
    """Write what the run directory says of config and bank, where that changed.

    Sections of the config that do not change the bank ([fit] and [audit]) may differ from what is
    stored; the new ones are written. A bank that is kept elsewhere has its manifest here as well.
    """
    for path, content in (
        (run.config, write_toml(experiment.config).encode()),
        (run.manifest, bank.manifest.to_bytes()),
    ):
        if path.read_bytes() != content:
            write_atomically(path, content)


def _create(run: Run, config: Config, manifest: Manifest) -> None:
    try:
        run.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{run.path.name}.", dir=run.path.parent))
    except OSError as error:
        raise UserError(f"cannot create {run.path}: {error}; choose another --out") from error
    (temporary / run.config.name).write_text(write_toml(config), encoding="utf-8")
    (temporary / run.manifest.name).write_bytes(manifest.to_bytes())
    temporary.chmod(0o755)
    try:
        os.rename(temporary, run.path)
    except OSError:
        # Another process was first; the caller compares what it wrote with ours.
        shutil.rmtree(temporary)


def new_manifest(experiment: Experiment, arms: Mapping[str, ArmSpec]) -> Manifest:
    """What a new bank of the experiment is of."""
    parts = identity(experiment)
    versions = {name: importlib.metadata.version(name) for name in RECORDED_VERSIONS}
    targets = experiment.targets
    return Manifest(
        identity_hash(parts),
        # As it comes back from disk, so that the two compare equal.
        json.loads(json.dumps(parts)),
        dict(arms),
        tuple(experiment.train.ids.tolist()),
        targets.ids,
        (Panel(len(targets), examples_hash(targets.examples)),),
        {"python": platform.python_version(), **versions, "git_commit": _git_commit()},
    )


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


def check_same(run: Run, bank: Bank, experiment: Experiment, arms: Mapping[str, ArmSpec]) -> None:
    """Refuse a bank that was made from other data, another model or another design.

    Raises:
        UserError: naming what differs, and both values.
    """
    differs = differences(bank.manifest, new_manifest(experiment, arms))
    if not differs:
        return
    # A hash says little: name the key of the config behind it, if there is one.
    changes = _config_changes(run, experiment.config) + differs
    name, left, right = changes[0]
    raise UserError(
        f"{bank.store} holds a different run: {name} is {shown(left)} there and {shown(right)} "
        f"here; choose another --out"
    )


def _config_changes(run: Run, new: Config) -> list[tuple[str, Any, Any]]:
    """Keys that differ in the sections that a bank depends on, with both values."""
    if not run.config.is_file():
        return []
    old = read_config(run.config)
    return [
        (f"{section}.{key}", value, dataclasses.asdict(getattr(new, section))[key])
        for section in ("data", "poison", "model", "optim", "sweep")
        for key, value in dataclasses.asdict(getattr(old, section)).items()
        if value != dataclasses.asdict(getattr(new, section))[key]
        and (section, key) not in FREE_KEYS
    ]


def shown(value: Any) -> str:
    """A value of a manifest, for a message."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return str(value)
