"""Suites through the real harness and its packaged scorers, with generators that need no weights."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from evals.config import HistoryConfig, ReportConfig, SuiteConfig
from evals.history import database as history
from evals.history.check import check
from evals.pages.run.context import RunPage
from evals.pages.run.suites import suites_section
from evals.suites import run as suite_run
from infra.settings import offline_environment
from infra.step import AnyloomError, Artifact, StepContext
from mmcore.types import Answer

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from listed import sharded
from suite_fakes import Says, context, make_shards, nearest, use, write_lists

MMBENCH, WORDS = "stamps_as_mmbench", "words_as_textvqa"


@pytest.fixture(scope="module", autouse=True)
def _offline() -> Iterator[None]:
    offline_environment()
    yield


def options_of(prompt: str) -> dict[str, str]:
    return dict(re.findall(r"^([A-D])\. (.+)$", prompt, re.M))


def seer(prompt: str, seen: tuple[int, ...] | None) -> str:
    """The letter of the option that names the colour that is seen."""
    return next((letter for letter, text in options_of(prompt).items() if nearest(seen) in text), "none")


def metrics_of(output: Path) -> dict[tuple[str, str, str], dict]:
    return {(m["condition"], m["metric"], m["subgroup"]): m for m in pq.read_table(output / "metrics.parquet").to_pylist()}


def test_stamps_as_mmbench_is_scored_by_the_packaged_judge_and_by_us(tmp_path, monkeypatch) -> None:
    shards = make_shards(tmp_path, transparent=True)
    use(monkeypatch, Says(seer))
    ctx = context(tmp_path, SuiteConfig(lmms_task=MMBENCH, conditions=("plain_prompt", "blank"), bootstrap_draws=100), inputs={"shards_cc3m": shards})
    result = suite_run.run(ctx)
    assert result["questions"] == 24 and result["groups"] == result["pictures"] == 6
    scores = result["scores"]["plain_prompt"]
    assert scores == {"gpt_eval_score": 100.0, "harness_vanilla": 100.0, "ours_vanilla": 1.0, "ours_circular": 1.0, "ours_unparsed": 0.0}
    assert result["scores"]["blank"]["gpt_eval_score"] < 30 and result["scores"]["chance"]["ours_circular"] == pytest.approx(0.25**4, abs=1e-6)
    rows = pq.read_table(ctx.output / "task" / f"{MMBENCH}.parquet").to_pylist()
    assert {row["index"] // 10**6 for row in rows} == {0, 1, 2, 3} and all(row[row["answer"]].startswith("A ") for row in rows)
    by_group: dict[int, set[str]] = {}
    for row in rows:
        by_group.setdefault(row["index"] % 10**6, set()).add(row["answer"])
    assert all(letters == set("ABCD") for letters in by_group.values())  # the right one stands once in every place
    told = json.loads((ctx.output / "info/lmms/plain_prompt.json").read_text())["results"][MMBENCH]["gpt_eval_score,none"]
    assert metrics_of(ctx.output)["plain_prompt", "gpt_eval_score", "all"]["value"] == told


def test_our_reading_stands_beside_the_harness_and_says_why(tmp_path, monkeypatch) -> None:
    shards = make_shards(tmp_path)
    use(monkeypatch, Says(lambda prompt, seen: seer(prompt, seen).lower()))
    ctx = context(tmp_path, SuiteConfig(lmms_task=MMBENCH, conditions=("plain_prompt",), bootstrap_draws=100), inputs={"shards_cc3m": shards})
    result = suite_run.run(ctx)
    scores = result["scores"]["plain_prompt"]
    assert scores["gpt_eval_score"] == 0.0 and scores["ours_circular"] == scores["ours_vanilla"] == 1.0
    assert result["explained"]["ours_higher"] == 24 and result["explained"]["ours_higher_read_by"] == {"small letter": 24}
    parsed = pq.read_table(ctx.output / "parsed.parquet").to_pylist()
    assert {(row["harness_score"], row["our_score"], row["parse_status"]) for row in parsed} == {(0.0, 1.0, "small letter")}


def test_words_as_textvqa_and_unparsed_answers_are_counted(tmp_path, monkeypatch) -> None:
    shards = make_shards(tmp_path)
    use(monkeypatch, Says(lambda prompt, seen: ["", "It is Square"][nearest(seen) == "red"]))
    ctx = context(tmp_path, SuiteConfig(lmms_task=WORDS, conditions=("plain_prompt",), bootstrap_draws=100), inputs={"shards_cc3m": shards})
    suite_run.run(ctx)
    table = pq.read_table(ctx.output / "task" / f"{WORDS}.parquet")
    assert len(table) == 6 and {len(row) for row in table.column("answers").to_pylist()} == {10}
    metrics = metrics_of(ctx.output)
    unparsed = metrics["plain_prompt", "ours_unparsed", "all"]["value"]
    assert unparsed * 6 == pytest.approx(sum(row["parsed"] == "" for row in pq.read_table(ctx.output / "parsed.parquet").to_pylist()))
    assert metrics["plain_prompt", "exact_match", "all"]["value"] == 0.0


def test_the_history_has_what_a_suite_step_read_and_the_documented_query_finds_it(tmp_path, monkeypatch) -> None:
    use(monkeypatch, Says(lambda prompt, seen: "" if "A. " in prompt or seen[0] > seen[2] else "square"))
    inputs, unread = {}, {}
    for task in (MMBENCH, WORDS):
        shards = make_shards(tmp_path / task)
        ctx = context(tmp_path / task, SuiteConfig(lmms_task=task, conditions=("plain_prompt",), bootstrap_draws=50), inputs={"shards_cc3m": shards})
        result = suite_run.run(ctx)
        inputs[ctx.name] = Artifact(name=ctx.name, path=ctx.output, fingerprint="f" * 64, digest=task, result=result)
        unread[task] = sum(row["parsed"] == "" for row in pq.read_table(ctx.output / "parsed.parquet").to_pylist())
    for place in ("out", "work"):
        (tmp_path / place).mkdir()
    where = {"output": tmp_path / "out", "work": tmp_path / "work", "stores": tmp_path / "stores"}
    run_id = history.run(StepContext(name="history", config=HistoryConfig(recipe="tiny"), inputs=inputs, sources={}, **where))["run_id"]
    db = history.database_path(tmp_path / "stores")
    (sql,) = re.findall(r"Answers that nobody could parse.*?```sql\n(.*?);\n```", (Path(__file__).parents[2] / "docs" / "history.md").read_text(), re.S)
    assert history.query(db, sql)[1] == [
        (run_id, MMBENCH, "plain_prompt", 24, 24, 1.0),
        (run_id, WORDS, "plain_prompt", unread[WORDS], 6, round(unread[WORDS] / 6, 4)),
    ]
    assert 0 < unread[WORDS] < 6
    assert history.query(db, f"SELECT count(DISTINCT cluster), count(DISTINCT image) FROM sample WHERE task = '{MMBENCH}'")[1] == [(6, 6)]
    tasks = history.query(db, "SELECT task, suite, split, length(prompt_sha256), length(task_sha256), length(dataset_sha256) FROM task ORDER BY task")[1]
    assert tasks == [(MMBENCH, "stand_in", "dev", 64, 64, 64), (WORDS, "stand_in", "validation", 64, 64, 64)]
    assert history.query(db, "SELECT suite FROM run")[1] == [("stand_in",)] and check(tmp_path / "stores", db).problems == []


def test_a_killed_suite_asks_nothing_twice_and_new_scoring_asks_nothing(tmp_path, monkeypatch) -> None:
    config = SuiteConfig(lmms_task=MMBENCH, num_questions=9, chunk=4, conditions=("plain_prompt", "blank"), bootstrap_draws=50)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    reference = use(monkeypatch, Says(seer))
    result = suite_run.run(context(whole, config, inputs={"shards_cc3m": make_shards(whole)}))
    assert result["questions"] == 12  # whole groups
    shards = make_shards(killed)
    first = use(monkeypatch, Says(seer, batches=4))
    with pytest.raises(KeyboardInterrupt):
        suite_run.run(context(killed, config, inputs={"shards_cc3m": shards}))
    second = use(monkeypatch, Says(seer))
    assert suite_run.run(context(killed, config, "b", inputs={"shards_cc3m": shards})) == result
    assert first.asked + second.asked == reference.asked
    for name in ("samples.parquet", "parsed.parquet", "metrics.parquet", f"task/{MMBENCH}.parquet"):
        assert (killed / "output-b" / name).read_bytes() == (whole / "output-a" / name).read_bytes(), name
    third = use(monkeypatch, Says(seer))
    other = SuiteConfig(lmms_task=MMBENCH, num_questions=9, chunk=4, conditions=("plain_prompt", "blank"), bootstrap_draws=51)
    suite_run.run(context(killed, other, "c", inputs={"shards_cc3m": shards}))
    assert third.asked == third.encoded == 0


def test_a_task_without_its_program_is_skipped_with_the_reason(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(suite_run.shutil, "which", lambda name: None)
    ctx = context(tmp_path, SuiteConfig(lmms_task="coco2017_cap_val"))
    result = suite_run.run(ctx)
    assert result["left_out"] == [result["skipped"]] and "scored with java, which is not installed" in result["skipped"] and "scores" not in result
    assert "--force eval_coco2017_cap_val" in json.loads((ctx.output / "skipped.json").read_text())["reason"] and not (ctx.output / "metrics.parquet").exists()


def test_a_task_without_its_judge_is_skipped_with_the_reason(tmp_path, monkeypatch) -> None:
    for name in ("mmvet", "llava_in_the_wild"):
        ctx = context(tmp_path / name, SuiteConfig(lmms_task=name))
        result = suite_run.run(ctx)
        assert "scored by a language model" in result["skipped"] and "scores" not in result
        assert not (ctx.output / "metrics.parquet").exists() and "reason" in json.loads((ctx.output / "skipped.json").read_text())
    monkeypatch.delenv("ANYLOOM_JUDGE_URL", raising=False)
    with pytest.raises(AnyloomError, match="ANYLOOM_JUDGE_URL is not set"):
        suite_run.run(context(tmp_path / "named", SuiteConfig(lmms_task="mmvet", judge="some-model")))


def test_a_stand_in_is_made_of_the_stamps_that_the_user_s_list_holds(tmp_path, monkeypatch) -> None:
    own = tmp_path / "own" / "mine.tsv"
    own.parent.mkdir()
    lines = []
    for colour in ("orange", "purple", "pink", "grey", "teal"):
        Image.new("RGB", (16, 16), colour).save(own.parent / f"{colour}.png")
        lines.append(f"My {colour} thing\t{colour}.png\n")
    own.write_text("".join([*lines, "My lost thing\tgone.png\n"]))
    shards = sharded(tmp_path, write_lists(tmp_path / "lists"), {"stamps_heldout": "heldout"}, group="cc3m", own={"stamps_heldout": own})
    use(monkeypatch, Says(lambda prompt, seen: "A"))
    ctx = context(tmp_path, SuiteConfig(lmms_task=MMBENCH, conditions=("plain_prompt",), bootstrap_draws=50), inputs={"shards_cc3m": shards})
    result = suite_run.run(ctx)
    rows = pq.read_table(ctx.output / "task" / f"{MMBENCH}.parquet").to_pylist()
    assert result["questions"] == 20 and {row[letter] for row in rows for letter in "ABCD"} <= {line.split("\t")[0] for line in lines}
    assert {row["image"]["bytes"] for row in rows} == {(own.parent / f"{line.split()[1]}.png").read_bytes() for line in lines}


def test_answers_that_are_not_there_are_counted_and_score_0(tmp_path, monkeypatch) -> None:
    class Cut(Says):
        def answer(self, items, **options):
            said = super().answer(items, **options)
            unread = Answer(text="", caption=None, token_ids=(), num_input_tokens=9999, finish="too_long")
            return [unread if nearest(tuple(item.features_NE[0])) == "red" else answer for item, answer in zip(items, said, strict=True)]

    use(monkeypatch, Cut(seer))
    ctx = context(tmp_path, SuiteConfig(lmms_task=MMBENCH, conditions=("plain_prompt",), bootstrap_draws=50), inputs={"shards_cc3m": make_shards(tmp_path)})
    result = suite_run.run(ctx)
    assert result["unread"] == {"plain_prompt": 4} and result["scores"]["plain_prompt"]["ours_vanilla"] == pytest.approx(20 / 24, abs=1e-6)
    samples = pq.read_table(ctx.output / "samples.parquet").to_pylist()
    assert {s["score"] for s in samples if not s["prediction"]} == {0.0}
    artifact = Artifact(name=ctx.name, path=ctx.output, fingerprint="f" * 64, digest="d" * 64, result=result)
    page = suites_section(RunPage(config=ReportConfig(recipe="tiny"), inputs={}), artifact)
    assert "Unread, and scored 0: plain_prompt 4." in page
