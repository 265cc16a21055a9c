"""Space: one encoder's place in the embedding store, and what is in it.

Owns the address of a space (encoder, preprocessing, weights, stored type), the addresses of media in it, and the list of committed parts. Input: a
spec and a weights digest; output: where every medium's rows are. A part whose record or index is damaged locates nothing; it is listed as damaged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from infra.artifact import all_records
from infra.entries import damage, intact, pins, read_entry
from infra.fingerprint import canonical_json, fingerprint, to_plain
from infra.step import AnyloomError
from infra.storage import read_json, set_aside, write_atomic
from mmcore.encoder_config import EncoderConfig
from mmcore.stores.embeddings import PART_SCHEMA, space_fields
from mmcore.stores.features import FORMATS
from pipelines.embed.worker import LEFT_OUT

SPACES = "embeddings"
"""Directory of the spaces below the stores."""


class Space:
    """A directory `embeddings/<hash of the space>` with space.json and parts/."""

    def __init__(self, directory: Path, description: dict[str, Any]):
        self.directory, self.description = directory, description
        self.located: dict[str, tuple[str, int, int]] = {}
        """address -> (part, offset, length). A medium that two builds encoded at the same time counts in the first part by name."""
        self.records: dict[str, dict[str, Any]] = {}
        """Committed parts by name -> their record."""
        self.left_out: dict[str, tuple[str, str]] = {}
        """address -> (reason, detail) of media that the encoder cannot take."""
        self.damaged: dict[str, str] = {}
        """Parts that cannot be read by name -> why."""

    @classmethod
    def of(cls, spec: EncoderConfig, weights_digest: str, stores: Path) -> Space:
        """The space of an encoder with these weights; its description is written when it is new."""
        description = {"spec": to_plain(space_fields(spec)), "weights": weights_digest}
        if spec.dtype in FORMATS:
            description["format"] = FORMATS[spec.dtype]
        directory = stores / SPACES / fingerprint(description)[:12]
        described = directory / "space.json"
        if not described.is_file() or described.read_bytes() != canonical_json(description).encode():
            write_atomic(described, canonical_json(description))
        return cls(directory, description).refreshed()

    @classmethod
    def all(cls, stores: Path) -> Iterator[Space]:
        """Every space of the store, sorted by name. Raises AnyloomError for one whose description is damaged, naming the step that writes it again."""
        for path in sorted((stores / SPACES).glob("*/space.json")):
            try:
                description, why = read_json(path), "it describes another space"
            except AnyloomError:
                description, why = None, "it is not JSON"
            if not isinstance(description, dict) or fingerprint(description)[:12] != path.parent.name:
                step = _embeds_in(path.parent, stores)
                raise AnyloomError(f"{path} is damaged ({why}): run {step} again with --force {step}")
            yield cls(path.parent, description).refreshed()

    def refreshed(self) -> Space:
        """Read the committed parts that are not known yet; returns itself."""
        names = sorted(path.name for path in (self.directory / "parts").glob("*") if not path.name.startswith("."))
        for name in names:
            if name in self.records:
                continue
            self.damaged.pop(name, None)
            try:
                record = read_entry(self.part(name))
                rows = intact(self.part(name), "rows.parquet") if record is not None else None
                left = read_json(intact(self.part(name), LEFT_OUT)) if record is not None and (self.part(name) / LEFT_OUT).exists() else {}
            except AnyloomError as error:
                self.damaged[name] = str(error)
                continue
            if record is not None:
                self.records[name] = record
                self.left_out |= {address: (reason, detail) for address, (reason, detail) in left.items()}
                columns = pq.read_table(rows, schema=PART_SCHEMA).to_pydict()
                for address, offset, length in zip(columns["media_sha256"], columns["offset"], columns["length"], strict=True):
                    self.located[address] = min(self.located.get(address, (name, offset, length)), (name, offset, length))
        return self

    def without_damage(self) -> Space:
        """Look at every byte of every part, remove the parts that are damaged or hold nothing but what was left out, and read what is left. Their media are
        located nowhere then."""
        for name in [*self.records, *self.damaged]:
            if self.records.get(name, {}).get("items") == 0 or damage(self.part(name)):
                set_aside(self.part(name))
        return Space(self.directory, self.description).refreshed()

    def part(self, name: str) -> Path:
        """Where the part called `name` lives."""
        return self.directory / "parts" / name


def _embeds_in(space: Path, stores: Path) -> str:
    """The newest step whose artifact pins parts of a space."""
    below = f"{space.relative_to(stores).as_posix()}/"
    return next((record.name for path, record in reversed(all_records(stores.parent)) if any(pin.path.startswith(below) for pin in pins(path))), "STEP")


def span_address(sha256: str, start_s: float | None, end_s: float | None) -> str:
    """What a medium, or a span of it in seconds, is called in a space."""
    if start_s is None and end_s is None:
        return sha256
    return f"{sha256}@{start_s or 0.0:.3f}-" + ("" if end_s is None else f"{end_s:.3f}")


def text_sha256(text: str) -> str:
    """The address of a text's features."""
    return hashlib.sha256(text.encode()).hexdigest()
