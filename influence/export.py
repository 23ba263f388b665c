"""The bank as one file that other tools read: npz, parquet or csv."""

import csv
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from influence.banks import open_bank
from training.arm import Arm, Rows
from training.bank import Bank
from training.errors import UserError, reason


class _Part(NamedTuple):
    """The members of one unit."""

    arm: Arm
    members: Int[np.ndarray, " u"]
    rows: Rows

    @property
    def row_ids(self) -> list[str]:
        return [f"{self.arm.spec.name}:{member}" for member in self.members]

    @property
    def mask_rows(self) -> Int[np.ndarray, " u"]:
        return self.members // self.arm.spec.design.get("replicates", 1)

    @property
    def alpha(self) -> Float[np.ndarray, " u"]:
        return np.full(len(self.members), self.arm.spec.design.get("alpha", np.nan))


def export_run(path: Path, format: str, out: Path, like: str = "main") -> int:
    """`export` of the bank of the run at `path`."""
    return export(open_bank(path), format, out, like)


def export(bank: Bank, format: str, out: Path, like: str = "main") -> int:
    """Write all members that are done, a unit at a time, and return how many are not.

    Each row has its id ("main:17": arm and member), alpha, mask row (replicates share it), status
    (0 fine, 1 not finite, 2 empty mask), mask and outputs. Examples and targets are named by the
    ids of the bank; where masks are over groups, the group of each example is there, too.

    Args:
        bank: may be in the making.
        format: npz, parquet or csv.
        out: the file; appears whole or not at all.
        like: the name of an arm: of all arms whose masks are over its groups.

    Raises:
        UserError: no member is done, a unit is damaged, there is no such arm, or the file cannot
            be written.
    """
    group_of = bank.arm(like).spec.group_of
    of_groups = {n: arm for n, arm in bank.arms.items() if arm.spec.group_of == group_of}
    done = {name: _done_units(arm) for name, arm in of_groups.items()}
    count = sum(
        len(bank.arm(name).spec.unit_rows(unit)) for name, units in done.items() for unit in units
    )
    if count == 0:
        raise UserError(f"{bank.store} holds no finished member yet; sweep first")
    write = {"npz": _write_npz, "parquet": _write_parquet, "csv": _write_csv}[format]
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        write(bank, done, count, temporary)
        temporary.replace(out)
    except OSError as error:
        raise UserError(f"cannot write {out} ({reason(error)}); choose another --out") from error
    finally:
        temporary.unlink(missing_ok=True)
    return sum(arm.spec.members for arm in of_groups.values()) - count


def _group_of(bank: Bank, done: dict[str, list[int]]) -> tuple[int, ...]:
    """The mask's column of each example, which is that of any of the arms."""
    return bank.arm(next(iter(done))).spec.group_of or tuple(range(len(bank.example_ids)))


def _done_units(arm: Arm) -> list[int]:
    missing = set(arm.missing_units())
    return [unit for unit in range(arm.spec.units) if unit not in missing]


def _parts(bank: Bank, done: dict[str, list[int]]) -> Iterator[_Part]:
    for name, units in done.items():
        arm = bank.arm(name)
        for unit in units:
            members = arm.spec.unit_rows(unit)
            yield _Part(arm, members, arm.read(arm.spec.unit_slice(unit)))


def _write_npz(bank: Bank, done: dict[str, list[int]], count: int, path: Path) -> None:
    group_of, targets = _group_of(bank, done), len(bank.target_ids)
    groups = max(group_of) + 1
    small: dict[str, list[Any]] = {"row_ids": [], "mask_rows": [], "alpha": [], "status": []}
    with zipfile.ZipFile(path, "w") as file:
        with _array(file, "masks", np.dtype(bool), (count, groups)) as array:
            for part in _parts(bank, done):
                array.write(part.rows.masks.tobytes())
                small["row_ids"] += part.row_ids
                small["mask_rows"] += part.mask_rows.tolist()
                small["alpha"] += part.alpha.tolist()
                small["status"] += part.rows.status.tolist()
        with _array(file, "outputs", np.dtype("<f4"), (count, targets)) as array:
            for part in _parts(bank, done):
                array.write(part.rows.outputs.tobytes())
        ids = {
            "example_ids": bank.example_ids,
            "group_of": np.array(group_of),
            "target_ids": np.array(bank.target_ids),
        }
        columns = {name: np.array(values) for name, values in small.items()}
        columns["status"] = columns["status"].astype(np.uint8)
        for name, values in (columns | ids).items():
            with _array(file, name, values.dtype, values.shape) as array:
                array.write(values.tobytes())


def _array(file: zipfile.ZipFile, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> Any:
    """A member of an npz file, opened for its content; the header is written."""
    member = file.open(f"{name}.npy", "w", force_zip64=True)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, header)
    return member


def _write_parquet(bank: Bank, done: dict[str, list[int]], count: int, path: Path) -> None:
    group_of, targets = _group_of(bank, done), len(bank.target_ids)
    groups = max(group_of) + 1
    schema = pa.schema(
        {
            "row_id": pa.string(),
            "alpha": pa.float64(),
            "mask_row": pa.int64(),
            "status": pa.uint8(),
            "mask": pa.list_(pa.bool_(), groups),
            "outputs": pa.list_(pa.float32(), targets),
        },
        metadata={
            "example_ids": str(bank.example_ids.tolist()),
            "group_of": str(list(group_of)),
            "target_ids": "\n".join(bank.target_ids),
        },
    )
    with pq.ParquetWriter(path, schema) as file:
        for part in _parts(bank, done):
            columns = [
                pa.array(part.row_ids),
                pa.array(part.alpha),
                pa.array(part.mask_rows),
                pa.array(part.rows.status),
                pa.FixedSizeListArray.from_arrays(pa.array(part.rows.masks.ravel()), groups),
                pa.FixedSizeListArray.from_arrays(pa.array(part.rows.outputs.ravel()), targets),
            ]
            file.write_table(pa.table(columns, schema=schema))


def _write_csv(bank: Bank, done: dict[str, list[int]], count: int, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        group_of = np.array(_group_of(bank, done))
        # Of a group the ids of all its examples.
        ids = [bank.example_ids[group_of == group] for group in range(group_of.max() + 1)]
        kept = ["keeps " + " ".join(map(str, of_group)) for of_group in ids]
        table.writerow(["row_id", "alpha", "mask_row", "status", *kept, *bank.target_ids])
        for part in _parts(bank, done):
            masks, outputs = part.rows.masks.astype(int).tolist(), part.rows.outputs
            for position, id in enumerate(part.row_ids):
                # As many digits as a float32 needs to come back.
                values = [f"{value:.9g}" for value in outputs[position]]
                columns = [
                    part.alpha[position],
                    part.mask_rows[position],
                    part.rows.status[position],
                ]
                table.writerow([id, *columns, *masks[position], *values])
