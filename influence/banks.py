"""The bank of a run: where it is, what it must be of, and how it grows."""

import dataclasses
import importlib.metadata
import itertools
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from influence.config import Config, read_config
from influence.experiment import Experiment, identity, identity_hash
from influence.run import Run, is_new, make_run, open_run
from training.arm import ArmSpec
from training.bank import Bank, Manifest, Panel, differences
from training.data import examples_hash
from training.errors import UserError
from training.params import KeptParams

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

FREE_KEYS = tuple(("sweep", key) for key in ("unit", "grace", "allow_mixed", "bank", "keep_params"))
"""Keys of those sections that may change in a run: they decide how the work is done."""

SECTIONS = ("data", "poison", "groups", "model", "optim", "sweep", "checkpoint", "joint")
"""Those of a config that a bank depends on."""

GROWING_KEYS = (
    ("sweep", "members"),
    ("sweep", "replicate_masks"),
    ("joint", "share"),
    ("joint", "replicate_masks"),
    ("data", "target_count"),
)
"""Keys that may rise in a run: the bank gets more members, arms or targets."""


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


def open_bank(path: Path) -> Bank:
    """The bank of the run at `path`, without a look at its data.

    Raises:
        UserError: there is no run or no bank, or its manifest is damaged.
    """
    return Bank.open(bank_location(read_config(open_run(path).config), path))


def make_bank(path: Path, experiment: Experiment, arms: Mapping[str, ArmSpec]) -> None:
    """Make the bank of a run at `path`, unless another process was first."""
    manifest = new_manifest(experiment, arms)
    if experiment.config.sweep.bank:
        Bank.create(experiment.config.sweep.bank, manifest)
    else:
        make_run(path, experiment.config, manifest)


def join_bank(
    path: Path, experiment: Experiment, arms: Mapping[str, ArmSpec], *, retrain: bool = False
) -> Bank:
    """The bank of a run at `path`, with the members, arms and targets that it lacked.

    Args:
        path: of the run.
        experiment: with the layout that the bank has.
        arms: that the run wants.
        retrain: train every member again for targets that the bank lacks.

    Raises:
        UserError: it is of another run, or has more than is wanted; targets are new, and
            `retrain` is not given.
    """
    bank = Bank.open(bank_location(experiment.config, path))
    check_same(path, bank, experiment, arms, growing=True)
    check_new_targets(bank, experiment, retrain=retrain)
    return bank.changed(lambda stored: _grown(stored, new_manifest(experiment, arms, stored)))


def check_new_targets(bank: Bank, experiment: Experiment, *, retrain: bool) -> int:
    """How many targets the bank lacks.

    Raises:
        UserError: members would have to be trained again for them, as some finished units did not
            keep their parameters, and `retrain` is not given.
    """
    new = len(experiment.targets) - len(bank.target_ids)
    if not new or retrain:
        return new
    lost = sum(len(arm.records().keys() - KeptParams(arm).units()) for arm in bank.arms.values())
    if lost:
        raise UserError(
            f"{bank.store} lacks {new} of {len(experiment.targets)} targets, and {lost} of its "
            f"units did not keep their parameters (sweep.keep_params); give --retrain to train "
            f"those again, or choose another --out"
        )
    return new


def _grown(stored: Manifest, wanted: Manifest) -> Manifest:
    """What is stored, with the members, arms and targets that are wanted beyond it."""
    arms = dict(stored.arms)
    for name, spec in wanted.arms.items():
        members = max(spec.members, arms.get(name, spec).members)
        arms[name] = dataclasses.replace(arms.get(name, spec), members=members)
    more = len(wanted.panels) > len(stored.panels)
    targets = {"target_ids": wanted.target_ids, "panels": wanted.panels} if more else {}
    return dataclasses.replace(stored, arms=arms, **targets)


def new_manifest(
    experiment: Experiment, arms: Mapping[str, ArmSpec], like: Manifest | None = None
) -> Manifest:
    """What a bank of the experiment is of.

    Args:
        experiment: with its layout.
        arms: by name.
        like: of an older bank, which had some of the targets: they are given in its order, and
            those it lacks follow as one more panel.
    """
    parts = identity(experiment)
    versions = {name: importlib.metadata.version(name) for name in RECORDED_VERSIONS}
    targets, blocks = experiment.targets, _blocks(experiment.targets.ids, like)
    order = {id: position for position, id in enumerate(targets.ids)}

    def content(ids: Sequence[str]) -> str:
        return examples_hash(targets.examples.take(np.array([order[id] for id in ids])))

    return Manifest(
        identity_hash(parts),
        # As it comes back from disk, so that the two compare equal.
        json.loads(json.dumps(parts)),
        dict(arms),
        tuple(experiment.train.ids.tolist()),
        tuple(id for ids in blocks for id in ids),
        tuple(Panel(len(ids), content(ids)) for ids in blocks),
        {"python": platform.python_version(), **versions, "git_commit": _git_commit()},
    )


def _blocks(ids: tuple[str, ...], like: Manifest | None) -> list[tuple[str, ...]]:
    """The ids of every panel."""
    if like is None or not set(like.target_ids) <= set(ids):
        return [ids]
    old = set(like.target_ids)
    ends = np.cumsum([0, *(panel.targets for panel in like.panels)]).tolist()
    known = [like.target_ids[first:last] for first, last in itertools.pairwise(ends)]
    new = tuple(id for id in ids if id not in old)
    return [*known, new] if new else known


@cache
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


def check_same(
    path: Path,
    bank: Bank,
    experiment: Experiment,
    arms: Mapping[str, ArmSpec],
    *,
    growing: bool = False,
) -> None:
    """Refuse a bank that was made from other data, another model or another design.

    Args:
        path: of the run.
        bank: what the run has.
        experiment: what it is to be of.
        arms: that it is to have.
        growing: allow it to lack members, arms and targets.

    Raises:
        UserError: naming what differs, and both values.
    """
    wanted = new_manifest(experiment, arms, bank.manifest)
    gone = sorted(set(bank.manifest.target_ids) - set(wanted.target_ids))
    if growing and gone and not _config_changes(Run(path), experiment.config, growing):
        raise UserError(
            f"{bank.store} has bad predictions that would be others here (first: {gone[0]}), as "
            f"more targets leave fewer rows to put triggers on; choose another --out, or leave "
            f"data.target_count as it is"
        )
    lacking = sorted(wanted.arms.keys() - bank.manifest.arms.keys())
    if lacking and not growing and not differences(_grown(bank.manifest, wanted), wanted):
        raise UserError(
            f"{bank.store} lacks the arms {', '.join(lacking)}, which this version or config adds; "
            f"run first: accomplice sweep {path}"
        )
    stored = _grown(bank.manifest, wanted) if growing else bank.manifest
    differs = differences(stored, wanted)
    if not differs:
        return
    # A hash says little: name the key of the config behind it, if there is one.
    changes = _config_changes(Run(path), experiment.config, growing) + differs
    name, left, right = changes[0]
    raise UserError(
        f"{bank.store} holds a different run: {name} is {shown(left)} there and {shown(right)} "
        f"here; choose another --out"
    )


def _config_changes(run: Run, new: Config, growing: bool) -> list[tuple[str, Any, Any]]:
    """Keys that differ in `SECTIONS`, with both values."""
    if not run.config.is_file():
        return []
    old = read_config(run.config)
    return [
        (f"{section}.{key}", before, after)
        for section in SECTIONS
        for key, before in dataclasses.asdict(getattr(old, section)).items()
        if before != (after := dataclasses.asdict(getattr(new, section))[key])
        and not _may_change((section, key), before, after, growing)
    ]


def _may_change(key: tuple[str, str], before: Any, after: Any, growing: bool) -> bool:
    """Whether a run may go on with another value of a key of the config."""
    match key:
        case ("checkpoint", "every_steps"):
            return bool(before) == bool(after)
        case ("data", "target_count") if not before:  # which stands for target_fraction
            return False
        case ("sweep" | "joint", "alpha"):  # each of them has an arm
            return growing and after[: len(before)] == before
    return key in FREE_KEYS or (growing and key in GROWING_KEYS and after > before)


def shown(value: Any) -> str:
    """A value of a manifest, for a message."""
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}" if len(value) > 4 else ", ".join(map(str, value))
    return str(value)
