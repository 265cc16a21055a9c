"""anyloom show: opens the newest page of a root in the browser: the report of a run, or the page of the history.

Owns which files are pages, and which of them is the newest. Input: a root. Output: the page's path, and the page in a browser where there is a display.
Raises AnyloomError for a root without pages.
"""

from __future__ import annotations

import webbrowser
from datetime import datetime
from pathlib import Path
from typing import Any

from flows.running.answer import Answer
from infra.artifact import look
from infra.settings import Settings, has_display
from infra.step import AnyloomError


def add_show(commands: Any) -> None:
    """Add `show` to a subparsers action."""
    show = commands.add_parser(
        "show",
        help="open the newest page of a root in the browser",
        description="Opens the newest report.html or history.html of a root, and prints its path. Without a display it only prints.",
    )
    show.add_argument("root", nargs="?", type=Path, metavar="ROOT", help="directory of artifacts, stores, history and report (default: runs, or ANYLOOM_ROOT)")
    show.add_argument("--print", action="store_true", dest="only_print", help="print the path and open nothing")


def pages(root: Path) -> list[tuple[datetime, Path]]:
    """(when it was made, page) of the history's page and of every finished report below a root, the newest first."""
    found = [(datetime.fromisoformat(record.provenance.finished), path / "report.html") for path, record in look(root)[0] if record.name == "report"]
    history = root / "history.html"
    if history.is_file():
        found.append((datetime.fromtimestamp(history.stat().st_mtime).astimezone(), history))
    return sorted(((made, page) for made, page in found if page.is_file()), reverse=True)


def main(settings: Settings, only_print: bool) -> Answer:
    """Open the newest page, or only say where it is."""
    root = settings.root.absolute()
    found = pages(root)
    if not found:
        raise AnyloomError(f"{root} has no page yet: anyloom run writes the report of a recipe, anyloom report --history the page of the history")
    page = found[0][1]
    opened = not only_print and has_display() and webbrowser.open(page.as_uri())
    return Answer({"page": page, "opened": opened, "pages": [{"page": path, "made": made} for made, path in found]}, lambda: print(page))
