"""Hostile result folders: every one is refused in one line that names the file and the field, and nothing of it is added."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_results import HOSTILE, LINES, RESULTS, SAMPLES, TASK, WHOLE, WRONG, changed, fields, line, sound_folder
from toy_history import append

from evals.history.database import query
from evals.history.foreign import MAX_JSON, MAX_LINES
from evals.history.imported import import_folder
from infra.step import AnyloomError

CASES = Path(__file__).parents[3] / "cases"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A sound folder, and beside it another one that is older, so that it would be added first."""
    sound_folder(tmp_path / "out" / "a", "20250101")
    return sound_folder(tmp_path / "out" / "b")


def refused(folder: Path, stores: Path) -> str:
    """The one line that the folder is refused with; its elder is not added either."""
    with pytest.raises(AnyloomError) as caught:
        import_folder(stores, folder.parent, harness_version="0.7.3")
    assert not list(stores.rglob("*.parquet"))
    said = str(caught.value)
    assert said.isprintable() and len(said) < 500
    return said


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
