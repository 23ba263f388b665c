"""The bank: arms of masks and outputs, what they are of, and how they were made.

Layout (docs/files.md):

    LOCATION/manifest.json   identity, arms, ids of examples and targets (`Manifest`)
    LOCATION/bank/ARM/...    the members of an arm (`training.arm`)

The location is a run directory, or wherever a run keeps its bank.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from training.arm import Arm, ArmSpec
from training.errors import UserError
from training.store import Damaged, Store, seal, unseal

MANIFEST = "manifest.json"

FORMAT = 2
"""Of the files; raised when an older bank can no longer be read."""


@dataclass(frozen=True)
class Panel:
    """Targets that came into a bank together: their outputs are one array of every arm."""

    targets: int
    """How many."""
    content: str
    """A hash of their inputs and labels."""


@dataclass(frozen=True)
class Manifest:
    """What a bank is of. Arms, members and targets may be added; the rest is fixed."""

    identity: str
    """A hash of `parts`."""
    parts: dict[str, Any]
    """What the bits of every output follow from: data, recipe, model, output, numerics."""
    arms: dict[str, ArmSpec]
    example_ids: tuple[int, ...]
    """Of the training examples, in the order of the masks' columns."""
    target_ids: tuple[str, ...]
    """In the order of the outputs' columns."""
    panels: tuple[Panel, ...]
    """One after the other, they are all targets."""
    made_with: dict[str, Any]
    """Versions, and the commit of the code; recorded, not compared."""

    def to_bytes(self) -> bytes:
        """As it is stored."""
        return seal({"format": FORMAT} | asdict(self))

    @classmethod
    def from_bytes(cls, text: bytes, name: str) -> "Manifest":
        """What `to_bytes` wrote.

        Args:
            text: the content of the file.
            name: of the file, for the message.

        Raises:
            UserError: it is damaged, or of another format.
        """
        try:
            stored = unseal(text)
        except Damaged as error:
            if b'"format": 1,' in text:
                raise UserError(
                    f"{name} is of format 1, which this version does not read; sweep again into "
                    f"another --out"
                ) from error
            raise UserError(
                f"{name} is damaged ({error}); take it from a copy, or sweep again into another "
                f"--out"
            ) from error
        if stored.pop("format") != FORMAT:
            raise UserError(f"{name} is of another format; read it with the version that wrote it")
        arms = {arm: _spec(spec) for arm, spec in stored.pop("arms").items()}
        panels = tuple(Panel(**panel) for panel in stored.pop("panels"))
        ids = {key: tuple(stored.pop(key)) for key in ("example_ids", "target_ids")}
        return cls(arms=arms, panels=panels, **ids, **stored)


def _spec(stored: dict[str, Any]) -> ArmSpec:
    group_of = stored.pop("group_of", None)
    return ArmSpec(**stored, group_of=None if group_of is None else tuple(group_of))


class Bank:
    """A bank opened for reading and for committing units."""

    def __init__(self, store: Store, manifest: Manifest):
        self.store = store
        self.manifest = manifest
        panels = [panel.targets for panel in manifest.panels]
        self.arms = {
            name: Arm(store / "bank" / name, spec, panels) for name, spec in manifest.arms.items()
        }

    @classmethod
    def open(cls, location: str | Path) -> "Bank":
        """The bank at a location: a run directory, or a place in the cloud.

        Nothing but the manifest is read; `bank.arms["main"].read()` and its kin read the rest.

        Raises:
            UserError: there is none, or its manifest is damaged.
        """
        bank = cls.find(location)
        if bank is None:
            raise UserError(f"{location} holds no bank (it has no manifest.json)")
        return bank

    @classmethod
    def find(cls, location: str | Path) -> "Bank | None":
        """The bank at a location; None if there is none. Errors as in `open`."""
        store = Store(location)
        text = store.read(MANIFEST)
        if text is None:
            return None
        return cls(store, Manifest.from_bytes(text, f"{store}/{MANIFEST}"))

    @classmethod
    def create(cls, location: str | Path, manifest: Manifest) -> "Bank":
        """Make a bank, or open the one that another process made before."""
        store = Store(location)
        store.replace(MANIFEST, manifest.to_bytes(), None)
        return cls.open(location)

    @property
    def example_ids(self) -> Int[np.ndarray, " n"]:
        """Of the training examples, in the order of the masks' columns."""
        return np.array(self.manifest.example_ids, np.int64)

    @property
    def target_ids(self) -> tuple[str, ...]:
        """In the order of the outputs' columns."""
        return self.manifest.target_ids

    def arm(self, name: str) -> Arm:
        """One arm.

        Raises:
            UserError: the bank does not have it.
        """
        if name not in self.arms:
            raise UserError(
                f"{self.store} has no arm {name}; it has {', '.join(self.arms) or 'none'}"
            )
        return self.arms[name]

    def changed(self, change: Callable[[Manifest], Manifest]) -> "Bank":
        """The bank with another manifest, also where other processes change it at this moment.

        Args:
            change: gives the new manifest for the stored one; called again when that changed.
        """
        while True:
            text = self.store.read(MANIFEST) or b""
            before = Manifest.from_bytes(text, f"{self.store}/{MANIFEST}")
            after = change(before)
            if after == before or self.store.replace(MANIFEST, after.to_bytes(), text):
                return Bank(self.store, after)


def differences(before: Manifest, now: Manifest) -> list[tuple[str, Any, Any]]:
    """What two manifests of one bank must share and do not: its name, and both values."""
    left, right = _compared(before), _compared(now)
    # Of what differs the cause: other data also make other groups.
    names = sorted(left.keys() | right.keys(), key=lambda n: (not n.startswith("parts."), n))
    return [(n, left.get(n), right.get(n)) for n in names if left.get(n) != right.get(n)]


def _compared(manifest: Manifest) -> dict[str, Any]:
    """What decides the bits, as dotted names."""
    # How the work is cut is no part of a run: the stored unit holds.
    arms = {name: asdict(replace(spec, unit=1)) for name, spec in manifest.arms.items()}
    targets = {
        "target_ids": list(manifest.target_ids),
        "targets": [asdict(panel) for panel in manifest.panels],
    }
    return _flat("", {"parts": manifest.parts, "arms": arms} | targets)


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    """Nested tables as dotted names."""
    if not isinstance(value, dict):
        return {prefix: value}
    leaves: dict[str, Any] = {}
    for key, inner in value.items():
        leaves |= _flat(f"{prefix}.{key}".removeprefix("."), inner)
    return leaves


def require_space(store: Store, specs: Sequence[ArmSpec], targets: int, params: int = 0) -> None:
    """Refuse arms that the disk has no room for; sizes as in `ArmSpec.bytes`.

    Raises:
        UserError: with the arithmetic.
    """
    free, needed = store.free_bytes(), sum(spec.bytes(targets, params) for spec in specs)
    if free is not None and needed > free:
        members = sum(spec.members for spec in specs)
        raise UserError(
            f"the bank needs {needed / 1e9:.1f} GB for {members} members x {targets} targets, but "
            f"{store} has {free / 1e9:.1f} GB free; choose another --out or fewer members or "
            f"targets"
        )
