"""Atomic publication on disk and on an object store."""

import errno

import pytest

from infra.step import AnyloomError
from infra.storage import Remote, commit_entry, digest_tree, disk_errors, new_staging, publish_dir, read_entry, write_atomic


def staged(near, **files):
    staging = new_staging(near)
    for name, text in files.items():
        (staging / name).write_text(text)
    return staging


def test_write_atomic_replaces_whole_files_and_leaves_no_temp(tmp_path):
    write_atomic(tmp_path / "d" / "f", "one")
    write_atomic(tmp_path / "d" / "f", b"two")
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["f"] and (tmp_path / "d" / "f").read_text() == "two"


def test_first_publisher_wins(tmp_path):
    publish_dir(staged(tmp_path / "x", f="first"), tmp_path / "x")
    publish_dir(staged(tmp_path / "x", f="second"), tmp_path / "x")
    assert (tmp_path / "x" / "f").read_text() == "first" and [p.name for p in tmp_path.iterdir()] == ["x"]


def test_entries_are_immutable_and_need_a_record(tmp_path):
    assert read_entry(tmp_path / "e") is None
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "half").write_text("left by a kill")
    assert read_entry(tmp_path / "e") is None
    digest = commit_entry(tmp_path / "e", staged(tmp_path / "e", f="1"), {"rows": 1})
    assert read_entry(tmp_path / "e") == {"rows": 1, "digest": digest} and not (tmp_path / "e" / "half").exists()
    assert commit_entry(tmp_path / "e", staged(tmp_path / "e", f="1"), {"rows": 1}) == digest
    with pytest.raises(AnyloomError, match="other bytes"):
        commit_entry(tmp_path / "e", staged(tmp_path / "e", f="2"), {"rows": 1})


def test_damaged_entry_record_is_named(tmp_path):
    commit_entry(tmp_path / "e", staged(tmp_path / "e", f="1"), {})
    (tmp_path / "e" / "record.json").write_text("{")
    with pytest.raises(AnyloomError, match=r"record\.json is damaged"):
        read_entry(tmp_path / "e")


def test_digest_depends_on_names_and_bytes_only(tmp_path):
    for root in ("a", "b"):
        write_atomic(tmp_path / root / "sub" / "f", "1")
        write_atomic(tmp_path / root / "info" / "time", root)
    assert digest_tree(tmp_path / "a") == digest_tree(tmp_path / "b")
    (tmp_path / "b" / "sub" / "f").rename(tmp_path / "b" / "sub" / "g")
    assert digest_tree(tmp_path / "a") != digest_tree(tmp_path / "b")


def test_full_disk_is_one_clear_line(tmp_path):
    with pytest.raises(AnyloomError, match=r"no space left on the disk of .*x \(\d+ MB free\): free some space"):
        with disk_errors(tmp_path / "x"):
            raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError):
        with disk_errors(tmp_path / "x"):
            raise PermissionError("other errors pass")


def test_object_store_round_trip_and_record_last(tmp_path):
    remote = Remote("memory://bucket/run", tmp_path / "cache")
    publish_dir(staged(tmp_path / "e", f="data"), tmp_path / "e")
    write_atomic(tmp_path / "e" / "sub" / "g", "deep")
    write_atomic(tmp_path / "e" / "record.json", "{}")
    with pytest.raises(AnyloomError, match=r"has no record\.json"):
        remote.pull("stores/e", "record.json")
    remote.push(tmp_path / "e", "stores/e", "record.json")
    local = remote.pull("stores/e", "record.json")
    assert digest_tree(local) == digest_tree(tmp_path / "e") and (local / "sub" / "g").read_text() == "deep"


def test_object_names_cannot_escape(tmp_path):
    remote = Remote("memory://evil/run", tmp_path / "cache")
    remote.fs.pipe("/evil/run/e/record.json", b"{}")
    remote.fs.pipe("/evil/run/e/../../x", b"boo")
    remote.fs.find = lambda root: ["/evil/run/e/../../x", "/evil/run/e/record.json"]
    with pytest.raises(AnyloomError, match="outside its directory"):
        remote.pull("e", "record.json")
