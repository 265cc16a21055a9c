"""--json of every command: one strict document on stdout, everything else on stderr."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from toy_history import append, rows

from flows.cli import report
from flows.cli.artifacts import removal
from flows.cli.main import COMMANDS, build_parser, main
from flows.running.answer import Answer, give, parsers

CASES = Path(__file__).parents[3] / "cases"
HERE = ("--recipe", "tiny", "--no-ray", "--no-prefect")
CHEAP: dict[str, tuple[tuple[str, ...], type]] = {
    "doctor": ((), dict),
    "show": ((), dict),
    "plan": (("--recipe", "tiny"), dict),
    "recipes": ((), list),
    "recipes tiny": ((), dict),
    "encoders": ((), list),
    "decoders": ((), list),
    "run lists": (HERE, dict),
    "sql": (("select * from leaderboard_all",), list),
    "artifacts": ((), dict),
    "artifacts list": (("lists",), dict),
    "artifacts why": (("lists",), dict),
    "artifacts verify": ((), dict),
    "artifacts gc": ((), dict),
    "embed stats": ((), list),
    "embed gc": ((), dict),
    "history build": ((), dict),
    "history import": ((str(CASES / "answers_with_markup"), "--harness-version", "0.7.3"), list),
    "history export": (("OUT", "--format", "csv"), list),
    "history check": ((), dict),
    "history compare": (("a", "b"), dict),
    "history annotate": (("new images", "--author", "me"), dict),
    "report --history": ((), dict),
    "stack down": (("--home", "OUT"), dict),
}
"""Words of a command -> (further arguments, what its document is)."""
ELSEWHERE = {
    "data": "as run, whose steps take long", "train": "as run", "eval": "as run", "embed build": "as run", "train-decoder": "as run", "history": "as run",
    "report": "as run, then report --history", "embed verify": "test_store.py", "embed search": "test_retrieval.py", "generate": "test_ask.py",
    "chat": "test_ask.py", "pack": "test_ask.py", "eval-task": "test_tiny.py", "stack": "up, status and env: test_deployments.py", "embed": "wants an action",
    "new": "test_files.py",
}  # fmt: skip
"""Commands that take more than seconds -> where their documents are read, or whose code makes them."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with an artifact, a history and a page."""
    root = tmp_path_factory.mktemp("json") / "runs"
    append(root / "stores", rows("a", [1.0, 0.0]), rows("b", [1.0, 1.0], night=1))
    assert main(["run", "lists", *HERE, "--root", str(root)]) == 0 and main(["report", "--history", "--root", str(root)]) == 0
    return root


@pytest.fixture
def asked(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """A command with --json on a copy of the root -> (document, stderr)."""
    root = tmp_path / "runs"
    shutil.copytree(made, root)

    def ask(words: str, *arguments: str, expect: int = 0) -> tuple[Any, str]:
        given = [str(tmp_path / "out") if one == "OUT" else one for one in arguments]
        of_root = [] if words.split()[0] in ("recipes", "encoders", "decoders", "show") else ["--root", str(root)]
        code = main([*words.split(), *([str(root)] if words == "show" else []), *given, *of_root, "--json"])
        said = capsys.readouterr()
        assert code == expect, said.err
        return strict(said.out), said.err

    return ask


def strict(text: str) -> Any:
    """Exactly one JSON value, without NaN and infinities."""

    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    assert text.endswith("\n") and text.isascii()
    return json.loads(text, parse_constant=refuse)


def test_every_command_and_action_takes_json_before_and_after_its_action():
    found = dict(parsers(build_parser()))
    assert {words for words in found if " " not in words} == set(COMMANDS)
    for words, parser in found.items():
        assert "--json" in parser._option_string_actions, words
        assert not [one for one in parser._actions if "--json" in one.option_strings and one.dest != "json"], words
    read = build_parser().parse_args
    assert read(["history", "--json", "check"]).json is read(["history", "check", "--json"]).json is True and read(["history", "check"]).json is False


def test_every_command_is_executed_here_or_named_with_where_it_is():
    commands = {words for words, parser in parsers(build_parser()) if not any(isinstance(one, argparse._SubParsersAction) for one in parser._actions)}
    known = set(CHEAP) | {words.split()[0] for words in CHEAP} | set(ELSEWHERE)
    assert commands <= known, commands - known


@pytest.mark.parametrize("words", CHEAP)
def test_its_document_is_all_of_stdout(words: str, asked: Any) -> None:
    arguments, kind = CHEAP[words]
    found, _ = asked(words, *arguments, expect=0)
    assert isinstance(found, kind) and (found or words == "embed stats")


def test_documents_say_what_the_lines_say(asked: Any, made: Path) -> None:
    plan, _ = asked("plan", "--recipe", "tiny")
    assert plan["done"] == sum(step["state"] == "done" for step in plan["steps"]) == 1
    ran, said = asked("run lists", *HERE)
    (step,) = ran["steps"]
    assert ran["executed"] == 0 and step["executed"] is False and step["result"]["rows"] and "0 of 1 steps executed" in said
    again, said = asked("run lists", *HERE, "--force", "lists")
    assert again["executed"] == 1 and "[same bytes] lists" in said
    listed, _ = asked("artifacts")
    assert [one["artifact"] for one in listed["artifacts"]] == [f"lists/{Path(step['artifact']).name}"] and listed["damaged"] == []
    board, _ = asked("sql", "select run_id, accuracy, 'nan'::double as x, 1 as x from leaderboard_all order by run_id")
    assert board == [{"run_id": name, "accuracy": accuracy, "x": None, "x_1": 1} for name, accuracy in (("a", 0.5), ("b", 1.0))]
    compared, _ = asked("history compare", "a", "b")
    assert compared["rows"][0]["delta"] == 0.5
    written, _ = asked("history export", "OUT", "--table", "run")
    assert [(one["table"], one["rows"]) for one in written] == [("run", 2)] and Path(written[0]["file"]).is_file()
    why, _ = asked("artifacts why", "lists")
    assert why["label"].startswith("lists/") and why["result"]["rows"]


def test_what_is_damaged_is_in_the_document_and_the_exit_code(asked: Any, tmp_path: Path) -> None:
    (directory,) = (tmp_path / "runs/artifacts/lists").iterdir()
    victim = next(path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != "artifact.json" and "info" not in path.parts)
    victim.write_bytes(b"x" + victim.read_bytes())
    found, _ = asked("artifacts verify", expect=1)
    (one,) = found["damaged"]
    assert "lists" in one["path"] and "--force lists" in one["remedy"]
    (tmp_path / "runs/stores/history/sample/a.parquet").unlink()
    checked, _ = asked("history check", expect=1)
    assert len(checked["problems"]) == 1 and checked["problems"][0].startswith("lost: ")


@pytest.mark.parametrize("words", ["plan --recipe none", "sql nothing", "artifacts why none", "stack status --home nowhere"])
def test_an_error_is_a_line_on_stderr_and_nothing_on_stdout(words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*words.split(), "--json"]) == 1
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1


def test_what_a_command_prints_meanwhile_is_no_part_of_its_document(capsys):
    def command() -> Answer:
        print("progress")
        return Answer(lambda: {"nan": float("nan"), "path": Path("a"), "text": "\x1b[1m"}, lambda: print("for people"), 3)

    assert give(command, as_json=True) == 3
    said = capsys.readouterr()
    assert strict(said.out) == {"nan": None, "path": "a", "text": "\x1b[1m"} and said.err == "progress\n"
    assert give(command, as_json=False) == 3
    assert capsys.readouterr().out == "progress\nfor people\n"


def test_the_report_of_a_run_has_both_documents(made):
    args = build_parser().parse_args(["report", "--root", str(made)])
    both = report.write(args, made, Answer(lambda: {"recipe": "tiny", "executed": 0}))
    assert both.document() == {"recipe": "tiny", "executed": 0, "history": report.write(args, made, None).document}


def test_what_may_be_removed_is_listed_and_goes_only_when_somebody_says_so(tmp_path, capsys, monkeypatch):
    doomed, done = {tmp_path / "a": 1000, tmp_path / "b": 500}, []

    def remove() -> int:
        done.append(True)
        return 1500

    for yes, typed, removed, said in ((False, None, 0, "add --yes"), (True, None, 1500, "removed 1.5 KB"), (False, "n", 0, ""), (False, "y", 1500, "removed")):
        done.clear()
        monkeypatch.setattr("sys.stdin.isatty", lambda typed=typed: typed is not None, raising=False)
        monkeypatch.setattr("builtins.input", lambda prompt, typed=typed: typed)
        answer = removal(tmp_path, doomed, "parts", "all is pinned", yes, remove)
        assert answer.document == {
            "root": tmp_path,
            "removable": [{"path": Path("a"), "bytes": 1000}, {"path": Path("b"), "bytes": 500}],
            "removed_bytes": removed,
        }
        assert said in capsys.readouterr().out and len(done) == bool(removed)
    assert removal(tmp_path, {}, "parts", "all is pinned", True, remove).document["removable"] == []
    assert capsys.readouterr().out == "nothing to remove: all is pinned\n"
