"""Errors that no step foresaw: one line with the remedy where there is one, and the traceback in a log that can be written."""

from __future__ import annotations

import argparse
import errno
from pathlib import Path

import pytest
from failing_step import fails_at

from flows.cli.unexpected import unexpected
from infra.step import AnyloomError, about
from infra.step_pool import StepPool


def said(error: Exception, root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert unexpected(argparse.Namespace(root=root, command="run"), error) == 1
    text = capsys.readouterr().err
    assert text.startswith("anyloom: ") and text.count("\n") == 1
    return text


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


@pytest.mark.parametrize(
    "full", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "quota"), RuntimeError("write: No space left on device (os error 28)")]
)
def test_a_full_disk_names_the_place_and_the_remedy(full: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(raised(full), tmp_path / "runs", capsys)
    assert "MB free" in text and str(tmp_path) in text and "--root" in text


def test_a_cause_far_down_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = ValueError("the table cannot be written")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    error.add_note("step embed_image")
    text = said(raised(error), tmp_path, capsys)
    assert text.startswith("anyloom: step embed_image: ValueError: the table cannot be written; a disk is full")


def test_a_root_that_cannot_be_written_is_one_line_and_keeps_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "logs").write_text("no directory")
    text = said(raised(OSError(errno.EROFS, "Read-only file system", str(tmp_path / "x"))), tmp_path / "runs", capsys)
    assert "cannot be written" in text and "--root" in text
    log = Path(text.strip().rpartition(" ")[2])
    assert log.name == "errors.log" and "Read-only file system" in log.read_text()


def test_a_missing_file_that_nobody_asked_for_keeps_its_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(raised(FileNotFoundError(errno.ENOENT, "No such file", "gone")), tmp_path, capsys)
    assert "Traceback" in (tmp_path / "logs" / "errors.log").read_text() and "gone" in text


def test_a_root_that_is_not_there_is_not_made(tmp_path, capsys):
    """`anyloom generate` reads an export and needs no root: its errors go to the log of the user."""
    said(raised(RuntimeError("odd")), tmp_path / "runs", capsys)
    assert not (tmp_path / "runs").exists()


def test_the_step_the_place_and_the_sample_are_named_and_no_secret_is(tmp_path, capsys):
    error = RuntimeError("https://me:s3cret@host/x?sig=s3cret is not there")
    for note in ("a note of some library", "sample own-000007", "at training step 3, samples own-000007", "step stage1"):
        error.add_note(note)
    text = said(raised(error), tmp_path, capsys)
    assert text.startswith("anyloom: step stage1, at training step 3, samples own-000007, sample own-000007: RuntimeError: https://***@host/x is not there")
    assert str(tmp_path / "logs" / "errors.log") in text and "some library" not in text
    assert "s3cret" not in (tmp_path / "logs" / "errors.log").read_text() + text


def test_a_note_about_the_sample_travels_from_a_steps_process(tmp_path):
    pool = StepPool()
    with pytest.raises(ZeroDivisionError) as caught:
        pool.run("shards", fails_at, "own-000003")
    pool.close()
    assert caught.value.__notes__ == ["sample own-000003"]
    with pytest.raises(AnyloomError) as known, about("own-000003"):
        raise AnyloomError("a known thing")
    assert not hasattr(known.value, "__notes__")
