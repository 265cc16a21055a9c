"""History: every evaluation there ever was, as append-only Parquet, and a DuckDB file derived from it.

Owns `{stores}/history/<table>/<run_id>.parquet` (tables run, metric, sample, loss; the source of truth, safe for any number of
writers) and history.duckdb (derived, replaced as a whole). Input: artifacts with metrics.parquet, samples.parquet, losses.parquet.
Output: rows one can query with SQL. Refuses to know how a score was made.

Plain DuckDB lets one process write, and an open reader blocks it; so nobody ever writes the file that readers open: a new one is
built beside it under a lock and moved over it. Readers keep the old file, new readers see the new one.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from evals.config import HistoryConfig
from infra.fingerprint import fingerprint
from infra.lock import exclusive
from infra.step import AnyloomError, Artifact, StepContext
from infra.storage import disk_errors, fsync_directory, read_json, write_atomic

TABLES = ("loss", "sample", "metric", "run")
"""In the order they are written: `run` last, because a run exists once its row of `run` does."""
_READ_ONLY: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "lock_configuration": True,
}


def database_path(stores: Path) -> Path:
    """Where history.duckdb of a run directory lives: beside its stores, always local."""
    return stores.parent / "history.duckdb"


def run(ctx: StepContext) -> Mapping[str, Any]:
    """Step entry: append what the inputs say as one run and bring the database up to date. The same inputs again add nothing."""
    config: HistoryConfig = ctx.config
    run_id = run_identity(config, ctx.inputs)
    ctx.progress(0, 2, "appending the run")
    rows = collect(config, run_id, ctx.inputs)
    append(ctx.stores, run_id, rows)
    ctx.progress(1, 2, "rebuilding history.duckdb")
    rebuild(ctx.stores, database_path(ctx.stores))
    counts = {table: len(rows[table]) for table in TABLES}
    write_atomic(ctx.output / "run.json", json.dumps({"run_id": run_id, "recipe": config.recipe, "rows": counts}, sort_keys=True, indent=1))
    ctx.progress(2, 2, "done")
    return {"run_id": run_id, "rows": counts}


def run_identity(config: HistoryConfig, inputs: Mapping[str, Artifact]) -> str:
    """The run's name: fingerprint of the recipe, the seeds and the bytes of everything that was evaluated (16 hex digits)."""
    return fingerprint({"recipe": config.recipe, "seeds": config.seeds, "inputs": {name: a.digest for name, a in inputs.items()}})[:16]


def collect(config: HistoryConfig, run_id: str, inputs: Mapping[str, Artifact]) -> dict[str, pa.Table]:
    """The four tables of one run, from whichever inputs have metrics, question samples or losses."""
    metric, sample, loss = [], [], []
    for name, artifact in sorted(inputs.items()):
        task = str(artifact.result.get("lmms_task", name.removeprefix("eval_")))
        metrics, samples, losses = (artifact.path / f"{kind}.parquet" for kind in ("metrics", "samples", "losses"))
        if metrics.exists():
            metric.append(_tagged(pq.read_table(metrics), run_id, "task", task))
        if samples.exists() and "run_condition" in pq.read_schema(samples).names:
            sample.append(_tagged(pq.read_table(samples), run_id, "task", task))
        if losses.exists():
            table = pq.read_table(losses)
            loss.append(_tagged(table.select([c for c in ("step", "loss", "lr", "tokens") if c in table.column_names]), run_id, "stage", name))
    joined = {
        name: pa.concat_tables(tables, promote_options="default") if tables else pa.table({"run_id": pa.array([], pa.string())})
        for name, tables in (("metric", metric), ("sample", sample), ("loss", loss))
    }
    return {"run": pa.Table.from_pylist([_run_row(config, run_id, inputs)]), **joined}


def _tagged(table: pa.Table, run_id: str, column: str, value: str) -> pa.Table:
    names = [name for name in table.column_names]
    constant = [pa.array([run_id] * len(table), pa.string()), pa.array([value] * len(table), pa.string())]
    return pa.table([*constant, *table.columns], names=["run_id", column, *names])


def _run_row(config: HistoryConfig, run_id: str, inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    main = inputs.get("eval_vqa") or next((inputs[name] for name in sorted(inputs) if name.startswith("eval_")), None)
    result: Mapping[str, Any] = main.result if main else {}
    provenance = _provenance(main.path) if main else {}
    return {
        "run_id": run_id,
        "recipe": config.recipe,
        "seeds": ", ".join(f"{what}={seed}" for what, seed in config.seeds),
        "evaluated": _utc(provenance.get("finished")),
        "git_commit": str(provenance.get("commit", "")),
        **{key: str(result.get(key, "")) for key in ("lmms_task", "harness", "history_fingerprint", "dataset_sha256", "task_sha256")},
        "artifact": f"{main.name}/{main.fingerprint[:12]}" if main else "",
        "inputs": json.dumps({name: f"{a.name}/{a.fingerprint[:12]}" for name, a in sorted(inputs.items())}, sort_keys=True),
    }


def _provenance(directory: Path) -> dict[str, Any]:
    path = directory / "artifact.json"
    return dict(read_json(path).get("provenance") or {}) if path.exists() else {}


def _utc(text: str | None) -> datetime | None:
    """A record's time as naive UTC (a TIMESTAMP needs no time zone library); None when the artifact has no record."""
    return datetime.fromisoformat(text).astimezone(UTC).replace(tzinfo=None, microsecond=0) if text else None


def append(stores: Path, run_id: str, rows: Mapping[str, pa.Table]) -> bool:
    """Write the files of one run, each temp + rename, `run` last. Returns False when the run is already there (nothing is touched)."""
    if (stores / "history" / "run" / f"{run_id}.parquet").exists():
        return False
    for table in TABLES:
        buffer = io.BytesIO()
        pq.write_table(rows[table], buffer, compression="zstd")
        write_atomic(stores / "history" / table / f"{run_id}.parquet", buffer.getvalue())
    return True


def rebuild(stores: Path, db_path: Path) -> int:
    """Bring history.duckdb up to the store's files and return the number of runs in it.

    Under a lock on this machine: list the committed runs, copy the old database aside, add what is new (everything, when there is no
    database or its schema is an older one), move it into place. Raises AnyloomError, and leaves the database alone, when the store
    has lost runs that the database has.
    """
    db_path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(db_path.with_name(f"{db_path.name}.lock"), poll_s=0.05):
        runs = sorted(path.stem for path in (stores / "history" / "run").glob("*.parquet"))
        temporary = db_path.with_name(f".{db_path.name}.{os.getpid()}.tmp")
        try:
            with disk_errors(db_path):
                known, same_schema = _copy_aside(db_path, temporary)
                lost = sorted(known - set(runs))
                if lost:
                    raise AnyloomError(
                        f"{db_path} has {len(lost)} runs (first: {lost[0]}) that {stores / 'history'} no longer has; it is not replaced by "
                        "a smaller one: restore the files, or remove the database to accept the loss"
                    )
                if same_schema and known == set(runs):
                    return len(runs)
                if not same_schema:
                    temporary.unlink(missing_ok=True)
                _load(stores, temporary, [r for r in runs if not same_schema or r not in known], fresh=not same_schema)
                os.replace(temporary, db_path)
        finally:
            temporary.unlink(missing_ok=True)
            temporary.with_name(f"{temporary.name}.wal").unlink(missing_ok=True)
        fsync_directory(db_path.parent)
        return len(runs)


@cache
def _schema() -> str:
    return Path(__file__).with_name("schema.sql").read_text()


def _schema_sha() -> str:
    return sha256(_schema().encode()).hexdigest()


def _copy_aside(db_path: Path, temporary: Path) -> tuple[set[str], bool]:
    """Copy the database and read the copy: (runs in it, whether its schema is today's); (nothing, False) without a database.

    The copy is read, not the original: a connection that somebody in this process keeps open would be handed out again.
    """
    temporary.unlink(missing_ok=True)
    if not db_path.exists():
        return set(), False
    shutil.copyfile(db_path, temporary)
    with _open(temporary, db_path) as connection:
        runs = {row[0] for row in connection.execute("SELECT run_id FROM history_file WHERE table_name = 'run'").fetchall()}
        schema = connection.execute("SELECT sha256 FROM history_schema").fetchone()
    return runs, schema == (_schema_sha(),)


def _load(stores: Path, database: Path, runs: list[str], fresh: bool) -> None:
    """Add the files of `runs` to the database file and sync it."""
    with duckdb.connect(str(database), config={"threads": "1"}) as connection:
        if fresh:
            connection.execute(_schema())
            connection.execute("INSERT INTO history_schema VALUES (?)", [_schema_sha()])
        connection.begin()
        for table in TABLES:
            files = [stores / "history" / table / f"{run_id}.parquet" for run_id in runs]
            files = [path for path in files if path.exists()]
            if files:
                connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM read_parquet(?, union_by_name=true)", [[str(p) for p in files]])
                connection.executemany("INSERT INTO history_file VALUES (?, ?)", [[table, path.stem] for path in files])
        connection.commit()
        connection.execute("CHECKPOINT")
    with open(database, "rb") as handle:
        os.fsync(handle.fileno())


@contextmanager
def _open(path: Path, called: Path | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """A read-only connection without access to files, the network or settings. Raises AnyloomError for a missing or foreign file.

    called: the name for error messages, when `path` is a copy.
    """
    name = called or path
    if not path.exists():
        raise AnyloomError(f"{name} does not exist: no history yet: run an evaluation first (anyloom run)")
    try:
        connection = duckdb.connect(str(path), read_only=True, config=_READ_ONLY)
    except duckdb.ConnectionException as error:
        raise AnyloomError(f"{name} is open in this process with other settings: close that connection first") from error
    except duckdb.Error as error:
        raise AnyloomError(f"{name} cannot be opened ({_first_line(error)}): it is derived, remove it and rebuild the history") from error
    try:
        yield connection
    finally:
        connection.close()


def query(db_path: Path, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Run one SQL statement read-only: (column names, rows). It cannot attach, copy, install, read files or change settings.

    Raises AnyloomError with DuckDB's first line for a statement that is wrong or not allowed.
    """
    with _open(db_path) as connection:
        try:
            statements = connection.extract_statements(sql)
            if len(statements) != 1:
                raise AnyloomError(f"give one SQL statement, not {len(statements)}")
            result = connection.execute(statements[0])
            return ([column[0] for column in result.description or []], result.fetchall())
        except duckdb.Error as error:
            raise AnyloomError(f"the query failed: {_first_line(error)}; the tables are run, metric, sample, loss; the views leaderboard, by_type") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
