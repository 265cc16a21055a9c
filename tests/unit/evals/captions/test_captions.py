"""Caption evaluation: continuing after a kill, and the numbers from known losses."""

from __future__ import annotations

from pathlib import Path

import pytest

from evals.captions.alignment import alignment_metrics
from evals.captions.captions import caption_metrics
from evals.config import AlignmentEvalConfig, CaptionEvalConfig
from evals.journal import Journal
from mmcore.config import InputProjectorSpec, ModelSpec, OutputProjectorSpec

MODEL = ModelSpec(encoders=(), input_projector=InputProjectorSpec(), output_projector=OutputProjectorSpec())


def test_scores_continue_at_the_same_batches(tmp_path: Path) -> None:
    rows = [{"key": str(i)} for i in range(10)]
    seen = []

    def work(stop_after: int) -> list[dict[str, float]]:
        scored = Journal(tmp_path / "image.jsonl")
        for count, batch in enumerate(scored.missing(rows, 4)):
            if count == stop_after:
                break
            seen.append([row["key"] for row in batch])
            scored.add([{"nll_right": int(row["key"]) / 3} for row in batch])
        return scored.rows

    work(stop_after=1)
    with open(tmp_path / "image.jsonl", "ab") as handle:
        handle.write(b'[{"nll_right": 0.3')
    scores = work(stop_after=9)
    assert seen == [["0", "1", "2", "3"], ["4", "5", "6", "7"], ["8", "9"]]
    assert [score["nll_right"] for score in scores] == [i / 3 for i in range(10)]
    assert Journal(tmp_path / "image.jsonl").rows == scores


def test_caption_metrics_from_known_losses() -> None:
    samples = [{"media_sha256": str(i // 2), "nll_right": 4.0, "nll_shuffled": 4.0 + i % 3, "nll_blank": 6.0, "num_tokens": 2 + i % 2} for i in range(6)]
    config = CaptionEvalConfig(model=MODEL, bootstrap_draws=100)
    at = {(m["metric"], m["condition"]): m for m in caption_metrics("audio", samples, config)}
    assert at["nll_per_token", "right"]["value"] == pytest.approx(24 / 15)
    assert at["nll_per_caption", "shuffled - right"]["value"] == pytest.approx(1.0)
    assert at["nll_per_caption", "blank - right"]["value"] == pytest.approx(2.0)
    assert (at["nll_per_caption", "shuffled - right"]["n"], at["nll_per_caption", "shuffled - right"]["clusters"]) == (6, 3)
    assert at["right_wins", "right"]["value"] == pytest.approx(4 / 6)
    assert caption_metrics("audio", [], config) == []


def test_alignment_metrics_from_known_errors() -> None:
    samples = [{"caption": str(i), "error": 1.0, "error_mean": 1.5, "error_shuffled": 2.0 + i} for i in range(4)]
    config = AlignmentEvalConfig(model=MODEL, bootstrap_draws=100)
    at = {m["condition"]: m for m in alignment_metrics(config, samples)}
    assert at["mean_predictor - right"]["value"] == 0.5 and at["mean_predictor - right"]["ci_lo"] is None  # no spread, no bounds: nothing to go by
    assert at["shuffled - right"]["value"] == 2.5
    assert alignment_metrics(config, []) == []
