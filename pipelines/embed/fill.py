"""Embed: everything of one modality in the shards -> features in the embedding store, each medium once.

Owns the plan (what the store lacks, cut into parts in a fixed order) and the artifact that pins the parts. Input: artifact `weights` and every
`shards_*`; output: generation.json, rows.parquet (key -> part, offset, length). `run_targets` does the same for the captions' token states.

A space is one encoder with its preprocessing, weights and stored type; what is computed in it is addressed by the hash of the medium's bytes.
Parts are the unit of work: killed at any moment, the same command continues with the plan it had, so the bytes come out the same.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from infra.entries import read_entry
from infra.fingerprint import fingerprint
from infra.garbage import note_entries
from infra.step import AnyloomError, StepContext
from infra.storage import read_json, write_atomic, write_parquet
from mmcore.encoder_config import EncoderConfig
from mmcore.stores.embeddings import ROWS_SCHEMA
from mmcore.stores.features import computed_dtype
from mmcore.stores.shards import LEDGER_SCHEMA
from pipelines.embed.pool import build_parts
from pipelines.embed.space import Space
from pipelines.embed.worker import Item, PartTask

FEWEST_PARTS = 16
"""A build has about this many parts at least, so that workers end at nearly the same time."""


def embed_items(spec: EncoderConfig, modality: str, keys: Mapping[str, str], items: Mapping[str, Item], ctx: StepContext[object]) -> Mapping[str, Any]:
    """Fill the store, then write the artifact. keys: sample key -> address; items: address -> what to encode."""
    computed_dtype(spec.dtype)  # a wrong type is refused before hours of work
    space = Space.of(spec, ctx.inputs["weights"].digest, ctx.stores)
    if ctx.force:
        space = space.without_damage()
    if space.damaged:
        raise AnyloomError(f"{next(iter(space.damaged.values())).partition(': run ')[0]}: run {ctx.name} again with --force {ctx.name}")
    tasks = _tasks(_plan(items, space, spec, ctx.work / "plan.json", ctx.force), items, space, ctx.work)
    note_entries(ctx.work, ctx.stores, [*(task.entry for task in tasks), *(space.part(space.located[a][0]) for a in items if a in space.located)])
    missing = [task for task in tasks if read_entry(task.entry) is None]
    encoded = sum(len(task.items) for task in missing)
    done, total, started = len(items) - encoded, len(items), time.monotonic()
    ctx.progress(done, total, f"{done} of {total} are in the store")
    encode_s, workers, batches = 0.0, 1, set()
    for part in build_parts(missing, spec, ctx.inputs["weights"].path, ctx.stores, ctx.resources):
        done, encode_s, workers = done + part.items, encode_s + part.encode_s, part.workers
        batches.add(part.batch)
        ctx.progress(done, total, f"{(done - total + encoded) / (time.monotonic() - started):.0f}/s")
    seconds = time.monotonic() - started
    result = _write_artifact(space.refreshed(), modality, keys, ctx)
    timing = {
        "encoded": encoded,
        "reused": total - encoded,
        "seconds": round(seconds, 3),
        "items_per_s": round(encoded / seconds, 1) if encoded else None,
        "workers": workers if encoded else 0,
        "encoder_busy": round(encode_s / (seconds * workers), 3) if encoded else None,
        "batch": min(batches, default=None),
    }
    write_atomic(ctx.output / "info" / "timing.json", json.dumps(timing))
    return result


def _plan(items: Mapping[str, Item], space: Space, spec: EncoderConfig, path: Path, force: bool) -> dict[str, Any]:
    """{space, batch, parts}: parts to encode, as lists of addresses: the saved plan as long as it still covers what is missing, else a new one, saved first.
    What the encoder could not take is tried again when that is forced."""
    missing = sorted(set(items) - set(space.located) - (set() if force else set(space.left_out)))
    if path.exists():
        plan: dict[str, Any] = read_json(path)
        planned = {address for part in plan["parts"] for address in part}
        if planned <= set(items) and set(missing) <= planned and plan["batch"] == spec.batch:
            return plan
    plan = {"space": space.directory.name, "batch": spec.batch, "parts": cut(missing, len(items), spec)}
    write_atomic(path, json.dumps(plan))
    return plan


def cut(missing: Sequence[str], total: int, spec: EncoderConfig) -> list[list[str]]:
    """What is missing of `total` items, as parts in order: `part_rows` items each, fewer where `total` would make less than FEWEST_PARTS of them, but
    whole batches. The number of workers does not matter."""
    rows = min(spec.part_rows, spec.batch * math.ceil(max(total, 1) / FEWEST_PARTS / spec.batch))
    return [list(missing[start : start + rows]) for start in range(0, len(missing), rows)]


def part_name(addresses: list[str]) -> str:
    """Directory name of the part that holds exactly these media."""
    return f"{addresses[0][:8]}-{fingerprint(addresses)[:12]}"


def _tasks(plan: Mapping[str, Any], items: Mapping[str, Item], space: Space, work: Path) -> list[PartTask]:
    tasks = []
    for part in plan["parts"]:
        name = part_name(part)
        staging = work / "parts" / name
        tasks.append(PartTask(items=tuple(items[address] for address in part), entry=space.part(name), staging=staging, batch=plan["batch"]))
    return tasks


def _write_artifact(space: Space, modality: str, keys: Mapping[str, str], ctx: StepContext[object]) -> Mapping[str, Any]:
    """generation.json, rows.parquet (sorted by key) and, where media are left out, ledger.parquet, from what the store holds now. Returns the counts."""
    rows: list[dict[str, Any]] = []
    left: list[dict[str, Any]] = []
    for key, address in sorted(keys.items()):
        if address not in space.located and address in space.left_out:
            left.append({"key": key, "status": "failed", **dict(zip(("reason", "detail"), space.left_out[address], strict=True)), "attempts": 1})
            continue
        if address not in space.located:
            raise AnyloomError(f"the features of {key} vanished from {space.directory} while the step ran: run the same command again")
        rows.append({"key": key, "media_sha256": address, **dict(zip(("part", "offset", "length"), space.located[address], strict=True))})
    if left and not rows:
        raise AnyloomError(
            f"{ctx.name}: the encoder takes none of the {len(left)} samples; the first is {left[0]['key']}: {left[0]['reason']}: {left[0]['detail']}"
        )
    used = sorted({row["part"] for row in rows})
    entries = [{"path": space.part(name).relative_to(ctx.stores).as_posix(), "digest": space.records[name]["digest"]} for name in used]
    write_parquet(pa.Table.from_pylist(rows, ROWS_SCHEMA), ctx.output / "rows.parquet")
    generation = {"space": space.description, "modality": modality, "entries": entries}
    write_atomic(ctx.output / "generation.json", json.dumps(generation, indent=1, sort_keys=True))
    lengths = {row["media_sha256"]: row["length"] for row in rows}
    width = space.description["spec"]["width"]
    lost: dict[str, Any] = {}
    if left:
        write_parquet(pa.Table.from_pylist(left, LEDGER_SCHEMA), ctx.output / "ledger.parquet")
        lost = {"rows": len(keys), "failed": len(left), "reasons": dict(sorted(Counter(row["reason"] for row in left).items()))}
    return {**lost, "samples": len(rows), "media": len(lengths), "tokens": sum(lengths.values()), "parts": len(used), "width": width}
