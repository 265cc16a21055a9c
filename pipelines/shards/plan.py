"""Shards: a manifest -> immutable WebDataset tars in the shard store, and one generation that pins them.

Owns the plan (which rows make which shard, which shards are there already) and the generation's index, ledger and duplicate flags.
Input: artifacts `manifest` (manifest.parquet) and `lists` (base of relative uris; none where every list is the user's); output: generation.json,
index.parquet, ledger.parquet.

A shard's id is its number and a fingerprint of its rows, of the bytes of their local media and of the options. So rows appended to a list
leave full shards alone, and a file that appears, changes or goes makes exactly its own shard anew.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra import ray_session
from infra.entries import intact, read_entry, usable_entry
from infra.fingerprint import fingerprint
from infra.garbage import note_entries
from infra.secrets import is_shown
from infra.step import AnyloomError, StepContext
from infra.storage import write_atomic, write_parquet
from mmcore.stores.shards import INDEX_SCHEMA, LEDGER_SCHEMA
from pipelines.shards.address_book import kept_addresses
from pipelines.shards.build import OVERHEAD_BYTES, ShardTask, build_shard, full_disk
from pipelines.shards.config import ShardsConfig
from pipelines.shards.download import FetchPolicy
from pipelines.shards.errors import FetchError
from pipelines.shards.fetch import is_remote, read_local
from pipelines.shards.tries import latest_try, may_be_had, next_try

FORMAT = 2
"""Bumped when the bytes of a shard change for the same rows. 2: what a medium is (turned videos, covers, AVIF, TIFF, JPEG 2000, 16-bit grey) is told anew."""
COLUMNS = ("key", "source", "split", "modality", "media", "texts", "conversations", "licence")
_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")


def run(ctx: StepContext[ShardsConfig]) -> Mapping[str, Any]:
    """Build what the store lacks, then write the generation. Returns counts."""
    rows = _read_manifest(ctx.inputs["manifest"].path / "manifest.parquet")
    tasks = _plan(rows, ctx)
    note_entries(ctx.work, ctx.stores, (task.entry for task in tasks))
    missing = [task for task in tasks if usable_entry(task.entry, ctx.force) is None]
    if ctx.force:
        unusable = {task.entry for task in missing}
        tasks = [task if task.entry in unusable else _again(task) for task in tasks]
        missing = [task for task in tasks if task.entry in unusable or task.earlier is not None]
        note_entries(ctx.work, ctx.stores, (entry for task in tasks for entry in (task.entry, task.earlier) if entry is not None))
    _check_room(missing, ctx.stores)
    done = len(rows) - sum(len(task.rows) for task in missing)
    ctx.progress(done, len(rows), f"{len(tasks) - len(missing)} of {len(tasks)} shards are there")
    workers = min(ctx.resources.workers, len(missing))
    use_ray = ctx.resources.use_ray and workers > 1
    if use_ray:
        ray_session.start(workers)
    digests = ray_session.map_tasks(build_shard, missing, workers, threads=1, use_ray=use_ray)
    for task, digest in zip(missing, digests, strict=True):
        if not digest and task.earlier is not None:
            tasks[tasks.index(task)] = replace(task, entry=task.earlier, shard_id=task.earlier.name)
        done += len(task.rows)
        ctx.progress(done, len(rows), f"{task.source} shard {task.number}")
    result = _write_generation(tasks, ctx)
    _check_lost(result, tasks, ctx)
    if result["rows"] != len(rows):
        raise RuntimeError(f"the manifest has {len(rows)} rows, the ledger {result['rows']}")
    write_atomic(ctx.output / "info" / "build.json", json.dumps({"built": len(missing), "reused": len(tasks) - len(missing)}))
    return result


def _read_manifest(path: Path) -> list[dict[str, Any]]:
    """All rows. Raises AnyloomError for missing columns, unusable or repeated keys."""
    table = pq.read_table(path)
    absent = sorted(set(COLUMNS) - set(table.column_names))
    if absent:
        raise AnyloomError(f"{path} has no column {absent[0]}: make the manifest again")
    rows = table.select(list(COLUMNS)).to_pylist()
    seen: set[str] = set()
    for row in rows:
        key = row["key"]
        if not _KEY.fullmatch(key) or not key.startswith(f"{row['source']}-") or not key.rpartition("-")[2].isdigit():
            raise AnyloomError(f"{path}: the key '{key}' must be <source>-<row> of letters, digits, '-' and '_' (a dot would split it in a tar)")
        if key in seen:
            raise AnyloomError(f"{path}: the key '{key}' is there twice")
        seen.add(key)
    return sorted(rows, key=lambda row: (row["source"], _row_number(row)))


def _row_number(row: Mapping[str, Any]) -> int:
    return int(row["key"].rpartition("-")[2])


def _options(config: ShardsConfig) -> dict[str, Any]:
    """What, beside rows and media, decides a shard's bytes."""
    return {"format": FORMAT, "samples_per_shard": config.samples_per_shard, "max_media_bytes": config.max_media_bytes}


def _plan(rows: list[dict[str, Any]], ctx: StepContext[ShardsConfig]) -> list[ShardTask]:
    """Every shard of the generation, there or not, in order."""
    config = ctx.config
    policy = FetchPolicy(
        max_bytes=config.max_media_bytes, timeout_s=config.fetch_timeout_s, attempts=config.fetch_attempts, allow_private=config.allow_private_addresses
    )
    bases = {name: path.parent for name, path in ctx.sources.items()}  # lists of the user's own: their paths start beside them
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["source"], _row_number(row) // config.samples_per_shard), []).append(row)
    addresses = kept_addresses(ctx.stores) if any(is_shown(medium["uri"]) for row in rows for medium in row["media"]) else {}
    tasks = []
    with ThreadPoolExecutor(max(1, ctx.resources.threads)) as pool:
        for (source, number), members in sorted(groups.items()):
            base = bases[source] if source in bases else ctx.inputs["lists"].path
            reach = replace(policy, roots=_roots(config, source, base))
            marked = list(pool.map(partial(_mark_media, base=base, policy=reach), members))
            states = [[state for state, _, _ in marks] for marks in marked]
            shard_id = f"{number:05d}-{fingerprint([_options(config), members, states])[:12]}"
            first = ctx.stores / "shards" / source / shard_id
            latest = latest_try(first)
            remote = {medium["uri"] for row in members for medium in row["media"] if is_shown(medium["uri"])}
            size = sum(nbytes for marks in marked for _, _, nbytes in marks) + OVERHEAD_BYTES * len(members)
            tasks.append(
                ShardTask(
                    source=source,
                    number=number,
                    shard_id=latest.name,
                    rows=members,
                    marks=[[sha for _, sha, _ in marks] for marks in marked],
                    base=base,
                    first=first,
                    entry=latest,
                    staging=ctx.work / "shards" / f"{source}-{shard_id}",
                    policy=reach,
                    addresses={uri: addresses[uri] for uri in remote & addresses.keys()},
                    need_bytes=size,
                )
            )
    return tasks


def _roots(config: ShardsConfig, source: str, base: Path) -> tuple[Path, ...]:
    """Where the media of a dataset may lie beside `base`. Raises AnyloomError for what is no directory."""
    roots = tuple(base / Path(root).expanduser() for name, named in config.media_roots if name == source for root in named)
    for root in roots:
        if not root.is_dir():
            raise AnyloomError(f"--set datasets.{source}.media_roots: {root} is no directory; name one that is there, absolute or relative to {base}")
    return roots


def _again(task: ShardTask) -> ShardTask:
    """A shard that is there, or its next try when downloads of it have failed."""
    if not may_be_had(task.entry, task.rows):
        return task
    entry = next_try(task.first, task.entry)
    return replace(task, entry=entry, shard_id=entry.name, earlier=task.entry, staging=task.staging.with_name(f"{task.source}-{entry.name}"))


def _mark_media(row: Mapping[str, Any], base: Path, policy: FetchPolicy) -> list[tuple[str, str, int]]:
    """Per input medium (state, sha256 or "", bytes). The state is identity: the bytes' hash, why there are none, or remote."""
    marks = []
    for medium in row["media"]:
        if medium["role"] != "input":
            continue
        if is_remote(medium["uri"]):
            marks.append(("remote", "", 0))
            continue
        try:
            data = read_local(medium["uri"], base, policy.max_bytes, policy.roots)
        except FetchError as error:
            marks.append((error.reason, "", 0))
        else:
            digest = hashlib.sha256(data).hexdigest()
            marks.append((digest, digest, len(data)))
    return marks


def _check_room(missing: list[ShardTask], stores: Path) -> None:
    """Refuse early what cannot fit."""
    need = sum(task.need_bytes for task in missing)
    place = stores
    while not place.exists():
        place = place.parent
    if need > shutil.disk_usage(place).free:
        raise full_disk(f"{len(missing)} shards", need, stores)


def _write_generation(tasks: list[ShardTask], ctx: StepContext[ShardsConfig]) -> dict[str, Any]:
    """generation.json, index.parquet with duplicates flagged, ledger.parquet. Returns the counts."""
    entries, indexes, ledgers = [], [INDEX_SCHEMA.empty_table()], [LEDGER_SCHEMA.empty_table()]
    for task in tasks:
        record = read_entry(task.entry)
        if record is None:
            raise AnyloomError(f"{task.entry} vanished while the step ran: run the same command again")
        entries.append({"path": task.entry.relative_to(ctx.stores).as_posix(), "digest": record["digest"]})
        indexes.append(pq.read_table(intact(task.entry, "index.parquet"), schema=INDEX_SCHEMA))
        ledgers.append(pq.read_table(intact(task.entry, "ledger.parquet"), schema=LEDGER_SCHEMA))
    index, ledger = flag_duplicates(pa.concat_tables(indexes)), pa.concat_tables(ledgers)
    write_parquet(index, ctx.output / "index.parquet")
    write_parquet(ledger, ctx.output / "ledger.parquet")
    write_atomic(ctx.output / "generation.json", json.dumps({"entries": entries}, indent=1))
    status, reasons = Counter(ledger.column("status").to_pylist()), Counter(ledger.column("reason").to_pylist())
    return {
        "rows": ledger.num_rows,
        **{name: status.get(name, 0) for name in ("written", "quarantined", "failed")},
        "duplicates": sum(1 for key in index.column("duplicate_of").to_pylist() if key),
        "shards": len(tasks),
        "media_bytes": sum(index.column("media_bytes").to_pylist()),
        "reasons": {name: n for name, n in sorted(reasons.items()) if name},
    }


def _check_lost(result: Mapping[str, Any], tasks: list[ShardTask], ctx: StepContext[ShardsConfig]) -> None:
    """Raises AnyloomError when a larger share of the rows was lost than config.max_lost. The finished shards stay: once the list is mended, they are reused."""
    lost = result["quarantined"] + result["failed"]
    if lost <= ctx.config.max_lost * result["rows"]:
        return
    reasons = ", ".join(f"{reason} {count}" for reason, count in result["reasons"].items())
    task, first = next((task, line) for task in tasks for line in _ledger_of(task) if line["status"] != "written")
    raise AnyloomError(
        f"{ctx.name}: {lost} of {result['rows']} rows cannot be used ({reasons}), more than max_lost {ctx.config.max_lost:g} of them; the first is "
        f"{first['key']}: {first['detail']}; mend the list, {_where_media_are(task.source, first)}set max_lost, or give --force {ctx.name} "
        f"to download again what failed (their reasons: {task.entry.parent}/*/ledger.parquet)"
    )


def _where_media_are(source: str, line: Mapping[str, Any]) -> str:
    """How to say where the files of a list are, for a row whose file was not found where the list is."""
    if line["reason"] not in ("missing_file", "bad_uri") or "list root" not in line["detail"]:
        return ""
    here = f"--set 'datasets.{source}."
    return f"say how its files are called with {here}media_template=...', where else they lie with {here}media_roots=[\"DIR\"]', "


def _ledger_of(task: ShardTask) -> list[dict[str, Any]]:
    return pq.read_table(task.entry / "ledger.parquet", schema=LEDGER_SCHEMA).to_pylist()


def flag_duplicates(index: pa.Table) -> pa.Table:
    """The index with duplicate_of set: the first key, in order, that has the same media, texts and conversations."""
    first: dict[str, str] = {}
    flags = []
    for key, content in zip(index.column("key").to_pylist(), index.column("content_sha256").to_pylist(), strict=True):
        original = first.setdefault(content, key)
        flags.append("" if original == key else original)
    return index.set_column(index.schema.get_field_index("duplicate_of"), INDEX_SCHEMA.field("duplicate_of"), pa.array(flags, pa.string()))
