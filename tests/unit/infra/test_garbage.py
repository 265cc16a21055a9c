"""Garbage: what a person, an interrupted build, a night or a running step still needs is never collected."""

import json
import multiprocessing
import time

import pytest
import toy_history
from kernel_steps import ToyConfig, hold

from evals.history.reader import nightly_runs
from evals.history.records import append_comparisons, append_night
from flows.cli.artifacts import to_keep
from infra.garbage import garbage, remove
from infra.lock import FRESH_S, exclusive, in_use
from infra.materialize import Place, materialize
from infra.plan import plan, topological
from infra.step import Step


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
    for path, _ in garbage(tmp_path, {source.path}):
        remove(path)
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
    for folder in (f"artifacts/a/.staging-{mark}-1-ab", "artifacts/a/.staging-ffffffffffff-1-ab", "stores/grown/.staging-n-1-ab"):
        (tmp_path / folder).mkdir(parents=True)
    everything = [f"artifacts/a/.staging-{mark}-1-ab", "artifacts/a/.staging-ffffffffffff-1-ab", f"artifacts/a/{mark}", "stores/grown/.staging-n-1-ab"]
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
