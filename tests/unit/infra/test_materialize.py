"""The kernel: what is done is never done again, a kill loses nothing, two processes do the work once."""

import json
import multiprocessing
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from kernel_steps import ToyConfig, hold

from infra.artifact import ARTIFACT_RECORD, all_records, find, lineage, read_record, verify
from infra.lock import exclusive
from infra.materialize import EXECUTED, REUSED, SAME_BYTES, Place, materialize
from infra.plan import DONE, MISSING, PARTIAL, STALE, WAITING, plan, topological
from infra.step import AnyloomError, Step
from infra.storage import Remote

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


def test_remote_mirror_serves_another_machine(tmp_path):
    remote = f"file://{tmp_path}/bucket"
    log = str(tmp_path / "log")
    s = step("a", config=ToyConfig(log=log))
    first = materialize(s, {}, Place(root=tmp_path / "one", remote=Remote(remote, tmp_path / "one")))
    second = materialize(s, {}, Place(root=tmp_path / "two", remote=Remote(remote, tmp_path / "two")))
    assert (first.status, second.status) == (EXECUTED, REUSED)
    assert second.artifact.digest == first.artifact.digest and len(executed(tmp_path)) == 1
    (record,) = (tmp_path / "bucket").rglob(ARTIFACT_RECORD)
    record.unlink()  # without its record an artifact does not exist
    shutil.rmtree(tmp_path / "two")
    assert materialize(s, {}, Place(root=tmp_path / "two", remote=Remote(remote, tmp_path / "two"))).status == EXECUTED
