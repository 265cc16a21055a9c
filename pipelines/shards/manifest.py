"""Manifest: source lists -> one Parquet table of samples.

Owns the columns, the keys and their order. Input: the `lists` artifact (or list files from outside, as sources of the step); output:
`manifest.parquet`, sorted by (source, row). No medium is opened: the shards step does that. No row is dropped: a record without text stays, with empty texts
and conversations, and so does one that does not fit, with the reason in the place of its conversations; both become ledger rows.
Addresses stand in the manifest without their credentials; the whole ones are kept on this machine (pipelines.shards.address_book).
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.secrets import shown_address, without_secrets
from infra.step import AnyloomError, StepContext
from pipelines.readers.rows import ReadOptions, Row
from pipelines.shards.address_book import keep_addresses
from pipelines.shards.config import DEFAULT_TEMPLATES, DatasetSpec, ManifestConfig, check_datasets

MEDIA = pa.struct(
    [
        pa.field("role", pa.string(), nullable=False),
        pa.field("modality", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("start_s", pa.float64()),
        pa.field("end_s", pa.float64()),
    ]
)
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("source", pa.string()),
        ("split", pa.string()),
        ("modality", pa.string()),
        ("media", pa.list_(MEDIA)),
        ("texts", pa.list_(pa.string())),
        ("conversations", pa.string()),
        ("licence", pa.string()),
    ]
)
"""conversations: JSON, a list of {from, value}; of a record that does not fit an object {refused: reason, detail}."""
BATCH_ROWS = 10_000


def run(ctx: StepContext[ManifestConfig]) -> dict[str, Any]:
    """Read every list. Returns rows per dataset, how many rows have no text, and how many records do not fit. Raises AnyloomError when a list of the user's own
    (a source of the step) has no rows."""
    config = ctx.config
    specs = sorted(config.datasets, key=lambda spec: spec.name)
    check_datasets(specs)
    rows, without_text, refused = {}, 0, 0
    with pq.ParquetWriter(ctx.output / "manifest.parquet", SCHEMA, compression="zstd") as writer:
        for done, spec in enumerate(specs):
            count, addresses = 0, dict[str, str]()
            for batch, whole in _batches(spec, _list_file(ctx, spec)):
                addresses |= whole
                writer.write_table(pa.Table.from_pylist(batch, schema=SCHEMA))
                count += len(batch)
                without_text += sum(not row["texts"] and row["conversations"] == "[]" for row in batch)
                refused += sum(refusal(row["conversations"]) is not None for row in batch)
                ctx.progress(done, len(specs), f"{spec.name}: {count} rows")
            if not count and spec.name in ctx.sources:
                raise AnyloomError(f"{ctx.sources[spec.name]}: {_empty(spec)}")
            keep_addresses(ctx.stores, addresses)
            rows[spec.name] = count
    ctx.progress(len(specs), len(specs), "done")
    return {"rows": rows, "total": sum(rows.values()), "without_text": without_text, "refused": refused}


def _empty(spec: DatasetSpec) -> str:
    if not spec.part:
        return f"the list of dataset '{spec.name}' has no rows; give a list with rows"
    name = spec.name.removesuffix("_heldout") if spec.part == "heldout" else spec.name
    return f"the {spec.part} half of the list has no rows; change --set datasets.{name}.heldout={spec.heldout:g}, or give a longer list"


def sample_key(source: str, row: int) -> str:
    """The stable id of a sample: its source and its record number in the list, from 0."""
    return f"{source}-{row:06d}"


def _list_file(ctx: StepContext[ManifestConfig], spec: DatasetSpec) -> Path:
    if spec.name in ctx.sources:
        return ctx.sources[spec.name]
    if "lists" not in ctx.inputs:
        raise AnyloomError(f"dataset '{spec.name}': no lists artifact and no source file; give the step one of them")
    return ctx.inputs["lists"].path / spec.path


def _batches(spec: DatasetSpec, path: Path) -> Iterator[tuple[list[dict[str, Any]], dict[str, str]]]:
    """Manifest rows of one list in its order, BATCH_ROWS at a time, and address as shown -> whole address of those with credentials."""
    reader = importlib.import_module(f"pipelines.readers.{spec.format}")
    template = spec.media_template or DEFAULT_TEMPLATES.get(spec.format, "")
    options = ReadOptions(dataset=spec.name, media_template=template, span_s=spec.span_s)
    batch: list[dict[str, Any]] = []
    whole: dict[str, str] = {}
    for number, row in enumerate(reader.read(path, options)):
        if spec.part and is_heldout(row, spec.heldout) != (spec.part == "heldout"):
            continue
        batch.append(_as_record(spec, number, row))
        whole |= {shown_address(m.uri): m.uri for m in row.media if m.role == "input" and shown_address(m.uri) != m.uri}
        if len(batch) == BATCH_ROWS:
            yield batch, whole
            batch, whole = [], {}
    if batch:
        yield batch, whole


def is_heldout(row: Row, share: float) -> bool:
    """Which half of its list a row belongs to: by a hash of its input media, or of its text where it has none, so that all rows about a medium stay together
    wherever they stand. Rows that do not fit belong to training."""
    if row.refused is not None:
        return False
    named = [shown_address(medium.uri) for medium in row.media if medium.role == "input"] or [json.dumps([row.texts, row.conversations])]
    return int.from_bytes(hashlib.sha256("\n".join(named).encode(errors="surrogateescape")).digest()[:8]) < share * 2**64


def _as_record(spec: DatasetSpec, number: int, row: Row) -> dict[str, Any]:
    return {
        "key": sample_key(spec.name, number),
        "source": spec.name,
        "split": spec.split,
        "modality": row.modality,
        "media": [{"role": m.role, "modality": m.modality, "uri": shown_address(m.uri), "start_s": m.start_s, "end_s": m.end_s} for m in row.media],
        "texts": list(row.texts),
        "licence": spec.licence,
        "conversations": json.dumps(_said(row), ensure_ascii=False).encode(errors="backslashreplace").decode(),  # the name of a list may be no text
    }


def _said(row: Row) -> Any:
    """The conversation of a row, or why it has none."""
    if row.refused is not None:
        return {"refused": row.refused[0], "detail": without_secrets(row.refused[1])}
    return [{"from": who, "value": value} for who, value in row.conversations]


def refusal(conversations: str) -> tuple[str, str] | None:
    """(reason, detail) of a record that does not fit, from the manifest's column; None for any other."""
    if not conversations.startswith("{"):
        return None
    said = json.loads(conversations)
    return str(said["refused"]), str(said["detail"])
