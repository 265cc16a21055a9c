"""Embed: everything of one modality in the shards -> features in the embedding store, each medium once.

Owns the plan (what the store lacks, cut into parts in a fixed order) and the artifact that pins the parts. Input: artifact `weights` and every
`shards_*`; output: generation.json, rows.parquet (key -> part, offset, length). `run_targets` does the same for the captions' token states.
Refuses to know how features are computed (mmcore.encoders) and who reads them (mmcore.data.embeddings).

A space is one encoder with its preprocessing and weights; what is computed in it is addressed by the hash of the medium's bytes.
Parts are the unit of work: killed at any moment, the same command continues with the plan it had, so the bytes come out the same.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.fingerprint import canonical_json, fingerprint, to_plain
from infra.step import AnyloomError, StepContext
from infra.storage import read_entry, read_json, write_atomic
from mmcore.config import EncoderSpec
from mmcore.data.embeddings import PART_SCHEMA, ROWS_SCHEMA
from mmcore.data.shards import ShardSet
from mmcore.encoders import MODALITY_OF
from pipelines.data_config import EmbedConfig, TargetsConfig
from pipelines.embed_worker import Item, PartTask, build_parts
from pipelines.shard_build import write_parquet

Located = dict[str, tuple[str, int, int]]
"""sha256 -> (part, offset, length)."""


def run(ctx: StepContext) -> Mapping[str, Any]:
    """Features of every sample of the config's splits whose input medium has the encoder's modality. Returns counts."""
    config: EmbedConfig = ctx.config
    modality = MODALITY_OF[config.spec.kind]
    keys: dict[str, str] = {}
    items: dict[str, Item] = {}
    for name in sorted(name for name in ctx.inputs if name.startswith("shards_")):
        generation = ctx.inputs[name].path
        index = ShardSet(generation, ctx.stores).index
        columns = (index.column(column).to_pylist() for column in ("key", "split", "modality", "media_sha256", "start_s", "end_s"))
        for key, split, found, sha256, start_s, end_s in zip(*columns, strict=True):
            if split in config.splits and found == modality and sha256:
                keys[key] = address = span_address(sha256, start_s, end_s)
                items.setdefault(address, Item(address=address, generation=str(generation), value=key, start_s=start_s or 0.0, end_s=end_s))
    return _embed(config.spec, modality, keys, items, ctx)


def run_targets(ctx: StepContext) -> Mapping[str, Any]:
    """Token states of every distinct caption of shards_cc3m, keyed `text:<sha256>`. Returns counts."""
    config: TargetsConfig = ctx.config
    shards = ShardSet(ctx.inputs["shards_cc3m"].path, ctx.stores)
    captions = sorted({text for meta in shards.metas(shards) for text in meta["texts"]})
    items = {sha256: Item(address=sha256, value=text) for text, sha256 in ((text, text_sha256(text)) for text in captions)}
    return _embed(config.spec, "text", {f"text:{sha256}": sha256 for sha256 in items}, items, ctx)


def span_address(sha256: str, start_s: float | None, end_s: float | None) -> str:
    """What a medium, or a span of it, is called in the store."""
    if start_s is None and end_s is None:
        return sha256
    return f"{sha256}@{start_s or 0.0:.3f}-" + ("" if end_s is None else f"{end_s:.3f}")


def text_sha256(text: str) -> str:
    """The address of a caption's states."""
    return hashlib.sha256(text.encode()).hexdigest()


def _embed(spec: EncoderSpec, modality: str, keys: Mapping[str, str], items: Mapping[str, Item], ctx: StepContext) -> Mapping[str, Any]:
    """Fill the store, then write the artifact."""
    space = {"spec": to_plain(spec), "weights": ctx.inputs["weights"].digest}
    directory = ctx.stores / "embeddings" / fingerprint(space)[:12]
    write_atomic(directory / "space.json", canonical_json(space))
    tasks = _tasks(_plan(items, _located(directory), spec.part_rows, ctx.work / "plan.json"), items, directory, ctx.work)
    missing = [task for task in tasks if read_entry(task.entry) is None]
    encoded = sum(len(task.items) for task in missing)
    done, total, started = len(items) - encoded, len(items), time.monotonic()
    ctx.progress(done, total, f"{done} of {total} are in the store")
    for count in build_parts(missing, spec, ctx.inputs["weights"].path, ctx.stores, ctx.resources):
        done += count
        ctx.progress(done, total, f"{(done - total + encoded) / (time.monotonic() - started):.0f}/s")
    seconds = time.monotonic() - started
    result = _write_artifact(space, directory, modality, keys, ctx)
    timing = {"encoded": encoded, "reused": total - encoded, "seconds": round(seconds, 3), "items_per_s": round(encoded / seconds, 1) if encoded else None}
    write_atomic(ctx.output / "info" / "timing.json", json.dumps(timing))
    return result


def _located(directory: Path) -> Located:
    """What the committed parts of a space hold. A medium that two builds encoded at the same time counts in the first part by name."""
    found: Located = {}
    for part in sorted((directory / "parts").glob("*")):
        if read_entry(part) is not None:
            columns = pq.read_table(part / "rows.parquet", schema=PART_SCHEMA).to_pydict()
            for sha256, offset, length in zip(columns["media_sha256"], columns["offset"], columns["length"], strict=True):
                found.setdefault(sha256, (part.name, offset, length))
    return found


def _plan(items: Mapping[str, Item], located: Located, part_rows: int, path: Path) -> list[list[str]]:
    """Parts to encode, as lists of sha256: those of the saved plan as long as it still covers what is missing, else a new one, saved first."""
    missing = sorted(set(items) - set(located))
    if path.exists():
        parts: list[list[str]] = read_json(path)
        planned = {sha256 for part in parts for sha256 in part}
        if planned <= set(items) and set(missing) <= planned:
            return parts
    parts = [missing[start : start + part_rows] for start in range(0, len(missing), part_rows)]
    write_atomic(path, json.dumps(parts))
    return parts


def _tasks(parts: list[list[str]], items: Mapping[str, Item], directory: Path, work: Path) -> list[PartTask]:
    tasks = []
    for part in parts:
        name = f"{part[0][:8]}-{fingerprint(part)[:12]}"
        tasks.append(PartTask(items=tuple(items[sha256] for sha256 in part), entry=directory / "parts" / name, staging=work / "parts" / name))
    return tasks


def _write_artifact(space: Mapping[str, Any], directory: Path, modality: str, keys: Mapping[str, str], ctx: StepContext) -> Mapping[str, Any]:
    """generation.json and rows.parquet (sorted by key), from what the store holds now. Returns the counts."""
    located = _located(directory)
    rows = [
        {"key": key, "media_sha256": sha256, **dict(zip(("part", "offset", "length"), located[sha256], strict=True))} for key, sha256 in sorted(keys.items())
    ]
    used = sorted({row["part"] for row in rows})
    entries = []
    for name in used:
        record = read_entry(directory / "parts" / name)
        if record is None:
            raise AnyloomError(f"{directory / 'parts' / name} vanished while the step ran: run the same command again")
        entries.append({"path": (directory / "parts" / name).relative_to(ctx.stores).as_posix(), "digest": record["digest"]})
    write_parquet(pa.Table.from_pylist(rows, ROWS_SCHEMA), ctx.output / "rows.parquet")
    write_atomic(ctx.output / "generation.json", json.dumps({"space": space, "modality": modality, "entries": entries}, indent=1, sort_keys=True))
    lengths = {sha256: located[sha256][2] for sha256 in keys.values()}
    return {"samples": len(rows), "media": len(lengths), "tokens": sum(lengths.values()), "parts": len(used), "width": space["spec"]["width"]}
