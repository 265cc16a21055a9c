"""lmms-eval through our adapter: the real harness, scorer and task file, with a generator that needs no weights."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from evals.config import EvalConfig
from evals.questions import vqa as evals_run
from infra.settings import offline_environment
from infra.step import AnyloomError, Artifact, StepContext
from mmcore.types import Answer, Question

SHAPES, COLOURS = ("circle", "rectangle", "triangle"), {"red": (255, 0, 0), "blue": (0, 0, 255)}


def make_lists(root: Path, pictures: int = 6) -> Path:
    """Train and test lists of flat pictures: their colour is in the first pixel."""
    for split in ("train", "test"):
        records = []
        for i in range(pictures):
            colour = ("red", "blue", "blue")[i % 3]
            uri = f"media/{split}/{i}.png"
            (root / uri).parent.mkdir(parents=True, exist_ok=True)
            picture = Image.new("RGB", (12, 12), COLOURS[colour])
            picture.putpixel((11, 11), (i, 0, 0))
            picture.save(root / uri)
            turns = [("what color is the shape?", colour), ("is there a red shape?", "yes" if colour == "red" else "no"), ("is there a shape?", "yes")]
            records.append(
                {
                    "id": str(i),
                    "image": uri,
                    "conversations": [{"from": who, "value": text} for pair in turns for who, text in zip(("human", "gpt"), pair, strict=True)],
                }
            )
        path = root / "instruct" / f"easyvqa_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(records))
    return root


class AlwaysYes:
    """Says yes. Counts what it is asked, and can die after some batches."""

    def __init__(self, batches: int = 10**6):
        self.left, self.asked, self.encoded = batches, 0, 0

    def encode(self, modality: str, data: bytes) -> np.ndarray:
        import io

        self.encoded += 1
        return np.asarray(Image.open(io.BytesIO(data)), np.float32)[0, :1]

    def reply(self, item: Question, caption_turn: bool | None) -> str:
        return "yes"

    def answer(self, items: list[Question], *, max_new_tokens: int = 16, caption_turn: bool | None = None) -> list[Answer]:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left, self.asked = self.left - 1, self.asked + len(items)
        assert max_new_tokens == 16
        caption = None if caption_turn is False else "a caption"
        return [Answer(text=self.reply(i, caption_turn), caption=caption, token_ids=(1, 2), num_input_tokens=9) for i in items]


class Seer(AlwaysYes):
    """Answers from the picture's colour, and colour questions only after its caption turn."""

    def reply(self, item: Question, caption_turn: bool | None) -> str:
        if "there a shape" in item.text:
            return "yes"
        colour = {(255, 0, 0): "red", (0, 0, 255): "blue"}.get(tuple(int(c) for c in item.features_NE[0]), "white")
        if "what color" in item.text:
            return colour if caption_turn is not False else "no idea"
        return "yes" if colour == "red" else "no"


@pytest.fixture(scope="module", autouse=True)
def _offline() -> Iterator[None]:
    offline_environment()
    yield


def _context(root: Path, lists: Path, attempt: str, config: EvalConfig, caption_turn: bool = True) -> StepContext:
    export = root / "export"
    export.mkdir(exist_ok=True)
    (export / "anyloom.json").write_text(json.dumps({"caption_turn": caption_turn}))
    output, work = root / f"output-{attempt}", root / "work"
    output.mkdir()
    work.mkdir(exist_ok=True)
    inputs = {name: Artifact(name=name, path=path, fingerprint="f" * 64, digest="d" * 64, result={}) for name, path in (("export", export), ("lists", lists))}
    return StepContext(name="eval_vqa", config=config, inputs=inputs, sources={}, output=output, work=work, stores=root / "stores")


def _use(monkeypatch: pytest.MonkeyPatch, generator: AlwaysYes) -> AlwaysYes:
    from evals.harness import adapter as lmms_adapter

    real = getattr(lmms_adapter.AnyloomLmms, "real", lmms_adapter.AnyloomLmms)

    def build(path: str = "", threads: int | None = None, **options: object) -> object:
        return real(generator=options.pop("generator", generator), **options)

    build.real = real  # type: ignore[attr-defined]
    monkeypatch.setattr(lmms_adapter, "AnyloomLmms", build)
    return generator


def test_always_yes_scores_the_share_of_yes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _use(monkeypatch, AlwaysYes())
    result = evals_run.run_vqa(_context(tmp_path, make_lists(tmp_path / "lists"), "a", EvalConfig(conditions=("plain_prompt",))))
    assert result["accuracy"] == pytest.approx((2 + 6) / 18)
    assert result["floors"]["always_yes"] == result["accuracy"]
    assert (result["headline"], result["questions"], result["pictures"]) == ("plain_prompt", 18, 6)


def test_conditions_floors_and_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = EvalConfig(num_questions=15, seed=3, chunk=4, bootstrap_draws=200)
    lists = make_lists(tmp_path / "lists")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    seer = _use(monkeypatch, Seer())
    result = evals_run.run_vqa(_context(whole, lists, "a", config))
    asked = seer.asked
    assert result["conditions"]["helped"] == 1.0 > result["conditions"]["plain_prompt"]
    assert result["conditions"]["blank"] < 1.0 and result["conditions"]["shuffled"] < 1.0
    first = _use(monkeypatch, Seer(batches=6))
    with pytest.raises(KeyboardInterrupt):
        evals_run.run_vqa(_context(killed, lists, "a", config))
    answers = killed / "work" / "answers.jsonl"
    answers.write_bytes(answers.read_bytes() + b'{"key": "torn')
    second = _use(monkeypatch, Seer())
    assert evals_run.run_vqa(_context(killed, lists, "b", config)) == result
    assert first.asked + second.asked == asked
    for name in ("samples.parquet", "metrics.parquet", "task/easyvqa_as_vqav2.parquet", "task/easyvqa_as_vqav2.yaml"):
        assert (killed / "output-b" / name).read_bytes() == (whole / "output-a" / name).read_bytes(), name
    samples = pq.read_table(whole / "output-a/samples.parquet").to_pylist()
    assert len(samples) == 4 * 15
    assert {s["caption"] for s in samples if s["run_condition"] == "helped"} == {"a caption"}
    assert {s["caption"] for s in samples if s["run_condition"] == "plain_prompt"} == {""}
    metrics = {(m["condition"], m["subgroup"]): m for m in pq.read_table(whole / "output-a/metrics.parquet").to_pylist()}
    assert metrics["helped", "all"]["ci_lo"] < 1.0 == metrics["helped", "all"]["ci_hi"]
    for condition, value in result["conditions"].items():
        harness = json.loads((whole / f"output-a/info/lmms/{condition}.json").read_text())["results"]["easyvqa_as_vqav2"]["exact_match,none"]
        assert float(harness) == pytest.approx(value, abs=1e-6)
    assert metrics["helped - blind_majority", "all"]["kind"] == "difference"


def test_without_a_caption_turn_there_is_no_helped_condition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _use(monkeypatch, Seer())
    result = evals_run.run_vqa(_context(tmp_path, make_lists(tmp_path / "lists"), "a", EvalConfig(num_questions=4), caption_turn=False))
    assert list(result["conditions"]) == ["plain_prompt", "blank", "shuffled"]


def test_wrong_arguments_are_one_clear_line(tmp_path: Path) -> None:
    from evals.harness.adapter import AnyloomLmms, run_lmms

    with pytest.raises(AnyloomError, match=r"anyloom\.json"):
        AnyloomLmms(path=str(tmp_path))
    with pytest.raises(AnyloomError, match="condition is 'upside-down'"):
        AnyloomLmms(generator=AlwaysYes(), condition="upside-down")
    with pytest.raises(AnyloomError, match="has no lmms_task called nothing"):
        run_lmms(tmp_path, "nothing", AnyloomLmms(generator=AlwaysYes()))


def test_the_entry_point_is_found_by_the_harness() -> None:
    code = (
        "from infra.settings import offline_environment; offline_environment(); from lmms_eval.models import get_model; print(get_model('anyloom').__module__)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "evals.harness.adapter"
    assert "Failed to load" not in found.stderr
