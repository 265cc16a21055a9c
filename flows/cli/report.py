"""anyloom report: the page of one run, and the page of the whole history. Presents what the history holds; evals owns the work."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flows.running.answer import Answer


def add_commands(commands: Any, how: argparse.ArgumentParser, what: str) -> None:
    """`report`: without --history the recipe's step of that name and what it needs, then the history's page; with it the page alone."""
    report = commands.add_parser(
        "report",
        parents=[how],
        help=what,
        description="Same as `anyloom run report` (report.html of this recipe's run), then ROOT/history.html and ROOT/history.md: every run that the history "
        "has, with trends and two checkpoints side by side. With --history no step runs: only the history's page is written.",
    )
    report.set_defaults(targets=["report"])
    report.add_argument("--history", action="store_true", help="run nothing: write the history's page from what is there")
    report.add_argument("--a", default="", metavar="RUN", help="the earlier of the two runs that are compared (default: the newest before B asked the same)")
    report.add_argument("--b", default="", metavar="RUN", help="the later one (default: the newest run); the beginning of an id is enough")
    report.add_argument("--out", type=Path, metavar="FILE", help="where the history's page goes, ending in .html (default: ROOT/history.html); .md beside it")
    report.add_argument("--seed", type=int, default=0, help="draws the questions and media that the history's page shows (default: 0)")


def write(args: argparse.Namespace, root: Path, run: Answer | None) -> Answer:
    """Write the history's page and say where it is. run: what the steps before it gave. Raises AnyloomError without a history, or for an unknown run."""
    from evals.history.database import database_path
    from evals.pages.history.history import write_history_page

    written = write_history_page(database_path(root / "stores"), out=args.out, a=args.a, b=args.b, seed=args.seed)
    page = {"page": written.page, "summary": written.summary, "runs": written.runs, "bytes": written.page_bytes}
    lines = f"history: {written.page} ({written.runs} runs, {written.page_bytes / 1e6:.1f} MB)", f"summary: {written.summary}"
    return Answer((lambda: run.document() | {"history": page}) if run else page, lambda: print(*lines, sep="\n"))
