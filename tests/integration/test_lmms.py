"""lmms-eval through our adapter: the real harness, scorer and task file, with a generator that needs no weights."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from listed import sharded

from evals.config import EvalConfig
from evals.questions import vqa as evals_run
from evals.records import asked_records, taken
from infra.settings import offline_environment
from infra.step import AnyloomError, Artifact, StepContext
from mmcore.encoders.squares import refuse_thin
from mmcore.media.decode import decode_image
from mmcore.types import Answer, Question

DATASETS = {"easyvqa_train": "train", "easyvqa_test": "test"}
SHAPES, COLOURS = ("circle", "rectangle", "triangle"), {"red": (255, 0, 0), "blue": (0, 0, 255)}


def make_lists(root: Path, pictures: int = 6) -> Path:
    """Shards of train and test lists of flat pictures: their colour is in the first pixel."""
    return sharded(root.parent / "data", write_lists(root, pictures), DATASETS)


def write_lists(root: Path, pictures: int = 6) -> Path:
    """The lists; returns their root."""
    for split in ("train", "test"):
        records = []
        for i in range(pictures):
            colour = ("red", "blue", "blue")[i % 3]
            uri = f"media/{split}/{i}.png"
            (root / uri).parent.mkdir(parents=True, exist_ok=True)
            picture = Image.new("RGB", (12, 12), COLOURS[colour])
            picture.putpixel((11, 11), (i, 0, 0))
            picture.save(root / uri)
            turns = [("<image>\nwhat color is the shape?", colour), ("is there a red shape?", "yes" if colour == "red" else "no"), ("is there a shape?", "yes")]
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

    def encoder(self, modality: str) -> AlwaysYes:
        return self

    def prepare(self, data: bytes) -> None:
        """Takes whatever can be shown, but no thin strips."""
        refuse_thin(decode_image(data))

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


def _context(root: Path, shards: Path, attempt: str, config: EvalConfig, caption_turn: bool = True) -> StepContext:
    export = root / "export"
    export.mkdir(exist_ok=True)
    (export / "anyloom.json").write_text(json.dumps({"caption_turn": caption_turn}))
    output, work = root / f"output-{attempt}", root / "work"
    output.mkdir()
    work.mkdir(exist_ok=True)
    given = {"export": export, "shards_instruct": shards}
    inputs = {name: Artifact(name=name, path=path, fingerprint="f" * 64, digest="d" * 64, result={}) for name, path in given.items()}
    return StepContext(name="eval_vqa", config=config, inputs=inputs, sources={}, output=output, work=work, stores=shards.parent / "stores")


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


@pytest.mark.slow
def test_the_entry_point_is_found_by_the_harness() -> None:
    code = (
        "from infra.settings import offline_environment; offline_environment(); from lmms_eval.models import get_model; print(get_model('anyloom').__module__)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "evals.harness.adapter"
    assert "Failed to load" not in found.stderr


# ---- lists of the user's ---------------------------------------------------------------------------------------------


def own_list(folder: Path, records: list, pictures: int = 4) -> Path:
    """A test list of the user's beside its pictures: good records about as many pictures, then `records`."""
    folder.mkdir()
    good = []
    for i in range(pictures):
        name = "red" if i % 2 else "blue"
        picture = Image.new("RGB", (14, 14), COLOURS[name])
        picture.putpixel((13, 13), (i, i, i))
        picture.save(folder / f"mine_{i}.png")
        good.append({"image": f"mine_{i}.png", "conversations": talk(("<image>\nwhich colour do you see?", name), ("what color is the shape?", name))})
    (folder / "mine.json").write_text(json.dumps([*good, *records]))
    return folder / "mine.json"


def talk(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": who, "value": text} for pair in pairs for who, text in zip(("human", "gpt"), pair, strict=True)]


def test_a_list_of_the_user_s_is_what_is_asked_scored_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evals.config import ReportConfig
    from evals.history.rows import describe_task
    from evals.pages.run.context import RunPage
    from evals.pages.run.questions import questions_section

    lists = write_lists(tmp_path / "lists")
    recipes = sharded(tmp_path / "recipes", lists, DATASETS)
    mine = sharded(tmp_path / "mine", lists, DATASETS, own={"easyvqa_test": own_list(tmp_path / "own", [])})
    _use(monkeypatch, Seer())
    config = EvalConfig(num_questions=40, bootstrap_draws=50)  # more than there are: all of them
    first = evals_run.run_vqa(_context(tmp_path / "recipes", recipes, "a", config))
    ctx = _context(tmp_path / "mine", mine, "a", config)
    result = evals_run.run_vqa(ctx)
    assert (result["questions"], result["pictures"]) == (8, 4) and (first["questions"], first["pictures"]) == (18, 6)
    samples = pq.read_table(ctx.output / "samples.parquet").to_pylist()
    assert {s["question"] for s in samples} == {"which colour do you see?", "what color is the shape?"} and {s["picture"] for s in samples} == {
        f"mine_{i}.png" for i in range(4)
    }
    assert {s["run_condition"] for s in samples} == {"helped", "plain_prompt", "blank", "shuffled"}
    # floors: of the answers that training gives to the same words, else to any
    assert result["floors"] == {"always_yes": 0.0, "blind_majority": 0.25}
    assert result["history_fingerprint"] != first["history_fingerprint"]
    artifact = Artifact(name="eval_vqa", path=ctx.output, fingerprint="f" * 64, digest="d" * 64, result=result)
    assert describe_task(artifact, "easyvqa_as_vqav2", ctx.output / "samples.parquet")["n"] == 8
    page = questions_section(RunPage(config=ReportConfig(recipe="tiny"), inputs={"eval_vqa": artifact}), artifact)
    assert page.count("data:image/png;base64,") == 8 and "which colour do you see?" in page and "Left out" not in page and "Unread" not in page


BAD = [
    ("no answer", {"image": "mine_0.png", "conversations": [{"from": "human", "value": "<image>\nwhat?"}]}, "ends_with_question"),
    ("blank answer", {"image": "mine_0.png", "conversations": talk(("<image>\nwhat?", " "))}, "empty_text"),
    ("no image", {"conversations": talk(("what?", "yes"))}, "no_medium"),
    ("no conversation", {"image": "mine_0.png"}, "bad_record"),
    ("no record", 7, "bad_record"),
    ("two images", {"image": ["mine_0.png", "mine_1.png"], "conversations": talk(("<image>\n<image>\nsame?", "no"))}, "several_media"),
    ("image gone", {"image": "gone.png", "conversations": talk(("<image>\nwhat?", "red"))}, "missing_file"),
    ("not an image", {"image": "mine.json", "conversations": talk(("<image>\nwhat?", "red"))}, "not_media"),
    ("strip", {"image": "strip.png", "conversations": talk(("<image>\nwhat?", "red"))}, "too_large"),
    ("turns", {"image": "mine_0.png", "conversations": talk(("<image>\nwhat?", "red"))[::-1]}, "begins_with_answer"),
    ("gives an image", {"image": "mine_0.png", "output_image": "mine_1.png", "conversations": talk(("<image>\ndraw", "<image>"))}, "gives_medium"),
    ("placeholders", {"image": ["mine_0.png", "mine_1.png"], "conversations": talk(("<image>\nwhat?", "red"))}, "placeholder_count"),
    ("too many", {"image": "mine_0.png", "conversations": talk(("<image>\nwhat?", "red"), *[("what?", "red")] * 999)}, "too_many_questions"),
]


def test_records_that_cannot_be_asked_are_left_out_with_their_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists, own = write_lists(tmp_path / "lists"), own_list(tmp_path / "own", [record for _, record, _ in BAD], pictures=14)
    Image.new("RGB", (1, 900), "red").save(tmp_path / "own" / "strip.png")
    shards = sharded(tmp_path / "data", lists, DATASETS, own={"easyvqa_test": own})
    _use(monkeypatch, Seer())
    result = evals_run.run_vqa(_context(tmp_path, shards, "a", EvalConfig(conditions=("plain_prompt",), bootstrap_draws=50)))
    assert (result["questions"], result["pictures"]) == (28, 14)
    (line,) = result["left_out"]
    reasons = sorted(reason for _, _, reason in BAD)
    assert line.startswith(f"{len(BAD)} of {14 + len(BAD)} records of easyvqa_test are not asked (")
    told = line[line.index("(") + 1 : line.index(")")]
    assert told == ", ".join(f"{reason} {reasons.count(reason)}" for reason in sorted(set(reasons)))
    assert "the first is easyvqa_test-000014: " in line
    strict = EvalConfig(conditions=("plain_prompt",), bootstrap_draws=50, max_lost=0.4)
    with pytest.raises(AnyloomError, match=r"13 of 27 records .* more than max_lost 0\.4 of them: mend the list, or set max_lost"):
        evals_run.run_vqa(_context(tmp_path, shards, "b", strict))


def test_questions_about_one_image_are_asked_without_shuffling_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = own_list(tmp_path / "own", [{"conversations": talk(("what?", "yes"))}], pictures=1)
    shards = sharded(tmp_path / "data", write_lists(tmp_path / "lists"), DATASETS, own={"easyvqa_test": own})
    _use(monkeypatch, Seer())
    result = evals_run.run_vqa(_context(tmp_path, shards, "a", EvalConfig(bootstrap_draws=50)))
    assert list(result["conditions"]) == ["helped", "plain_prompt", "blank"] and result["questions"] == 2
    assert result["left_out"][1] == "condition shuffled: the questions are about one image only"
    with pytest.raises(AnyloomError, match="nothing to ask: the questions are about one image only"):
        evals_run.run_vqa(_context(tmp_path, shards, "b", EvalConfig(conditions=("shuffled",), bootstrap_draws=50)))


@pytest.mark.parametrize(("name", "record", "reason"), BAD)
def test_one_such_record_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, record: object, reason: str) -> None:
    own = own_list(tmp_path / "own", [record])
    Image.new("RGB", (1, 900), "red").save(tmp_path / "own" / "strip.png")
    shards = sharded(tmp_path / "data", write_lists(tmp_path / "lists"), DATASETS, own={"easyvqa_test": own})
    records, left = asked_records(shards, tmp_path / "data" / "stores", "easyvqa_test", "image")
    kept, refused = taken(records, lambda one: Seer().prepare((own.parent / one.uri).read_bytes()))
    assert len(kept) == 4 and [one.reason for one in (*left, *refused)] == [reason], name


def test_answers_that_are_not_there_are_counted_and_score_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evals.config import ReportConfig
    from evals.pages.run.context import RunPage
    from evals.pages.run.questions import questions_section

    class Cut(Seer):
        """Does not read questions about colours, and is cut off before it says whether there is a shape."""

        def answer(self, items: list[Question], *, max_new_tokens: int = 16, caption_turn: bool | None = None) -> list[Answer]:
            said = super().answer(items, max_new_tokens=max_new_tokens, caption_turn=caption_turn)
            return [
                Answer(text="", caption=None, token_ids=(), num_input_tokens=9999, finish="too_long")
                if "what color" in item.text
                else replace(answer, text="", finish="length")
                if "there a shape" in item.text
                else replace(answer, finish="length")
                for item, answer in zip(items, said, strict=True)
            ]

    shards = make_lists(tmp_path / "lists")
    _use(monkeypatch, Cut())
    ctx = _context(tmp_path, shards, "a", EvalConfig(conditions=("plain_prompt", "blank"), bootstrap_draws=50))
    result = evals_run.run_vqa(ctx)
    assert result["unread"] == {"plain_prompt": 12, "blank": 12} and result["accuracy"] == pytest.approx(6 / 18)
    samples = pq.read_table(ctx.output / "samples.parquet").to_pylist()
    assert all(s["score"] == 0.0 for s in samples if s["prediction"] == "")
    again = evals_run.run_vqa(_context(tmp_path, shards, "b", EvalConfig(conditions=("plain_prompt", "blank"), bootstrap_draws=50)))  # from kept answers
    assert again == result
    artifact = Artifact(name="eval_vqa", path=ctx.output, fingerprint="f" * 64, digest="d" * 64, result=result)
    page = questions_section(RunPage(config=ReportConfig(recipe="tiny"), inputs={"eval_vqa": artifact}), artifact)
    assert "Unread, and scored 0: plain_prompt 12, blank 12." in page
