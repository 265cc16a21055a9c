"""Runs the data steps on generated media: shared by test_shards and test_embed."""

from __future__ import annotations

import importlib
import io
import json
import wave
from fractions import Fraction
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


def mp4(pictures: list[Image.Image], hz: int = 12, sound: np.ndarray | None = None, codec: str = "aac", layout: str = "mono", delay_s: float = 0.0) -> bytes:
    """H.264, with a sound of float32 [channels, samples] at 16 kHz that starts `delay_s` later."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        video = out.add_stream("libx264", rate=hz, options={"crf": "18", "preset": "veryfast"})
        video.width, video.height, video.pix_fmt = *pictures[0].size, "yuv420p"
        track = out.add_stream(codec, rate=16000, layout=layout) if sound is not None else None
        for picture in pictures:
            out.mux(video.encode(av.VideoFrame.from_image(picture)))
        out.mux(video.encode())
        if track is not None:
            for start in range(0, sound.shape[1], 1024):
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[:, start : start + 1024]), format="fltp", layout=layout)
                frame.sample_rate, frame.pts, frame.time_base = 16000, start + round(delay_s * 16000), Fraction(1, 16000)
                out.mux(track.encode(frame))
            out.mux(track.encode())
    return buffer.getvalue()


def tone(seconds: float, hz: float = 440.0) -> np.ndarray:
    """float32 [1, samples] at 16 kHz, amplitude 0.5."""
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(16000 * seconds)) / 16000)).astype(np.float32)[None]


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
    root: Path, name: str, entry: str, config: Any, inputs: dict[str, str], sources: dict[str, Path] | None = None, force: bool = False, **resources: Any
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
        force=force,
    )
    return dict(getattr(importlib.import_module(module), function)(ctx))


def flip(path: Path, at: int = -1, bit: int = 0) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def tree(root: Path, *names: str) -> dict[str, str]:
    """Digests of artifacts and of the whole store, records included."""
    return {name: digest_tree(root / name) for name in names} | {"stores": digest_tree(root / "stores", skip=())}


def pinned(root: Path, name: str) -> list[str]:
    return [entry["path"] for entry in json.loads((root / name / "generation.json").read_text())["entries"]]
