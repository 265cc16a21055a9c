"""Results in Prefect: what a flow run leaves in the UI as artifacts.

Input: a finished GraphRun. Output: a table of its steps, a Markdown page of scores, a link to the report, an image of the last stage's loss.
They are for looking at; the truth is on storage.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import create_image_artifact, create_link_artifact, create_markdown_artifact, create_table_artifact

from evals.history.database import database_path, query, rebuild, schema_is_current
from evals.pages.charts import line_chart
from flows.running.display import human_bytes
from flows.running.graph import GraphRun
from infra.plan import PlanRow
from infra.settings import Settings

_SHOWN = ("task", "condition", "metric", "subgroup", "accuracy", "value", "ci_lo", "ci_hi", "n")
_STYLE = (
    "<style>text{font:12px sans-serif;fill:#5d636b}.grid{stroke:#e2e3e0}.raw{fill:none;stroke:#1f63c9;opacity:.25}"
    ".line{fill:none;stroke:#1f63c9;stroke-width:2}</style><rect width='100%' height='100%' fill='#fff'/>"
)


def publish(recipe: str, run: GraphRun, rows: Sequence[PlanRow]) -> None:
    """Everything that the run's steps allow. Call inside a flow."""
    key, settings = recipe.replace("_", "-").lower(), run.settings
    done = {row.step.name: row for row in rows if row.record is not None and row.step.name in run.outcomes}
    create_table_artifact([_line(name, run, row) for name, row in done.items()], key=f"steps-{key}", description=f"steps of {recipe}")
    history, report = done.get("history"), done.get("report")
    if history is not None and history.record is not None:
        shown = scores(settings.root.absolute(), history.record.result["run_id"])
        create_markdown_artifact(shown, key=f"scores-{key}", description=f"scores of {recipe}")
    if report is not None and report.path is not None:
        create_link_artifact(address(settings, report.path / "report.html"), link_text="report.html", key=f"report-{key}", description="the report")
    stages = [(name, row.path / "losses.parquet") for name, row in done.items() if row.path is not None and (row.path / "losses.parquet").exists()]
    if stages:
        name, losses = stages[-1]
        create_image_artifact(loss_image(losses, name), key=f"loss-{key}", description=f"loss of {name} by step")


def _line(name: str, run: GraphRun, row: PlanRow) -> dict[str, Any]:
    outcome = run.outcomes[name]
    return {"step": name, "status": outcome.status, "seconds": round(outcome.seconds, 1), "size": human_bytes(row.record.bytes), "artifact": str(row.path)}  # type: ignore[union-attr]


def scores(root: Path, run_id: str) -> str:
    """The run's rows of the leaderboard as a Markdown table. The database is derived: one that is missing or of another schema is built first."""
    database = database_path(root / "stores")
    if not database.exists() or not schema_is_current(database):
        rebuild(root / "stores", database)
    names, rows = query(database, f"SELECT * FROM leaderboard_all WHERE run_id = '{run_id}'")
    shown = [place for place, name in enumerate(names) if name in _SHOWN]
    lines = ["| " + " | ".join(names[place] for place in shown) + " |", "|" + "---|" * len(shown)]
    lines += ["| " + " | ".join(f"{row[i]:.4f}" if isinstance(row[i], float) else "" if row[i] is None else str(row[i]) for i in shown) + " |" for row in rows]
    return f"Run `{run_id}`, 95 % intervals.\n\n" + "\n".join(lines)


def address(settings: Settings, path: Path) -> str:
    """Where a browser finds a file of the root."""
    if settings.root_url:
        return f"{settings.root_url.rstrip('/')}/{path.relative_to(settings.root.absolute()).as_posix()}"
    return path.as_uri()


def loss_image(path: Path, stage: str) -> str:
    """The loss curve as an SVG that stands alone, in a data: address."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["step", "loss"]).to_pydict()
    svg = line_chart(table["step"], table["loss"], width=640, height=320, title=f"loss of {stage}", x_label="step", y_label="loss")
    svg = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" width="640" height="320" ', 1).replace(">", f">{_STYLE}", 1)
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
