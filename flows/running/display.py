"""What a person sees while steps run: one live line per running step on a terminal, one plain line per event in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from flows.running.cells import visible

LOG_WIDTH = 180
"""Columns when the output is not a terminal."""


def human_bytes(size: float) -> str:
    """1536 -> '1.5 KB'."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return ""


def human_rate(done: float, total: float, seconds: float) -> str:
    """'2.5/s', or '4.0 s each' below one a second; nothing for what has no units (total 1) or has hardly begun."""
    if total <= 1 or done < 2:
        return ""
    return f"{done / seconds:.1f}/s" if done >= seconds else f"{seconds / done:.1f} s each"


class Display:
    """Progress of many steps. Thread-safe; use as a context manager. log: told every line too, e.g. a Prefect run's logger."""

    def __init__(self, console: Console | None = None, log: Callable[[str], None] | None = None):
        self.log = log
        self.console = console or Console(highlight=False, width=None if sys.stdout.isatty() else LOG_WIDTH)
        self.live = self.console.is_terminal
        self.bars = Progress(
            TextColumn("{task.description:<18}", markup=False),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=self.console,
            transient=True,
        )
        self.tasks: dict[str, tuple[int, float]] = {}
        self.printed: dict[str, float] = {}
        self.lock = threading.Lock()

    def __enter__(self) -> Display:
        if self.live:
            self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self.bars.stop()

    def say(self, line: str) -> None:
        """One line above the bars."""
        self.console.print(plain_text(line))
        sys.stdout.flush()
        if self.log is not None:
            self.log(line)

    def start(self, name: str) -> None:
        """A step begins."""
        with self.lock:
            if self.live:
                self.tasks[name] = (int(self.bars.add_task(name, total=None, rate="", note="")), time.monotonic())
            else:
                self.tasks[name] = (0, time.monotonic())
                self.say(f"[start] {name}")

    def update(self, name: str, done: float, total: float, note: str = "") -> None:
        """Where a step is; in a log a line every 20 s."""
        with self.lock:
            if name not in self.tasks:
                return
            task, started = self.tasks[name]
            elapsed = max(time.monotonic() - started, 1e-6)
            rate = human_rate(done, total, elapsed)
            if self.live:
                self.bars.update(task, completed=done, total=total, rate=rate, note=visible(note))  # type: ignore[arg-type]
            elif time.monotonic() - self.printed.get(name, started) >= 20:
                self.printed[name] = time.monotonic()
                left = f", about {elapsed / done * (total - done):.0f} s left" if done >= min(3, total / 2) else ""
                self.say(f"[....]  {name}: {', '.join(part for part in (f'{done:.0f}/{total:.0f}', rate + left, note) if part)}")

    def finish(self, name: str, status: str, seconds: float) -> None:
        """A step ended."""
        with self.lock:
            if self.live and name in self.tasks:
                self.bars.remove_task(self.tasks[name][0])  # type: ignore[arg-type]
            self.tasks.pop(name, None)
            self.say(f"[{status}] {name} {seconds:.1f} s")


def table(title: str, header: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """A plain table; the first column is never cut. Every cell is shown as it is, on as many lines as it has; nothing in it is markup."""
    made = Table(title=plain_text(title) if title else None, title_justify="left", header_style="bold", expand=False)
    for i, name in enumerate(header):
        made.add_column(plain_text(name), no_wrap=i == 0, overflow="fold")
    for row in rows:
        made.add_row(*[plain_text(str(cell)) for cell in row])
    return made


def plain_text(text: str) -> Text:
    """A text for the console, in which nothing is markup and nothing is obeyed but line breaks."""
    return Text(visible(text, keep="\n"))
