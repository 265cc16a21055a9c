"""Result folders of lmms-eval that are damaged on purpose, and the words that must stand in the one line with which each is refused.

Owns a sound folder, the table HOSTILE of harms, and values that are wrong almost anywhere. Input: a directory. Output: files in it.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

TASK = "vqav2_val"
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


def sound_folder(folder: Path, day: str = "20260101", lines: int = 2) -> Path:
    """A folder of one evaluation as lmms-eval writes it, with as many samples."""
    folder.mkdir(parents=True)
    made = json.loads(json.dumps(WHOLE)) | {"n-samples": {TASK: {"original": lines, "effective": lines}}}
    (folder / RESULTS.replace("20260101", day)).write_text(json.dumps(made))
    samples = [LINES[0] | {"doc_id": n, "input": f"What is {n}?"} for n in range(lines)]
    (folder / SAMPLES.replace("20260101", day)).write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return folder


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
    "a task of a long name": (
        lambda folder: (folder / RESULTS).write_text(json.dumps(WHOLE).replace(json.dumps(TASK), json.dumps("x" * 151))),
        [RESULTS, "151 bytes", "may have 150"],
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
WRONG: list[Any] = [None, True, 0, -1, 1.5, float("nan"), float("inf"), HUGE, "", "x", "\ud800", "\x1b[31m\n", [], [[]], {}, {"a": 1}]

NULL, TRUE, BLANK, TEXTS, LISTS, OBJECTS, HALF_TEXT = {0}, {1}, {8}, {9, 11}, {12, 13}, {14, 15}, {10}
WHOLE_NUMBERS, FINITE, ODD_NUMBERS = {2, 3}, {2, 3, 4}, {5, 6}
"""Places in WRONG."""
ALL = set(range(len(WRONG)))
TEXT, OBJECT = NULL | BLANK | TEXTS, NULL | OBJECTS
TAKES: dict[tuple[Any, ...], set[int]] = {
    ("results",): set(),
    ("results", TASK): OBJECT,
    ("results", TASK, "alias"): ALL,
    ("results", TASK, "exact_match,none"): NULL | TRUE | FINITE | ODD_NUMBERS | BLANK,
    ("results", TASK, "exact_match_stderr,none"): NULL | (FINITE - {3}) | ODD_NUMBERS | BLANK,
    ("configs",): set(),
    ("configs", TASK): OBJECT,
    ("configs", TASK, "task"): ALL,
    ("configs", TASK, "test_split"): TEXT,
    ("configs", TASK, "doc_to_target"): ALL,
    ("configs", TASK, "metric_list"): ALL,
    ("n-samples",): OBJECT,
    ("n-samples", TASK): OBJECT,
    ("n-samples", TASK, "original"): ALL,
    ("n-samples", TASK, "effective"): NULL,
    ("higher_is_better",): OBJECT,
    ("higher_is_better", TASK): OBJECT,
    ("higher_is_better", TASK, "exact_match"): OBJECT | TRUE,
    ("config",): OBJECT,
    ("config", "model"): ALL,
    ("config", "model_args"): ALL - HALF_TEXT,
    ("config", "random_seed"): NULL | WHOLE_NUMBERS,
    ("config", "device"): TEXT,
    ("model_name",): TEXT,
}
"""Field of the results file -> the places in WRONG of what it may hold."""
TAKES_OF_SAMPLE: dict[tuple[Any, ...], set[int]] = {
    (): set(),
    ("doc_id",): WHOLE_NUMBERS | BLANK | TEXTS,
    ("target",): ALL - HALF_TEXT,
    ("filtered_resps",): ALL - HALF_TEXT,
    ("filtered_resps", 0): ALL - HALF_TEXT,
    ("exact_match",): NULL | TRUE | FINITE | ODD_NUMBERS | OBJECTS,
    ("input",): BLANK | TEXTS,
    ("token_counts",): NULL | {12},
    ("token_counts", 0): OBJECT,
    ("token_counts", 0, "output_tokens"): NULL | {2},
}
"""The same of a line of the samples file; the second line may not have the doc_id of the first, which is 0."""
NEEDED = (("results",), ("results", TASK), ("configs",), ("configs", TASK))
"""Fields of the results file that must be there."""


def fields(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([path] if path else []), *(place for key, one in inside for place in fields(one, (*path, key)))]
