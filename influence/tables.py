"""Parquet files that are seen whole or not at all."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from training.errors import UserError, reason
from training.files import writing


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table, in the place of an older one when it is complete.

    Raises:
        UserError: it cannot be written.
    """
    temporary = path.with_suffix(".partial")
    with writing(path):
        pq.write_table(table, temporary)
        temporary.replace(path)


def read_table(path: Path, again: str, schema: pa.Schema | None = None) -> pa.Table:
    """Read a table.

    Args:
        path: of the file.
        again: the command that writes it anew.
        schema: that it must have.

    Raises:
        UserError: it cannot be read, is damaged, or of another schema.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path} is damaged ({reason(error)}); run again: accomplice {again}"
        ) from error
    if schema is not None and not table.schema.equals(schema):
        raise UserError(
            f"{path} is of another version of Accomplice, or damaged (it has the columns "
            f"{', '.join(table.column_names)}); run again: accomplice {again}"
        )
    return table
