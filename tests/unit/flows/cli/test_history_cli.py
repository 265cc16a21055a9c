"""anyloom history and anyloom sql, as typed."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from toy_history import append, rows

from evals.history.tables import file_of, rows_table
from flows.cli.main import build_parser, main

GOLDEN = Path(__file__).parents[3] / "golden" / "lmms_eval"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    append(tmp_path / "stores", rows("a", [1.0, 0.0]), rows("b", [1.0, 1.0], night=1))
    return tmp_path


@pytest.fixture
def anyloom(root: Path, capsys: pytest.CaptureFixture[str]):
    def run(*arguments: object, expect: int = 0) -> str:
        code = main([*map(str, arguments), "--root", str(root)])
        shown = capsys.readouterr()
        assert code == expect, shown
        return shown.out + shown.err

    return run


def test_history_without_an_action_is_the_recipe_s_step():
    args = build_parser().parse_args(["history", "--recipe", "tiny", "--no-ray"])
    assert (args.command, args.action, args.targets, args.recipe, args.use_ray) == ("history", None, ["history"], "tiny", False)


@pytest.mark.parametrize("words", [["history", "--root", "x", "check"], ["history", "check", "--root", "x"]])
def test_the_root_may_stand_before_or_after_the_action(words):
    assert build_parser().parse_args(words).root == Path("x")


def test_build_is_free_of_steps_and_says_how_many_runs(anyloom, root):
    (root / "history.duckdb").unlink()
    assert "2 runs in" in anyloom("history", "build") and not (root / "artifacts").exists()
    assert "2 runs in" in anyloom("history", "build", "--fresh")


def test_check_says_each_problem_and_exits_1(anyloom, root):
    assert anyloom("history", "check") == "11 files, 21 rows, 0 problems\n"
    file_of(root / "stores", "sample", "a").unlink()
    said = anyloom("history", "check", expect=1).splitlines()
    assert len(said) == 2 and said[0].startswith("lost: ") and said[1].endswith(" 1 problems")


def test_import_twice_then_query(anyloom):
    first, again = (anyloom("history", "import", GOLDEN, "--harness-version", "0.7.3") for _ in range(2))
    assert first.startswith("added") and again.startswith("there")
    assert json.loads(anyloom("sql", "select count(*) as n from run where source = 'lmms-eval'", "--json")) == [{"n": 1}]
    assert "--harness-version" in anyloom("history", "import", GOLDEN, expect=1)


def test_annotate_then_trend(anyloom):
    anyloom("history", "annotate", "new pictures", "--at", "2026-11-01T12:00", "--task", "easyvqa_as_vqav2", "--author", "me")
    lines = anyloom("sql", "select run_id, segment from trend order by time", "--format", "json").splitlines()
    assert [json.loads(line) for line in lines] == [{"run_id": "a", "segment": 0}, {"run_id": "b", "segment": 1}]
    assert "--at yesterday" in anyloom("history", "annotate", "x", "--at", "yesterday", expect=1)


def test_export(anyloom, tmp_path):
    said = anyloom("history", "export", tmp_path / "out", "--format", "csv", "--table", "run", "--table", "leaderboard")
    assert "2 rows" in said and sorted(p.name for p in (tmp_path / "out").iterdir()) == ["leaderboard.csv", "run.csv"]


def test_formats_of_sql(anyloom):
    sql = "select run_id, accuracy, 'a,b' as \"x\", null as y from leaderboard_all order by run_id"
    found = list(csv.reader(io.StringIO(anyloom("sql", sql, "--format", "csv"))))
    assert found == [["run_id", "accuracy", "x", "y"], ["a", "0.5", "a,b", ""], ["b", "1.0", "a,b", ""]]
    shown = anyloom("sql", sql)
    assert shown.endswith("2 rows\n") and "accuracy" in shown and "0.5" in shown
    lines = anyloom("sql", sql, "--format", "json").splitlines()
    assert json.loads(anyloom("sql", sql, "--json")) == [json.loads(line) for line in lines] and json.loads(anyloom("sql", "select 1 limit 0", "--json")) == []
    for other in (["--format", "csv"], ["--wide"], ["--spreadsheet"]):
        assert "leave out" in anyloom("sql", sql, "--json", *other, expect=1)


def test_sql_cannot_write(anyloom):
    assert "query failed" in anyloom("sql", "delete from run", expect=1)


def test_compare_writes_the_paired_difference_of_two_runs_once(root: Path, anyloom):
    def stored() -> list[str]:
        return anyloom("sql", "select run_a, run_b, delta, n_paired from comparison where subgroup = 'all' order by all", "--format", "csv").splitlines()[1:]

    assert stored() == []
    anyloom("history", "compare", "a", "b")
    once = stored()
    assert once and all(line.startswith("a,b,0.5,2") for line in once)
    anyloom("history", "compare", "a", "b")
    assert stored() == once
    assert anyloom("history", "check").endswith("0 problems\n")


def test_compare_names_what_it_cannot_find(anyloom):
    assert "run zzz: no runs are called that; there are " in anyloom("history", "compare", "a", "zzz", expect=1)
    assert "named twice" in anyloom("history", "compare", "a", "a", expect=1)


def test_json_has_null_for_what_is_no_number(anyloom):
    said = anyloom("sql", "select 'nan'::double as x, 'inf'::double as y, 1.5 as z, [1.0::double, 'nan'::double] as l", "--format", "json")
    assert said == '{"x": null, "y": null, "z": 1.5, "l": [1.0, null]}\n'


CASES = Path(__file__).parents[3] / "cases"


def test_answers_are_shown_as_they_are(anyloom):
    anyloom("history", "import", CASES / "answers_with_markup", "--harness-version", "0.7.3")
    shown = anyloom("sql", "select prediction from sample where task = 'vqav2_val'")
    for text in ("[/INST] a cat", "[bold]dog[/bold] and [red]x", 'a\\nb, "c"', "=1+1", "\\x00\\x1b[31mred", "é\\u2028x"):
        assert f"│ {text} " in shown, text
    assert "\x1b" not in shown and "6 rows" in shown


def test_markup_in_a_query_is_text(anyloom):
    shown = anyloom("sql", "select '[/INST] a cat' as p union all select '[bold]x' union all select '[link=http://x]y[/link] :smile: \\\\[red]'")
    for text in ("[/INST] a cat", "[bold]x", "[link=http://x]y[/link] :smile: \\\\[red]"):
        assert f"│ {text} " in shown, text


def test_a_column_s_name_is_no_markup(anyloom):
    assert "[red]x\\x1b" in anyloom("sql", 'select 1 as "[red]x\x1b"')


def test_an_error_shows_what_it_quotes(anyloom):
    said = anyloom("sql", 'select * from "\x1b[31m[bold]"', expect=1)
    assert "\\x1b[31m[bold]" in said and "\x1b" not in said


def test_csv_for_a_spreadsheet(anyloom, tmp_path):
    sql = "select '=1+1' as \"@x\", -0.5 as y, '-1' as z, null as n, 'a' as a"
    exact, safe = (list(csv.reader(io.StringIO(anyloom("sql", sql, "--format", "csv", *more)))) for more in ([], ["--spreadsheet"]))
    assert exact == [["@x", "y", "z", "n", "a"], ["=1+1", "-0.5", "-1", "", "a"]]
    assert safe == [["'@x", "y", "z", "n", "a"], ["'=1+1", "-0.5", "'-1", "", "a"]]
    anyloom("history", "import", CASES / "answers_with_markup", "--harness-version", "0.7.3")
    for options, first in ((["--spreadsheet"], "'=1+1"), ([], "=1+1")):
        anyloom("history", "export", tmp_path / "out", "--format", "csv", "--table", "sample", *options)
        with open(tmp_path / "out" / "sample.csv", newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(line.replace("\0", "") for line in handle))
        assert first in {row["prediction"] for row in rows} and "cat" in {row["target"] for row in rows}
    assert "--format csv" in anyloom("sql", sql, "--spreadsheet", expect=1)
    assert "--format csv" in anyloom("history", "export", tmp_path / "out", "--spreadsheet", expect=1)


RECIPES = ["tiny", "smol", "smol_judged", "nextgpt_7b_legacy"]


def test_the_leaderboard_fits_a_hundred_columns_and_wide_shows_everything(root: Path, anyloom):
    for number, recipe in enumerate(RECIPES):
        made = rows(f"{number:015x}e", [1.0, 0.0], night=number, recipe=recipe, task="mmbench_en_dev_static", condition="plain_prompt")
        renamed = [row | {"metric": "gpt_eval_score"} for row in made["metric"].to_pylist()]
        append(root / "stores", made | {"metric": rows_table("metric", renamed)}, rows(f"{number:015x}f", [1.0], night=number, recipe=recipe))
    said = anyloom("sql", "select * from leaderboard").splitlines()
    assert max(map(len, said)) <= 100
    one = anyloom("sql", "select * from leaderboard where recipe = 'tiny' and task = 'easyvqa_as_vqav2'").splitlines()
    assert len(one) == 6 and "2026-11-01 │ 0000000 │ tiny   │ easyvqa_as_vqav2 │ helped" in one[3] and "│ 1        │ 0.800-1.200 │ 1 " in one[3]
    assert said[-1] == "10 rows; --wide shows each on one line" and one[-1] == "1 rows"
    for sql in ("select * from leaderboard_all", "select * from sample", "select repeat('x', 500) as long, 1 as y"):
        wide = anyloom("sql", sql, "--wide").splitlines()
        count = json.loads(anyloom("sql", f"select count(*) as n from ({sql})", "--format", "json"))["n"]
        assert len(wide) == count + 5 and len({len(line) for line in wide[:-1]}) == 1
        assert "…" not in "".join(wide) and max(map(len, anyloom("sql", sql).splitlines())) <= 500
    names = json.loads(anyloom("sql", "select * from leaderboard_all limit 1", "--format", "json"))
    assert {"ci_lo", "ci_hi", "floor_blind_majority", "artifact", "seed", "time", "run_id", "history_fingerprint", "value", "model_id"} < set(names)
