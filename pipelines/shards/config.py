"""Configs of the manifest and overlap steps, apart from their code so that planning loads no library."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from infra.secrets import shown_template
from infra.step import AnyloomError

GROUP_MODALITY = {"cc3m": "image", "webvid": "video", "audiocaps": "audio"}
"""Caption groups -> the modality their captions describe."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardsConfig:
    """How a manifest is cut into shards."""

    samples_per_shard: int = 500
    """Manifest rows per shard, by row number."""
    max_media_bytes: int = 256 * 2**20
    """Larger media are refused (too_large), in bytes."""
    fetch_timeout_s: float = 30.0
    """Total time of one download attempt, in seconds."""
    fetch_attempts: int = 3
    """Tries of a download that may pass another time (timeout, dns, http_5xx, HTTP 429, a body cut short)."""
    allow_private_addresses: bool = False
    """Also download from private and loopback addresses (an intranet mirror)."""
    max_lost: float = 0.5
    """Share of the rows that may be quarantined or have failed; a step that lost more fails, with the reasons."""
    media_roots: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """(dataset, directories) of datasets whose local media may also lie below these directories, absolute or relative to the list's. No medium is read from
    anywhere else."""

    def identity_fields(self) -> dict[str, Any]:
        """Every field, without media_roots where there are none."""
        named = {one.name: getattr(self, one.name) for one in fields(self)}
        return named if self.media_roots else {name: value for name, value in named.items() if name != "media_roots"}


FORMATS = ("cc3m", "webvid", "audiocaps", "instruct")

SPLITS = ("train", "heldout", "test")

DEFAULT_TEMPLATES = {"audiocaps": "media/audio/{youtube_id}.ogg"}
"""Where a format that names no files keeps them when a dataset says nothing else (the lists of smol and tiny do so)."""

DATASET_TEMPLATES = {"spoken_train": "media/spoken/{youtube_id}.wav"}
"""Datasets of the demo that keep them elsewhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetSpec:
    """One list file = one source."""

    name: str
    """The `source` of its samples; letters, digits and _ only, because it names keys, folders and files."""
    format: str
    """cc3m, webvid, audiocaps or instruct."""
    path: str
    """List file below the list root. A source of the step with the dataset's name takes its place."""
    split: str
    """train, heldout or test: all rows of the list."""
    licence: str
    media_template: str = field(default="", repr=False)
    """See ReadOptions.media_template; "": DEFAULT_TEMPLATES of the format, else the list's own uri column."""
    span_s: float = 0.0
    """See ReadOptions.span_s."""
    part: str = ""
    """`train` or `heldout`: only the rows of this half of the list; "": all of them."""
    heldout: float = 0.0
    """Share of the list's media in its held-out half."""

    def identity_fields(self) -> dict[str, Any]:
        """Every field, the half only where there is one; of a template that holds credentials only a digest says them."""
        named = {one.name: getattr(self, one.name) for one in fields(self)} | {"media_template": shown_template(self.media_template)}
        return named if self.part else {name: value for name, value in named.items() if name not in ("part", "heldout")}


@dataclass(frozen=True, kw_only=True, slots=True)
class ManifestConfig:
    """The datasets of one group."""

    datasets: tuple[DatasetSpec, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class OverlapConfig:
    """When two images count as the same."""

    max_bits: int = 2
    """Near-duplicate: 64-bit difference hashes at most this many bits apart ..."""
    max_colour: int = 24
    """... and no cell of an 8 x 8 grid whose mean red, green or blue differs by more than this (0-255)."""
    pairs_per_sample: int = 5
    """Pairs listed per held-out sample and training dataset (lowest keys first); all are counted."""


class NamedList(Protocol):
    """What a recipe's dataset and a manifest's have in common."""

    @property
    def name(self) -> str: ...
    @property
    def format(self) -> str: ...
    @property
    def split(self) -> str: ...


def check_datasets(datasets: Sequence[NamedList]) -> None:
    """Raises AnyloomError for a dataset whose name, format or split is none."""
    names = [dataset.name for dataset in datasets]
    for dataset in datasets:
        if not re.fullmatch(r"[A-Za-z0-9_]+", dataset.name):
            raise AnyloomError(f"dataset {dataset.name!r}: use letters, digits and _ only in its name")
        if names.count(dataset.name) > 1:
            raise AnyloomError(f"dataset {dataset.name!r} is listed {names.count(dataset.name)} times; names must differ")
        for field_name, value, allowed in (("format", dataset.format, FORMATS), ("split", dataset.split, SPLITS)):
            if value not in allowed:
                raise AnyloomError(f"datasets.{dataset.name}.{field_name} is {value!r}; it is one of {', '.join(allowed)}")
