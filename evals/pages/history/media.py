"""History media: the images that a run's questions are about, and small previews of them for a page.

Owns the way from a sample's `image` to its bytes: the evaluation's own task file (named there, or known by its sha256), else the shards it read, of older
evaluations the lists.
Input: the root of artifacts and a run. Output: bytes, HTML. Nothing outside the artifacts is read; what is gone is None, never an error.
"""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Iterable, Iterator
from hashlib import sha256
from html import escape
from pathlib import Path

from evals.history.reader import Run
from evals.pages.gallery import Shown, preview
from infra.artifact import ArtifactRecord, read_record
from infra.step import AnyloomError
from mmcore.media.decode import MediaError, NoTrackError, decode_image, decode_video_frames, sniff
from mmcore.stores.shards import ShardSet

SIDE = 160
"""Longest side of a thumbnail in pixels."""
MAX_PNG_BYTES = 16_000
"""A thumbnail that is larger as PNG becomes a JPEG."""
MAX_MEDIA_BYTES = 4_000_000
"""HTML of media that one section may take; audio counts most."""


class Room:
    """How much media a section may still take."""

    def __init__(self, left: int = MAX_MEDIA_BYTES):
        self.left = left

    def take(self, html: str) -> str:
        """The medium, or a line that says why it is not there."""
        if len(html) > self.left:
            return '<p class="noimage soft">left out: the page would become too large</p>'
        self.left -= len(html)
        return html


def artifacts_of(root: Path, run: Run) -> Iterator[tuple[str, Path, ArtifactRecord]]:
    """(input name, directory, record) of what the run was made from, as far as it is still there, by name."""
    for name, reference in sorted(run.inputs.items()):
        directory = _below(root / "artifacts", reference)
        record = read_record(directory) if directory else None
        if directory and record:
            yield name, directory, record


def images_of(root: Path, run: Run, task: str, wanted: Iterable[str]) -> dict[str, bytes]:
    """The files behind `image` of samples of one task; what cannot be found is left out."""
    names = {name for name in wanted if name}
    found: dict[str, bytes] = {}
    for name, directory, record in artifacts_of(root, run):
        if task not in (record.result.get("lmms_task"), name.removeprefix("eval_")):
            continue
        for file in sorted((directory / "task").glob("*.parquet")):
            found |= _in_parquet(file, names - set(found))
        for shards in (_below(root / "artifacts", of) for name, of in sorted(record.inputs.items()) if name.startswith("shards_")):
            found |= _in_shards(shards, root / "stores", names - set(found)) if shards else {}
        lists = record.inputs.get("lists")
        base = _below(root / "artifacts", lists) if lists else None
        for image in sorted(names - set(found)) if base else ():
            path = _below(base, image)  # type: ignore[arg-type]
            if path and path.is_file():
                found[image] = path.read_bytes()
    return found


def _in_shards(generation: Path, stores: Path, names: set[str]) -> dict[str, bytes]:
    """Media of samples that are no training samples and are called so in their list."""
    if not names or not (generation / "index.parquet").is_file():
        return {}
    found: dict[str, bytes] = {}
    try:
        shards = ShardSet(generation, stores)
        for split in sorted(set(shards.index.column("split").to_pylist()) - {"train"}):
            for meta in shards.metas(shards.keys(split=split)):
                uri = next((medium["uri"] for medium in meta["media"] if medium["role"] == "input"), "")
                if uri in names and uri not in found:
                    found[uri] = shards.media(meta["key"])
    except AnyloomError as error:
        logging.getLogger(__name__).warning("images of %s cannot be shown: %s", generation, error)
    return found


def _below(base: Path, relative: str) -> Path | None:
    path = (base / relative).resolve()
    return path if path.is_relative_to(base.resolve()) else None


def _in_parquet(file: Path, names: set[str]) -> dict[str, bytes]:
    """Cells of the column `image` that are called so, or have this sha256."""
    import pyarrow.parquet as pq

    if not names or "image" not in pq.read_schema(file).names:
        return {}
    found: dict[str, bytes] = {}
    for batch in pq.ParquetFile(file).iter_batches(batch_size=256, columns=["image"]):
        for cell in batch.column(0).to_pylist():
            if isinstance(cell, dict) and cell.get("bytes"):
                for called in names & {cell.get("path"), sha256(cell["bytes"]).hexdigest()}:
                    found.setdefault(called, cell["bytes"])
        if len(found) == len(names):
            break
    return found


def small(data: bytes | None, alt: str) -> str:
    """A medium as HTML: a thumbnail, a few frames, a player; or one line that says why there is none."""
    if data is None:
        return '<p class="noimage soft">its image is not kept with the evaluation</p>'
    try:
        kinds = sniff(data)[1]
        if kinds == ("image",):
            return thumbnail(data, alt)
        return preview(Shown(key="", modality="video" if "video" in kinds and _has_frames(data) else "audio", caption=alt, score=0.0, data=data))
    except MediaError as error:
        return f'<p class="noimage soft">cannot be shown ({escape(str(error))})</p>'


def thumbnail(data: bytes, alt: str) -> str:
    """An image element of at most SIDE pixels. Raises MediaError for what is not an image."""
    image = decode_image(data)
    image.thumbnail((SIDE, SIDE))
    buffer, kind = io.BytesIO(), "png"
    image.save(buffer, "PNG", optimize=True)
    if buffer.tell() > MAX_PNG_BYTES:
        buffer, kind = io.BytesIO(), "jpeg"
        image.save(buffer, "JPEG", quality=85)
    return f'<img alt="{escape(alt)}" src="data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _has_frames(data: bytes) -> bool:

    try:
        return bool(decode_video_frames(data, 1))
    except NoTrackError:
        return False
