"""Four evaluations finish at once, again and again, while a reader holds the database open, another queries, and builders are killed: 10,000 runs in all.

Every writer appends its runs in batches and brings the database up to date after each (as the step `history` does), all writers at the same moment; every
batch also has a run that a second writer appends too. One process keeps the first database open to the end and must go on seeing it as it was; another asks
the current one without pause: the number of runs never falls, and every run it sees has all of its rows. A builder beside them (`--fresh`, so that it has
much to do) is killed at `--kills` random moments while it holds the lock. In the end database and files hold every row exactly once, `history check` finds
nothing, and a database built anew from all files equals the one that grew.
differences: errors, torn views, problems of the check, tables that differ; lost, doubled: rows.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from demo_process import PROJECT, environment

WRITERS, RUNS, BATCHES = 4, 10_000, 20
ROWS = {"run": 1, "metric": 4, "sample": 20, "train_metrics": 3}
"""Rows of one run."""
TIMEOUT_S = 1800.0
KILLS = 3

WRITER = """
import sys, time
from pathlib import Path
import pyarrow as pa
from evals.history import database as history
from evals.history.tables import rows_table
root, names, barrier = Path(sys.argv[1]), sys.argv[3].split(","), sys.argv[4]
stores, db, batches = root / "stores", root / "history.duckdb", int(sys.argv[2])
def rows(run):
    same = {"run_id": run, "task": "t", "condition": "c", "history_fingerprint": "f"}
    return {"run": rows_table("run", [{"run_id": run, "recipe": "chaos"}]),
            "task": rows_table("task", [{"history_fingerprint": "f", "task": "t"}]),
            "metric": rows_table("metric", [same | {"metric": "m", "subgroup": str(i), "kind": "score", "value": 0.5} for i in range(4)]),
            "sample": rows_table("sample", [same | {"doc_key": str(i), "score": float(i % 2), "prediction": run} for i in range(20)]),
            "train_metrics": rows_table("train_metrics", [{"run_id": run, "stage": "stage3", "step": i, "loss": 1.0} for i in range(3)])}
for batch in range(batches):
    for run in names[batch::batches]:
        history.append(stores, run, rows(run))
    history.append(stores, f"shared-{batch}", rows(f"shared-{batch}"))
    Path(f"{barrier}.{batch}.{names[0]}").touch()
    while len(list(Path(barrier).parent.glob(f"{Path(barrier).name}.{batch}.*"))) < 4:
        time.sleep(0.01)
    history.rebuild(stores, db)
"""

HOLDER = """
import sys, time, duckdb
from pathlib import Path
db = duckdb.connect(sys.argv[1], read_only=True)
count = lambda: db.execute("SELECT (SELECT count(*) FROM run), (SELECT count(*) FROM sample)").fetchone()
first = count()
Path(sys.argv[2] + ".holding").touch()
looks = 0
while not Path(sys.argv[2]).exists():
    assert count() == first, (count(), first)
    looks += 1
    time.sleep(0.05)
print(looks)
"""

ASKER = """
import sys
from pathlib import Path
from evals.history.database import query
seen, asked, snapshots = 0, 0, set()
while not Path(sys.argv[2]).exists():
    runs, metric, sample, trained, whole = query(Path(sys.argv[1]), '''SELECT (SELECT count(*) FROM run), (SELECT count(*) FROM metric),
        (SELECT count(*) FROM sample), (SELECT count(*) FROM train_metrics),
        (SELECT count(*) FROM (SELECT run_id FROM sample GROUP BY run_id HAVING count(*) = 20))''')[1][0]
    assert runs >= seen, f"{runs} runs after {seen}"
    assert (metric, sample, trained, whole) == (4 * runs, 20 * runs, 3 * runs, runs), (runs, metric, sample, trained, whole)
    seen, asked = runs, asked + 1
    snapshots.add(runs)
print(asked, len(snapshots))
"""
BUILDER = """
import sys
from pathlib import Path
from evals.history.database import rebuild
rebuild(Path(sys.argv[1]) / "stores", Path(sys.argv[1]) / "history.duckdb", fresh=True)
"""


def run(options: argparse.Namespace) -> list[dict]:
    """One entry. Raises RuntimeError when the kills do not land."""
    box, began = Path(tempfile.mkdtemp(prefix="anyloom-chaos-history-")), time.monotonic()
    names = [f"run{i:05d}" for i in range(RUNS - BATCHES)]
    log, stop = open(box / "errors.log", "ab"), box / "stop"
    first = python(log, BUILDER_OF_ONE, box)
    if first.wait(timeout=TIMEOUT_S):
        raise RuntimeError(f"no first database; see {box / 'errors.log'}")
    readers = {"holder": python(log, HOLDER, box / "history.duckdb", stop), "asker": python(log, ASKER, box / "history.duckdb", stop)}
    wait(lambda: (box / "stop.holding").exists(), "the reader that holds the database")
    rest = names[1:]
    writers = {f"writer {w}": python(log, WRITER, box, BATCHES, ",".join(rest[w::WRITERS]), box / "barrier") for w in range(WRITERS)}
    kills = kill_builders(box, log, options.kills, random.Random(options.seed), writers)
    errors = [f"{name} ended with {child.wait(timeout=TIMEOUT_S)}" for name, child in writers.items() if child.wait(timeout=TIMEOUT_S)]
    spent = time.monotonic() - began
    stop.touch()
    said = {}
    for name, child in readers.items():
        out, _ = child.communicate(timeout=TIMEOUT_S)
        said[name] = out.decode().strip()
        errors += [f"{name} ended with {child.returncode}"] * bool(child.returncode)
    log.close()
    found = compare(box, [names[0], *rest, *(f"shared-{i}" for i in range(BATCHES))])
    errors += found.pop("problems")
    note = {
        "runs": RUNS,
        "rows": RUNS * sum(ROWS.values()),
        "writers": WRITERS,
        "builds per writer": BATCHES,
        "looks of the reader that held the first database": said.get("holder"),
        "queries of the other reader, different databases it saw": said.get("asker"),
        "seconds until the last writer ended": round(spent, 1),
        **found.pop("note"),
        "errors": errors[:5],
    }
    if errors or found["lost"] or found["doubled"]:
        print(f"kept: {box}", file=sys.stderr)
    else:
        shutil.rmtree(box)
    return [{"name": "history", "kills": kills, "differences": len(errors), **found, "seed": options.seed, "note": note}]


BUILDER_OF_ONE = WRITER.split("for batch in")[0].replace('sys.argv[3].split(",")', "[]").replace("sys.argv[4]", "''").replace("int(sys.argv[2])", "0") + (
    "history.append(stores, 'run00000', rows('run00000')); history.rebuild(stores, db)"
)


def python(log, code: str, *arguments: object) -> subprocess.Popen[bytes]:
    """A process of this tree's code; what it complains about goes to the log."""
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], cwd=PROJECT, env=environment(), stdout=subprocess.PIPE, stderr=log)


def wait(condition, what: str) -> None:
    """Until it holds. Raises RuntimeError after a minute."""
    end = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"{what} did not start")
        time.sleep(0.02)


def kill_builders(box: Path, log, wanted: int, rng: random.Random, writers: dict[str, subprocess.Popen[bytes]]) -> int:
    """Builders killed while they write their temporary database: the lock is theirs. Raises RuntimeError when too few were caught before the writers end."""
    kills = 0
    while kills < wanted:
        if all(child.poll() is not None for child in writers.values()):
            raise RuntimeError(f"only {kills} of {wanted} builders were caught before the writers ended")
        time.sleep(rng.uniform(0.5, 3.0))
        child = python(log, BUILDER, box)
        temporary, delay = box / f".history.duckdb.{child.pid}.tmp", rng.uniform(0, 0.3)
        while child.poll() is None and not temporary.exists():
            time.sleep(0.005)
        time.sleep(delay)
        if child.poll() is None and temporary.exists():
            child.send_signal(signal.SIGKILL)
            kills += 1
            print(f"killed a builder {delay:.2f} s into its database ({kills} of {wanted})", flush=True)
        child.communicate(timeout=TIMEOUT_S)
    return kills


def compare(box: Path, expected: list[str]) -> dict:
    """What the files and both databases hold against what was written."""
    import pyarrow.parquet as pq

    from evals.history.check import check
    from evals.history.database import query, rebuild
    from evals.history.load import all_files

    stores, grown, anew = box / "stores", box / "history.duckdb", box / "anew.duckdb"
    began = time.monotonic()
    problems = check(stores, grown).problems
    checked_s, began = time.monotonic() - began, time.monotonic()
    rebuild(stores, anew)
    anew_s, began = time.monotonic() - began, time.monotonic()
    rebuild(stores, grown)
    nothing_new_s = time.monotonic() - began
    lost = doubled = 0
    for table, each in ROWS.items():
        counted = dict(query(grown, f"SELECT run_id, count(*) FROM {table} GROUP BY run_id")[1])
        wanted = dict.fromkeys(expected, each)
        lost += sum(max(0, each - counted.get(name, 0)) for name in expected)
        doubled += sum(max(0, count - wanted.get(name, 0)) for name, count in counted.items())
        on_disk = sum(pq.read_metadata(path).num_rows for path in (stores / "history" / table).glob("*.parquet"))
        lost, doubled = lost + max(0, each * len(expected) - on_disk), doubled + max(0, on_disk - each * len(expected))
        same = f"SELECT md5(string_agg(md5({table}::VARCHAR), '' ORDER BY md5({table}::VARCHAR))) FROM {table}"
        problems += [] if query(grown, same)[1] == query(anew, same)[1] else [f"{table} of the database that grew is not that of the one built anew"]
    note = {"files": len(all_files(stores)), "database_mb": round(grown.stat().st_size / 1e6, 1), "check_s": round(checked_s, 1)}
    note |= {"built anew_s": round(anew_s, 1), "build with nothing new_s": round(nothing_new_s, 2)}
    return {"lost": lost, "doubled": doubled, "problems": problems, "note": note}
