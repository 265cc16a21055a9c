"""Left out: what an evaluation cannot ask or score of its data sets, each with its reason.

Owns how it is told and how much of it there may be. Input: the ledgers of shards and of features, and what an evaluation finds itself. Output: lines for
`left_out` in a step's result. Raises AnyloomError where more is left out than a step allows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.step import AnyloomError, Artifact

NO_FEATURES = "no_features"


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """One record, medium or caption that is left out."""

    key: str
    """Sample key, or the caption itself."""
    reason: str
    """One word."""
    detail: str


def unwritten(shards: Path, source: str) -> list[LeftOut]:
    """The records of a data set that a generation of shards does not hold, from its ledger."""
    rows = _ledger(shards)
    return [LeftOut(**row) for row in rows if row["key"].rpartition("-")[0] == source]


def without_features(embedded: Path, keys: Sequence[str], there: Container[str]) -> tuple[list[str], list[LeftOut]]:
    """(the keys that have features, what is left out). embedded: directory of the embed artifact, whose ledger says why; there: its features by key."""
    missing = [key for key in keys if key not in there]
    if not missing:
        return list(keys), []
    why = _by_key(embedded)
    unknown = f"{embedded.parent.name} has no features of it"
    return [key for key in keys if key in there], [why.get(key) or LeftOut(key=key, reason=NO_FEATURES, detail=unknown) for key in missing]


def not_encoded(inputs: Mapping[str, Artifact], modality: str) -> dict[str, LeftOut]:
    """Sample key -> why the encoder of a modality cannot take its medium, from `embed_<modality>` where that is an input."""
    name = f"embed_{modality}"
    return _by_key(inputs[name].path) if name in inputs else {}


def _by_key(artifact: Path) -> dict[str, LeftOut]:
    return {row["key"]: LeftOut(**row) for row in _ledger(artifact)}


def _ledger(artifact: Path) -> list[dict[str, str]]:
    """key, reason and detail of every row that is not written; [] for an artifact without a ledger."""
    import pyarrow.parquet as pq

    path = artifact / "ledger.parquet"
    if not path.is_file():
        return []
    rows = pq.read_table(path, columns=["key", "status", "reason", "detail"]).to_pylist()
    return [{name: row[name] for name in ("key", "reason", "detail")} for row in rows if row["status"] != "written"]


def told(left: Sequence[LeftOut], total: int, what: str) -> list[str]:
    """A line that says how many of `total` are left out, why, and which is the first; none where nothing is. what: `records of easyvqa_test are not asked`."""
    if not left:
        return []
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(Counter(one.reason for one in left).items()))
    return [f"{len(left)} of {total} {what} ({reasons}), the first is {left[0].key}: {left[0].detail}"]


def check_left_out(left: Sequence[LeftOut], total: int, allowed: float, what: str) -> None:
    """Raises AnyloomError when a larger share than `allowed` is left out, or `allowed` is no share."""
    if not 0 <= allowed <= 1:
        raise AnyloomError(f"max_lost is {allowed}: it is a share, from 0 to 1")
    if len(left) > allowed * total:
        raise AnyloomError(f"{told(left, total, what)[0]}; these are more than max_lost {allowed:g} of them: mend the list, or set max_lost")
