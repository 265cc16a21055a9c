"""Hub Parquet: files that `datasets` opens with the types of an official data set.

Owns the Arrow schema with the `huggingface` metadata that makes a struct an image, and the reading of such files without their images. Input:
plain rows; output: Parquet with the same bytes for the same rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

IMAGE = "image"


def schema_of(columns: Mapping[str, str]) -> Any:
    """Arrow schema of columns of the types string, int32, int64, image, and `list of` string."""
    import pyarrow as pa

    arrow = {"string": pa.string(), "int32": pa.int32(), "int64": pa.int64(), IMAGE: pa.struct([("bytes", pa.binary()), ("path", pa.string())])}
    arrow["list of string"] = pa.list_(pa.string())
    features: dict[str, Any] = {}
    for name, kind in columns.items():
        value = {"dtype": kind.removeprefix("list of "), "_type": "Value"}
        features[name] = {"_type": "Image"} if kind == IMAGE else {"feature": value, "_type": "List"} if kind.startswith("list of ") else value
    metadata = {"huggingface": json.dumps({"info": {"features": features}}, sort_keys=True)}
    return pa.schema([(name, arrow[kind]) for name, kind in columns.items()], metadata=metadata)


def write_rows(target: Path, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    """Write rows; every one must have exactly these columns (ValueError otherwise)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for number, row in enumerate(rows):
        if set(row) != set(columns):
            raise ValueError(f"{target.name} row {number} has the columns {sorted(row)}, not {sorted(columns)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=schema_of(columns)), target, compression="zstd")


def image_columns(files: Sequence[Path]) -> list[str]:
    """Columns that hold images, or lists of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def is_image(kind: Any) -> bool:
        kind = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
        return pa.types.is_struct(kind) and {kind.field(i).name for i in range(kind.num_fields)} == {"bytes", "path"}

    return [field.name for field in pq.read_schema(files[0]) if is_image(field.type)]


def rows_without_images(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Every row of the files, in order, without its images."""
    import pyarrow.parquet as pq

    columns = set(image_columns(files))
    return [row for file in files for row in pq.read_table(file, columns=[n for n in pq.read_schema(file).names if n not in columns]).to_pylist()]


def image_hashes(files: Sequence[Path], batch: int = 256) -> Iterator[tuple[str, int]]:
    """(sha256 of the bytes of its image, or of all of them together; how many it has) of every row, in order; "" for a row without an image."""
    import pyarrow.parquet as pq

    columns = image_columns(files)
    for file in files:
        for part in pq.ParquetFile(file).iter_batches(batch_size=batch, columns=columns):
            for row in part.to_pylist():
                cells = [cell for name in columns for cell in (row[name] if isinstance(row[name], list) else [row[name]]) if cell is not None]
                shas = [hashlib.sha256(cell["bytes"] or b"").hexdigest() for cell in cells]
                yield shas[0] if len(shas) == 1 else hashlib.sha256("".join(shas).encode()).hexdigest() if shas else "", len(shas)


def take_rows(files: Sequence[Path], numbers: Sequence[int], target: Path, batch: int = 256) -> None:
    """Copy the rows with these numbers (ascending, counted over all files) to one file, schema and metadata included."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted, start = set(numbers), 0
    target.parent.mkdir(parents=True, exist_ok=True)
    schema = pq.read_schema(files[0])
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for file in files:
            for part in pq.ParquetFile(file).iter_batches(batch_size=batch):
                chosen = [i for i in range(part.num_rows) if start + i in wanted]
                if chosen:
                    writer.write_table(pa.Table.from_batches([part.take(pa.array(chosen))]).cast(schema))
                start += part.num_rows
