"""The example queries of docs/history.md, on a history that has something to show for each of them."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from toy_history import FIRST_NIGHT, TASK, append, rows

from evals.history.database import query, rebuild
from evals.history.records import annotate, append_comparisons
from evals.history.tables import rows_table

DOCS = Path(__file__).parents[4] / "docs" / "history.md"
QUERIES = re.findall(r"\n([^\n]+):\n\n```sql\n(.*?);\n```", DOCS.read_text(), re.DOTALL)
HELPED = {"night01": [1.0, 1.0, 1.0, 0.0], "night02": [1.0, 0.0, 0.0, 0.0], "night03": [1.0, 1.0, 0.0, 0.0]}


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    stores = tmp_path_factory.mktemp("docs") / "stores"
    for night, (run_id, scores) in enumerate(HELPED.items()):
        run = rows(run_id, scores, night=night)
        for condition, other in (("plain_prompt", [1.0, 1.0, 0.0, 0.0]), ("blank", [1.0, 0.0, 0.0, 0.0])):
            more = rows(run_id, other, condition=condition)
            run |= {"metric": pa.concat_tables([run["metric"], more["metric"].slice(0, 1)]), "sample": pa.concat_tables([run["sample"], more["sample"]])}
        parsed = [{**row, "parse_status": "unparsed" if row["doc_key"] == "3" else "parsed"} for row in run["sample"].to_pylist()]
        append(stores, run | {"sample": rows_table("sample", parsed)})
    said = {"run_a": "night01", "run_b": "night02", "task": TASK, "condition": "helped", "metric": "exact_match", "subgroup": "all", "p_adjusted": 0.01}
    append_comparisons(stores, [said | {"value_a": 0.75, "value_b": 0.25, "delta": -0.5, "history_fingerprint": "aaaa"}])
    annotate(stores, at=FIRST_NIGHT + timedelta(days=1, hours=1), text="new pictures")
    path = stores.parent / "history.duckdb"
    rebuild(stores, path)
    return path


EXPECTED = {
    "The best runs of one task": [("smol", "helped", 0.75, 0.55, 0.95, 4, 0.5, "night01")],
    "How much looking at the image is worth": [("night01", TASK, 0.5, 0.25, 0.25, 4)],
    "One score night by night": [(FIRST_NIGHT, "night01", 0.75, 0.55, 0.95, None, 0, False)],
    "What became worse, newest first": [(FIRST_NIGHT + timedelta(days=1), "smol", TASK, "exact_match", "all", 0.75, 0.25, -0.5, 0.01, "comparison")],
    "Questions that one run had right and a later one wrong": [
        (TASK, "1", "0.png", "question 1?", "yes", "yes", "no"),
        (TASK, "2", "1.png", "question 2?", "yes", "yes", "no"),
    ],
    "How many answers changed, and in which direction": [(TASK, "blank", "same", 4, 0.0), (TASK, "helped", "down", 2, -1.0), (TASK, "helped", "same", 2, 0.0)],
    "Three seeds of a recipe": [("smol", TASK, "helped", "aaaa", 3, 0.5, 0.25, 0.75)],
    "Which questions every run gets wrong": [(TASK, "3", "question 3?", "yes", 3, "no")],
    "Answers that nobody could parse, as a share": [("night01", TASK, "blank", 1, 4, 0.25)],
    "The last loss of each stage beside the score that came of it": [("night01", "stage3", 2, 0.0, 0.75), ("night02", "stage3", 2, 0.0, 0.25)],
}
"""Beginning of the line above the query -> rows that are in its answer."""


def test_there_are_ten_and_each_has_an_expected_answer():
    assert len(QUERIES) == 10 == len(EXPECTED)


@pytest.mark.parametrize(("title", "sql"), QUERIES, ids=[title[:30] for title, _ in QUERIES])
def test_example_query(db, title, sql):
    (expected,) = [rows for start, rows in EXPECTED.items() if title.startswith(start)]
    found = query(db, sql)[1]
    for row in expected:
        assert any(_same(got, row) for got in found), found
    if title.startswith("One score"):
        assert [row[6] for row in found] == [0, 0, 1] and found[2][5] is None


def _same(got, expected):
    return len(got) == len(expected) and all(g == pytest.approx(e) if isinstance(e, float) else g == e for g, e in zip(got, expected, strict=True))
