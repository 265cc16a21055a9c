"""Held-out media: the distinct media of datasets, each with all its captions.

Owns which shards hold which modality. Input: a ShardSet and names of datasets. Output: Media, in the order of their first keys. Raises ValueError
where the shards do.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

SHARDS = {"image": "shards_cc3m", "video": "shards_webvid", "audio": "shards_audiocaps"}
"""modality -> input with its shards."""


@dataclass(frozen=True, slots=True)
class Media:
    """Distinct media of some datasets of one modality, sorted by the first key that carries each."""

    keys: list[str]
    """The first key of each medium."""
    sha256: list[str]
    captions: list[list[str]]
    """Distinct captions of each medium, of all its samples, sorted."""
    uris: list[str]
    """Where each medium's list found it."""


def where(media: Media, kept: Container[str]) -> Media:
    """Those of the media whose keys are among `kept`."""
    rows = [row for row in zip(media.keys, media.sha256, media.captions, media.uris, strict=True) if row[0] in kept]
    return Media(*([list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]))


def distinct_media(shards: Any, datasets: Sequence[str]) -> Media:
    """The media of datasets of one ShardSet; flagged duplicates add nothing and are left out."""
    captions: dict[str, set[str]] = {}
    first: dict[str, tuple[str, str]] = {}
    for meta in shards.metas(sorted(key for dataset in datasets for key in shards.keys(source=dataset))):
        sha256 = shards.media_sha(meta["key"])
        if sha256:
            first.setdefault(sha256, (meta["key"], next(str(medium["uri"]) for medium in meta["media"] if medium["role"] == "input")))
            captions.setdefault(sha256, set()).update(meta["texts"])
    return Media([key for key, _ in first.values()], list(first), [sorted(captions[sha256]) for sha256 in first], [uri for _, uri in first.values()])
