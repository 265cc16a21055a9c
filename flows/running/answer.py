"""Answers: what a command found out, once for people and once for programs.

Owns the type that every command returns, the option --json, and what reaches stdout. Input: a command. Output: with --json one strict JSON document on stdout
and everything else on stderr; without it what the command prints. Raises what the command raises; stdout stays empty then.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

from flows.running.cells import json_document

JSON = "print one JSON document on stdout, and everything else on stderr"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command found out."""

    document: Any
    """For programs: what `json_text` takes, or a function that makes it when it is asked for."""
    show: Callable[[], None] | None = None
    """Prints it for people; None: the command has printed it as it went."""
    code: int = 0
    """Exit code."""


def give(command: Callable[[], Answer], as_json: bool) -> int:
    """Run a command and print its answer. Returns the exit code."""
    if not as_json:
        answer = command()
        if answer.show is not None:
            answer.show()
        return answer.code
    with redirect_stdout(sys.stderr):
        answer = command()
        document = answer.document() if callable(answer.document) else answer.document
    print(json_document(document))
    return answer.code


def parsers(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """(words, parser) of every command and of every action of a command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield name, below
                yield from ((f"{name} {words}", deeper) for words, deeper in parsers(below))


def add_json(parser: argparse.ArgumentParser) -> None:
    """Give --json to every command and action. `args.json` says whether it was given, before or after the action."""
    parser.set_defaults(json=False)
    for _, command in parsers(parser):
        command.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=JSON)
