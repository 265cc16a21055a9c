"""The report's section of what models made: images, videos and audio, each with its prompt, failures included.

Input: the newest run whose evaluations kept media (its samples.parquet have `prompt` and `file` or `sound`, or it has grids). Output: HTML. The media are a
seeded draw of the requests, including those that got nothing; the page says how many are left out.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from evals.history.reader import History, Run
from evals.pages.history.diff import cut
from evals.pages.history.media import Room, artifacts_of, small
from evals.pages.page import paragraph, section

MOST_OF_KIND, MOST = 8, 48
LOOKED_AT = 50
"""Newest runs that are looked through for media."""
MAX_GRID_BYTES = 600_000
"""A larger grid of images is named, not put into the page."""
GRIDS = {"eval_drawing": ("asked_new_wording.png",), "eval_pictures": ("new_wording.png",)}
"""Steps that keep every draw of a condition in one image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """One request and what came of it."""

    kind: str
    """Heading it stands under."""
    prompt: str
    file: Path | None
    """None: nothing was made."""
    said: str
    """What the model said in words."""
    seen: str
    """What a judge saw or heard."""
    broken: str
    """What was wrong with signal tokens that made nothing."""
    right: float | None


def gallery_section(history: History, root: Path, seed: int) -> str:
    """The section; "" where no run has kept anything."""
    for run in history.runs[:LOOKED_AT]:
        artifacts = list(artifacts_of(root, run))
        made = [one for _, directory, _ in artifacts for one in made_in(directory)]
        grids = "".join(_grid(directory / file, name) for name, directory, _ in artifacts for file in GRIDS.get(name, ()) if (directory / file).is_file())
        if made or grids:
            return _section(run, made, grids, seed)
    return ""


def made_in(directory: Path) -> list[Made]:
    """The requests of an evaluation that keeps media; none for any other artifact."""
    path = directory / "samples.parquet"
    if not path.is_file():
        return []
    columns = set(pq.read_schema(path).names)
    if {"prompt", "file"} <= columns:
        return [_generated(directory, row) for row in pq.read_table(path).to_pylist()]
    if {"prompt", "sound"} <= columns:  # only some of its audio is kept, as a seeded draw
        return [_spoken(directory, row) for row in pq.read_table(path).to_pylist() if row["sound"]]
    return []


def _generated(directory: Path, row: dict[str, Any]) -> Made:
    kind = ", ".join(str(row[name]) for name in ("modality", "suite", "how") if row.get(name))
    said, seen, broken = (row.get(name) or "" for name in ("text", "seen", "broken"))
    return Made(kind=kind, prompt=row["prompt"], file=_inside(directory, row["file"]), said=said, seen=seen, broken=broken, right=row.get("right"))


def _spoken(directory: Path, row: dict[str, Any]) -> Made:
    kind = f"audio, {row.get('made_as', '')}"
    file, seen = _inside(directory, row["sound"]), row.get("heard") or ""
    return Made(kind=kind, prompt=row["prompt"], file=file, said="", seen=seen, broken="", right=row.get("both"))


def _inside(directory: Path, name: str | None) -> Path | None:
    path = (directory / name).resolve() if name else None
    return path if path and path.is_relative_to(directory.resolve()) else None


def drawn(made: Sequence[Made], count: int, seed: int) -> list[Made]:
    """A seeded draw of `count` requests in their order; the same whatever else is in the history."""
    order = sorted(range(len(made)), key=lambda place: sha256(f"{seed} {place} {made[place].prompt}".encode()).hexdigest())
    return [made[place] for place in sorted(order[:count])]


def _section(run: Run, made: Sequence[Made], grids: str, seed: int) -> str:
    kinds = sorted({one.kind for one in made})
    each = max(1, min(MOST_OF_KIND, MOST // max(1, len(kinds))))
    parts, room = [], Room()
    for kind in kinds:
        of_kind = [one for one in made if one.kind == kind]
        cards = [_card(one, room) for one in drawn(of_kind, each, seed)]
        left = len(of_kind) - len(cards)
        text = f"{kind}: {len(cards)} of {len(of_kind):,}" + (f", {left:,} left out" if left else "")
        parts.append(f'<h3>{escape(text)}</h3><div class="cards">{"".join(cards)}</div>')
    text = f"What the model of {run.name} ({run.run_id}) made when it was asked to."
    if parts:
        text += f" Cards: drawn at random with seed {seed}, not chosen by hand; requests that got nothing count."
    return section("Gallery of what was made", paragraph(text, "soft"), *parts, grids, name="gallery")


def _card(one: Made, room: Room) -> str:
    if one.file is None:
        shown = '<p class="noimage soft">nothing was made</p>'
    elif not one.file.is_file():
        shown = '<p class="noimage soft">its file is gone</p>'
    else:
        shown = room.take(small(one.file.read_bytes(), f"made for: {one.prompt}"))
    lines = [f'<span class="soft">{name}: {cut(text)}</span>' for name, text in (("said", one.said), ("judged as", one.seen), ("broken", one.broken)) if text]
    if one.right is not None:
        lines.append('<span class="ok">✓ right</span>' if one.right >= 1 else '<span class="no">✗ wrong</span>')
    return f'<article class="card">{shown}<div><b>{cut(one.prompt)}</b>{"<br>".join(lines)}</div></article>'


def _grid(path: Path, name: str) -> str:
    label = f"{name}: every draw of {path.stem.replace('_', ' ')}, green where it is right"
    if path.stat().st_size > MAX_GRID_BYTES:
        return paragraph(f"{label}: {path.stat().st_size / 1e6:.1f} MB, too large for this page", "small")
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<figure><img class="sheet" alt="{escape(label)}" src="data:image/png;base64,{data}"><figcaption class="soft">{escape(label)}</figcaption></figure>'
