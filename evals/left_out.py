"""Left out: what an evaluation cannot ask or score of its data sets, as the ledgers of shards and of features say.

Input: the artifacts that an evaluation reads. Output: what they left out, as mmcore.stores.left_out sums it up. Raises AnyloomError where more is left out than
a step allows.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from infra.step import AnyloomError, Artifact
from mmcore.stores.left_out import NO_FEATURES, LeftOut, too_many


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


def check_left_out(left: Sequence[LeftOut], total: int, allowed: float, what: str) -> None:
    """Raises AnyloomError when a larger share than `allowed` is left out."""
    problem = too_many(left, total, allowed, what)
    if problem:
        raise AnyloomError(problem)
