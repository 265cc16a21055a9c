"""anyloom show: the newest page of a root, in a browser where there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flows.cli.main import main
from infra.artifact import ArtifactRecord, Provenance, write_record
from infra.fingerprint import fingerprint

NOW = datetime.now(UTC)


def report(root: Path, name: str, age: timedelta, step: str = "report") -> Path:
    """A finished report of this age."""
    payload = {"name": name}
    identity = fingerprint(payload)
    directory = root / "artifacts" / step / identity[:12]
    directory.mkdir(parents=True)
    (directory / "report.html").write_text(f"<p>{name}")
    made = Provenance(finished=(NOW - age).isoformat(timespec="seconds"), seconds=1.0, commit="", packages={}, device="", threads=1)
    write_record(directory, ArtifactRecord(name=step, fingerprint=identity, payload=payload, inputs={}, digest="d", bytes=1, result={}, provenance=made))
    return directory / "report.html"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "a root"


def test_the_newest_page_is_named_where_nothing_can_show_it(root, capsys):
    report(root, "aaaaaaaaaaaa", timedelta(hours=2))
    newest = report(root, "bbbbbbbbbbbb", timedelta(hours=1))
    report(root, "cccccccccccc", timedelta(0), step="eval_vqa")
    unfinished = root / "artifacts" / "report" / "dddddddddddd"
    unfinished.mkdir()
    (unfinished / "report.html").write_text("half")
    for options in ([], ["--print"]):
        assert main(["show", str(root), *options]) == 0 and capsys.readouterr().out == f"{newest}\n"
    history = root / "history.html"
    history.write_text("<p>all")
    assert main(["show", str(root), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["page"] == str(history) and said["opened"] is False and len(said["pages"]) == 3
    old = (NOW - timedelta(days=1)).timestamp()
    os.utime(history, (old, old))
    assert main(["show", str(root)]) == 0 and capsys.readouterr().out == f"{newest}\n"


def test_the_root_of_the_environment_is_meant_without_one(root, monkeypatch, capsys):
    page = report(root, "aaaaaaaaaaaa", timedelta(0))
    monkeypatch.setenv("ANYLOOM_ROOT", str(root))
    assert main(["show"]) == 0 and capsys.readouterr().out == f"{page}\n"


@pytest.mark.parametrize("made", [False, True])
def test_a_root_without_pages_says_what_makes_one(made, root, capsys):
    if made:
        (root / "artifacts").mkdir(parents=True)
    assert main(["show", str(root)]) == 1
    said = capsys.readouterr()
    assert said.out == "" and "has no page yet: anyloom run" in said.err and len(said.err.splitlines()) == 1 and root.exists() == made


@pytest.mark.parametrize("only_print", [False, True])
def test_a_browser_gets_the_address_of_the_page(only_print, root, tmp_path):
    page = report(root, "aaaaaaaaaaaa", timedelta(0))
    browser, told = tmp_path / "browser", tmp_path / "told"
    browser.write_text(f'#!/bin/sh\necho "$1" > "{told}"\n')
    browser.chmod(0o755)
    command = [sys.executable, "-m", "flows.cli.main", "show", str(root), "--json", *(["--print"] if only_print else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env={**os.environ, "BROWSER": f"{browser} %s"})
    assert done.returncode == 0 and json.loads(done.stdout)["opened"] is not only_print, done.stderr
    assert told.exists() is not only_print and (only_print or told.read_text() == f"{page.as_uri()}\n")
