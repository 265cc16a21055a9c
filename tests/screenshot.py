"""Renders pages to PNGs with headless Chromium, for the docs.

`python tests/screenshot.py ROOT OUT.png`: the newest run's report of a root. With `--history`: the history's page, made anew from ROOT. With `--toy` in place
of ROOT: the history's page of a toy history that says that it is one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE), str(HERE / "helpers")]
TOY_TITLE = "A toy history: drawn shapes, made-up answers"


def main() -> int:
    """Exit 1 with one line when there is no Chromium, or nothing to show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", nargs="?", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--history", action="store_true")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--height", type=int, default=1900)
    parser.add_argument("--dark", action="store_true")
    args = parser.parse_args()
    from browser import Browser, chromium

    from infra.step import AnyloomError

    if chromium() is None:
        print("screenshot: no chromium found; install one", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        try:
            page = _page(args, Path(scratch))
        except AnyloomError as error:
            print(f"screenshot: {error}", file=sys.stderr)
            return 1
        with Browser() as browser:
            browser.look(dark=args.dark, height=args.height)
            browser.open(page)
            browser.screenshot(args.out)
    Image.open(args.out).convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(args.out, optimize=True)
    print(args.out)
    return 0


def _page(args: argparse.Namespace, scratch: Path) -> Path:
    from evals.pages.history.history import write_history_page
    from infra.artifact import find

    if args.toy:
        from toy_page import toy_root

        return write_history_page(toy_root(scratch / "runs", hostile=False), out=scratch / "history.html", title=TOY_TITLE).page
    if args.history:
        return write_history_page(args.root.absolute() / "history.duckdb", out=scratch / "history.html").page
    return find(args.root.absolute(), "report")[0] / "report.html"


if __name__ == "__main__":
    sys.exit(main())
