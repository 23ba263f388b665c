"""Parquet files that are seen whole or not at all."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

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
