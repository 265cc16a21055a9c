"""The mirror: what is there is served, what is here and not there goes there, and nothing that is damaged or leads elsewhere is taken either way."""

import json
import shutil

import pytest
from kernel_steps import ToyConfig

from infra.entries import read_entry
from infra.materialize import EXECUTED, REUSED, Place, materialize
from infra.remote import Remote, RemoteError, mirror, push_artifact
from infra.step import AnyloomError, Step
from infra.storage import digest_tree, new_staging, publish_dir, write_atomic


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("infra.remote.FIRST_WAIT_S", 0.001)


def grow(root, remote=None, force=False, said=None):
    """Machine `root` materializes a step that pins two store entries; `remote`: URL of the mirror."""
    place = Place(root=root, remote=Remote(remote) if isinstance(remote, str) else remote)
    step = Step(name="grown", config=ToyConfig(text="n"), run="kernel_steps:grow")
    for _ in range(2):  # it dies between its two entries the first time
        try:
            return materialize(step, {}, place, force=force, say=(said if said is not None else []).append)
        except KeyboardInterrupt:
            continue
    raise AssertionError


def bytes_of(root):
    """What is visible below artifacts and stores: digests by directory."""
    return {
        path.parent.relative_to(root).as_posix(): digest_tree(path.parent) for path in root.glob("**/*.json") if path.name in ("artifact.json", "record.json")
    }


@pytest.fixture
def bucket(tmp_path):
    return f"file://{tmp_path}/bucket"


@pytest.fixture
def filled(tmp_path, bucket):
    """A mirror with the artifact and its entries; returns the machine that filled it."""
    grow(tmp_path / "one", bucket)
    return tmp_path / "one"


def test_round_trip(tmp_path):
    remote = Remote("memory://round/trip")
    staging = new_staging(tmp_path / "e")
    write_atomic(staging / "f", "data")
    write_atomic(staging / "sub" / "g", "deep")
    publish_dir(staging, tmp_path / "e")
    assert remote.names("stores/e") == {} and not remote.exists("stores/e/f") and remote.read("stores/e/f") is None
    for name in ("f", "sub/g"):
        remote.put(tmp_path / "e" / name, f"stores/e/{name}")
    assert remote.names("stores/e") == {"f": 4, "sub/g": 4} and remote.exists("stores/e/f") and remote.read("stores/e/sub/g") == b"deep"
    (tmp_path / "back").mkdir()
    remote.download("stores/e", tmp_path / "back")
    assert digest_tree(tmp_path / "back") == digest_tree(tmp_path / "e")
    remote.remove("stores/e/f")
    assert remote.names("stores/e") == {"sub/g": 4}


def test_another_machine_is_served(tmp_path, filled, bucket):
    again = grow(tmp_path / "two", bucket)
    assert again.status == REUSED and bytes_of(tmp_path / "two") == bytes_of(filled) == bytes_of(tmp_path / "bucket")
    assert not list((tmp_path / "two" / "work").glob("*/*")) and not list((tmp_path / "two").rglob(".staging-*"))


def test_without_its_record_an_artifact_is_not_there(tmp_path, filled, bucket):
    (record,) = (tmp_path / "bucket").rglob("artifact.json")
    record.unlink()
    assert grow(tmp_path / "two", bucket).status == EXECUTED and bytes_of(tmp_path / "bucket") == bytes_of(filled)


def test_what_was_there_before_the_mirror_goes_there(tmp_path, bucket):
    grow(tmp_path / "one")
    assert grow(tmp_path / "one", bucket).status == REUSED
    assert bytes_of(tmp_path / "bucket") == bytes_of(tmp_path / "one") and grow(tmp_path / "two", bucket).status == REUSED


def test_what_is_there_is_not_sent_again(tmp_path, filled, monkeypatch, bucket):
    monkeypatch.setattr(Remote, "put", lambda *_: pytest.fail("sent again"))
    assert grow(filled, bucket).status == REUSED
    mirror(Remote(bucket), filled, list((filled / "artifacts").glob("*/*")), lambda _: None)


@pytest.mark.parametrize("what", ["stores/grown/n0/out.txt", "stores/grown/n1/record.json", "generation.json", "artifact.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
def test_what_is_damaged_there_is_never_taken_and_force_mends_it(tmp_path, filled, bucket, what, harm):
    (target,) = [path for path in (tmp_path / "bucket").rglob("*") if path.is_file() and path.as_posix().endswith(what)]
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 1
    if harm == "gone":
        target.unlink()
    else:
        target.write_bytes(data if harm == "flip" else data[:-3])
    if what == "artifact.json" and harm == "gone":
        return  # it is not there: another test
    for _ in range(2):  # refused once is refused for ever
        with pytest.raises(AnyloomError, match=r"damaged .* was not taken: run grown again with --force grown") as caught:
            grow(tmp_path / "two", bucket)
        assert "\n" not in str(caught.value) and "artifacts" not in {path.split("/")[0] for path in bytes_of(tmp_path / "two")}
    assert grow(tmp_path / "two", bucket, force=True).status == EXECUTED
    assert bytes_of(tmp_path / "bucket") == bytes_of(filled) and grow(tmp_path / "three", bucket).status == REUSED


def test_an_artifact_of_another_identity_is_not_taken(tmp_path, filled, bucket):
    (record,) = (tmp_path / "bucket").rglob("artifact.json")
    other = materialize(Step(name="a", config=ToyConfig(), run="kernel_steps:write"), {}, Place(root=tmp_path / "x")).artifact.path
    shutil.rmtree(record.parent)
    shutil.copytree(other, record.parent)
    with pytest.raises(AnyloomError, match="its record is of another artifact"):
        grow(tmp_path / "two", bucket)
    assert bytes_of(tmp_path / "two") == {}


@pytest.mark.parametrize("lost_at", range(1, 9))
def test_a_lost_connection_leaves_nothing_that_looks_complete(tmp_path, filled, bucket, lost_at, monkeypatch):
    original, asked = Remote._get, []

    def lost(self, relative, target, size):
        asked.append(relative)
        if len(asked) >= lost_at:
            raise ConnectionResetError("the line was cut")
        original(self, relative, target, size)

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "_get", lost)
        patch.setattr("infra.remote.AT_ONCE", 1)
        if lost_at > 6:  # the artifact has two files, its two entries have two each
            assert grow(tmp_path / "two", bucket).status == REUSED
        else:
            with pytest.raises(RemoteError, match=r"cannot be reached \(ConnectionResetError: the line was cut\), tried 6 times"):
                grow(tmp_path / "two", bucket)
            assert not list((tmp_path / "two" / "artifacts").glob("*/*"))
    assert grow(tmp_path / "two", bucket).status == REUSED and bytes_of(tmp_path / "two") == bytes_of(filled)


@pytest.mark.parametrize("times", [1, 5])
@pytest.mark.parametrize("method", ["info", "put_file", "get_file", "find"])
def test_a_request_that_fails_is_made_again(tmp_path, filled, bucket, method, times, monkeypatch):
    remote = Remote(bucket)
    original, failures = getattr(remote.fs, method), []

    def unreliable(*arguments, **options):
        failures.append(method)
        if len(failures) <= times:
            raise OSError(f"{method} had a bad day")
        return original(*arguments, **options)

    monkeypatch.setattr(remote.fs, method, unreliable)
    assert grow(tmp_path / "two", remote).status == REUSED
    shutil.rmtree(tmp_path / "bucket")
    assert grow(filled, bucket).status == REUSED and bytes_of(tmp_path / "two") == bytes_of(filled) == bytes_of(tmp_path / "bucket")
    assert len(failures) > times


def test_an_answer_that_is_cut_short_is_asked_for_again(tmp_path, filled, bucket, monkeypatch):
    remote = Remote(bucket)
    original, cut = remote.fs.get_file, []

    def short(source, target, **options):
        original(source, target, **options)
        if source not in cut:
            cut.append(source)
            with open(target, "r+b") as handle:
                handle.truncate(1)

    monkeypatch.setattr(remote.fs, "get_file", short)
    assert grow(tmp_path / "two", remote).status == REUSED and bytes_of(tmp_path / "two") == bytes_of(filled) and len(cut) == 6


@pytest.mark.parametrize("path", ["../../outside", "/tmp/outside-of-anyloom", "grown/../../../outside", "link/outside", ""])
def test_a_generation_from_elsewhere_writes_nothing_outside_the_root(tmp_path, filled, bucket, path):
    """Whoever can write to the mirror can say anything there: its record fits, its digest too, its path leads out."""
    from infra.artifact import read_record, write_record

    (directory,) = [path.parent for path in (tmp_path / "bucket").rglob("artifact.json")]
    generation = json.loads((directory / "generation.json").read_text())
    entry = tmp_path / "bucket" / "stores" / generation["entries"][0]["path"]
    target = (tmp_path / "bucket" / "stores" / path).resolve() if path and not path.startswith("/") else None
    if target is not None and target.is_relative_to(tmp_path):
        shutil.copytree(entry, target, dirs_exist_ok=True)
    generation["entries"][0]["path"] = path
    (directory / "generation.json").write_text(json.dumps(generation))
    record = read_record(directory)
    (directory / "artifact.json").unlink()
    write_record(directory, record.model_copy(update={"digest": digest_tree(directory)}))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "two" / "stores").mkdir(parents=True)
    (tmp_path / "two" / "stores" / "link").symlink_to(tmp_path / "elsewhere")
    before = sorted(one for one in tmp_path.rglob("*") if not one.is_relative_to(tmp_path / "two"))
    with pytest.raises(AnyloomError, match=r"refused.*was not taken|it is refused"):
        grow(tmp_path / "two", bucket)
    assert sorted(one for one in tmp_path.rglob("*") if not one.is_relative_to(tmp_path / "two")) == before
    assert bytes_of(tmp_path / "two") == {}


@pytest.mark.parametrize("name", ["/evil/run/e/../../x", "/evil/elsewhere/x", "/evil/run/e//etc/x"])
def test_object_names_cannot_escape(tmp_path, name, monkeypatch):
    remote = Remote("memory://evil/run")
    monkeypatch.setattr(remote.fs, "find", lambda root, detail: {name: {"size": 3, "type": "file"}})
    with pytest.raises(AnyloomError, match="refused"):
        remote.download("e", tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_damaged_here_does_not_go_there(tmp_path, bucket):
    made = grow(tmp_path / "one").artifact
    said = []
    target = tmp_path / "one" / "stores" / "grown" / "n0" / "out.txt"
    target.write_text("rot")
    push_artifact(Remote(bucket), tmp_path / "one", made.path, said.append)
    assert said == [f"grown: not mirrored: {target.parent}: out.txt was changed or damaged"] and bytes_of(tmp_path / "bucket") == {}
    target.write_text("n0")
    (made.path / "generation.json").write_text((made.path / "generation.json").read_text() + " ")
    push_artifact(Remote(bucket), tmp_path / "one", made.path, said.append)
    assert "were changed or damaged" in said[1] and "artifact.json" not in {path.name for path in (tmp_path / "bucket").rglob("*")}


def test_entries_that_are_there_with_other_bytes_are_said(tmp_path, filled, bucket):
    (record,) = (tmp_path / "bucket").rglob("artifact.json")
    shutil.rmtree(record.parent)
    entry = tmp_path / "bucket" / "stores" / "grown" / "n1" / "record.json"
    entry.write_text(entry.read_text().replace(read_entry(entry.parent)["digest"], "0" * 64))
    said = []
    grow(filled, bucket, said=said)
    assert said == [f"grown: not mirrored: {bucket}/stores/grown/n1 holds other bytes"]


def test_an_entry_without_a_record_makes_way(tmp_path, filled, bucket):
    half = tmp_path / "two" / "stores" / "grown" / "n0"
    half.mkdir(parents=True)
    (half / "half").write_text("left by an earlier version")
    assert grow(tmp_path / "two", bucket).status == REUSED and bytes_of(tmp_path / "two") == bytes_of(filled)


def test_an_unknown_kind_of_url_is_one_line(tmp_path):
    with pytest.raises(AnyloomError, match="--remote nosuch://x: "):
        Remote("nosuch://x")
