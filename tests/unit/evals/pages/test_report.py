"""Report: self-contained, deterministic, tolerant of absent inputs, overlap before any held-out number."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from evals.captions.alignment import alignment_metrics
from evals.captions.captions import caption_metrics
from evals.config import AlignmentEvalConfig, CaptionEvalConfig, EvalConfig, ReportConfig
from evals.pages.charts import nice_ticks
from evals.pages.run import report
from evals.questions.lists import QuestionRow, write_vqav2_parquet
from evals.questions.vqa import floor_scores, metric_rows
from evals.tables import METRICS, VQA_SAMPLES, write_table
from infra.step import Artifact, StepContext
from mmcore.config import InputProjectorSpec, ModelSpec, OutputProjectorSpec

MODEL = ModelSpec(encoders=(), input_projector=InputProjectorSpec(), output_projector=OutputProjectorSpec())


def _artifact(root: Path, name: str, result: dict | None = None) -> Artifact:
    path = root / "artifacts" / name / "0123456789ab"
    path.mkdir(parents=True)
    return Artifact(name=name, path=path, fingerprint="0123456789ab" + "0" * 52, digest="d" * 64, result=result or {})


def _vqa(root: Path) -> Artifact:
    artifact = _artifact(root, "eval_vqa", {"lmms_task": "easyvqa_as_vqav2", "harness": "lmms-eval 0.7.3", "questions": 40})
    questions = [
        QuestionRow(
            doc_key=f"t-{i}#0",
            question_id=i,
            image_id=i,
            image=f"media/{i % 8}.png",
            question="<b>is it red?</b>",
            answer=("yes", "no", "red", "circle")[i % 4],
        )
        for i in range(40)
    ]
    rows = {
        condition: [
            {
                "run_condition": condition,
                "doc_key": q.doc_key,
                "question_id": q.question_id,
                "picture": q.image,
                "question": q.question,
                "answer_type": ("yes/no", "yes/no", "colour", "shape")[i % 4],
                "target": q.answer,
                "prediction": q.answer if i % every else "no",
                "caption": "a <i>circle</i>",
                "score": float(i % every != 0 or q.answer == "no"),
                "num_tokens": 2,
            }
            for i, q in enumerate(questions)
        ]
        for condition, every in (("helped", 9), ("plain_prompt", 4), ("blank", 2), ("shuffled", 2))
    }
    write_table(artifact.path / "samples.parquet", [row for each in rows.values() for row in each], VQA_SAMPLES)
    write_table(artifact.path / "metrics.parquet", metric_rows(rows, floor_scores(questions, questions), EvalConfig(bootstrap_draws=100)), METRICS)
    write_vqav2_parquet(questions, _image, artifact.path / "task" / "easyvqa_as_vqav2.parquet")
    return artifact


def _image(key: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (30 * (int(key.rpartition("-")[2]) % 8), 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def _inputs(root: Path) -> dict[str, Artifact]:
    rng = np.random.default_rng(0)
    overlap = _artifact(root, "overlap")
    pairs = [{"train": "a", "heldout": "b", "train_pictures": 9, "heldout_pictures": 8, "exact": 2, "near": 1}]
    (overlap.path / "overlap.json").write_text(json.dumps({"pairs": pairs, "meaning": "exact: same bytes"}))
    captions, alignment, stage = _artifact(root, "eval_captions"), _artifact(root, "eval_alignment"), _artifact(root, "stage3")
    scored = [{"media_sha256": str(i), "nll_right": 5 + rng.random(), "nll_shuffled": 6 + rng.random(), "nll_blank": 7.0, "num_tokens": 4} for i in range(12)]
    write_table(captions.path / "metrics.parquet", caption_metrics("audio", scored, CaptionEvalConfig(model=MODEL, bootstrap_draws=100)), METRICS)
    errors = [{"caption": str(i), "error": 0.5 + 0.1 * rng.random(), "error_mean": 1.0, "error_shuffled": 1.2} for i in range(12)]
    write_table(alignment.path / "metrics.parquet", alignment_metrics(AlignmentEvalConfig(model=MODEL, bootstrap_draws=100), errors), METRICS)
    steps = list(range(1, 31))
    pq.write_table(pa.table({"step": steps, "loss": [3.0 / s for s in steps], "lr": [0.1] * 30, "tokens": [9] * 30}), stage.path / "losses.parquet")
    (stage.path / "stage.json").write_text(json.dumps({"stage": "stage3", "config": {"caption_turn": True, "balance_answers": True}}))
    history = _artifact(root, "history", {"run_id": "cafe"})
    evals = {"eval_vqa": _vqa(root), "eval_captions": captions, "eval_alignment": alignment}
    return {"overlap": overlap, **evals, "stage3": stage, "history": history}


def _render(root: Path, inputs: dict[str, Artifact], config: ReportConfig) -> str:
    output, work = root / "out", root / "work"
    output.mkdir(parents=True)
    work.mkdir()
    report.run(StepContext(name="report", config=config, inputs=inputs, sources={}, output=output, work=work, stores=root / "stores"))
    return (output / "report.html").read_text()


class _Balanced(HTMLParser):
    """Fails on unclosed or crossed elements."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br", "line", "circle", "polyline", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Self-closing: opens nothing."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


CONFIG = ReportConfig(recipe="tiny", licences=(("easy-vqa", "MIT"),))


def test_full_report_is_self_contained_and_deterministic(tmp_path: Path) -> None:
    inputs = _inputs(tmp_path)
    html = _render(tmp_path / "a", inputs, CONFIG)
    assert html == _render(tmp_path / "b", inputs, CONFIG)
    parser = _Balanced()
    parser.feed(html)
    assert parser.open == []
    assert not re.search(r"""(src|href)=["'](?!data:)|https?://|url\(|@import|<script""", html)
    assert str(tmp_path) not in html
    assert html.count("data:image/png;base64,") == 12
    assert "<b>is it red?</b>" not in html and "&lt;b&gt;is it red?" in html
    assert html.index("what training has already seen") < html.index("Image questions")
    for text in ("2 are byte for byte in a", "Stage 1", "Stage 2", "Training losses", "Licences", "seed 0", "not VQAv2", "writes its own caption", "cafe"):
        assert text in html
    other = _render(tmp_path / "c", inputs, dataclasses.replace(CONFIG, seed=1))
    assert other != html


@pytest.mark.parametrize("missing", ["overlap", "eval_vqa", "eval_captions", "eval_alignment", "stage3", "history"])
def test_absent_inputs_are_left_out(tmp_path: Path, missing: str) -> None:
    inputs = _inputs(tmp_path)
    del inputs[missing]
    assert "</html>" in _render(tmp_path / "a", inputs, CONFIG)


def test_ticks_are_round_and_cover() -> None:
    for lo, hi in ((0, 1), (-0.37, 1.9), (0, 1234), (0, 1e-6), (5, 5)):
        ticks = nice_ticks(lo, hi)
        assert ticks[0] <= lo and ticks[-1] >= hi and 2 <= len(ticks) <= 9


def test_what_is_left_out_or_unread_is_told_escaped(tmp_path: Path) -> None:
    inputs = _inputs(tmp_path)
    result = inputs["eval_vqa"].result | {"unread": {"helped": 3, "blank": 0}, "left_out": ["2 of 9 records (no_medium 2), the first is <x-000001>: none"]}
    inputs["eval_vqa"] = dataclasses.replace(inputs["eval_vqa"], result=result)
    html = _render(tmp_path / "a", inputs, CONFIG)
    assert "Unread, and scored 0: helped 3." in html and "Left out: 2 of 9 records (no_medium 2), the first is &lt;x-000001&gt;: none" in html
