"""The run directory: created in one step, and never mixed with another run."""

import json
import math
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from influence.config import Config, write_toml
from training.bank import Manifest
from training.errors import UserError, reason
from training.files import write_atomically, writing

AUDIT_VERSION = 3
"""Of what audit, verify and trace leave for what reads it, in audit.json, scores.parquet and
trace.json; to be raised where more is needed, or other things by the same names."""


class Run:
    """Paths of one run directory."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.toml"
        self.manifest = path / "manifest.json"
        self.datamodel = path / "datamodel" / "additive.npz"
        self.weights = path / "datamodel" / "weights.npy"
        self.effects = path / "datamodel" / "effects.npy"
        self.effect_errors = path / "datamodel" / "effect_errors.npy"
        self.terms = path / "terms.parquet"
        self.scores = path / "scores.parquet"
        self.audit = path / "audit.json"
        self.trace = path / "trace.json"
        self.traced = path / "trace.parquet"
        self.report = path / "report.html"
        self.progress = path / "metrics.jsonl"

    def read_audit(self) -> dict[str, Any]:
        """The metrics so far; empty before the first.

        Raises:
            UserError: the file is damaged.
        """
        if not self.audit.exists():
            return {}
        try:
            return json.loads(self.audit.read_bytes())
        except ValueError as error:
            raise UserError(
                f"{self.audit} is damaged ({reason(error)}); run again: accomplice fit {self.path}"
                f", and what comes after it"
            ) from error

    def read_audited(self) -> dict[str, Any]:
        """The metrics of a run that was audited since it was fitted, by this version.

        Raises:
            UserError: it was not.
        """
        self.require(self.scores, "audit")
        audited = self.read_audit()
        if "flagged" not in audited:
            raise UserError(
                f"the scores are older than the fit; run first: accomplice audit {self.path}"
            )
        if audited.get("version") != AUDIT_VERSION:
            raise UserError(
                f"the audit is of another version of Accomplice; run first: accomplice audit "
                f"{self.path}"
            )
        return audited

    def read_verified(self) -> dict[str, Any]:
        """The metrics of a run that was verified since it was audited.

        Raises:
            UserError: it was not.
        """
        verified = self.read_audited()
        if "verify" not in verified:
            raise UserError(f"nothing is verified yet; run first: accomplice verify {self.path}")
        return verified

    def replace_audit(self, **sections: Any) -> None:
        """Write audit.json anew: a stage drops what later stages made from older results."""
        text = json.dumps(_finite(sections), indent=1, allow_nan=False)
        with writing(self.audit):
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


def make_run(path: Path, config: Config, manifest: Manifest) -> None:
    """Make the run directory, unless something stands there already.

    It appears in one rename, config and manifest in it, so that several processes may start at
    once: the first one makes it.

    Raises:
        UserError: it cannot be made.
    """
    if is_new(path):
        _create(Run(path), config, manifest)


def write_run(path: Path, config: Config, manifest: Manifest) -> Run:
    """Make the run directory, or write its config and manifest where they changed."""
    make_run(path, config, manifest)
    run = Run(path)
    contents = {run.config: write_toml(config).encode(), run.manifest: manifest.to_bytes()}
    for file, content in contents.items():
        if file.read_bytes() != content:
            with writing(file):
                write_atomically(file, content)
    return run


LEFT_OVER = 3600.0
"""Seconds after which a directory in the making is that of a process that died."""


def _create(run: Run, config: Config, manifest: Manifest) -> None:
    try:
        run.path.parent.mkdir(parents=True, exist_ok=True)
        for other in run.path.parent.iterdir():
            if (
                other.name.startswith(f".{run.path.name}.")
                and time.time() - other.stat().st_mtime > LEFT_OVER
            ):
                shutil.rmtree(other, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{run.path.name}.", dir=run.path.parent))
    except OSError as error:
        raise UserError(f"cannot create {run.path}: {error}; choose another --out") from error
    (temporary / run.config.name).write_text(write_toml(config), encoding="utf-8")
    (temporary / run.manifest.name).write_bytes(manifest.to_bytes())
    temporary.chmod(0o755)
    try:
        os.rename(temporary, run.path)
    except OSError:
        # Another process was first.
        shutil.rmtree(temporary)
