"""A history of 10 million samples: the leaderboard and the paired diff of two runs, against SQLite with the same rows.

2,000 runs of 5 tasks with 1,000 samples each, appended as real runs are (a file per run and table) in the order of time, and built into history.duckdb in
ten steps, as nights do: ids are random, so a run's rows lie anywhere. ours: `evals.history.query`, opening the database included. peer: stdlib sqlite3, opening
included, the same rows; samples clustered by (run, task, condition, question), metrics and runs by their keys, the views written with the same joins, a
read-only connection with 256 MB of page cache and memory-mapped, after ANALYZE. limit: the bound that was asked for, 100 ms and 300 ms. Both sides return the
same rows, which are compared. Warm page cache; median of `ROUNDS`, interleaved.
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
from store_bench import interleaved, scratch

from evals.history import database as history
from evals.history.tables import conform, rows_table

RUNS, TASKS, SAMPLES, STEPS, ROUNDS = 2000, 5, 1000, 10, 5
SUBGROUPS = ("all", "yes/no", "shape", "colour")
WORDS = ("yes", "no", "red", "blue", "green", "circle", "rectangle", "triangle", "teal", "brown")
QUERIES = {
    "leaderboard": (100.0, "SELECT recipe, task, condition, accuracy, ci_lo, ci_hi, n, floor_blind_majority, run_id FROM leaderboard_all WHERE subgroup = 'all' ORDER BY accuracy DESC, run_id, task LIMIT 50"),  # noqa: E501
    "sample_diff": (300.0, "SELECT task, doc_key, question, target, prediction_a, prediction_b, score_a, score_b FROM sample_diff WHERE run_a = '{a}' AND run_b = '{b}' AND flip <> 'same' ORDER BY task, doc_key"),  # noqa: E501
}
"""name -> (bound in ms, statement)."""


def run(options: argparse.Namespace) -> list[dict]:
    """Two entries."""
    with scratch() as box:
        return measure(box, options.seed)


def measure(box: Path, seed: int) -> list[dict]:
    """Build both, then ask both."""
    stores, db, peer_path = box / "stores", box / "history.duckdb", box / "history.sqlite"
    rng = np.random.default_rng(seed)
    ids = [rng.bytes(8).hex() for _ in range(RUNS)]
    appended_s, built = 0.0, []
    peer, peer_s = sqlite3.connect(peer_path), 0.0
    peer.executescript(PEER_SCHEMA)
    for step in range(STEPS):
        for number in range(step * RUNS // STEPS, (step + 1) * RUNS // STEPS):
            tables = one_run(ids[number], number, rng)
            began = time.perf_counter()
            history.append(stores, ids[number], tables)
            appended_s += time.perf_counter() - began
            began = time.perf_counter()
            insert(peer, tables)
            peer_s += time.perf_counter() - began
        began = time.perf_counter()
        history.rebuild(stores, db)
        built.append(time.perf_counter() - began)
        print(f"{(step + 1) * RUNS // STEPS} runs in both; last build {built[-1]:.1f} s", flush=True)
    began = time.perf_counter()
    peer.executescript("CREATE INDEX metric_of_kind ON metric (kind, subgroup, metric); ANALYZE;")
    peer.close()
    peer_s += time.perf_counter() - began
    began = time.perf_counter()
    history.rebuild(stores, box / "fresh.duckdb", fresh=True)
    fresh_s = time.perf_counter() - began
    note = {
        "samples": RUNS * TASKS * SAMPLES,
        "runs": RUNS,
        "metrics": history.query(db, "SELECT count(*) FROM metric")[1][0][0],
        "parquet_mb": mb(sum(path.stat().st_size for path in stores.rglob("*.parquet"))),
        "parquet_files": sum(1 for _ in stores.rglob("*.parquet")),
        "duckdb_mb": mb(db.stat().st_size),
        "duckdb built at once_mb": mb((box / "fresh.duckdb").stat().st_size),
        "sqlite_mb": mb(peer_path.stat().st_size),
        "append_s per run": round(appended_s / RUNS, 4),
        f"last of {STEPS} builds, {RUNS // STEPS} new runs_s": round(built[-1], 2),
        "build at once, every file_s": round(fresh_s, 1),
        "sqlite inserts and indexes_s": round(peer_s, 1),
    }
    (box / "fresh.duckdb").unlink()
    pairs = [(ids[a], ids[b]) for a, b in (rng.choice(RUNS, 2, replace=False).tolist() for _ in range(ROUNDS + 1))]
    return [entry(name, db, peer_path, pairs, seed, note) for name in QUERIES]


def entry(name: str, db: Path, peer_path: Path, pairs: list[tuple[str, str]], seed: int, note: dict) -> dict:
    """One statement on both sides, `ROUNDS` times in turn, each round with another pair of runs. Raises RuntimeError when they return different rows."""
    bound, statement = QUERIES[name]
    spent: dict[str, list[float]] = {"ours": [], "peer": []}
    for number, (a, b) in enumerate(pairs):  # the first one warms up
        sql = statement.format(a=a, b=b)
        sides: dict[str, Callable] = {"ours": lambda sql=sql: history.query(db, sql)[1], "peer": lambda sql=sql: ask_peer(peer_path, sql)}
        turn = list(sides) if number % 2 else list(sides)[::-1]
        for side, seconds in interleaved({side: lambda ask=sides[side]: timed(ask) for side in turn}, 1).items():
            spent[side] += seconds
    median = {side: statistics.median(seconds[1:]) * 1000 for side, seconds in spent.items()}
    return {
        "name": f"history_query_{name}",
        "ours": round(median["ours"], 1),
        "peer": round(median["peer"], 1),
        "limit": bound,
        "unit": "ms",
        "ratio_peer": round(statistics.median(p / o for o, p in zip(spent["ours"][1:], spent["peer"][1:], strict=True)), 3),
        "ratio_limit": round(bound / median["ours"], 3),
        "runs": len(pairs) - 1,
        "spread": {side: [round(min(seconds[1:]) * 1000, 1), round(max(seconds[1:]) * 1000, 1)] for side, seconds in spent.items()},
        "seed": seed,
        "note": note | {"first query_ms": {side: round(seconds[0] * 1000, 1) for side, seconds in spent.items()}},
    }


def timed(ask: Callable[[], list]) -> tuple[float, list]:
    """(seconds, rows with numbers rounded so that both sides' sums may differ in the last bit)."""
    began = time.perf_counter()
    rows = ask()
    seconds = time.perf_counter() - began
    if not rows:
        raise RuntimeError("a query returned nothing: there is nothing to compare")
    return seconds, [tuple(round(value, 9) if isinstance(value, float) else value for value in row) for row in rows]


def mb(size: int) -> float:
    """Megabytes."""
    return round(size / 1e6, 1)


def one_run(run_id: str, number: int, rng: np.random.Generator) -> dict[str, pa.Table]:
    """A run of the nightly evaluation: every task's questions, answered right with a probability of its own."""
    n, metric = SAMPLES, []
    parts = []
    for task in range(TASKS):
        same = {"run_id": run_id, "task": f"task{task}", "history_fingerprint": f"print{task}"}
        target, right = WORDS_ARRAY[(np.arange(n) * 7 + task) % len(WORDS)], rng.random(n) < 0.6 + 0.3 * rng.random()
        prediction = np.where(right, target, WORDS_ARRAY[rng.integers(0, len(WORDS), n)])
        score = (prediction == target).astype(np.float64)
        columns = {key: pa.array([value] * n) for key, value in (same | {"condition": "helped"}).items()}
        columns |= {"doc_key": DOC_KEYS, "image": PICTURES, "cluster": PICTURES, "question": QUESTIONS, "answer_type": TYPES, "target": pa.array(target)}
        columns |= {"prediction": pa.array(prediction), "score": pa.array(score), "num_tokens": pa.array(rng.integers(1, 5, n))}
        columns |= {"question_id": pa.array(np.arange(n))}
        parts.append(conform("sample", pa.table(columns)))
        for place, subgroup in enumerate(SUBGROUPS):
            chosen = score if place == 0 else score[np.arange(n) % 3 == place - 1]
            value, size = float(chosen.mean()), len(chosen)
            row = same | {"metric": "exact_match", "filter": "none", "subgroup": subgroup, "n": size, "clusters": size // 2}
            metric.append(row | {"condition": "helped", "kind": "score", "value": value, "ci_lo": value - 0.03, "ci_hi": value + 0.03})
            metric += [row | {"condition": name, "kind": "floor", "value": floor} for name, floor in (("always_yes", 0.1), ("blind_majority", 0.3))]
    said = {"run_id": run_id, "recipe": f"recipe{number % 4}", "seeds": "stage3=0", "evaluated": datetime(2026, 1, 1) + timedelta(hours=number)}
    return {
        "run": rows_table("run", [said]),
        "task": rows_table("task", [{"history_fingerprint": f"print{task}", "task": f"task{task}"} for task in range(TASKS)]),
        "metric": rows_table("metric", metric),
        "sample": pa.concat_tables(parts),
    }


WORDS_ARRAY = np.array(WORDS)
DOC_KEYS = pa.array([f"easyvqa_test-{i // 2:06d}#{i % 2}" for i in range(SAMPLES)])
PICTURES = pa.array([f"media/test/{i // 2}.png" for i in range(SAMPLES)])
QUESTIONS = pa.array([f"what is the colour of shape number {i} in the image?" for i in range(SAMPLES)])
TYPES = pa.array([SUBGROUPS[1 + i % 3] for i in range(SAMPLES)])
SAMPLE_COLUMNS = ("run_id", "task", "condition", "doc_key", "question_id", "image", "cluster", "question", "answer_type", "target", "prediction", "score", "num_tokens", "history_fingerprint")  # noqa: E501
METRIC_COLUMNS = ("run_id", "task", "condition", "metric", "filter", "subgroup", "value", "ci_lo", "ci_hi", "n", "clusters", "kind", "history_fingerprint")
PEER_SCHEMA = f"""
PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -262144;
CREATE TABLE run (run_id TEXT PRIMARY KEY, recipe TEXT, seeds TEXT, evaluated TEXT) WITHOUT ROWID;
CREATE TABLE metric ({", ".join(METRIC_COLUMNS)}, PRIMARY KEY (run_id, task, condition, metric, subgroup, kind)) WITHOUT ROWID;
CREATE TABLE sample ({", ".join(SAMPLE_COLUMNS)}, PRIMARY KEY (run_id, task, condition, doc_key)) WITHOUT ROWID;
CREATE VIEW leaderboard_all AS
SELECT run.recipe, metric.task, metric.condition, metric.subgroup, metric.value AS accuracy, metric.ci_lo, metric.ci_hi, metric.n,
    yes.value AS floor_always_yes, blind.value AS floor_blind_majority, run.evaluated AS time, metric.history_fingerprint, metric.run_id
FROM metric JOIN run USING (run_id)
LEFT JOIN metric AS yes ON yes.run_id = metric.run_id AND yes.task = metric.task AND yes.subgroup = metric.subgroup AND yes.metric = metric.metric
    AND yes.kind = 'floor' AND yes.condition = 'always_yes'
LEFT JOIN metric AS blind ON blind.run_id = metric.run_id AND blind.task = metric.task AND blind.subgroup = metric.subgroup AND blind.metric = metric.metric
    AND blind.kind = 'floor' AND blind.condition = 'blind_majority'
WHERE metric.kind = 'score' AND metric.metric IN ('exact_match', 'accuracy', 'vanilla', 'circular', 'anls');
CREATE VIEW sample_diff AS
SELECT a.run_id AS run_a, b.run_id AS run_b, a.task, a.condition, a.doc_key, a.image, a.question, a.answer_type, a.target,
    a.prediction AS prediction_a, b.prediction AS prediction_b, a.score AS score_a, b.score AS score_b, b.score - a.score AS delta,
    CASE WHEN b.score > a.score THEN 'up' WHEN b.score < a.score THEN 'down' ELSE 'same' END AS flip, a.history_fingerprint
FROM sample AS a JOIN sample AS b
    ON b.task = a.task AND b.condition = a.condition AND b.doc_key = a.doc_key AND b.history_fingerprint = a.history_fingerprint AND b.run_id <> a.run_id;
"""


def insert(peer: sqlite3.Connection, tables: dict[str, pa.Table]) -> None:
    """The same rows into the peer, a transaction per run."""
    (said,) = tables["run"].to_pylist()
    with peer:
        peer.execute("INSERT INTO run VALUES (?, ?, ?, ?)", (said["run_id"], said["recipe"], said["seeds"], said["evaluated"].isoformat()))
        for table, names in (("metric", METRIC_COLUMNS), ("sample", SAMPLE_COLUMNS)):
            rows = zip(*(tables[table][name].to_pylist() for name in names), strict=True)
            peer.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(names))})", rows)


def ask_peer(path: Path, sql: str) -> list[tuple]:
    """One statement, with the opening of the file."""
    peer = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        peer.execute("PRAGMA cache_size = -262144")
        peer.execute("PRAGMA mmap_size = 8589934592")
        return peer.execute(sql).fetchall()
    finally:
        peer.close()
