"""The history in Python, and the example of docs/history.md."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from toy_history import TASK, append, rows

from evals.history import connect, runs, samples
from evals.history.database import database_path
from evals.history.tables import SCHEMAS
from infra.step import AnyloomError

DOCS = Path(__file__).parents[4] / "docs" / "history.md"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "runs"
    append(place / "stores", rows("3f2aaaaa", [1.0, 0.0]), rows("9b41bbbb", [1.0, 1.0], night=1), rows("9b41cccc", [0.0], night=2, task="other"))
    monkeypatch.delenv("ANYLOOM_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    return place


def test_runs_and_samples_are_tables_with_every_column(root):
    table = runs(root)
    assert isinstance(table, pa.Table) and table.column_names == SCHEMAS["run"].names
    assert table["run_id"].to_pylist() == ["9b41cccc", "9b41bbbb", "3f2aaaaa"] and table.equals(runs(str(root))) and table.equals(runs())
    asked = samples(root=root)
    assert asked.column_names == SCHEMAS["sample"].names and asked["run_id"].to_pylist() == ["3f2aaaaa"] * 2 + ["9b41bbbb"] * 2 + ["9b41cccc"]
    assert samples("3f", root=root)["score"].to_pylist() == [1.0, 0.0] and len(samples("9b41b", TASK, "helped")) == 2
    assert len(samples("9b41c", task=TASK)) == 0 and len(samples(task="other")) == 1 and len(samples(condition="blank")) == 0


def test_they_become_pandas_frames(root):
    pytest.importorskip("pandas", reason="anyloom itself needs no pandas; it comes with datasets")
    frame = samples("3f2a", root=root).to_pandas()
    assert frame["score"].mean() == 0.5 and list(frame["doc_key"]) == ["0", "1"]


def test_a_connection_asks_every_view_and_writes_nothing(root):
    with connect(root) as history:
        assert history.sql("SELECT count(*) FROM leaderboard_all").fetchone() == (3,)
        with pytest.raises(duckdb.Error):
            history.execute("DELETE FROM run")
        with pytest.raises(duckdb.Error):
            history.execute("SELECT * FROM read_text('/etc/hostname')")
    with pytest.raises(duckdb.Error):
        history.execute("SELECT 1")


def test_the_database_is_brought_up_to_the_files_first(root):
    database_path(root / "stores").unlink()
    assert len(runs(root)) == 3
    append(root / "stores", rows("d", [1.0], night=3))
    assert runs(root)["run_id"].to_pylist()[0] == "d"


def test_what_cannot_be_found_is_one_line(root, tmp_path):
    with pytest.raises(AnyloomError, match="run zzz: no runs are called that; there are 9b41cccc"):
        samples("zzz", root=root)
    with pytest.raises(AnyloomError, match="run 9b41: 2 runs are called that"):
        samples("9b41", root=root)
    with pytest.raises(AnyloomError, match="no history yet"):
        runs(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(ImportError):
        from evals.history import nothing  # noqa: F401


def test_the_example_of_the_page_runs(root):
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    known: dict[str, pa.Table] = {}
    exec(code, known)
    assert known["board"].column_names[:2] == ["finished", "run"] and len(known["board"]) == 3


def test_the_package_alone_loads_no_database():
    code = "import sys, evals.history; sys.exit('duckdb' in sys.modules or 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
