"""History: concurrent writers, readers that stay open, a database that never shrinks, runs that are added once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evals.config import EvalConfig, HistoryConfig
from evals.history import database as history
from evals.history.rows import collect
from evals.questions.lists import QuestionRow
from evals.questions.vqa import floor_scores, metric_rows
from evals.suites.metrics import PARSED
from evals.suites.reading import UNPARSED
from evals.tables import METRICS, VQA_SAMPLES, write_table
from infra.step import AnyloomError, Artifact, StepContext


def _rows(run_id: str, samples: int = 3) -> dict[str, pa.Table]:
    return {
        "run": pa.table({"run_id": [run_id], "recipe": ["tiny"], "seeds": ["stage1=0"], "artifact": ["eval_vqa/abc"]}),
        "metric": pa.table(
            {
                "run_id": [run_id],
                "task": ["t"],
                "condition": ["helped"],
                "metric": ["exact_match"],
                "subgroup": ["all"],
                "value": [0.9],
                "ci_lo": [0.8],
                "ci_hi": [1.0],
                "n": [samples],
                "kind": ["score"],
            }
        ),
        "sample": pa.table({"run_id": [run_id] * samples, "doc_key": [str(i) for i in range(samples)], "score": [1.0] * samples}),
        "train_metrics": pa.table({"run_id": pa.array([], pa.string())}),
    }


WRITER = """
import sys
from pathlib import Path
import pyarrow as pa
from evals.history import database as history
stores, first = Path(sys.argv[1]), int(sys.argv[2])
for i in range(first, first + 5):
    name = f"run{i:04d}"
    rows = {"run": pa.table({"run_id": [name], "recipe": ["tiny"]}), "metric": pa.table({"run_id": [name], "value": [0.9]}),
            "sample": pa.table({"run_id": [name] * 3, "score": [1.0] * 3}), "train_metrics": pa.table({"run_id": [name], "step": [1]})}
    history.append(stores, name, rows)
    history.rebuild(stores, stores.parent / "history.duckdb")
"""
READER = "import sys, pathlib; from evals.history.database import query; print(query(pathlib.Path(sys.argv[1]), 'SELECT count(*) FROM run')[1][0][0])"


def _writer(stores: str, first: int, count: int) -> None:
    for i in range(first, first + count):
        history.append(Path(stores), f"run{i:04d}", _rows(f"run{i:04d}"))
        history.rebuild(Path(stores), Path(stores).parent / "history.duckdb")


def _count(db: Path) -> int:
    return history.query(db, "SELECT count(*) FROM run")[1][0][0]


def test_concurrent_writers_and_an_open_reader(tmp_path: Path) -> None:
    stores, db = tmp_path / "stores", tmp_path / "history.duckdb"
    _writer(str(stores), 0, 1)
    reader = duckdb.connect(str(db), read_only=True)
    workers = [subprocess.Popen([sys.executable, "-c", WRITER, str(stores), str(100 * w)]) for w in range(1, 4)]
    seen = 1
    while any(worker.poll() is None for worker in workers):
        now = int(subprocess.check_output([sys.executable, "-c", READER, str(db)]))
        assert now >= seen
        seen = now
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert reader.execute("SELECT count(*) FROM run").fetchone() == (1,)
    reader.close()
    assert _count(db) == 16
    assert history.query(db, "SELECT count(*), count(DISTINCT run_id) FROM sample")[1] == [(48, 16)]


def test_never_replaced_by_a_smaller_one(tmp_path: Path) -> None:
    stores, db = tmp_path / "stores", tmp_path / "history.duckdb"
    _writer(str(stores), 0, 2)
    (stores / "history/run/run0000.parquet").unlink()
    history.append(stores, "run0007", _rows("run0007"))
    before = db.read_bytes()
    with pytest.raises(AnyloomError, match="run0000"):
        history.rebuild(stores, db)
    assert db.read_bytes() == before


def test_incremental_equals_from_scratch(tmp_path: Path) -> None:
    stores, db = tmp_path / "stores", tmp_path / "history.duckdb"
    _writer(str(stores), 0, 3)
    assert history.rebuild(stores, tmp_path / "fresh.duckdb") == 3
    sql = "SELECT * FROM leaderboard_all ORDER BY run_id"
    assert history.query(db, sql) == history.query(tmp_path / "fresh.duckdb", sql)


def test_a_run_without_its_run_row_does_not_exist(tmp_path: Path) -> None:
    stores, db = tmp_path / "stores", tmp_path / "history.duckdb"
    _writer(str(stores), 0, 1)
    history.append(stores, "half", _rows("half"))
    (stores / "history/run/half.parquet").unlink()
    history.rebuild(stores, db)
    assert history.query(db, "SELECT DISTINCT run_id FROM sample")[1] == [("run0000",)]


@pytest.mark.parametrize(
    "sql",
    [
        "ATTACH '/tmp/x.duckdb'",
        "COPY run TO '/tmp/x.csv'",
        "INSTALL httpfs",
        "SELECT * FROM read_csv('/etc/passwd')",
        "DELETE FROM run",
        "SET enable_external_access = true",
        "SELECT 1; SELECT 2",
        "SELECT nothing FROM run",
    ],
)
def test_queries_cannot_do_harm(tmp_path: Path, sql: str) -> None:
    _writer(str(tmp_path / "stores"), 0, 1)
    with pytest.raises(AnyloomError):
        history.query(tmp_path / "history.duckdb", sql)


def test_missing_and_damaged_database(tmp_path: Path) -> None:
    with pytest.raises(AnyloomError, match="does not exist"):
        history.query(tmp_path / "none.duckdb", "SELECT 1")
    (tmp_path / "bad.duckdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(AnyloomError, match="remove it"):
        history.query(tmp_path / "bad.duckdb", "SELECT 1")


def _evaluation(folder: Path) -> Artifact:
    questions = [
        QuestionRow(doc_key=f"d-{i}#0", question_id=i, image_id=i, image=f"{i // 2}.png", question="is it red?", answer="yes" if i % 3 else "no")
        for i in range(12)
    ]
    rows = [
        {
            "run_condition": "helped",
            "doc_key": q.doc_key,
            "question_id": q.question_id,
            "picture": q.image,
            "question": q.question,
            "answer_type": "yes/no",
            "target": q.answer,
            "prediction": q.answer,
            "caption": "a red circle",
            "score": 1.0,
            "num_tokens": 2,
        }
        for q in questions
    ]
    write_table(folder / "samples.parquet", rows, VQA_SAMPLES)
    write_table(folder / "metrics.parquet", metric_rows({"helped": rows}, floor_scores(questions, questions), EvalConfig()), METRICS)
    return Artifact(name="eval_vqa", path=folder, fingerprint="f" * 64, digest="d" * 64, result={"lmms_task": "easyvqa_as_vqav2"})


def test_same_step_twice_adds_nothing(tmp_path: Path) -> None:
    inputs = {"eval_vqa": _evaluation(tmp_path / "eval")}
    digests = []
    for attempt in ("a", "b"):
        output, work = tmp_path / attempt, tmp_path / f"work-{attempt}"
        output.mkdir()
        work.mkdir()
        ctx = StepContext(
            name="history",
            config=HistoryConfig(recipe="tiny", seeds=(("stage1", 0),)),
            inputs=inputs,
            sources={},
            output=output,
            work=work,
            stores=tmp_path / "stores",
        )
        digests.append((history.run(ctx), (output / "run.json").read_bytes()))
    assert digests[0] == digests[1]
    db = tmp_path / "history.duckdb"
    assert _count(db) == 1
    _, rows = history.query(
        db,
        "SELECT recipe, task, condition, subgroup, accuracy, n, floor_always_yes, floor_blind_majority, artifact, seed "
        "FROM leaderboard_all WHERE subgroup = 'all'",
    )
    assert rows == [("tiny", "easyvqa_as_vqav2", "helped", "all", 1.0, 12, pytest.approx(8 / 12), pytest.approx(8 / 12), "eval_vqa/ffffffffffff", "stage1=0")]
    assert len(history.query(db, "SELECT * FROM by_type")[1]) == 3


def test_a_training_step_keeps_every_part_of_its_loss(tmp_path: Path) -> None:
    (tmp_path / "stage1").mkdir()
    log = {"step": [0, 1], "loss": [2.5, 1.5], "lr": [0.1, 0.1], "tokens": [7.0, 8.0], "gradient_norm": [1.0, 1.0]}
    log |= {"loss_tokens_image": [2.25, None], "loss_tokens_audio": [float("nan"), 1.123456789]}
    pq.write_table(pa.table(log), tmp_path / "stage1" / "losses.parquet")
    inputs = {"stage1": Artifact(name="stage1", path=tmp_path / "stage1", fingerprint="f" * 64, digest="d" * 64, result={})}
    history.append(tmp_path / "stores", "one", collect(HistoryConfig(recipe="tiny"), "one", inputs))
    history.rebuild(tmp_path / "stores", tmp_path / "history.duckdb")
    kept = history.query(tmp_path / "history.duckdb", "SELECT stage, step, loss, tokens, parts FROM train_metrics ORDER BY step")[1]
    assert kept == [("stage1", 0, 2.5, 7.0, '{"tokens_image": 2.25}'), ("stage1", 1, 1.5, 8.0, '{"tokens_audio": 1.123457}')]
    images = "SELECT step, (parts->>'tokens_image')::DOUBLE FROM train_metrics ORDER BY step"
    assert history.query(tmp_path / "history.duckdb", images)[1] == [(0, 2.25), (1, None)]


def _suite(folder: Path, **result: Any) -> Artifact:
    """The evaluation of a suite's task: samples, how they were read, and a record."""
    made = _evaluation(folder)
    samples = pq.read_table(folder / "samples.parquet").to_pylist()
    read = {"doc_group": 0, "harness_score": 1.0, "our_score": 1.0, "parsed": "yes"}
    parsed = [
        {name: row[name] for name in ("run_condition", "doc_key")} | read | {"cluster": f"group {i // 4}", "parse_status": UNPARSED if i < 3 else "as written"}
        for i, row in enumerate(samples)
    ]
    write_table(folder / "parsed.parquet", parsed, PARSED)
    return replace(made, name="eval_vqav2_val", result={"lmms_task": "vqav2_val", "history_fingerprint": "abc", **result})


def test_a_suites_reading_split_and_prompts_are_in_the_history(tmp_path: Path) -> None:
    export = tmp_path / "export"
    export.mkdir()
    (export / "artifact.json").write_text(json.dumps({"provenance": {"finished": "2026-03-01T12:00:00+02:00"}}))
    suite = _suite(tmp_path / "eval", suite="core", split="validation", prompt_sha256="p", dataset_sha256="d")
    inputs = {"eval_vqav2_val": suite, "export": replace(suite, name="export", path=export, result={})}
    found = collect(HistoryConfig(recipe="tiny"), "r", inputs)
    assert Counter(found["sample"]["parse_status"].to_pylist()) == {UNPARSED: 3, "as written": 9}
    assert set(found["sample"]["cluster"].to_pylist()) == {"group 0", "group 1", "group 2"} and set(found["sample"]["parsed"].to_pylist()) == {"yes"}
    (task,), (run,) = found["task"].to_pylist(), found["run"].to_pylist()
    assert (task["suite"], task["split"], task["prompt_sha256"], task["dataset_sha256"]) == ("core", "validation", "p", "d")
    assert run["suite"] == "core" and run["exported"] == datetime(2026, 3, 1, 10)
    rows = pq.read_table(suite.path / "parsed.parquet")
    pq.write_table(rows.take(pa.array([1, 0, *range(2, len(rows))])), suite.path / "parsed.parquet")
    with pytest.raises(AnyloomError, match=r"parsed.parquet is not about the rows of samples.parquet beside it \(doc_key differs\)"):
        collect(HistoryConfig(recipe="tiny"), "r", inputs)


def test_scores_of_a_reused_history_need_no_database(tmp_path: Path) -> None:
    from flows.deployments.results import scores

    _writer(str(tmp_path / "stores"), 0, 2)
    (tmp_path / "history.duckdb").unlink()
    shown = scores(tmp_path, "run0001")
    assert "run0001" in shown and "| 0.9000 |" in shown and _count(tmp_path / "history.duckdb") == 2


def test_no_progress_bar_among_the_rows(tmp_path: Path) -> None:
    _writer(str(tmp_path / "stores"), 0, 1)
    ask = "SELECT current_setting('enable_progress_bar')"
    code = f'import sys, pathlib; from evals.history.database import query; print(query(pathlib.Path(sys.argv[1]), "{ask}"))'
    assert "[(False,)]" in subprocess.check_output([sys.executable, "-c", code, str(tmp_path / "history.duckdb")], text=True)


HOLDER = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1])
connection.execute("BEGIN")
print("open", flush=True)
sys.stdin.read()
"""


def test_a_database_that_another_process_writes_in_is_said_to_be_held_and_not_to_be_removed(tmp_path: Path) -> None:
    stores, db = tmp_path / "stores", tmp_path / "a lock" / "history.duckdb"
    _writer(str(stores), 0, 1)
    history.rebuild(stores, db)
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(db)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"open\n"
        with pytest.raises(AnyloomError) as caught:
            _count(db)
        assert f"process {holder.pid} (" in str(caught.value) and "wait" in str(caught.value) and "remove" not in str(caught.value)
        copy = tmp_path / "copy.duckdb"
        shutil.copyfile(db, copy)  # what the message advises
        assert _count(copy) == 1 and history.rebuild(stores, db) == 1
        holder.kill()
    assert _count(db) == 1
    db.write_bytes(b"no database" * 1000)
    with pytest.raises(AnyloomError, match="remove it and rebuild the history"):
        _count(db)
