"""The history's page: every run there ever was, as one self-contained HTML page and a Markdown summary.

Owns the choice and order of the sections. Input: history.duckdb, and for media the artifacts beside it. Output: two files, the same bytes for
the same history and artifacts; like history.duckdb they are derived, and replaced as a whole. No score is computed here: all are read from the history.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

from evals.history.database import opened
from evals.history.reader import History, Run
from evals.pages.history import charts as charts_history
from evals.pages.history import diff as report_diff
from evals.pages.history.changes import comparison_section, regressions_section
from evals.pages.history.curves import curves_section
from evals.pages.history.diff import diff_section
from evals.pages.history.gallery import gallery_section
from evals.pages.history.leaderboard import categories_section, leaderboard_section
from evals.pages.history.summary import summary
from evals.pages.history.trends import trends_section
from evals.pages.page import count_of, document
from infra.step import AnyloomError
from infra.storage import write_atomic

TITLE = "Anyloom benchmark history"
PAGE, SUMMARY = "history.html", "history.md"
STYLE = f"""{charts_history.STYLE}{report_diff.STYLE}
.card img{{height:160px;image-rendering:auto}}.sheet{{max-width:100%}}figure{{margin:14px 0}}
.grid3{{grid-template-columns:repeat(auto-fill,minmax(265px,1fr))}}.scroll td,.scroll code{{white-space:nowrap}}
"""
SECTIONS = {
    "leaderboard": "Leaderboard",
    "trends": "Trends",
    "comparison": "A against B",
    "categories": "Categories",
    "diff": "Question by question",
    "regressions": "Regressions",
    "gallery": "Gallery",
    "training": "Training",
}
"""Name of a section -> what the page's navigation calls it, in the page's order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What was made."""

    page: Path
    summary: Path
    runs: int
    page_bytes: int


def write_history_page(db_path: Path, *, out: Path | None = None, a: str = "", b: str = "", seed: int = 0, title: str = TITLE) -> Written:
    """Write the page and, beside it, the summary with the same name and `.md`.

    out: where, by default history.html beside the database. a, b: beginnings of the ids of the runs to compare (default: the newest run, and the newest
    before it that was asked the same). seed: draws what is shown. Raises AnyloomError without a history, for an unknown run, or for an `out` that is no .html.
    """
    page = out or db_path.with_name(PAGE)
    if page.suffix != ".html":
        raise AnyloomError(f"--out {page}: give a file that ends in .html; the summary gets the same name with .md")
    with opened(db_path) as connection:
        history = History(connection)
        if not history.runs:
            raise AnyloomError(f"{db_path} has no runs yet: run an evaluation first (anyloom run), or import one (anyloom history import)")
        earlier, later = history.pair(a, b)
        html = history_page(history, earlier, later, db_path.parent, seed, title)
        text = summary(history, earlier, later, title)
    write_atomic(page, html)
    write_atomic(page.with_suffix(".md"), text)
    return Written(page=page, summary=page.with_suffix(".md"), runs=len(history.runs), page_bytes=len(html.encode()))


def history_page(history: History, a: Run | None, b: Run, root: Path, seed: int, title: str = TITLE) -> str:
    """The HTML text. root: where the artifacts of the runs are."""
    made = {
        "leaderboard": leaderboard_section(history),
        "trends": trends_section(history),
        "comparison": comparison_section(history, a, b),
        "categories": categories_section(history, a, b),
        "diff": diff_section(history, a, b, root, seed),
        "regressions": regressions_section(history),
        "gallery": gallery_section(history, root, seed),
        "training": curves_section(history, a, b),
    }
    made = {name: made[name] for name in SECTIONS if made[name]}
    links = "".join(f'<li><a href="#{name}">{SECTIONS[name]}</a></li>' for name in made)
    body = (
        f'<a class="skip" href="#leaderboard">To the leaderboard</a><h1>{escape(title)}</h1><p class="soft">{_about(history)}</p>'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n'
    )
    return document(title, body + "\n".join(made.values()), style=STYLE, script=report_diff.SCRIPT)


def _about(history: History) -> str:
    days = [run.evaluated for run in history.runs if run.evaluated]
    span = f", evaluated from {min(days):%Y-%m-%d} to {max(days):%Y-%m-%d}" if days else ""
    tasks, models = history.rows("SELECT count(DISTINCT task) AS tasks, (SELECT count(DISTINCT model_id) FROM run) AS models FROM metric")[0].values()
    return f"{count_of(len(history.runs), 'run')} of {count_of(models, 'model')} on {count_of(tasks, 'task')}{span}. Times are UTC, intervals 95 %."
