"""terms.parquet: the sets of groups that act together, a row a term."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from datamodels.terms import Term
from influence.quality import FALSE_DISCOVERIES
from influence.run import Run
from influence.tables import read_table, write_table

Status = Literal["undecided", "found", "confirmed", "failed"]


@dataclass(frozen=True)
class TermRow:
    """A term of a run; effects in output units, positive where keeping groups raises the output."""

    level: str
    """Whose groups they are: the first arm of that level."""
    target: str
    groups: tuple[int, ...]
    """Columns of its masks."""
    order: int
    kind: str
    least: int
    joint_effect: float
    low: float
    high: float
    group_effect: float
    response: tuple[float, ...]
    q_value: float
    verified_effect: float | None = None
    """The joint effect as retraining measured it; None: not measured."""
    verified_low: float | None = None
    verified_high: float | None = None
    status: Status = "found"
    """found in the bank at a false discovery rate of `FALSE_DISCOVERIES`, else undecided; what was
    found is then confirmed, or failed, by retraining."""


def rows_of(terms: Sequence[Term], level: str, ids: Sequence[str]) -> list[TermRow]:
    """The terms of a fit.

    Args:
        terms: of its targets.
        level: whose groups they are of.
        ids: of those targets.
    """
    return [
        TermRow(
            level=level,
            target=ids[term.target],
            groups=term.groups,
            order=term.order,
            kind=term.kind,
            least=term.least,
            joint_effect=term.joint_effect,
            low=term.low,
            high=term.high,
            group_effect=term.group_effect,
            response=term.response,
            q_value=term.q_value,
            status="found" if term.q_value <= FALSE_DISCOVERIES else "undecided",
        )
        for term in terms
    ]


SCHEMA = pa.schema(
    [
        ("level", pa.string()),
        ("target", pa.string()),
        ("groups", pa.list_(pa.int32())),
        ("order", pa.int32()),
        ("kind", pa.string()),
        ("least", pa.int32()),
        ("joint_effect", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("group_effect", pa.float64()),
        ("response", pa.list_(pa.float64())),
        ("q_value", pa.float64()),
        ("verified_effect", pa.float64()),
        ("verified_low", pa.float64()),
        ("verified_high", pa.float64()),
        ("status", pa.string()),
    ]
)


def save_terms(run: Run, rows: Sequence[TermRow]) -> None:
    """Write terms.parquet, in the place of an older one."""
    table = pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], SCHEMA)
    write_table(run.terms, table)


def read_terms(run: Run) -> list[TermRow]:
    """The terms of a run, those of the finest level first; none where none was looked for.

    Raises:
        UserError: the file is damaged.
    """
    if not run.terms.exists():
        return []
    table = read_table(run.terms, f"fit {run.path}", SCHEMA)
    return [_row(columns) for columns in table.to_pylist()]


def _row(columns: dict[str, Any]) -> TermRow:
    groups, response = (tuple(columns.pop(name)) for name in ("groups", "response"))
    return TermRow(groups=groups, response=response, **columns)
