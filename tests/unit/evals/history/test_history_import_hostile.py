"""Hostile result folders: every one is refused in one line that names the file and the field, and nothing of it is added."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_history import append

from evals.history.database import query
from evals.history.foreign import MAX_JSON, MAX_LINES
from evals.history.imported import import_folder
from infra.step import AnyloomError

TASK = "vqav2_val"
CASES = Path(__file__).parents[3] / "cases"
RESULTS, SAMPLES = "20260101_000000_results.json", f"20260101_000000_samples_{TASK}.jsonl"
WHOLE: dict[str, Any] = {
    "results": {TASK: {"alias": TASK, "exact_match,none": 0.5, "exact_match_stderr,none": 0.1}},
    "configs": {TASK: {"task": TASK, "test_split": "val", "doc_to_target": "answer", "metric_list": []}},
    "n-samples": {TASK: {"original": 2, "effective": 2}},
    "higher_is_better": {TASK: {"exact_match": True}},
    "config": {"model": "llava", "model_args": "x", "random_seed": 0, "device": "cpu"},
    "model_name": "llava",
}
LINES: list[dict[str, Any]] = [
    {"doc_id": n, "target": "cat", "filtered_resps": ["a cat"], "exact_match": 1.0, "input": f"What is {n}?", "token_counts": [{"output_tokens": 3}]}
    for n in range(2)
]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A sound folder, and beside it another one that is older, so that it would be added first."""
    for name, day in (("out/a", "20250101"), ("out/b", "20260101")):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / RESULTS.replace("20260101", day)).write_text(json.dumps(WHOLE))
        (folder / SAMPLES.replace("20260101", day)).write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return tmp_path / "out" / "b"


def refused(folder: Path, stores: Path) -> str:
    """The one line that the folder is refused with; its elder is not added either."""
    with pytest.raises(AnyloomError) as caught:
        import_folder(stores, folder.parent, harness_version="0.7.3")
    assert not list(stores.rglob("*.parquet"))
    said = str(caught.value)
    assert said.isprintable() and len(said) < 500
    return said


def changed(path: list[str], value: Any) -> Callable[[Path], None]:
    """The results file with another value somewhere."""

    def change(folder: Path) -> None:
        made = json.loads(json.dumps(WHOLE))
        place = made
        for key in path[:-1]:
            place = place[key]
        if value is GONE:
            del place[path[-1]]
        else:
            place[path[-1]] = value
        (folder / RESULTS).write_text(json.dumps(made))

    return change


def line(field: str, value: Any) -> Callable[[Path], None]:
    """The second sample with another value in one field."""

    def change(folder: Path) -> None:
        second = {key: of for key, of in LINES[1].items() if key != field} | ({} if value is GONE else {field: value})
        (folder / SAMPLES).write_text(f"{json.dumps(LINES[0])}\n{json.dumps(second)}\n")

    return change


def instead(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Something else in the place of a file."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


def sparse(size: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with open(path, "wb") as handle:
            handle.truncate(size)

    return make


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def cut_gz(path: Path) -> None:
    path.write_bytes(gzip.compress(json.dumps(WHOLE).encode())[:-9])


GONE = object()
DEEP = "[" * 200_000 + "]" * 200_000
HUGE = 10**400
HOSTILE: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "results: a pipe": (instead(RESULTS, os.mkfifo), [RESULTS, "a pipe"]),
    "samples: a pipe": (instead(SAMPLES, os.mkfifo), [SAMPLES, "a pipe"]),
    "results: a device": (instead(RESULTS, lambda path: path.symlink_to("/dev/zero")), [RESULTS, "a device"]),
    "samples: a device": (instead(SAMPLES, lambda path: path.symlink_to("/dev/zero")), [SAMPLES, "a device"]),
    "results: a folder": (instead(RESULTS, Path.mkdir), [RESULTS, "a folder"]),
    "samples: a folder": (instead(SAMPLES, Path.mkdir), [SAMPLES, "a folder"]),
    "results: a loop of links": (instead(RESULTS, loop), [RESULTS, "symbolic links"]),
    "samples: a loop of links": (instead(SAMPLES, loop), [SAMPLES, "symbolic links"]),
    "samples: a link to nothing": (instead(SAMPLES, lambda path: path.symlink_to("gone")), [SAMPLES, "No such file"]),
    "results: 10 GB of nothing": (instead(RESULTS, sparse(10**10)), [RESULTS, "10.0 GB"]),
    "samples: 10 GB of nothing": (instead(SAMPLES, sparse(10**10)), [SAMPLES, "10.0 GB"]),
    "samples: a line without an end": (instead(SAMPLES, sparse(10**9)), [SAMPLES, "line 1", "64 MB"]),
    "results: deep": (lambda folder: (folder / RESULTS).write_text(DEEP), [RESULTS, "nested too deeply"]),
    "samples: deep": (lambda folder: (folder / SAMPLES).write_text(DEEP), [SAMPLES, "line 1", "nested too deeply"]),
    "results: no UTF-8": (lambda folder: (folder / RESULTS).write_bytes(b'{"results": "\xff\xfe"}'), [RESULTS, "UTF-8"]),
    "samples: no UTF-8": (lambda folder: (folder / SAMPLES).write_bytes(b'{"doc_id": 0, "input": "\xff"}\n'), [SAMPLES, "line 1", "UTF-8"]),
    "results: cut gzip": (instead(RESULTS, cut_gz), [RESULTS, "damaged"]),
    "samples: cut gzip": (instead(SAMPLES, cut_gz), [SAMPLES, "line 1", "damaged"]),
    "results: empty": (lambda folder: (folder / RESULTS).write_text(""), [RESULTS, "damaged"]),
    "results: a list": (lambda folder: (folder / RESULTS).write_text("[1]"), [RESULTS, "has no results"]),
    "results: a number of 5000 digits": (lambda folder: (folder / RESULTS).write_text('{"a": ' + "9" * 5000 + "}"), [RESULTS, "number that is too long"]),
    "samples: a number of 5000 digits": (lambda folder: (folder / SAMPLES).write_text('{"doc_id": ' + "9" * 5000 + "}"), [SAMPLES, "line 1", "too long"]),
    "samples: no object": (lambda folder: (folder / SAMPLES).write_text("7\n"), [SAMPLES, "line 1 is no object"]),
    "samples: half a line": (lambda folder: (folder / SAMPLES).write_text('{"doc_id": 0,'), [SAMPLES, "line 1 is damaged"]),
    "name: no date": (lambda folder: (folder / RESULTS).rename(folder / "20261340_256199_results.json"), ["20261340_256199_results.json", "date"]),
    "name: before all time": (lambda folder: (folder / RESULTS).rename(folder / "00010101_000000_results.json"), ["00010101_000000_results.json", "date"]),
    "results missing": (changed(["results"], GONE), [RESULTS, "has no results"]),
    "results null": (changed(["results"], None), [RESULTS, "has no results"]),
    "configs missing": (changed(["configs"], GONE), [RESULTS, "configs"]),
    "configs a list": (changed(["configs"], []), [RESULTS, "configs", "a list"]),
    "config of the task a text": (changed(["configs", TASK], "x"), [RESULTS, "configs", TASK, "'x'"]),
    "split a number": (changed(["configs", TASK, "test_split"], 3), [RESULTS, "test_split", "3"]),
    "task a list": (changed(["results", TASK], [1]), [RESULTS, "results", TASK, "a list"]),
    "score a text": (changed(["results", TASK, "exact_match,none"], "much"), [RESULTS, "exact_match,none", "'much'"]),
    "score a list": (changed(["results", TASK, "exact_match,none"], [0.5]), [RESULTS, "exact_match,none", "a list"]),
    "score too large": (changed(["results", TASK, "exact_match,none"], HUGE), [RESULTS, "exact_match,none", "float64"]),
    "standard error an object": (changed(["results", TASK, "exact_match_stderr,none"], {}), [RESULTS, "exact_match_stderr,none", "an object"]),
    "standard error below 0": (changed(["results", TASK, "exact_match_stderr,none"], -1), [RESULTS, "exact_match_stderr,none", "-1"]),
    "standard error true": (changed(["results", TASK, "exact_match_stderr,none"], True), [RESULTS, "exact_match_stderr,none", "true"]),
    "n-samples a list": (changed(["n-samples"], [2]), [RESULTS, "n-samples", "a list"]),
    "n-samples of the task a number": (changed(["n-samples", TASK], 2), [RESULTS, "n-samples", TASK, "2"]),
    "effective a text": (changed(["n-samples", TASK, "effective"], "two"), [RESULTS, "effective", "'two'"]),
    "effective true": (changed(["n-samples", TASK, "effective"], True), [RESULTS, "effective", "true"]),
    "effective half": (changed(["n-samples", TASK, "effective"], 2.5), [RESULTS, "effective", "2.5"]),
    "effective NaN": (changed(["n-samples", TASK, "effective"], float("nan")), [RESULTS, "effective", "nan"]),
    "effective too large": (changed(["n-samples", TASK, "effective"], 1 << 70), [RESULTS, "effective", "count"]),
    "effective another": (changed(["n-samples", TASK, "effective"], 3), [RESULTS, "3 samples", "2 lines"]),
    "higher_is_better a text": (changed(["higher_is_better"], "yes"), [RESULTS, "higher_is_better", "'yes'"]),
    "higher_is_better of the task a list": (changed(["higher_is_better", TASK], []), [RESULTS, "higher_is_better", TASK, "a list"]),
    "higher_is_better of a score a number": (changed(["higher_is_better", TASK, "exact_match"], 1), [RESULTS, "higher_is_better", "exact_match", "1"]),
    "config a text": (changed(["config"], "llava"), [RESULTS, "config", "'llava'"]),
    "model a number": (changed(["model_name"], 7), [RESULTS, "model_name", "7"]),
    "model half a character": (changed(["model_name"], "\ud800"), [RESULTS, "model_name", "surrogate"]),
    "seed a list": (changed(["config", "random_seed"], [0]), [RESULTS, "random_seed", "a list"]),
    "device an object": (changed(["config", "device"], {}), [RESULTS, "device", "an object"]),
    "a task that is a path": (changed(["results"], {"../x": {"a,none": 1}}), [RESULTS, "configs"]),
    "a task that is described and a path": (
        lambda folder: (folder / RESULTS).write_text(json.dumps(WHOLE | {"results": {"../x": {"a,none": 1}}, "configs": {"../x": {}}})),
        [RESULTS, "../x", "no name of a task"],
    ),
    "doc_id missing": (line("doc_id", GONE), [SAMPLES, "line 2", "doc_id"]),
    "doc_id twice": (line("doc_id", 0), [SAMPLES, "line 2", "doc_id 0", "line 1"]),
    "doc_id twice as a text": (line("doc_id", "0"), [SAMPLES, "line 2", "doc_id 0", "line 1"]),
    "doc_id null": (line("doc_id", None), [SAMPLES, "line 2", "doc_id", "null"]),
    "doc_id true": (line("doc_id", True), [SAMPLES, "line 2", "doc_id", "true"]),
    "doc_id half": (line("doc_id", 0.5), [SAMPLES, "line 2", "doc_id", "0.5"]),
    "doc_id too large": (line("doc_id", HUGE), [SAMPLES, "line 2", "doc_id", "bits"]),
    "input missing": (line("input", GONE), [SAMPLES, "line 2", "input"]),
    "input a list": (line("input", ["What?"]), [SAMPLES, "line 2", "input", "a list"]),
    "input half a character": (line("input", "\udfff?"), [SAMPLES, "line 2", "input", "surrogate"]),
    "target missing": (line("target", GONE), [SAMPLES, "line 2", "target"]),
    "answer missing": (line("filtered_resps", GONE), [SAMPLES, "line 2", "filtered_resps"]),
    "answer half a character": (line("filtered_resps", ["\ud83d"]), [SAMPLES, "line 2", "filtered_resps", "surrogate"]),
    "score of a sample a text": (line("exact_match", "right"), [SAMPLES, "line 2", "exact_match", "'right'"]),
    "score of a sample a list": (line("exact_match", [1]), [SAMPLES, "line 2", "exact_match", "a list"]),
    "score of a sample too large": (line("exact_match", -HUGE), [SAMPLES, "line 2", "exact_match", "float64"]),
    "score inside an object a text": (line("exact_match", {"score": "x"}), [SAMPLES, "line 2", "exact_match, score", "'x'"]),
    "tokens a text": (line("token_counts", "3"), [SAMPLES, "line 2", "token_counts", "'3'"]),
    "tokens of numbers": (line("token_counts", [3]), [SAMPLES, "line 2", "token_counts", "3"]),
    "tokens half": (line("token_counts", [{"output_tokens": 1.5}]), [SAMPLES, "line 2", "output_tokens", "1.5"]),
    "tokens too many": (line("token_counts", [{"output_tokens": 1 << 64}]), [SAMPLES, "line 2", "output_tokens", "count"]),
}


@pytest.mark.parametrize(("harm", "words"), HOSTILE.values(), ids=list(HOSTILE))
def test_a_hostile_folder_is_refused_in_one_line_and_nothing_is_added(tmp_path: Path, out: Path, harm: Callable[[Path], object], words: list[str]) -> None:
    harm(out)
    said = refused(out, tmp_path / "stores")
    assert all(word in said for word in words), said


@pytest.mark.parametrize("folder", [None, "file", "pipe"])
def test_what_is_no_folder_is_refused(tmp_path: Path, folder: str | None) -> None:
    path = tmp_path / "x"
    if folder:
        (os.mkfifo if folder == "pipe" else Path.touch)(path)
    with pytest.raises(AnyloomError, match=r"x has no <date>_results\.json: it is no folder"):
        import_folder(tmp_path / "stores", path, harness_version="0.7.3")


def test_a_folder_of_linked_loops_ends(tmp_path: Path, out: Path) -> None:
    (out / "again").symlink_to(out.parent)
    assert len(import_folder(tmp_path / "stores", out.parent, harness_version="0.7.3")) == 2


WRONG: list[Any] = [None, True, 0, -1, 1.5, float("nan"), float("inf"), HUGE, "", "x", "\ud800", "\x1b[31m\n", [], [[]], {}, {"a": 1}]


def fields(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([path] if path else []), *(place for key, one in inside for place in fields(one, (*path, key)))]


def test_any_wrong_value_in_any_field_is_taken_or_refused_in_one_line(tmp_path: Path, out: Path) -> None:
    """Every field of both files with a third of the wrong values, in turn: no other exception, no line break, and nothing half added."""
    files = {out / RESULTS: WHOLE, out / SAMPLES: LINES}
    tried = 0
    for path, whole in files.items():
        text = path.read_text()
        for number, place in enumerate(fields(whole)):
            for value in WRONG[number % 3 :: 3]:
                made = json.loads(json.dumps(whole))
                *above, last = place
                inside = made
                for key in above:
                    inside = inside[key]
                inside[last] = value
                path.write_text(json.dumps(made) if path.name == RESULTS else "".join(json.dumps(one) + "\n" for one in made))
                stores = tmp_path / "stores"
                try:
                    assert import_folder(stores, out, harness_version="0.7.3")[0].new
                    assert len(list(stores.rglob("run/*.parquet"))) == 1
                except AnyloomError as error:
                    assert str(error).isprintable() and str(path.parent) in str(error), (place, value)
                    assert not list(stores.rglob("*.parquet")), (place, value)
                shutil.rmtree(stores, ignore_errors=True)
                tried += 1
        path.write_text(text)
    assert tried > 200


def test_true_false_and_nan_are_stored_as_one_zero_and_null(tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    import_folder(stores, CASES / "answers_with_markup", harness_version="0.7.3")
    db = append(stores)
    assert query(db, "SELECT score FROM sample WHERE task = 'mmstar' ORDER BY doc_key")[1] == [(1.0,), (0.0,)]
    assert query(db, "SELECT value, stderr, ci_lo FROM metric WHERE task = 'mmstar' AND metric = 'average'")[1] == [(None, None, None)]
    assert query(db, "SELECT prediction FROM sample WHERE task = 'vqav2_val' ORDER BY doc_key")[1][0] == ("[/INST] a cat",)
    assert query(db, "SELECT count(*) FROM sample WHERE prediction = chr(0) || chr(27) || '[31mred'")[1] == [(1,)]


def test_a_score_that_is_true_is_one(tmp_path: Path, out: Path) -> None:
    changed(["results", TASK, "exact_match,none"], True)(out)
    line("exact_match", False)(out)
    import_folder(tmp_path / "stores", out, harness_version="0.7.3")
    db = append(tmp_path / "stores")
    assert query(db, "SELECT value FROM metric")[1] == [(1.0,)] and query(db, "SELECT score FROM sample ORDER BY doc_key")[1] == [(1.0,), (0.0,)]


def test_pope_s_yes_ratio_is_left_out(tmp_path: Path, out: Path) -> None:
    changed(["results", TASK, "pope_yes_ratio,none"], 0.5)(out)
    import_folder(tmp_path / "stores", out, harness_version="0.7.3")
    assert query(append(tmp_path / "stores"), "SELECT metric FROM metric")[1] == [("exact_match",)]


def test_the_limits_are_above_what_the_largest_benchmarks_write() -> None:
    assert MAX_JSON >= 1 << 28 and MAX_LINES >= 1 << 32
