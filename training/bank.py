"""The bank on disk: masks, outputs and status of every member, committed unit by unit.

Layout of one arm (docs/files.md):

    ARM/arm.json         what the arm holds (`ArmSpec`)
    ARM/masks            Zarr v3, uint8 (m, ceil(g / 8)): bits, first group in the highest bit
    ARM/outputs          Zarr v3, float32 (m, t)
    ARM/status           Zarr v3, uint8 (m,): see `Status`
    ARM/done/000007.json the record of unit 7: its rows, checksums and where it was made

A unit is one Zarr shard of rows. Its done-record is written last, in one rename, so a unit
either counts as done and is whole, or does not count.
"""

import enum
import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts
from jaxtyping import Bool, Float32, Int, UInt8

from training.errors import UserError, reason
from training.files import write_atomically

TARGET_BLOCK = 1024
"""Targets in one inner chunk of the outputs."""


class Status(enum.IntEnum):
    """What became of a member."""

    OK = 0
    NOT_FINITE = 1
    """A parameter or an output is infinite or NaN: never used in a fit or an average."""
    EMPTY_MASK = 2
    """Nothing was kept, so these are the outputs of the initial parameters."""


class Rows(NamedTuple):
    """Members of one arm."""

    masks: Bool[np.ndarray, "m g"]
    """True = kept."""
    outputs: Float32[np.ndarray, "m t"]
    status: UInt8[np.ndarray, " m"]

    def take(self, chosen: Bool[np.ndarray, " m"]) -> "Rows":
        """Some of the members."""
        return Rows(*(part[chosen] for part in self))

    @property
    def usable(self) -> Bool[np.ndarray, " m"]:
        """Members that a fit or an average may use."""
        return self.status != Status.NOT_FINITE


@dataclass(frozen=True)
class ArmSpec:
    """What an arm holds and how it was drawn."""

    name: str
    members: int
    groups: int
    targets: int
    unit: int
    """Members of one unit of work."""
    seed: int
    stream: int
    """With the seed, the arm's root key: fold_in(key(seed), stream)."""
    design: dict[str, Any]
    """The design's own description."""
    common_seed: bool = False
    """Whether all members share one training key."""

    @property
    def units(self) -> int:
        """How many units the arm has."""
        return math.ceil(self.members / self.unit)

    def unit_rows(self, unit: int) -> Int[np.ndarray, " u"]:
        """The members of a unit."""
        start = unit * self.unit
        return np.arange(start, min(start + self.unit, self.members))

    def bytes(self) -> int:
        """Size on disk when complete, about (uncompressed)."""
        return self.members * (4 * self.targets + math.ceil(self.groups / 8) + 1)


class Arm:
    """One arm of a bank, opened for reading and for committing units."""

    def __init__(self, folder: Path, spec: ArmSpec):
        self.folder = folder
        self.spec = spec
        self._arrays = {
            name: _open(folder / name, metadata) for name, metadata in _schema(spec).items()
        }

    def missing_units(self) -> list[int]:
        """Units without a done-record, in order."""
        return [unit for unit in range(self.spec.units) if not self._record(unit).exists()]

    def commit(self, unit: int, rows: Rows, made_on: dict[str, Any]) -> None:
        """Write a whole unit, then its done-record.

        Args:
            unit: which.
            rows: exactly the members `spec.unit_rows(unit)`.
            made_on: where it was made (device kind, layout, versions); kept in the record.
        """
        parts = _encode(rows)
        members = self.spec.unit_rows(unit)
        region = slice(int(members[0]), int(members[-1]) + 1)
        writes = [self._arrays[name][region].write(part) for name, part in parts.items()]
        try:
            for write in writes:
                write.result()
        except (OSError, ValueError) as error:  # tensorstore reports a full disk as ValueError
            raise UserError(
                f"cannot write unit {unit} to {self.folder} ({reason(error)}); free some space "
                f"and run the same command again: finished units are kept"
            ) from error
        record = {
            "unit": unit,
            "members": [region.start, region.stop],
            "sha256": {name: _digest(part) for name, part in parts.items()},
            "made_on": made_on,
        }
        write_atomically(self._record(unit), json.dumps(record, indent=1) + "\n")

    def read(self) -> Rows:
        """All members of a complete arm, each unit checked against its done-record.

        Raises:
            UserError: units are missing, or a unit does not match its checksums.
        """
        missing = self.missing_units()
        if missing:
            raise UserError(
                f"{self.folder} lacks {len(missing)} of {self.spec.units} units (first: "
                f"{missing[0]}); run the sweep again to make what is missing"
            )
        try:
            parts = {name: array.read().result() for name, array in self._arrays.items()}
        except (OSError, ValueError) as error:  # a shard that cannot even be decoded
            raise UserError(
                f"{self.folder} is damaged ({reason(error)}); delete that folder and sweep again"
            ) from error
        for unit in range(self.spec.units):
            self._check(unit, parts)
        masks = np.unpackbits(parts["masks"], axis=1, count=self.spec.groups).astype(bool)
        return Rows(masks, parts["outputs"], parts["status"])

    def check_made_on(self, made_on: dict[str, Any]) -> None:
        """Refuse to add units made elsewhere: low bits depend on device, layout and version.

        Raises:
            UserError: finished units were made on something else.
        """
        done = sorted((self.folder / "done").glob("*.json"))
        stored = json.loads(done[0].read_text(encoding="utf-8"))["made_on"] if done else made_on
        for name, value in made_on.items():
            if stored[name] != value:
                raise UserError(
                    f"{self.folder} was begun with {name} = {stored[name]}, and here it is "
                    f"{value}; go on where it was begun, or allow it with --sweep.allow-mixed True"
                )

    def _check(self, unit: int, parts: dict[str, np.ndarray]) -> None:
        record = json.loads(self._record(unit).read_text(encoding="utf-8"))
        rows = self.spec.unit_rows(unit)
        for name, part in parts.items():
            if _digest(part[rows]) != record["sha256"][name]:
                raise UserError(
                    f"{self.folder / name}: unit {unit} does not match its checksum, so the file "
                    f"was changed or damaged; delete {self._record(unit)} and sweep again"
                )

    def _record(self, unit: int) -> Path:
        return self.folder / "done" / f"{unit:06d}.json"


def create_arms(folder: Path, specs: Sequence[ArmSpec]) -> None:
    """Create the arms that do not exist yet, each in a folder of its name.

    Raises:
        UserError: too little disk for all of them.
    """
    new = [spec for spec in specs if not (folder / spec.name / "arm.json").exists()]
    _check_disk(folder, new)
    for spec in new:
        text = json.dumps(asdict(spec), indent=1) + "\n"
        write_atomically(folder / spec.name / "arm.json", text)


def open_arm(folder: Path, spec: ArmSpec) -> Arm:
    """Open an arm that `create_arms` made.

    Raises:
        UserError: there is none, or it is of another spec.
    """
    marker = folder / "arm.json"
    if not marker.exists():
        raise UserError(f"{folder} holds no retrained members yet; sweep or verify first")
    stored = json.loads(marker.read_text(encoding="utf-8"))
    wanted = json.loads(json.dumps(asdict(spec)))
    # The unit size is how the work was cut, not what the arm is: the stored one holds.
    for field in wanted.keys() - {"unit"}:
        if stored[field] != wanted[field]:
            raise UserError(
                f"{folder} holds another arm: its {field} is {stored[field]}, not "
                f"{wanted[field]}; choose another --out"
            )
    (folder / "done").mkdir(exist_ok=True)
    return Arm(folder, ArmSpec(**stored))


def _check_disk(folder: Path, specs: Sequence[ArmSpec]) -> None:
    existing = next(path for path in [folder, *folder.parents] if path.exists())
    free, needed = shutil.disk_usage(existing).free, sum(spec.bytes() for spec in specs)
    if needed > free:
        members = sum(spec.members for spec in specs)
        raise UserError(
            f"the bank needs {needed / 1e9:.1f} GB for {members} members x {specs[0].targets} "
            f"targets, but {existing} has {free / 1e9:.1f} GB free; choose another --out or fewer "
            f"members or targets"
        )


def _schema(spec: ArmSpec) -> dict[str, dict[str, Any]]:
    """Zarr metadata of each array."""
    packed = math.ceil(spec.groups / 8)
    targets = math.ceil(spec.targets / TARGET_BLOCK) * TARGET_BLOCK
    little_endian = {"name": "bytes", "configuration": {"endian": "little"}}
    shards = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": [spec.unit, TARGET_BLOCK],
            "codecs": [little_endian, {"name": "zstd", "configuration": {"level": 1}}],
        },
    }
    return {
        "masks": _metadata("uint8", [spec.members, packed], [spec.unit, packed], 0),
        "outputs": _metadata(
            "float32", [spec.members, spec.targets], [spec.unit, targets], "NaN", shards
        ),
        "status": _metadata("uint8", [spec.members], [spec.unit], 255),
    }


def _metadata(
    dtype: str,
    shape: list[int],
    chunk: list[int],
    fill: int | str,
    *codecs: dict[str, Any],
) -> dict[str, Any]:
    return {
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "fill_value": fill,
        **({"codecs": list(codecs)} if codecs else {}),
    }


def _open(path: Path, metadata: dict[str, Any]) -> Any:
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(path)},
        "metadata": metadata,
    }
    return ts.open(spec, open=True, create=True).result()


def _encode(rows: Rows) -> dict[str, np.ndarray]:
    return {
        "masks": np.packbits(rows.masks, axis=1),
        "outputs": rows.outputs.astype("<f4"),
        "status": rows.status,
    }


def _digest(part: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(part).tobytes()).hexdigest()
