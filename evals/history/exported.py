"""Export: tables and views of history.duckdb as Parquet or CSV files.

Owns the writing of files that other tools read. Input: the database. Output: one file per table.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from evals.history.database import VIEWS, opened
from evals.history.tables import SCHEMAS, TABLES
from infra.step import AnyloomError
from infra.storage import disk_errors, fsync_directory

FORMATS = ("parquet", "csv")
_ROWS_AT_ONCE = 100_000


def export(db_path: Path, directory: Path, form: str = "parquet", names: Sequence[str] = TABLES, *, quoted: Sequence[str] = ()) -> dict[str, int]:
    """Write `directory/<name>.<form>` of each table or view and return name -> rows. A file is there whole or not at all; an older one is replaced.

    quoted: texts of a CSV that begin so get an apostrophe before them; without it every cell is exact.
    Raises AnyloomError for an unknown table or format, or without a database.
    """
    unknown = [name for name in names if name not in (*TABLES, *VIEWS)]
    if unknown or form not in FORMATS:
        what = f"no table or view called {unknown[0]}; there are: {', '.join((*TABLES, *VIEWS))}" if unknown else f"format {form}: use {' or '.join(FORMATS)}"
        raise AnyloomError(what)
    written = {}
    with opened(db_path) as connection:
        directory.mkdir(parents=True, exist_ok=True)
        for name in names:
            batches = connection.execute(f"SELECT * FROM {name}").fetch_record_batch(_ROWS_AT_ONCE)
            written[name] = _write(directory / f"{name}.{form}", batches, SCHEMAS.get(name, batches.schema), form, quoted if form == "csv" else ())
    return written


def _quoted(table: pa.Table, beginnings: Sequence[str]) -> pa.Table:
    """The table with an apostrophe before every text that begins so."""
    for place, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            column = table.column(place)
            for beginning in beginnings:
                column = pc.if_else(pc.starts_with(column, beginning), pc.binary_join_element_wise("'", column, ""), column)
            table = table.set_column(place, field, column)
    return table


def _write(path: Path, batches: pa.RecordBatchReader, schema: pa.Schema, form: str, quoted: Sequence[str]) -> int:
    temporary, rows = path.with_name(f".{path.name}.{os.getpid()}.tmp"), 0
    try:
        with disk_errors(path):
            with open(temporary, "wb") as handle:
                with ExitStack() as stack:
                    opener = pq.ParquetWriter(handle, schema, compression="zstd") if form == "parquet" else pacsv.CSVWriter(handle, schema)
                    writer = stack.enter_context(opener)
                    for batch in batches:
                        table = pa.Table.from_batches([batch]).cast(schema)
                        writer.write_table(_quoted(table, quoted))
                        rows += len(batch)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_directory(path.parent)
    return rows
