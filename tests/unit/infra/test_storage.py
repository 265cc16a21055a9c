"""Atomic publication on disk, digests, and JSON that may be damaged."""

import errno
import os
import time

import pytest

from infra.step import AnyloomError
from infra.storage import digest_tree, disk_errors, new_staging, part_is_there, publish_dir, read_json, sha256_file, sha256_known, write_atomic, write_part


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


def test_a_directory_that_went_away_has_no_digest(tmp_path):
    for gone in (tmp_path / "gone", tmp_path / "file"):
        (tmp_path / "file").write_text("no directory")
        with pytest.raises(AnyloomError, match="is missing: it went away"):
            digest_tree(gone)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "link").symlink_to(tmp_path)
    with pytest.raises(AnyloomError, match="not a regular file"):
        digest_tree(tmp_path / "d")


def test_a_part_that_a_kill_or_a_flipped_bit_has_spoiled_is_not_there(tmp_path):
    path = tmp_path / "part"
    assert not part_is_there(path)
    write_part(path, b"states")
    assert part_is_there(path) and path.read_bytes() == b"states"
    path.write_bytes(b"stages")
    assert not part_is_there(path)
    write_part(path, b"states")
    path.with_name("part.sha256").unlink()  # killed between the two
    assert not part_is_there(path)


def test_a_file_is_hashed_again_when_it_changed(tmp_path):
    path = tmp_path / "f"
    path.write_text("one")
    os.utime(path, (1, 1))
    time.sleep(0.1)
    first = sha256_known(path)
    assert first == sha256_file(path) == sha256_known(path)
    path.write_text("two")
    os.utime(path, (1, 1))  # the same size and date: its inode has changed at another time
    assert sha256_known(path) == sha256_file(path) != first


@pytest.mark.parametrize("data", [b"", b"{", b"nul", b"\xff\xfe", b"[" * 100_000, b"1" * 5000, b'{"a": "\xc3"}'])
def test_json_that_is_none_is_one_line(tmp_path, data):
    (tmp_path / "f.json").write_bytes(data)
    with pytest.raises(AnyloomError, match=r"f\.json is damaged \(") as caught:
        read_json(tmp_path / "f.json")
    assert "\n" not in str(caught.value)
    (tmp_path / "d.json").mkdir()
    with pytest.raises(AnyloomError, match=r"d\.json is damaged \(Is a directory\)"):
        read_json(tmp_path / "d.json")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "gone.json")
