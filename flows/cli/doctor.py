"""anyloom doctor: what this machine can do, and what each missing thing costs. Presents the findings of flows/cli/checks.py.

Input: Settings. Output: an Answer whose exit code is 1 when something is missing without which no recipe runs.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from flows.cli.checks import CHECKS, Finding
from flows.running.answer import Answer
from flows.running.cells import visible
from infra.logs import one_line
from infra.settings import Settings, offline_environment

WIDTH, MARGIN = 100, 25
"""Columns of a line, and of what stands before its text."""


def add_doctor(commands: Any, parents: Sequence[Any]) -> None:
    """Add `doctor` to a subparsers action. parents: parsers with --root."""
    commands.add_parser(
        "doctor",
        parents=list(parents),
        help="what this machine can do; for each missing thing what it costs and what helps",
        description="Looks at CPU, memory, GPUs, disk, packages and programs. Exit code 1 when something is missing without which no recipe runs.",
    )


def main(settings: Settings) -> Answer:
    """Look, and say it."""
    offline_environment()
    findings = [looked(check, settings) for check in CHECKS]
    fails = [one.what for one in findings if one.state == "fails"]
    rows = [
        {"what": f.what, "state": f.state, "found": f.found, "costs": f.costs, "remedy": f.remedy, "required": f.required, "facts": f.facts} for f in findings
    ]
    return Answer({"ok": not fails, "fails": fails, "findings": rows}, lambda: print("\n".join(lines(findings))), int(bool(fails)))


def looked(check: Callable[[Settings], Finding], settings: Settings) -> Finding:
    """What a check finds. One that cannot even look has found a library that does not work here."""
    try:
        return check(settings)
    except Exception as error:
        found = f"cannot be looked at: {type(error).__name__}: {one_line(error)}"
        return Finding(what=check.__name__, found=found, costs="steps that use the same library fail", remedy="pip install -r requirements.lock", required=True)


def lines(findings: Sequence[Finding]) -> list[str]:
    """The findings for people: each a line, below it what it costs and what helps; and a last line that counts them."""
    made: list[str] = []
    for one in findings:
        made += _wrapped(f"{one.state:<9}{one.what:<{MARGIN - 9}}", one.found)
        made += _wrapped(f"{'':<9}{'  costs':<{MARGIN - 9}}", one.costs) if one.costs else []
        made += _wrapped(f"{'':<9}{'  helps':<{MARGIN - 9}}", one.remedy) if one.costs and one.remedy else []
    count = {state: sum(one.state == state for one in findings) for state in ("ok", "missing", "fails")}
    end = "no recipe runs as it is" if count["fails"] else "what is required is there"
    return [*made, f"{count['ok']} ok, {count['missing']} missing, {count['fails']} that fail: {end}"]


def _wrapped(before: str, text: str) -> list[str]:
    return textwrap.wrap(visible(text), WIDTH, initial_indent=before, subsequent_indent=" " * MARGIN, break_long_words=False, break_on_hyphens=False)
