"""The kernel: what is done is never done again, a kill loses nothing, two processes do the work once."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from kernel_steps import ToyConfig, hold

from infra.artifact import ARTIFACT_RECORD, all_records, find, lineage, look, read_record, verify
from infra.lock import exclusive
from infra.materialize import EXECUTED, REUSED, SAME_BYTES, Place, materialize
from infra.plan import DAMAGED, DONE, MISSING, PARTIAL, STALE, WAITING, plan, topological
from infra.step import AnyloomError, Step

HERE = Path(__file__).parents[2] / "helpers"


def step(name, run="write", inputs=None, **kwargs):
    config = kwargs.pop("config", ToyConfig())
    return Step(name=name, config=config, run=f"kernel_steps:{run}", inputs=inputs or {}, **kwargs)


def run_all(steps, root, **kwargs):
    """Materialize steps in order; returns name -> Outcome."""
    outcomes = {}
    for s in topological(steps):
        outcomes[s.name] = materialize(s, {k: outcomes[i.name].artifact for k, i in s.inputs.items()}, Place(root=root), **kwargs.get(s.name, {}))
    return outcomes


def chain(tmp_path, **texts):
    log = str(tmp_path / "log")
    a = step("a", config=ToyConfig(text=texts.get("a", "a"), log=log))
    b = step("b", inputs={"x": a}, config=ToyConfig(text=texts.get("b", "b"), log=log))
    return [a, b, step("c", inputs={"x": b}, config=ToyConfig(text=texts.get("c", "c"), log=log))]


def executed(tmp_path):
    path = tmp_path / "log"
    return path.read_text().split() if path.exists() else []


def test_second_run_executes_nothing(tmp_path):
    first = run_all(chain(tmp_path), tmp_path / "root")
    second = run_all(chain(tmp_path), tmp_path / "root")
    assert [o.status for o in first.values()] == [EXECUTED] * 3
    assert [o.status for o in second.values()] == [REUSED] * 3
    assert executed(tmp_path) == ["a", "b", "c"]
    assert (second["c"].artifact.path / "out.txt").read_text() == "abc"


def test_a_changed_setting_runs_exactly_what_follows(tmp_path):
    run_all(chain(tmp_path), tmp_path / "root")
    run_all(chain(tmp_path, b="B"), tmp_path / "root")
    assert executed(tmp_path) == ["a", "b", "c", "b", "c"]


def test_forced_upstream_with_equal_bytes_runs_nothing_downstream(tmp_path):
    run_all(chain(tmp_path), tmp_path / "root")
    outcomes = run_all(chain(tmp_path), tmp_path / "root", a={"force": True})
    assert [o.status for o in outcomes.values()] == [SAME_BYTES, REUSED, REUSED]
    assert executed(tmp_path) == ["a", "b", "c", "a"]


def test_forced_upstream_with_other_bytes_runs_downstream(tmp_path):
    u = step("u", "unstable")
    d = step("d", inputs={"u": u})
    run_all([d], tmp_path)
    said = []
    outcomes = run_all([d], tmp_path, u={"force": True, "say": said.append})
    assert outcomes["d"].status == EXECUTED
    assert "other bytes" in said[0]


def test_equal_bytes_from_another_config_run_nothing_downstream(tmp_path):
    log = str(tmp_path / "log")
    for text in ("one", "two"):
        a = step("a", "constant", config=ToyConfig(text=text, log=log))
        run_all([step("b", inputs={"a": a}, config=ToyConfig(log=log))], tmp_path / "root")
    assert executed(tmp_path) == ["a", "b", "a"]


def test_source_files_count_by_their_bytes_not_their_time_or_place(tmp_path):
    one, other = tmp_path / "one.tsv", tmp_path / "other.tsv"
    one.write_text("same")
    other.write_text("same")
    run_all([step("a", sources={"list": one})], tmp_path / "root")
    assert run_all([step("a", sources={"list": other})], tmp_path / "root")["a"].status == REUSED
    other.write_text("changed")
    rows = plan([step("a", sources={"list": other})], tmp_path / "root")
    assert rows[0].status == STALE and rows[0].reason.startswith("sources.list: ")


def test_plan_gives_the_field_level_reason(tmp_path):
    root = tmp_path / "root"
    steps = chain(tmp_path)
    assert [(r.status, r.reason) for r in plan(steps, root)] == [(MISSING, "never run"), (WAITING, "for a"), (WAITING, "for b")]
    run_all(steps, root)
    assert {r.status for r in plan(steps, root)} == {DONE}
    rows = plan(chain(tmp_path, b="B"), root)
    assert [(r.step.name, r.status, r.reason) for r in rows] == [("a", DONE, ""), ("b", STALE, "config.text: b -> B"), ("c", WAITING, "for b")]
    bumped = [steps[0], replace(steps[1], revision=2)]
    assert plan(bumped, root)[1].reason == "revision: 1 -> 2"


def test_interrupted_step_is_partial_and_missing_source_is_named(tmp_path):
    s = step("a")
    mark = plan([s], tmp_path)[0].fingerprint
    (tmp_path / "work" / "a" / mark[:12]).mkdir(parents=True)
    (tmp_path / "work" / "a" / mark[:12] / "checkpoint").write_text("3")
    assert plan([s], tmp_path)[0].status == PARTIAL
    with pytest.raises(AnyloomError, match=r"step a: the source file .*gone\.tsv"):
        plan([step("a", sources={"list": tmp_path / "gone.tsv"})], tmp_path)


@pytest.mark.parametrize(
    ("name", "problem"),
    [("x" * 300, "not readable"), ("folder", "no file"), ("pipe", "no file"), ("loop", "missing"), ("file/x", "missing"), ("a\0b", "missing")],
)
def test_a_source_that_is_no_plain_file_is_one_line(tmp_path, name, problem):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(AnyloomError, match=f"the source file .* is {problem}"):
        plan([step("a", sources={"list": tmp_path / name})], tmp_path)


def _child(root, run, text="a", log=""):
    code = f"""
import sys; sys.path.insert(0, {str(HERE)!r})
from pathlib import Path
from kernel_steps import ToyConfig, hold
from infra.materialize import Place, materialize
from infra.step import Step
outcome = materialize(Step(name="s", config=ToyConfig(text={text!r}, log={log!r}), run="kernel_steps:{run}"), {{}}, Place(root=Path({str(root)!r})))
print(outcome.status)
"""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=HERE.parent.parent)


def test_a_killed_step_leaves_no_artifact_and_then_completes(tmp_path):
    first = _child(tmp_path, "die")
    assert first.wait() == -9
    assert list((tmp_path / "artifacts").glob("*/*/artifact.json")) == []
    second = _child(tmp_path, "die")
    assert second.communicate()[0].strip() == EXECUTED
    path, record = find(tmp_path, "s")
    assert sorted(p.name for p in path.iterdir()) == ["artifact.json", "out.txt"]
    verify(path, record)
    assert not (tmp_path / "work" / "s" / path.name).exists()


def test_two_processes_do_the_work_once(tmp_path):
    log = tmp_path / "log"
    children = [_child(tmp_path / "root", "slow", log=str(log)) for _ in range(2)]
    statuses = sorted(child.communicate()[0].strip() for child in children)
    assert statuses == [EXECUTED, REUSED]
    assert len(log.read_text().splitlines()) == 1


def test_a_dead_holders_lock_is_taken_over_and_its_checkpoint_used(tmp_path):
    log = tmp_path / "log"
    first = _child(tmp_path / "root", "slow", log=str(log))
    deadline = time.monotonic() + 30
    while not list((tmp_path / "root").glob("work/s/*/checkpoint")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    second = _child(tmp_path / "root", "slow", log=str(log))
    time.sleep(0.2)
    first.kill()
    first.wait()
    assert second.communicate()[0].strip() == EXECUTED
    assert int(log.read_text().split()[-1]) >= 1  # did not start from zero


def test_waiting_says_who_is_waited_for(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, stop = context.Event(), context.Event()
    child = context.Process(target=hold, args=(tmp_path / "l", ready, stop))
    child.start()
    assert ready.wait(20)
    said = []

    def tell(who):
        said.append(who)
        stop.set()

    with exclusive(tmp_path / "l", tell) as waited:
        assert waited
    child.join()
    assert f"process {child.pid}" in said[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d.update(digest=3), "digest"),
        (lambda d: d.update(surprise=1), "surprise"),
        (lambda d: d.pop("payload"), "payload"),
        (lambda d: d["payload"].update(revision=9), "fingerprint does not belong"),
    ],
)
def test_a_damaged_record_is_one_clear_error(tmp_path, damage, message):
    path = run_all([step("a")], tmp_path)["a"].artifact.path
    record = json.loads((path / ARTIFACT_RECORD).read_text())
    damage(record)
    (path / ARTIFACT_RECORD).write_text(json.dumps(record))
    with pytest.raises(AnyloomError, match=message):
        read_record(path)


def test_changed_bytes_are_found_by_verify(tmp_path):
    path = run_all([step("a")], tmp_path)["a"].artifact.path
    (path / "out.txt").write_text("tampered")
    with pytest.raises(AnyloomError, match="were changed or damaged"):
        verify(path, read_record(path))


def test_info_is_kept_but_not_digested(tmp_path):
    one = run_all([step("a")], tmp_path / "1")["a"].artifact
    two = run_all([step("a")], tmp_path / "2")["a"].artifact
    assert one.digest == two.digest and (one.path / "info" / "pid").read_text() != (two.path / "info" / "pid").read_text()


def test_disk_full_leaves_nothing_half(tmp_path):
    with pytest.raises(OSError, match="No space"):
        run_all([step("a", "fail")], tmp_path)
    assert all_records(tmp_path) == [] and list((tmp_path / "artifacts").glob("*/.staging*")) == []


def test_lineage_reaches_the_source_rows(tmp_path):
    source = tmp_path / "list.tsv"
    source.write_text("row")
    a = step("a", sources={"list": source})
    run_all([step("b", inputs={"x": a})], tmp_path / "root")
    tree = lineage(tmp_path / "root", *find(tmp_path / "root", "b"))
    assert tree["children"][0]["children"][0]["label"].startswith("source file list sha256 ")


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "empty": lambda path: path.write_bytes(b""),
    "not json": lambda path: path.write_text("<html>"),
    "binary": lambda path: path.write_bytes(bytes(range(256))),
    "a list": lambda path: path.write_text("[]"),
    "a number": lambda path: path.write_text("7"),
    "null": lambda path: path.write_text("null"),
    "deep": lambda path: path.write_text("[" * 200_000),
    "wrong types": lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), "payload": 3, "inputs": [1], "result": "x"})),
    "no date": lambda path: path.write_text(path.read_text().replace('"finished":"20', '"finished":"x')),
    "no number": lambda path: path.write_text(path.read_text().replace('"revision":1', '"revision":NaN')),
    "one letter": lambda path: path.write_text(path.read_text().replace('"length":2', '"length":9')),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "no permission": lambda path: path.chmod(0),
}


@pytest.mark.parametrize("harm", DAMAGE)
def test_a_damaged_record_is_the_matter_of_its_own_step(tmp_path, harm):
    root = tmp_path / "root"
    steps = [*chain(tmp_path), step("d", config=ToyConfig(text="d", log=str(tmp_path / "log")))]
    made = run_all(steps, root)
    path = made["b"].artifact.path
    (path / ARTIFACT_RECORD).write_text((path / ARTIFACT_RECORD).read_text().replace(": ", ":"))
    read_record(path)  # written in another way it is still whole
    DAMAGE[harm](path / ARTIFACT_RECORD)
    if harm == "no permission" and os.access(path / ARTIFACT_RECORD, os.R_OK):
        return  # the superuser reads everything
    rows = {row.step.name: row for row in plan(steps, root)}
    assert {name: row.status for name, row in rows.items()} == {"a": DONE, "b": DAMAGED, "c": WAITING, "d": DONE}
    for line in (rows["b"].reason, look(root)[1][0][1]):
        assert str(path / ARTIFACT_RECORD) in line and "\n" not in line and "run b again with --force b" in line
    assert sorted(record.name for _, record in all_records(root)) == ["a", "c", "d"]
    assert find(root, "c")[0] == made["c"].artifact.path and "has a damaged record" in lineage(root, *find(root, "c"))["children"][0]["label"]
    for again in (steps[0], steps[3]):
        assert materialize(again, {}, Place(root=root)).status == REUSED
    with pytest.raises(AnyloomError, match="--force b"):
        find(root, "b")
    with pytest.raises(AnyloomError, match="--force b"):
        materialize(steps[1], {"x": made["a"].artifact}, Place(root=root))
    with pytest.raises(AnyloomError, match="--force b"):  # and nothing is made from it
        materialize(replace(steps[2], config=ToyConfig(text="C")), {"x": made["b"].artifact}, Place(root=root))
    said = []
    outcome = materialize(steps[1], {"x": made["a"].artifact}, Place(root=root), force=True, say=said.append)
    assert outcome.status == EXECUTED and outcome.artifact.digest == made["b"].artifact.digest and "it is made again" in said[0]
    assert {row.status for row in plan(steps, root)} == {DONE} and not list(path.parent.glob(".*"))


def test_what_another_fingerprint_left_damaged_stops_nothing(tmp_path):
    root = tmp_path / "root"
    old = run_all(chain(tmp_path, b="old"), root)["b"].artifact.path
    (old / ARTIFACT_RECORD).write_text("{")
    rows = plan(chain(tmp_path), root)
    assert [row.status for row in rows] == [DONE, MISSING, WAITING]
    assert [outcome.status for outcome in run_all(chain(tmp_path), root).values()] == [REUSED, EXECUTED, EXECUTED]


@pytest.mark.parametrize("harm", ["flip", "cut", "more", "gone", "removed"])
def test_a_step_does_not_read_a_damaged_input(tmp_path, harm):
    a, b, _ = chain(tmp_path)
    root = tmp_path / "root"
    source = materialize(a, {}, Place(root=root)).artifact
    path = source.path / "out.txt"
    if harm == "flip":
        path.write_text("A")
    elif harm == "cut":
        path.write_text("")
    elif harm == "more":
        (source.path / "more").write_text("")
    elif harm == "gone":
        path.unlink()
    else:
        shutil.rmtree(source.path)
    with pytest.raises(AnyloomError, match="were changed or damaged; run a again with --force a" if harm != "removed" else "was removed while it was needed"):
        materialize(b, {"x": source}, Place(root=root))
    assert executed(tmp_path) == ["a"] and not list((root / "artifacts" / "b").glob("*"))
    said = []
    again = materialize(a, {}, Place(root=root), force=True, say=said.append)
    assert again.artifact.digest == source.digest and again.status == EXECUTED and (harm == "removed" or "takes its place" in said[0])
    assert materialize(b, {"x": again.artifact}, Place(root=root)).status == EXECUTED
