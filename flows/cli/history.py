"""anyloom history: build, import, export, check, compare, annotate; and anyloom sql. Presents what the history holds; evals owns the work."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from flows.running.answer import Answer
from flows.running.cells import RUN_BY_SPREADSHEETS, inert, json_row, plain, unique, visible
from flows.running.display import table
from infra.step import AnyloomError

SQL_FORMATS = ("table", "csv", "json")
SPREADSHEET = "CSV for a spreadsheet: a text that begins with = + - @ tab or a line break, which it would run, gets an apostrophe before it"
_NESTED = (bytes, timedelta, dict, list, tuple)
WIDTH, _ENDLESS = 100, 1_000_000
"""Columns of a table that goes to no terminal; more than any table has."""


def add_commands(commands: Any, where: argparse.ArgumentParser, how: argparse.ArgumentParser, what: str) -> None:
    """`history` with its actions, and `sql`. Without an action, `history` runs the recipe's step of that name and what it needs."""
    history = commands.add_parser(
        "history",
        parents=[how],
        help=what,
        description="The benchmark history. Without an ACTION: same as `anyloom run history`, the recipe's evaluations and what they need, then their rows. "
        "The actions run no step: they work on the files below ROOT/stores/history and on ROOT/history.duckdb.",
    )
    history.set_defaults(targets=["history"])
    actions = history.add_subparsers(dest="action", metavar="ACTION")
    root = argparse.ArgumentParser(add_help=False)
    root.add_argument("--root", type=Path, default=argparse.SUPPRESS, help="directory of artifacts, stores, history and report")
    build = actions.add_parser("build", parents=[root], help="bring history.duckdb up to the history's files; only what is new is read")
    build.add_argument("--fresh", action="store_true", help="read every file again")
    taken = actions.add_parser("import", parents=[root], help="result folders of lmms-eval as runs; the same folder again adds nothing")
    taken.add_argument("directory", type=Path, metavar="DIR", help="an --output_path of lmms-eval, or a folder of them")
    taken.add_argument("--harness-version", default="", help="of the lmms-eval that made them; `unknown`: rows that compare with nothing")
    taken.add_argument("--timezone", default="Asia/Singapore", help="of the dates in the file names (default: Asia/Singapore, which is lmms-eval's)")
    taken.add_argument("--name", default="", help="what to call the recipe (default: the model's name)")
    out = actions.add_parser("export", parents=[root], help="tables as Parquet or CSV files")
    out.add_argument("directory", type=Path, metavar="DIR")
    out.add_argument("--format", choices=("parquet", "csv"), default="parquet")
    out.add_argument("--spreadsheet", action="store_true", help=SPREADSHEET)
    out.add_argument("--table", action="append", default=[], help="a table or view; may be repeated (default: every table)")
    actions.add_parser("check", parents=[root], help="files against themselves and the database; a line per problem, exit code 1")
    two = actions.add_parser("compare", parents=[root], help="two runs on the samples both have: paired differences, kept in the history and its page")
    two.add_argument("run_a", metavar="A", help="a run; the beginning of its id is enough")
    two.add_argument("run_b", metavar="B", help="the run it is compared with: differences are B minus A")
    note = actions.add_parser("annotate", parents=[root], help="say what happened at a moment; series of scores begin a new segment there")
    note.add_argument("text", metavar="TEXT")
    note.add_argument("--at", default="now", help="2026-11-26, 2026-11-26T02:00 (UTC), 2026-11-26T02:00+01:00 (default: now)")
    note.add_argument("--recipe", dest="of_recipe", default="", help="only this recipe's series (default: every one)")
    note.add_argument("--task", default="", help="only this task's series (default: every one)")
    note.add_argument("--author", default="")

    sql = commands.add_parser("sql", parents=[where], help='query the benchmark history, e.g. "select * from leaderboard"')
    sql.add_argument("query")
    sql.add_argument("--format", choices=SQL_FORMATS, default="table", help="json: an object per line; --json: all of them as one list (default: table)")
    sql.add_argument("--spreadsheet", action="store_true", help=SPREADSHEET)
    sql.add_argument("--wide", action="store_true", help="a table with every row on one line, however long (default: the width of the terminal)")


def main(args: argparse.Namespace, root: Path) -> Answer:
    """Run one action. The exit code is 1 when `check` found a problem."""
    return {"build": build, "import": import_folders, "export": export, "check": check, "compare": compare, "annotate": annotate}[args.action](args, root)


def build(args: argparse.Namespace, root: Path) -> Answer:
    """history build"""
    from evals.history.database import database_path, rebuild, unchecked_files

    database = database_path(root / "stores")
    runs = rebuild(root / "stores", database, fresh=args.fresh)
    unchecked = unchecked_files(database)
    return Answer({"runs": runs, "database": database, "unchecked": unchecked}, lambda: print(f"{runs} runs in {database}{_unchecked(unchecked)}"))


def import_folders(args: argparse.Namespace, root: Path) -> Answer:
    """history import"""
    from evals.history.database import database_path, rebuild
    from evals.history.imported import import_folder

    made = []
    for one in import_folder(root / "stores", args.directory, harness_version=args.harness_version, timezone=args.timezone, name=args.name):
        print(visible(f"{'added' if one.new else 'there '}  run {one.run_id}: {', '.join(one.tasks)}; {one.samples} samples; {one.path}"))
        made.append({"run_id": one.run_id, "new": one.new, "tasks": list(one.tasks), "samples": one.samples, "file": one.path})
    rebuild(root / "stores", database_path(root / "stores"))
    return Answer(made)


def export(args: argparse.Namespace, root: Path) -> Answer:
    """history export"""
    from evals.history.exported import export as write
    from evals.history.tables import TABLES

    if args.spreadsheet and args.format != "csv":
        raise AnyloomError("--spreadsheet is about CSV: add --format csv")
    quoted = RUN_BY_SPREADSHEETS if args.spreadsheet else ()
    written = write(root / "history.duckdb", args.directory, args.format, args.table or TABLES, quoted=quoted)
    made = [{"table": name, "rows": rows, "file": args.directory / f"{name}.{args.format}"} for name, rows in written.items()]
    return Answer(made, lambda: print(*(f"{one['rows']:>10} rows  {one['file']}" for one in made), sep="\n"))


def check(args: argparse.Namespace, root: Path) -> Answer:
    """history check"""
    from evals.history.check import check as look

    found = look(root / "stores", root / "history.duckdb")
    lines = [*map(visible, found.problems), f"{found.files} files, {found.rows} rows, {len(found.problems)} problems{_unchecked(found.unchecked)}"]
    document = {"files": found.files, "rows": found.rows, "problems": found.problems, "unchecked": found.unchecked}
    return Answer(document, lambda: print(*lines, sep="\n"), int(bool(found.problems)))


def _unchecked(files: int) -> str:
    return f"; unchecked: {files} files of older versions, which have no digest" if files else ""


def compare(args: argparse.Namespace, root: Path) -> Answer:
    """history compare"""
    from evals.history.database import database_path, rebuild
    from evals.history.reader import history_of
    from evals.history.records import append_comparisons
    from evals.nightly.review import compare_runs

    stores = root / "stores"
    with history_of(stores) as history:
        pair = [history.named(text, "run").run_id for text in (args.run_a, args.run_b)]
        rows, left_out = compare_runs(history, *pair)
    append_comparisons(stores, rows)
    rebuild(stores, database_path(stores))
    columns = ["task", "condition", "metric", "subgroup", "n_paired", "value_a", "value_b", "delta", "ci_lo", "ci_hi", "p_adjusted", "flips_up", "flips_down"]

    def tell() -> None:
        show(columns, [[row[name] for name in columns] for row in rows], "table", wide=not sys.stdout.isatty())
        print(*map(visible, left_out), sep="\n", end="\n" if left_out else "")

    return Answer({"run_a": pair[0], "run_b": pair[1], "rows": rows, "left_out": left_out}, tell)


def annotate(args: argparse.Namespace, root: Path) -> Answer:
    """history annotate"""
    from evals.history.database import database_path, rebuild
    from evals.history.records import annotate as note
    from evals.history.records import parse_time

    stores = root / "stores"
    name = note(stores, at=parse_time(args.at), text=args.text, recipe=args.of_recipe, task=args.task, author=args.author)
    rebuild(stores, database_path(stores))
    return Answer({"annotation": name}, lambda: print(f"annotation {name}"))


def sql(args: argparse.Namespace, root: Path) -> Answer:
    """sql"""
    from evals.history.database import query

    if args.json and (args.format == "csv" or args.spreadsheet or args.wide):
        raise AnyloomError("--json is one document of all rows: leave out --format csv, --spreadsheet and --wide")
    columns, rows = query(root / "history.duckdb", args.query)
    names = unique(columns)
    return Answer([dict(zip(names, row, strict=True)) for row in rows], lambda: show(columns, rows, args.format, args.spreadsheet, args.wide))


def show(columns: Sequence[str], rows: Sequence[Sequence[Any]], form: str, spreadsheet: bool = False, wide: bool = False) -> None:
    """Print rows as a table, as CSV with a header, or as one strict JSON object per line (flows/running/cells.py).

    spreadsheet: texts of the CSV that a spreadsheet would run get an apostrophe before them. wide: a table with every row on one line, however long.
    """
    if spreadsheet and form != "csv":
        raise AnyloomError("--spreadsheet is about CSV: add --format csv")
    if form == "json":
        for row in rows:
            print(json_row(columns, row))
    elif form == "csv":
        cells = [list(columns), *([plain(v) if isinstance(v, _NESTED) else v for v in row] for row in rows)]
        cells = [[inert(v) if isinstance(v, str) else v for v in row] for row in cells] if spreadsheet else cells
        csv.writer(sys.stdout, lineterminator="\n").writerows(cells)
    elif form == "table":
        folded = _print_table(columns, [[_cell(value) for value in row] for row in rows], wide)
        print(f"{len(rows)} rows{'; --wide shows each on one line' if folded else ''}")
    else:
        raise AnyloomError(f"--format {form}: use {', '.join(SQL_FORMATS)}")


def _print_table(columns: Sequence[str], cells: Sequence[Sequence[str]], wide: bool) -> bool:
    """A table as wide as the terminal, or WIDTH where there is none; one that is wider has no lines, and folds its cells when that is not enough.

    wide: as wide as it is, on one line a row. Returns whether cells were folded.
    """
    from rich.console import Console
    from rich.measure import Measurement

    made = table("", map(visible, columns), cells)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    endless = console.options.update(width=_ENDLESS)
    natural = Measurement.get(console, endless, made).maximum
    if wide:
        console = Console(highlight=False, width=natural)
    elif natural > console.width:
        made.box, made.pad_edge = None, False
        natural = Measurement.get(console, endless, made).maximum
    console.print(made)
    return natural > console.width


def _cell(value: Any) -> str:
    """A cell of the table on one line."""
    return f"{value:.4g}" if isinstance(value, float) else visible(plain(value) if isinstance(value, (bytes, dict, list, tuple)) else str(value))
