"""Entries: committed whole or not at all, compared with their record before they are read, and nowhere but below the stores."""

import json
import shutil

import pytest

from infra.entries import below, commit_entry, damage, inside, intact, pinned_entries, pins, read_entry, usable_entry
from infra.step import AnyloomError
from infra.storage import digest_tree, new_staging


def staged(near, **files):
    staging = new_staging(near)
    for name, text in files.items():
        (staging / name).write_text(text)
    return staging


def entry(path, **files):
    commit_entry(path, staged(path, **files), {"rows": 1})
    return path


def flip(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_entries_are_immutable_and_need_a_record(tmp_path):
    assert read_entry(tmp_path / "e") is None
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "half").write_text("left by a kill")
    assert read_entry(tmp_path / "e") is None
    digest = commit_entry(tmp_path / "e", staged(tmp_path / "e", f="1"), {"rows": 1})
    record = read_entry(tmp_path / "e")
    assert (record["rows"], record["digest"]) == (1, digest) and digest == digest_tree(tmp_path / "e") and not (tmp_path / "e" / "half").exists()
    assert commit_entry(tmp_path / "e", staged(tmp_path / "e", f="1"), {"rows": 1}) == digest
    with pytest.raises(AnyloomError, match="other bytes"):
        commit_entry(tmp_path / "e", staged(tmp_path / "e", f="2"), {"rows": 1})
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".staging")] == ["e"]


def test_what_went_away_while_it_was_written_is_not_committed(tmp_path):
    staging = staged(tmp_path / "e", f="1")
    shutil.rmtree(staging)
    with pytest.raises(AnyloomError, match="went away"):
        commit_entry(tmp_path / "e", staging, {})
    with pytest.raises(AnyloomError, match="is empty: its files went away"):
        commit_entry(tmp_path / "e", new_staging(tmp_path / "e"), {})
    assert not (tmp_path / "e").exists() and not staging.exists()


def test_a_directory_that_vanishes_between_its_digest_and_its_record_is_not_committed(tmp_path, monkeypatch):
    import infra.entries

    staging, original = staged(tmp_path / "e", f="1"), infra.entries.digest_of

    def collected(files):
        shutil.rmtree(staging)
        return original(files)

    monkeypatch.setattr(infra.entries, "digest_of", collected)
    with pytest.raises(FileNotFoundError):
        commit_entry(tmp_path / "e", staging, {})
    assert not (tmp_path / "e").exists() and not staging.exists()


def test_a_damaged_entry_is_replaced_by_the_same_bytes(tmp_path):
    for harm in (lambda path: flip(path / "f"), lambda path: (path / "f").unlink(), lambda path: flip(path / "record.json", 3)):
        path = entry(tmp_path / "e", f="1", g="2")
        harm(path)
        assert damage(path) and usable_entry(path, thorough=True) is None
        entry(path, f="1", g="2")
        assert not damage(path) and (path / "f").read_text() == "1"
    assert not list(tmp_path.glob(".removed-*"))


@pytest.mark.parametrize("name", ["f", "g", "record.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "gone", "more"])
def test_every_change_of_an_entry_is_found(tmp_path, name, harm):
    path = entry(tmp_path / "e", f="some text", g="2")
    assert damage(path) == "" and damage(path, read_entry(path)["digest"]) == "" and "holds other bytes" in damage(path, "0" * 64)
    if harm == "flip":
        flip(path / name, 5 if name != "g" else 0)
    elif harm == "cut":
        (path / name).write_bytes((path / name).read_bytes()[:-1])
    elif harm == "gone":
        (path / name).unlink()
    else:
        (path / f"{name}.more").write_text("")
    assert str(path) in damage(path) and "\n" not in damage(path)
    if harm != "more":
        with pytest.raises(AnyloomError, match=r"damaged|cannot be read|never committed"):
            intact(path, name if name != "record.json" else "f")


def test_a_record_of_an_earlier_version_is_checked_by_the_digest_of_all(tmp_path):
    path = entry(tmp_path / "e", f="1", g="2")
    (path / "record.json").write_text(json.dumps({"rows": 1, "digest": digest_tree(path)}))
    assert damage(path) == "" and intact(path, "f").read_text() == "1"
    flip(path / "g")
    assert "a file was changed or damaged" in damage(path)
    with pytest.raises(AnyloomError, match="changed or damaged"):
        intact(path, "f")


@pytest.mark.parametrize("record", ["{", "[]", "3", '{"digest": 5}', '{"n": 1}', '{"digest": "d", "files": {}}', '{"digest": "d", "checksum": "c"}', ""])
def test_damaged_entry_record_is_named(tmp_path, record):
    path = entry(tmp_path / "e", f="1")
    (path / "record.json").write_text(record)
    with pytest.raises(AnyloomError, match=r"record\.json .*: run the step that makes it again with --force"):
        read_entry(path)


@pytest.mark.parametrize("relative", ["../x", "a/../../x", "/etc/x", "", ".", "a//b", "./a", "a/", "a\0b", "..", "a/.."])
def test_a_generation_names_places_below_the_stores_only(tmp_path, relative):
    with pytest.raises(AnyloomError, match="is refused"):
        inside(relative, "somebody")
    (tmp_path / "artifacts" / "shards" / "0123").mkdir(parents=True)
    (tmp_path / "artifacts" / "shards" / "0123" / "generation.json").write_text(json.dumps({"entries": [{"path": relative, "digest": "d"}]}))
    for read in (pins, lambda path: pinned_entries(path, tmp_path / "stores")):
        with pytest.raises(AnyloomError, match=r"generation\.json names .*refused"):
            read(tmp_path / "artifacts" / "shards" / "0123")


def test_a_link_does_not_lead_out_of_the_stores_but_the_stores_may_be_one(tmp_path):
    (tmp_path / "elsewhere" / "store").mkdir(parents=True)
    (tmp_path / "disk").mkdir()
    (tmp_path / "stores").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "out").symlink_to(tmp_path / "elsewhere")
    assert below(tmp_path / "stores", "a/b", "x") == tmp_path / "stores" / "a" / "b"
    with pytest.raises(AnyloomError, match="symbolic link leads out"):
        below(tmp_path / "stores", "out/store", "x")


NO_LISTS = ["{}", "[3]", '[{"path": "a"}]', '[{"path": 1, "digest": "d"}]']


@pytest.mark.parametrize("text", ["{}", "[]", "3", *(f'{{"entries": {entries}}}' for entries in NO_LISTS)])
def test_a_generation_without_a_list_of_entries_is_one_line(tmp_path, text):
    (tmp_path / "generation.json").write_text(text)
    with pytest.raises(AnyloomError, match=r"generation\.json is damaged \(no list of entries\)"):
        pins(tmp_path)
    assert pins(tmp_path / "nothing") == []
