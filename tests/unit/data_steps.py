"""Runs the data steps on generated media: shared by test_shards and test_embed."""

from __future__ import annotations

import importlib
import io
import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from infra.step import Artifact, Resources, StepContext
from infra.storage import digest_tree

MEDIUM = pa.struct([("role", pa.string()), ("modality", pa.string()), ("uri", pa.string()), ("start_s", pa.float64()), ("end_s", pa.float64())])
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("source", pa.string()),
        ("split", pa.string()),
        ("modality", pa.string()),
        ("media", pa.list_(MEDIUM)),
        ("texts", pa.list_(pa.string())),
        ("conversations", pa.string()),
        ("licence", pa.string()),
    ]
)


def png(seed: int, side: int = 24) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def wav(seed: int, seconds: float = 0.3) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16000)
        out.writeframes(np.random.default_rng(seed).integers(-9000, 9000, int(16000 * seconds), dtype=np.int16).tobytes())
    return buffer.getvalue()


def row(number: int, uri: str, *, source: str = "pets", modality: str = "image", text: str | None = None, **media: Any) -> dict[str, Any]:
    return {
        "key": f"{source}-{number:06d}",
        "source": source,
        "split": "train",
        "modality": modality,
        "licence": "MIT",
        "conversations": "[]",
        "media": [{"role": "input", "modality": modality, "uri": uri, "start_s": None, "end_s": None, **media}],
        "texts": [f"caption {number}" if text is None else text],
    }


def pictures(root: Path, count: int, source: str = "pets") -> list[dict[str, Any]]:
    """`count` pictures below root/lists and their manifest rows."""
    folder = root / "lists" / "media"
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{i}.png").write_bytes(png(i))
    return [row(i, f"media/{i}.png", source=source) for i in range(count)]


def write_manifest(root: Path, rows: list[dict[str, Any]], name: str = "manifest") -> None:
    (root / name).mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), root / name / "manifest.parquet")


def run_step(
    root: Path, name: str, entry: str, config: Any, inputs: dict[str, str], sources: dict[str, Path] | None = None, **resources: Any
) -> dict[str, Any]:
    """Run one step below `root`; inputs: name -> directory below root; sources: files of the user's. The work directory stays, as after a kill."""
    output = root / name
    output.mkdir()
    (root / "work" / name).mkdir(parents=True, exist_ok=True)
    module, function = entry.split(":")
    artifacts = {key: Artifact(name=key, path=root / value, fingerprint="f", digest="d", result={}) for key, value in inputs.items()}
    ctx = StepContext(
        name=name,
        config=config,
        inputs=artifacts,
        sources=sources or {},
        output=output,
        work=root / "work" / name,
        stores=root / "stores",
        resources=Resources(**{"use_ray": False, **resources}),
    )
    return dict(getattr(importlib.import_module(module), function)(ctx))


def tree(root: Path, *names: str) -> dict[str, str]:
    """Digests of artifacts and of the whole store, records included."""
    return {name: digest_tree(root / name) for name in names} | {"stores": digest_tree(root / "stores", skip=())}


def pinned(root: Path, name: str) -> list[str]:
    return [entry["path"] for entry in json.loads((root / name / "generation.json").read_text())["entries"]]
