"""One arm of a bank: masks, outputs and status of its members, committed unit by unit.

Layout (docs/files.md):

    ARM/masks              Zarr v3, uint8 (m, ceil(g / 8)): bits, first group in the highest bit
    ARM/0/outputs          Zarr v3, float32 (m, t): targets of the first panel
    ARM/0/status           Zarr v3, uint8 (m,): see `Status`
    ARM/0/done/000007.json the record of unit 7: its rows, checksums and where it was made
    ARM/1/...              the same for targets that were added later

A unit is one Zarr shard of rows. Its done-record is written last, in one rename, so a unit
either counts as done and is whole, or does not count. What a record covers is read only if it
matches the checksums.
"""

import enum
import hashlib
import math
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8

from training.errors import UserError, reason
from training.store import FAILURES, Damaged, Store, seal, unseal

TARGET_BLOCK = 1024
"""Targets in one inner chunk of the outputs: what is read and checked at once."""
READ_AHEAD = 16
"""Units that are read at the same time."""

ALL = slice(None)


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

    @property
    def usable(self) -> Bool[np.ndarray, " m"]:
        """Members that a fit or an average may use."""
        return self.status != Status.NOT_FINITE


class Report(NamedTuple):
    """What members report on the targets of one panel."""

    outputs: Any
    """float32 (m, t)"""
    status: Any
    """uint8 (m,), see `Status`"""


def worst_status(of_panels: Sequence[UInt8[np.ndarray, " m"]]) -> UInt8[np.ndarray, " m"]:
    """The status of members, from that on every panel."""
    first, *others = of_panels
    for other in others:
        first = np.where(other == Status.NOT_FINITE, other, first)
    return first


@dataclass(frozen=True)
class ArmSpec:
    """What an arm holds and how it was drawn."""

    name: str
    members: int
    groups: int
    unit: int
    """Members of one unit of work."""
    seed: int
    stream: int
    """With the seed, the arm's root key: fold_in(key(seed), stream)."""
    design: dict[str, Any]
    """The design's own description."""
    common_seed: bool = False
    """Whether all members share one training key."""
    group_of: tuple[int, ...] | None = None
    """The group of each training example; None: every example is its own group."""
    grouping: dict[str, Any] = field(default_factory=dict)
    """How the groups were made; empty where every example is its own."""

    def examples(self, masks: Bool[np.ndarray, "m g"]) -> Bool[np.ndarray, "m n"]:
        """Which training examples masks over groups keep."""
        return masks if self.group_of is None else masks[:, np.array(self.group_of)]

    @property
    def units(self) -> int:
        """How many units the arm has."""
        return math.ceil(self.members / self.unit)

    def unit_rows(self, unit: int) -> Int[np.ndarray, " u"]:
        """The members of a unit."""
        members = self.unit_slice(unit)
        return np.arange(members.start, members.stop)

    def unit_slice(self, unit: int) -> slice:
        """The members of a unit, as a part of all."""
        return slice(unit * self.unit, min((unit + 1) * self.unit, self.members))

    def unit_span(self, unit: int) -> list[int]:
        """The members of a unit, as records have them: the first, and one beyond the last."""
        members = self.unit_slice(unit)
        return [members.start, members.stop]

    def bytes(self, targets: int, params: int = 0) -> int:
        """Size on disk when complete, about (uncompressed).

        Args:
            targets: that every member reports.
            params: bytes of one member's parameters; 0 where they are not kept.
        """
        return self.members * (4 * targets + math.ceil(self.groups / 8) + 1 + params)


@dataclass(frozen=True)
class Made:
    """Where and when a unit was made."""

    made_on: dict[str, Any]
    """Device kind, layout, version of JAX: what low bits depend on."""
    time: float = field(default_factory=lambda: round(time.time(), 3))
    """Seconds since the epoch."""
    host: str = field(default_factory=platform.node)


class Arm:
    """One arm of a bank, opened for reading and for committing units.

    Nothing is written, not even a folder, before the first commit.
    """

    def __init__(self, store: Store, spec: ArmSpec, panels: Sequence[int]):
        """Name what is where.

        Args:
            store: the place of this arm.
            spec: what it holds.
            panels: how many targets each panel of the bank has.
        """
        self.store = store
        self.spec = spec
        self.panels = tuple(panels)
        self._arrays: dict[str, Any] = {}

    @property
    def targets(self) -> int:
        """How many outputs every member has, over all panels."""
        return sum(self.panels)

    def missing_units(self) -> list[int]:
        """Units without a done-record of every panel, in order."""
        done = self._done()
        return [unit for unit in range(self.spec.units) if unit not in done]

    def is_done(self, unit: int) -> bool:
        """Whether the unit has a done-record of every panel at this moment."""
        return unit in self._done([unit])

    def damaged_units(self) -> list[int]:
        """Units that are done and do not match their checksums, in order; reads all of them."""
        done = self._done()
        return [unit for unit in sorted(done) if not self._is_whole(unit, done[unit])]

    def unfinished_units(self, units: Sequence[int] | None = None) -> list[int]:
        """Units to make, missing ones and damaged ones, in order.

        Args:
            units: which to look at, since they have to be read for it; all by default.
        """
        done = self._done(units)
        wanted = range(self.spec.units) if units is None else units
        return [unit for unit in wanted if unit not in done or not self._is_whole(unit, done[unit])]

    def records(self) -> dict[int, dict[str, Any]]:
        """The done-record of every done unit, as the last panel has it."""
        return {unit: by_panel[self._panels[-1]] for unit, by_panel in self._done().items()}

    def lacking_panels(self, unit: int) -> list[int]:
        """Panels that the unit is missing or damaged in, in order; reads those it has."""
        found = {panel: self._panel_records(panel, [unit]) for panel in self._panels}
        return [
            panel
            for panel, records in found.items()
            if unit not in records or not self._is_whole(unit, {panel: records[unit]})
        ]

    def commit(
        self,
        unit: int,
        masks: Bool[np.ndarray, "u g"],
        reports: Mapping[int, Report],
        made: Made,
        *,
        allow_mixed: bool = False,
    ) -> None:
        """Write a unit, then its done-records.

        Args:
            unit: which.
            masks: of exactly the members `spec.unit_rows(unit)`.
            reports: theirs, by panel. The others, if there are any, stay as they are.
            made: kept in the records.
            allow_mixed: write also what differs from what the unit's records say.

        Raises:
            UserError: it cannot be written, or has other bits than before.
        """
        parts = {panel: self._parts(panel, masks, report) for panel, report in reports.items()}
        digests = {
            panel: {name: _digests(part) for name, part in own.items()}
            for panel, own in parts.items()
        }
        if not allow_mixed:
            self._check_bits(unit, digests)
        arrays = {name: part for own in parts.values() for name, part in own.items()}
        try:
            try:
                self._write(unit, arrays)
            except FAILURES:
                # Where a chunk is damaged, tensorstore cannot read what it would write into.
                self._delete_chunks(unit, arrays)
                self._write(unit, arrays)
            for panel in reports:
                record = {
                    "unit": unit,
                    "members": self.spec.unit_span(unit),
                    "sha256": digests[panel],
                }
                record |= asdict(made)
                (self.store / f"{panel}/done").write(_record_name(unit), seal(record))
        except (*FAILURES, UserError) as error:
            raise UserError(
                f"cannot write unit {unit} to {self.store} ({reason(error)}); free some space or "
                f"make it writable, and run the same command again: finished units are kept"
            ) from error

    def read(self, members: slice = ALL) -> Rows:
        """Members of an arm, all by default.

        Raises:
            UserError: their units are missing, or do not match their checksums.
        """
        return Rows(
            self.read_masks(members), self.read_outputs(members=members), self.read_status(members)
        )

    def read_masks(self, members: slice = ALL) -> Bool[np.ndarray, "m g"]:
        """The masks of some members; errors as in `read`."""
        (packed,) = self._read(["masks"], members)
        return np.unpackbits(packed, axis=1, count=self.spec.groups).astype(bool)

    def read_outputs(
        self, targets: slice = ALL, members: slice = ALL
    ) -> Float32[np.ndarray, "m t"]:
        """The outputs of some members on some targets; errors as in `read`.

        Only the blocks of targets that are asked for are read, so that a bank larger than memory
        can be worked on a part at a time.
        """
        start, stop, _ = targets.indices(self.targets)
        parts, first = [], 0
        for panel, count in enumerate(self.panels):
            columns = slice(max(start - first, 0), max(min(stop - first, count), 0))
            if columns.start < columns.stop:
                parts += self._read([f"{panel}/outputs"], members, columns)
            first += count
        return np.concatenate(parts, axis=1)

    def read_status(self, members: slice = ALL) -> UInt8[np.ndarray, " m"]:
        """The status of some members, over all panels; errors as in `read`."""
        found = self._read([f"{panel}/status" for panel in self._panels], members)
        return worst_status([status[:, 0] for status in found])

    def read_report(self, panel: int, members: slice = ALL) -> Report:
        """What some members report on the targets of one panel; errors as in `read`."""
        outputs, status = self._read([f"{panel}/outputs", f"{panel}/status"], members)
        return Report(outputs, status[:, 0])

    def check_made_on(self, made_on: dict[str, Any]) -> None:
        """Refuse to add units made elsewhere: low bits depend on device, layout and version.

        Raises:
            UserError: finished units were made on something else.
        """
        for record in self.records().values():
            for name, value in made_on.items():
                if record["made_on"][name] != value:
                    raise UserError(
                        f"{self.store} was begun with {name} = {record['made_on'][name]}, and here "
                        f"it is {value}; go on where it was begun, or allow it with "
                        f"--sweep.allow-mixed true"
                    )

    def _check_bits(self, unit: int, digests: dict[int, dict[str, list[str]]]) -> None:
        """Compare a unit that is made again with what its records say of it.

        Raises:
            UserError: they differ.
        """
        for panel, own in digests.items():
            for record in self._panel_records(panel, [unit]).values():
                if record["sha256"] != own:
                    raise UserError(
                        f"{self.store}: unit {unit} came out with other bits than before, so code, "
                        f"device or libraries have changed since; sweep again into another --out, "
                        f"or allow it with --sweep.allow-mixed true"
                    )

    def _write(self, unit: int, parts: dict[str, np.ndarray]) -> None:
        region = self.spec.unit_slice(unit)
        waiting = [self._for_writing(name)[region].write(part) for name, part in parts.items()]
        for write in waiting:
            write.result()

    def _delete_chunks(self, unit: int, parts: dict[str, np.ndarray]) -> None:
        for name, part in parts.items():
            self.store.delete(f"{name}/c/{unit}/0" if part.ndim == 2 else f"{name}/c/{unit}")

    @property
    def _panels(self) -> range:
        return range(len(self.panels))

    def _done(self, units: Sequence[int] | None = None) -> dict[int, dict[int, dict[str, Any]]]:
        """The records of every unit (or of some) that has one in each panel, by panel."""
        found = {panel: self._panel_records(panel, units) for panel in self._panels}
        return {
            unit: {panel: records[unit] for panel, records in found.items()}
            for unit in found[0]
            if all(unit in records for records in found.values())
        }

    def _panel_records(self, panel: int, units: Sequence[int] | None) -> dict[int, dict[str, Any]]:
        """The records of one panel by unit, without those that are not whole."""
        folder = self.store / f"{panel}/done"
        names = folder.names() if units is None else [_record_name(unit) for unit in units]
        texts = folder.read_all(names)
        records = [self._valid(name, text) for name, text in texts.items()]
        return {record["unit"]: record for record in records if record is not None}

    def _valid(self, name: str, text: bytes | None) -> dict[str, Any] | None:
        """A record that is whole, and of a unit as it is now: new members may have made it grow."""
        if text is None:
            return None
        try:
            record = unseal(text)
        except Damaged:
            return None
        unit = record["unit"]
        if name != _record_name(unit) or unit >= self.spec.units:
            return None
        return record if record["members"] == self.spec.unit_span(unit) else None

    def _is_whole(self, unit: int, by_panel: Mapping[int, dict[str, Any]]) -> bool:
        try:
            for record in by_panel.values():
                for name in record["sha256"]:
                    list(self._unit_parts(name, {unit: record}, ALL))
        except UserError:
            return False
        return True

    def _read(self, names: Sequence[str], members: slice, columns: slice = ALL) -> list[np.ndarray]:
        """Some rows and columns of some arrays, checked."""
        start, stop, _ = members.indices(self.spec.members)
        units = range(start // self.spec.unit, math.ceil(stop / self.spec.unit))
        done = self._done(units)
        missing = [unit for unit in units if unit not in done]
        if missing:
            raise UserError(
                f"{self.store} lacks {len(missing)} of {self.spec.units} units (first: "
                f"{missing[0]}); run the sweep again to make what is missing"
            )
        joined = []
        for name in names:
            records = {unit: done[unit][_panel_of(name)] for unit in units}
            parts = [
                part[max(start - unit * self.spec.unit, 0) : stop - unit * self.spec.unit]
                for unit, part in self._unit_parts(name, records, columns)
            ]
            joined.append(np.concatenate(parts))
        return joined

    def _unit_parts(
        self, name: str, records: dict[int, dict[str, Any]], columns: slice
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Each unit's rows of some columns of an array, compared with its record."""
        start, stop, _ = columns.indices(self._width(name))
        blocks = slice(start // TARGET_BLOCK, math.ceil(stop / TARGET_BLOCK))
        first = blocks.start * TARGET_BLOCK
        # Whole blocks, since those have checksums.
        read = slice(first, min(blocks.stop * TARGET_BLOCK, self._width(name)))
        try:
            array = self._for_reading(name)
            units = list(records)
            for at in range(0, len(units), READ_AHEAD):
                rows = {u: array[self.spec.unit_slice(u)] for u in units[at : at + READ_AHEAD]}
                waiting = {
                    unit: (part if part.rank == 1 else part[:, read]).read()
                    for unit, part in rows.items()
                }
                for unit, future in waiting.items():
                    part = future.result().reshape(rows[unit].shape[0], -1)
                    if _digests(part) != records[unit]["sha256"][name][blocks]:
                        raise Damaged(f"unit {unit} does not match its checksum")
                    yield unit, part[:, start - first : stop - first]
        except (*FAILURES, Damaged) as error:
            raise UserError(
                f"{self.store}/{name} is damaged ({reason(error)}); sweep again: what is damaged "
                f"is made again"
            ) from error

    def _width(self, name: str) -> int:
        """Columns of an array; of status, which has one dimension, 1."""
        shape = self._schema(name)["shape"]
        return shape[1] if len(shape) == 2 else 1

    def _for_reading(self, name: str) -> Any:
        if name not in self._arrays:
            self._arrays[name] = self.store.open_array(name, self._schema(name))
        return self._arrays[name]

    def _for_writing(self, name: str) -> Any:
        """The array, made where there is none, repaired or enlarged where that is needed."""
        array, metadata = self._arrays.get(name), self._schema(name)
        if array is None:
            try:
                array = self.store.open_array(name, metadata, create=True)
            except FAILURES:
                # Its description is damaged. All that it says follows from the arm.
                self.store.delete(f"{name}/zarr.json")
                array = self.store.open_array(name, metadata, create=True)
        if array.shape[0] < self.spec.members:
            array = array.resize(exclusive_max=metadata["shape"], expand_only=True).result()
        self._arrays[name] = array
        return array

    def _parts(
        self, panel: int, masks: Bool[np.ndarray, "u g"], report: Report
    ) -> dict[str, np.ndarray]:
        """What each array of a panel gets; masks are with the first."""
        own = {f"{panel}/outputs": report.outputs.astype("<f4"), f"{panel}/status": report.status}
        return own if panel else {"masks": np.packbits(masks, axis=1), **own}

    def _schema(self, name: str) -> dict[str, Any]:
        """Zarr metadata of an array."""
        members, unit = self.spec.members, self.spec.unit
        if name == "masks":
            packed = math.ceil(self.spec.groups / 8)
            return _metadata("uint8", [members, packed], [unit, packed], 0)
        panel, kind = name.split("/")
        if kind == "status":
            return _metadata("uint8", [members], [unit], 255)
        targets = self.panels[int(panel)]
        shard = [unit, math.ceil(targets / TARGET_BLOCK) * TARGET_BLOCK]
        return _metadata("float32", [members, targets], shard, "NaN", _shards(unit))


def _panel_of(name: str) -> int:
    """The panel whose records have the checksums of an array."""
    return 0 if name == "masks" else int(name.partition("/")[0])


def _record_name(unit: int) -> str:
    return f"{unit:06d}.json"


def _digests(part: np.ndarray) -> list[str]:
    """A checksum of every block of columns."""
    columns = part.reshape(len(part), -1)
    blocks = range(0, columns.shape[1], TARGET_BLOCK)
    return [hashlib.sha256(columns[:, b : b + TARGET_BLOCK].tobytes()).hexdigest() for b in blocks]


def _shards(unit: int) -> dict[str, Any]:
    little_endian = {"name": "bytes", "configuration": {"endian": "little"}}
    return {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": [unit, TARGET_BLOCK],
            "codecs": [little_endian, {"name": "zstd", "configuration": {"level": 1}}],
        },
    }


def _metadata(
    dtype: str, shape: list[int], chunk: list[int], fill: int | str, *codecs: dict[str, Any]
) -> dict[str, Any]:
    return {
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "fill_value": fill,
        **({"codecs": list(codecs)} if codecs else {}),
    }
