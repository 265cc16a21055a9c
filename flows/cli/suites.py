"""anyloom eval prepare: official benchmark data, downloaded or taken from a folder, checked and pinned. The work is done by evals.suites.data."""

from __future__ import annotations

import argparse
from pathlib import Path

from flows.running.answer import Answer
from infra.step import AnyloomError

ACTIONS = ("run", "prepare")


def add_prepare(parser: argparse.ArgumentParser) -> None:
    """The action `prepare` and its options on the parser of `eval`; its --data names the directory that the data goes to."""
    parser.add_argument("action", nargs="?", default="run", choices=ACTIONS, help="run (default), or prepare the official data of a suite")
    parser.add_argument("suite", nargs="?", default="", help="prepare: core or full")
    parser.add_argument("--from", type=Path, dest="source", help="prepare: folder with the data sets' files as they are on the hub (default: the hub itself)")
    parser.add_argument("--without-judged", action="store_false", dest="judged", help="prepare: leave out the tasks that a language model scores")


def main(args: argparse.Namespace) -> Answer:
    """Prepare a suite. Raises AnyloomError when it is not said which or where to."""
    from evals.suites.data import prepare

    if not args.suite or len(args.data) != 1:
        raise AnyloomError("say which suite and where: anyloom eval prepare core --data DIR")
    record = prepare(args.suite, Path(args.data[0]).absolute(), args.source, judged=args.judged)
    lines = (
        f"prepared: {record}",
        f"now: anyloom eval --suite {args.suite}={record}",
        f"or:  lmms-eval --model anyloom --model_args path=EXPORT --tasks TASK --include_path {record.parent}/TASK",
    )
    return Answer({"suite": args.suite, "record": record}, lambda: print(*lines, sep="\n"))
