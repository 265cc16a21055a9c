"""Garbage: what a person, an interrupted build, a night or a running step still needs is never collected."""

import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import threading
import time

import pytest
import toy_history
from kernel_steps import ToyConfig, hold

from evals.history.reader import nightly_runs
from evals.history.records import append_comparisons, append_night
from flows.cli.artifacts import to_keep
from infra.entries import commit_entry
from infra.garbage import beginning, collecting, garbage, live_run, remove
from infra.lock import FRESH_S, exclusive, in_use, shared
from infra.materialize import Place, materialize
from infra.plan import plan, topological
from infra.step import AnyloomError, Step
from infra.storage import new_staging


def step(name, run="write", inputs=None, **config):
    return Step(name=name, config=ToyConfig(**config), run=f"kernel_steps:{run}", inputs=inputs or {})


def run_all(steps, root):
    made = {}
    for one in topological(steps):
        made[one.name] = materialize(one, {key: made[source.name] for key, source in one.inputs.items()}, Place(root=root)).artifact
    return made


def doomed(root, keep=(), **options):
    """Names of what may go."""
    return sorted(path.relative_to(root).as_posix() for path, _ in garbage(root, keep, **options))


def chain(text="b"):
    a = step("a")
    return [a, step("b", inputs={"x": a}, text=text)]


def interrupted(root, source="a"):
    """A build that has committed one of its two entries."""
    source_step = step(source)
    made = run_all([source_step], root)
    build = step("grown", "grow", {"x": source_step}, text="n")
    with pytest.raises(KeyboardInterrupt):
        materialize(build, {"x": made[source]}, Place(root=root))
    return build, made[source]


def test_what_is_kept_and_its_ancestors_stay(tmp_path):
    old = run_all(chain(), tmp_path)
    run_all(chain("B"), tmp_path)
    kept = {row.path for row in plan(chain("B"), tmp_path)}
    assert doomed(tmp_path, kept) == [old["b"].path.relative_to(tmp_path).as_posix()]
    assert all(size > 0 for _, size in garbage(tmp_path, kept))


def test_an_interrupted_build_keeps_its_entries_and_its_inputs(tmp_path):
    build, source = interrupted(tmp_path)
    assert (tmp_path / "stores" / "grown" / "n0" / "record.json").exists() and doomed(tmp_path) == []
    assert doomed(tmp_path, unfinished=False) == [f"artifacts/a/{source.fingerprint[:12]}", "stores/grown/n0"]
    made = materialize(build, {"x": source}, Place(root=tmp_path)).artifact
    assert doomed(tmp_path, {made.path}) == []
    assert remove(tmp_path, [path for path, _ in garbage(tmp_path, {source.path})], {source.path}) > 0
    assert not list((tmp_path / "stores" / "grown").glob("*")) and not made.path.exists() and source.path.exists()


def test_a_root_below_a_directory_called_history_is_collected(tmp_path):
    root = tmp_path / "history" / "root"
    interrupted(root)
    (root / "stores" / "history" / "run").mkdir(parents=True)
    (root / "stores" / "history" / "run" / "record.json").write_text("{}")
    assert "stores/grown/n0" in doomed(root, unfinished=False) and not any("history" in path for path in doomed(root, unfinished=False))


def test_what_killed_steps_left_beside_artifacts_goes_but_not_what_runs(tmp_path):
    made = run_all([step("a")], tmp_path)["a"]
    mark = made.fingerprint[:12]
    for folder in (f"artifacts/a/.staging-{mark}-1-ab", "artifacts/a/.staging-ffffffffffff-1-ab"):
        (tmp_path / folder).mkdir(parents=True)
    everything = [f"artifacts/a/.staging-{mark}-1-ab", "artifacts/a/.staging-ffffffffffff-1-ab", f"artifacts/a/{mark}"]
    assert doomed(tmp_path) == sorted(everything)
    with exclusive(tmp_path / "locks" / f"a-{mark}.lock"):
        assert doomed(tmp_path) == ["artifacts/a/.staging-ffffffffffff-1-ab"]
    assert doomed(tmp_path) == sorted(everything)


def test_a_lock_held_by_another_process_pins_the_build_and_what_it_reads(tmp_path):
    interrupted(tmp_path)
    (work,) = [path for path in (tmp_path / "work" / "grown").glob("*") if path.is_dir()]
    context = multiprocessing.get_context("spawn")
    ready, stop = context.Event(), context.Event()
    child = context.Process(target=hold, args=(tmp_path / "locks" / f"grown-{work.name}.lock", ready, stop))
    child.start()
    assert ready.wait(20)
    assert doomed(tmp_path, unfinished=False) == []
    stop.set()
    child.join()
    assert len(doomed(tmp_path, unfinished=False)) == 2


def test_the_note_of_another_machine_counts_while_it_is_fresh(tmp_path):
    path = tmp_path / "x.lock"
    assert not in_use(path)
    for host, since, held in (("elsewhere", time.time(), True), ("elsewhere", time.time() - FRESH_S - 1, False), (None, time.time(), False)):
        path.write_text(json.dumps({"pid": 1, "since": since} | ({"host": host} if host else {})))
        assert in_use(path) is held
    with exclusive(path):
        assert in_use(path) and json.loads(path.read_text())["host"]
    assert not in_use(path) and path.read_text() == ""


def test_a_holder_that_was_seen_lately_works_on_however_long_it_has_been_at_it(tmp_path, monkeypatch):
    path, long_ago = tmp_path / "x.lock", time.time() - 2 * FRESH_S
    for seen, held in ((time.time() - 60, True), (long_ago, False)):
        path.write_text(json.dumps({"pid": 1, "since": long_ago, "seen": round(seen), "host": "elsewhere"}))
        assert in_use(path) is held
    monkeypatch.setattr("infra.lock.BEAT_S", 0.05)
    with exclusive(path):
        first = json.loads(path.read_text())
        deadline = time.monotonic() + 20
        while json.loads(path.read_text())["seen"] == first["seen"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert {**json.loads(path.read_text()), "seen": 0} == {**first, "seen": 0}


def dead_process():
    done = subprocess.Popen(["true"])
    done.wait()
    return done.pid


def test_what_a_dead_process_left_goes_and_what_a_living_one_makes_stays(tmp_path):
    here, dead, old = socket.gethostname(), dead_process(), time.time() - FRESH_S - 1
    stays = [
        f"stores/grown/.staging-n-{os.getpid()}-ab12@{here}",
        f"work/s/0123/.staging-step-000-{os.getpid()}-ab",
        f"stores/x/.staging-n-{dead}-ab@elsewhere",
    ]
    goes = [f"stores/grown/.staging-n-{dead}-ab12@{here}", f"work/s/0123/.staging-step-000-{dead}-ab", "stores/x/.staging-n-1-ab@elsewhere"]
    files = [f"stores/grown/.space.json.{dead}.0123abcd.tmp", f"stores/grown/.space.json.{os.getpid()}.0123abcd.tmp"]
    for folder in (*stays, *goes):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "half").write_text("half")
    for file in files:
        (tmp_path / file).write_text("half")
    os.utime(tmp_path / goes[2], (old, old))
    step_at_work = tmp_path / "locks" / "other-0123456789ab.lock"
    with exclusive(step_at_work):  # also beside a step that runs
        assert doomed(tmp_path) == sorted([*goes, files[0]])
    os.utime(tmp_path / stays[0], (1, 1))  # older than this process: another one had its number
    assert stays[0] in doomed(tmp_path)
    remove(tmp_path, [path for path, _ in garbage(tmp_path, ())], ())
    assert doomed(tmp_path) == [] and all((tmp_path / folder / "half").exists() for folder in stays[1:])


def test_what_a_killed_removal_put_aside_goes_after_a_while(tmp_path, monkeypatch):
    aside = tmp_path / "stores" / "grown" / ".removed-n0-0123abcd" / "quarantine"
    aside.mkdir(parents=True)
    assert doomed(tmp_path) == []
    monkeypatch.setattr("infra.garbage.SLOW_REMOVAL_S", -1.0)
    assert doomed(tmp_path) == ["stores/grown/.removed-n0-0123abcd"]


def test_a_step_does_not_begin_while_garbage_is_collected_and_the_reverse(tmp_path):
    order = []

    def begin():
        with beginning(tmp_path):
            order.append("begun")

    with collecting(tmp_path):
        thread = threading.Thread(target=begin)
        thread.start()
        time.sleep(0.2)
        order.append("collected")
    thread.join()
    assert order == ["collected", "begun"]
    with beginning(tmp_path), beginning(tmp_path):
        with shared(tmp_path / "locks" / "collecting.lock") as waited:
            assert not waited
        assert in_use(tmp_path / "locks" / "collecting.lock") is False  # shared with whoever looks


def test_what_was_chosen_stays_when_something_needs_it_by_now(tmp_path):
    made = run_all(chain(), tmp_path)
    chosen = [path for path, _ in garbage(tmp_path, ())]
    assert len(chosen) == 2
    with live_run(tmp_path) as used:
        used(made["b"].path)
        assert remove(tmp_path, chosen, ()) == 0 and doomed(tmp_path) == []
    assert remove(tmp_path, chosen[:1], ()) > 0 and len(doomed(tmp_path)) == 1


def test_what_a_live_run_has_met_stays_until_it_ends(tmp_path):
    steps = chain()
    made = run_all(steps, tmp_path)
    with live_run(tmp_path) as used:
        assert len(doomed(tmp_path)) == 2
        again = materialize(steps[0], {}, Place(root=tmp_path), used=used).artifact
        assert doomed(tmp_path) == [made["b"].path.relative_to(tmp_path).as_posix()]
        materialize(steps[1], {"x": again}, Place(root=tmp_path), used=used)
        assert doomed(tmp_path) == []
    assert len(doomed(tmp_path)) == 2 and not list((tmp_path / "locks" / "runs").iterdir())


def test_a_live_run_that_was_killed_pins_nothing(tmp_path):
    made = run_all([step("a")], tmp_path)["a"]
    folder = tmp_path / "locks" / "runs"
    folder.mkdir(parents=True)
    (folder / "x.lock").write_text("")
    (folder / "x.json").write_text(json.dumps([made.path.relative_to(tmp_path / "artifacts").as_posix()]))
    assert len(doomed(tmp_path)) == 1
    (folder / "x.lock").write_text(json.dumps({"pid": 1, "since": time.time(), "host": "elsewhere"}))
    assert doomed(tmp_path) == []


def test_an_artifact_that_was_removed_by_hand_is_no_error(tmp_path):
    made = run_all(chain(), tmp_path)
    build, source = interrupted(tmp_path, "c")
    shutil.rmtree(made["a"].path)
    assert doomed(tmp_path, {made["a"].path, made["b"].path}) == []
    shutil.rmtree(source.path)
    assert doomed(tmp_path, {made["b"].path}) == []
    with pytest.raises(AnyloomError, match="was removed while it was needed"):
        materialize(build, {"x": source}, Place(root=tmp_path))


def test_a_damaged_artifact_stays_with_what_it_pins(tmp_path):
    build, source = interrupted(tmp_path)
    made = materialize(build, {"x": source}, Place(root=tmp_path)).artifact
    text = (made.path / "artifact.json").read_text()
    (made.path / "artifact.json").write_text(text[:40])
    assert doomed(tmp_path) == [f"artifacts/a/{source.fingerprint[:12]}"]
    (made.path / "generation.json").write_text("{")
    with pytest.raises(AnyloomError, match=r"nothing is collected, because it is not known .*generation\.json is damaged"):
        doomed(tmp_path)
    (made.path / "artifact.json").write_text(text)
    assert f"artifacts/grown/{made.fingerprint[:12]}" in doomed(tmp_path)  # nobody asks what garbage pins
    with pytest.raises(AnyloomError, match="nothing is collected"):
        doomed(tmp_path, {made.path})


def test_a_step_whose_staging_directory_was_taken_away_fails_and_publishes_nothing(tmp_path):
    def robbed(one, context):
        for path, _ in garbage(tmp_path, ()):  # by hand: the collector would leave it
            shutil.rmtree(path)
        shutil.rmtree(context.output)
        return {}

    with pytest.raises(AnyloomError, match="is missing: it went away"):
        materialize(step("a"), {}, Place(root=tmp_path), call=robbed)
    assert not list((tmp_path / "artifacts").glob("*/*"))


def test_the_collector_leaves_a_running_step_alone(tmp_path):
    """Between its lock and its end: staging, work, inputs and the entries it has committed, whoever else is garbage."""
    source, other = step("a"), step("other", text="o")
    made = run_all([source, other], tmp_path)
    grow = step("grown", "grow", {"x": source}, text="n")

    def collected_meanwhile(one, context):
        try:
            one.load()(context)
        except KeyboardInterrupt:  # after the first entry
            pass
        loose = tmp_path / "stores" / "grown" / "loose"
        commit_entry(loose, staged_in(context.work), {})
        assert doomed(tmp_path, unfinished=False) == [f"artifacts/other/{made['other'].fingerprint[:12]}", "stores/grown/loose"]
        remove(tmp_path, [path for path, _ in garbage(tmp_path, (), unfinished=False)], (), unfinished=False)
        return one.load()(context)

    outcome = materialize(grow, {"x": made["a"]}, Place(root=tmp_path), call=collected_meanwhile)
    assert outcome.artifact.path.exists() and made["a"].path.exists() and not made["other"].path.exists()
    assert len(list((tmp_path / "stores" / "grown").iterdir())) == 2


def staged_in(folder):
    staging = new_staging(folder / "loose")
    (staging / "out.txt").write_text("loose")
    return staging


def test_exports_that_nights_judged_stay(tmp_path):
    made = {name: run_all([step("export", text=name)], tmp_path)["export"] for name in ("baseline", "older", "newest", "never judged")}
    stores, tables = tmp_path / "stores", {}
    for name in ("baseline", "older", "newest"):
        tables[name] = toy_history.rows(name, [1.0, 0.0])
        inputs = json.dumps({"export": f"export/{made[name].fingerprint[:12]}"})
        run = tables[name]["run"]
        tables[name]["run"] = run.set_column(run.schema.get_field_index("inputs"), run.schema.field("inputs"), [[inputs]])
    toy_history.append(stores, *tables.values())
    append_night(stores, "newest", "flow", None, "evaluated")
    append_night(stores, "gone", "flow", None, "evaluated")
    names = {"task": "t", "condition": "helped", "metric": "m", "subgroup": "all", "history_fingerprint": "aaaa"}
    append_comparisons(stores, [{"run_a": "baseline", "run_b": "newest", **names}])
    assert nightly_runs(stores) == {name: f"export/{made[name].fingerprint[:12]}" for name in ("baseline", "newest")}
    kept = to_keep(tmp_path, ["tiny"])
    gone = doomed(tmp_path, kept)
    assert [f"export/{made[name].fingerprint[:12]}" in "".join(gone) for name in ("baseline", "newest", "older")] == [False, False, True]
