"""A root with a toy history for the history's page: nights of drawn shapes, their pictures, what was made, comparisons. Every number is made up, seeded."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw
from toy_history import FIRST_NIGHT, TASK

from evals.history import database as history
from evals.history.records import annotate, append_change_points, append_comparisons
from evals.history.tables import file_of, rows_table
from evals.statistics.intervals import paired_interval
from infra.artifact import ArtifactRecord, Provenance
from infra.fingerprint import fingerprint

SHAPES, COLOURS = ("circle", "square", "triangle"), ("red", "green", "blue", "orange")
QUESTIONS = 160
HOSTILE = "<img src=x onerror=\"document.title='broken into'\"><script>document.title='broken into'</script>&amp;"
"""What a model may answer."""


def artifact(root: Path, name: str, result: Mapping[str, Any] | None = None, inputs: Mapping[str, str] | None = None) -> tuple[Path, str]:
    """A complete artifact with nothing in it: (directory, step/fingerprint12)."""
    payload = {"name": name, "result": dict(result or {}), "inputs": dict(inputs or {})}
    identity = fingerprint(payload)
    directory = root / "artifacts" / name / identity[:12]
    directory.mkdir(parents=True, exist_ok=True)
    made = Provenance(finished="2026-11-01T02:00:00+00:00", seconds=1.0, commit="toy", packages={}, device="none", threads=1)
    record = ArtifactRecord(
        name=name, fingerprint=identity, payload=payload, inputs=dict(inputs or {}), digest="d", bytes=0, result=dict(result or {}), provenance=made
    )
    (directory / "artifact.json").write_text(record.model_dump_json())
    return directory, f"{name}/{directory.name}"


def drawing(shape: str, colour: str, side: int = 64, at: tuple[int, int] = (14, 16)) -> bytes:
    """A PNG of one shape."""
    picture = Image.new("RGB", (side, side), (238, 238, 232))
    pen, (x, y) = ImageDraw.Draw(picture), at
    box = (x, y, x + side // 2, y + side // 2)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.polygon([(box[0], box[3]), (box[2], box[3]), ((box[0] + box[2]) // 2, box[1])], fill=colour)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def asked() -> list[dict[str, str]]:
    """The questions: two about each picture."""
    rng, rows = np.random.default_rng(0), []
    for i in range(QUESTIONS // 2):
        shape, colour = SHAPES[rng.integers(3)], COLOURS[rng.integers(4)]
        same = {"picture": f"media/{i:03d}.png", "shape": shape, "colour": colour}
        rows.append(same | {"question": "what shape is in the picture?", "answer_type": "shape", "target": shape})
        other = COLOURS[rng.integers(4)]
        rows.append(same | {"question": f"is it {other}?", "answer_type": "yes/no", "target": "yes" if other == colour else "no"})
    return [row | {"doc_key": f"toy-{i:03d}"} for i, row in enumerate(rows)]


def evaluation(root: Path, questions: Sequence[Mapping[str, str]]) -> str:
    """The artifact of an evaluation that keeps its pictures in its task file."""
    directory, reference = artifact(root, "eval_vqa", {"lmms_task": TASK})
    if (directory / "task").exists():
        return reference
    cells = {row["picture"]: {"path": row["picture"], "bytes": drawing(row["shape"], row["colour"])} for row in questions}
    (directory / "task").mkdir()
    pq.write_table(pa.table({"image": list(cells.values())}), directory / "task" / f"{TASK}.parquet")
    return reference


def generation(root: Path) -> str:
    """The artifact of an evaluation that keeps what was made; some requests got nothing."""
    directory, reference = artifact(root, "eval_generation")
    if (directory / "media").exists():
        return reference
    (directory / "media").mkdir()
    rng, rows = np.random.default_rng(1), []
    for i in range(20):
        shape, colour = SHAPES[i % 3], COLOURS[i % 4]
        seen = shape if rng.random() < 0.7 else SHAPES[rng.integers(3)]
        name = f"media/{i:02d}.png" if i % 6 else ""
        if name:
            (directory / name).write_bytes(drawing(seen, colour, 48, (8, 10)))
        rows.append({"modality": "image", "suite": "concepts", "how": "asked", "prompt": f"draw a {colour} {shape}", "file": name, "text": "here it is"})
        right = float(bool(name) and seen == shape)
        rows[-1] |= {"seen": f"{colour} {seen}" if name else "", "broken": "" if name else "only 3 of 4 signal tokens", "right": right}
    pq.write_table(pa.Table.from_pylist(rows), directory / "samples.parquet")
    return reference


def night(root: Path, number: int, accuracy: float, *, recipe: str = "toy", seed: int = 0, changed: str = "aaaa", hostile: bool = False) -> dict[str, pa.Table]:
    """One run: answers right with probability `accuracy`, the same luck every night but for a little; two conditions and two floors."""
    questions, run_id = asked(), f"{recipe}{seed}night{number:02d}"
    luck, shift = np.random.default_rng(7), np.random.default_rng(1000 * seed + number)
    common, own = luck.random(len(questions)), shift.random(len(questions))
    right = np.where(own < 0.15, own / 0.15, common) < accuracy
    same = {"run_id": run_id, "task": TASK, "history_fingerprint": changed, "condition": "helped"}
    samples = []
    for i, row in enumerate(questions):
        wrong = "no" if row["target"] == "yes" else "yes" if row["target"] == "no" else SHAPES[(SHAPES.index(row["target"]) + 1) % 3]
        said = row["target"] if right[i] else HOSTILE if hostile and i % 9 == 0 else wrong
        kept = {name: row[name] for name in ("doc_key", "question", "answer_type", "target")} | {"image": row["picture"]}
        samples.append(same | kept | {"cluster": row["picture"], "prediction": said, "score": float(right[i]), "num_tokens": 2})
    inputs = {"eval_vqa": evaluation(root, questions)} | ({"eval_generation": generation(root)} if number % 2 == 0 else {})
    run = {"run_id": run_id, "recipe": recipe, "seeds": f"stage1={seed}, stage3={seed}", "model_id": f"model-{run_id}", "harness": "lmms-eval 0.7.3"}
    run |= {"evaluated": FIRST_NIGHT + timedelta(days=number, minutes=seed), "inputs": json.dumps(inputs), "git_commit": "toy"}
    steps = range(0, 400, 2)
    losses = [2.4 * np.exp(-s / (90 + 8 * number)) + 0.5 + 0.1 * shift.random() for s in steps]
    return {
        "run": rows_table("run", [run]),
        "task": rows_table("task", [{"history_fingerprint": changed, "task": TASK, "harness": "lmms-eval 0.7.3"}]),
        "model": rows_table("model", [{"model_id": run["model_id"], "name": recipe}]),
        "metric": rows_table("metric", _metrics(same, samples)),
        "sample": rows_table("sample", samples),
        "train_metrics": rows_table(
            "train_metrics",
            [
                {"run_id": run_id, "stage": "stage3", "step": s, "loss": v, "parts": json.dumps({"tokens_image": v, "tokens_text": 0.25, "captions": 9.0})}
                for s, v in zip(steps, losses, strict=True)
            ],
        ),
    }


def _metrics(same: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for subgroup in ("all", "shape", "yes/no"):
        values = [row["score"] for row in samples if subgroup in ("all", row["answer_type"])]
        n, value = len(values), float(np.mean(values))
        for condition, kind, score in (("helped", "score", value), ("blank", "score", 0.45), ("always_yes", "floor", 0.2), ("blind_majority", "floor", 0.42)):
            half = 1.96 * np.sqrt(score * (1 - score) / n)
            named = {"condition": condition, "metric": "exact_match", "subgroup": subgroup, "kind": kind, "higher_is_better": True}
            rows.append({**same, **named, "value": score, "ci_lo": score - half, "ci_hi": score + half, "stderr": half / 1.96, "n": n, "clusters": n // 2})
    return rows


def _compared(stores: Path, before: str, after: str, subgroup: str, nights: int) -> dict[str, Any]:
    """A comparison of two nights on the same questions."""
    first, second = (
        [row for row in pq.read_table(file_of(stores, "sample", run)).to_pylist() if subgroup in ("all", row["answer_type"])] for run in (before, after)
    )
    a, b = ([row["score"] for row in rows] for rows in (first, second))
    found = paired_interval(b, a, [row["cluster"] for row in first], draws=500)
    up, down = (sum(y - x == sign for x, y in zip(a, b, strict=True)) for sign in (1, -1))
    p = min(1.0, 2 * sum(math.comb(up + down, k) for k in range(min(up, down) + 1)) / 2 ** (up + down))
    values = {"value_a": float(np.mean(a)), "value_b": float(np.mean(b)), "delta": found.value, "ci_lo": found.ci_lo, "ci_hi": found.ci_hi, "p": p}
    counts = {"n_paired": found.n, "clusters": found.clusters, "flips_up": up, "flips_down": down, "detectable": 2.8 * found.stderr}
    more = {"p_adjusted": p, "test": "mcnemar", "made": FIRST_NIGHT + timedelta(days=nights)}
    return {"run_a": before, "run_b": after, "subgroup": subgroup} | values | counts | more


def toy_root(root: Path, nights: int = 12, *, hostile: bool = True) -> Path:
    """Nights of one recipe with a drop, an annotation and a new fingerprint, a peer on three seeds, a comparison; returns the database."""
    stores = root / "stores"
    for number in range(nights):
        accuracy = 0.86 if number < nights - 4 else 0.78 if number < nights - 1 else 0.7
        run = night(root, number, accuracy, changed="aaaa" if number >= 2 else "0ldf", hostile=hostile and number == nights - 1)
        history.append(stores, run["run"]["run_id"][0].as_py(), run)
    for seed in range(3):
        run = night(root, nights - 3, 0.7 + 0.04 * seed, recipe="peer", seed=seed)
        history.append(stores, run["run"]["run_id"][0].as_py(), run)
    annotate(stores, at=FIRST_NIGHT + timedelta(days=5, hours=3), text="new data list <b>v2</b>", recipe="toy", author="me")
    same = {"task": TASK, "condition": "helped", "metric": "exact_match", "history_fingerprint": "aaaa"}
    before, after = f"toy0night{nights - 2:02d}", f"toy0night{nights - 1:02d}"
    append_comparisons(stores, [same | _compared(stores, before, after, subgroup, nights) for subgroup in ("all", "shape", "yes/no")])
    change = {"series_id": "toy", "recipe": "toy", "run_before": f"toy0night{nights - 5:02d}", "run_at": f"toy0night{nights - 4:02d}", "subgroup": "all"}
    change |= {"at": FIRST_NIGHT + timedelta(days=nights - 4), "before": 0.85, "after": 0.72, "delta": -0.13, "p": 0.0004}
    append_change_points(stores, [same | change])
    history.rebuild(stores, history.database_path(stores))
    return history.database_path(stores)
