"""Rates a person can read, and texts that are shown as they are."""

import io

import pytest
from rich.console import Console

from flows.running.display import Display, human_rate, table


@pytest.mark.parametrize(
    ("done", "total", "seconds", "said"),
    [(1, 200, 9, ""), (0.5, 1, 3, ""), (10, 200, 4, "2.5/s"), (10, 200, 40, "4.0 s each")],
)
def test_rates(done, total, seconds, said):
    assert human_rate(done, total, seconds) == said


HOSTILE = ("[/INST] a cat", "[bold]x", ":smile:", "\x1b[31mred", "[link=http://x]y[/link]")
ESCAPED = ("[/INST] a cat", "[bold]x", ":smile:", "\\x1b[31mred", "[link=http://x]y[/link]")


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_in_a_table_a_line_or_a_bar_is_markup(terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, highlight=False, color_system=None, legacy_windows=False)
    console.print(table(HOSTILE[0], HOSTILE, [HOSTILE]))
    display = Display(console)
    with display:
        for text in HOSTILE:
            display.say(text)
        display.start(HOSTILE[1])
        for text in HOSTILE:
            display.update(HOSTILE[1], 1, 2, note=text)
            display.bars.refresh()
    said = out.getvalue()
    for text in ESCAPED:
        assert said.count(text) >= (3 if text != ":smile:" else 2), text
    assert "\x1b[31m" not in said


def test_a_cell_keeps_its_lines() -> None:
    out = io.StringIO()
    Console(file=out, width=60).print(table("", ("a",), [["one\ntwo"]]))
    assert [line.strip("│ ") for line in out.getvalue().splitlines() if "o" in line] == ["one", "two"]
