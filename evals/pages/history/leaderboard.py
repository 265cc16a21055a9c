"""Report sections about scores: the leaderboard, and the categories of the newest run.

Owns which scores stand beside each other: those of one task, metric and history_fingerprint. Input: History. Output: HTML of sections. Nothing is ranked
across history_fingerprints.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby

from evals.history.reader import History, Row, Run
from evals.pages.history.charts import whisker, whisker_axis
from evals.pages.history.names import CONTROLS, asked_as, condition_order, main_metric, tone_of
from evals.pages.history.numbers import axis_of, interval, number_text, scale_of, unit_of
from evals.pages.page import count_of, paragraph, section

MAX_GROUPS, MAX_ROWS, MAX_KINDS = 24, 24, 40
SCORED = "(exact_match|accuracy|vanilla|circular|anls|mmmu_acc|pope_accuracy|seed_all|gpt_eval_score|ours_[^y].*|harness_vanilla)(_.*)?"
"""Names of metrics that are scores; a yes ratio is none."""
_NEWEST = f"""
WITH scored AS (
    SELECT metric.*, run.recipe, run.seeds, run.evaluated, run.exported,
        row_number() OVER (
            PARTITION BY recipe, seeds, task, condition, metric, filter, kind, history_fingerprint
            ORDER BY coalesce(exported, evaluated) DESC NULLS LAST, evaluated DESC NULLS LAST, run_id
        ) AS age,
        max(evaluated) OVER (PARTITION BY task, history_fingerprint) AS newest
    FROM metric JOIN run USING (run_id)
    WHERE subgroup = 'all' AND value IS NOT NULL AND (kind = 'score' AND regexp_full_match(metric, '{SCORED}') OR kind = 'floor')
)
SELECT * FROM scored WHERE age = 1
ORDER BY newest DESC NULLS LAST, task, history_fingerprint, metric, filter NULLS FIRST, value DESC, recipe, seeds, condition"""


def boards(history: History) -> tuple[list[list[Row]], list[list[Row]]]:
    """Rows that may be ranked together, a list each: those of a task's newest fingerprint, and those of its other ones."""
    groups = [list(rows) for _, rows in groupby(history.rows(_NEWEST), lambda row: (row["task"], row["history_fingerprint"], row["metric"], row["filter"]))]
    newest: dict[str, str] = {}
    current: list[list[Row]] = []
    earlier: list[list[Row]] = []
    for rows in groups:
        if any(row["kind"] == "score" for row in rows):
            same = newest.setdefault(rows[0]["task"], rows[0]["history_fingerprint"]) == rows[0]["history_fingerprint"]
            (current if same else earlier).append(_ranked(rows))
    return current, earlier


def _ranked(rows: Sequence[Row]) -> list[Row]:
    """Scores best first, then controls, then each floor once (the newest)."""
    floors = {row["condition"]: row for row in sorted(rows, key=lambda row: str(row["evaluated"])) if row["kind"] == "floor"}
    kept = [row for row in rows if row["kind"] == "score" or floors[row["condition"]] is row]
    return sorted(kept, key=lambda row: (row["kind"] == "floor", row["condition"] in CONTROLS))


def leaderboard_section(history: History) -> str:
    """Every model's newest score of every task, best first, with interval, sample count and the floors on the same questions."""
    current, earlier = boards(history)
    if not current:
        return section("Leaderboard", paragraph("No run has an accuracy of all its questions yet.", "soft"), name="leaderboard")
    left = len(current) + len(earlier) - len(current[:MAX_GROUPS]) - len(earlier[:MAX_GROUPS])
    tables = "".join(_board(history, rows) for rows in current[:MAX_GROUPS])
    before = "".join(_board(history, rows) for rows in earlier[:MAX_GROUPS])
    folded = f"<details><summary>{count_of(len(earlier), 'table')} of other fingerprints: asked or scored differently</summary>{before}</details>"
    return section(
        "Leaderboard",
        paragraph(
            "The newest score of every recipe and seed, best first, with its 95 % interval. A table holds what was asked and scored in the same way "
            "(one history_fingerprint); nothing is ranked across tables.",
            "soft",
        ),
        key(),
        tables,
        folded if earlier else "",
        paragraph(f"{count_of(left, 'more table')} left out: anyloom sql 'select * from leaderboard_all'", "small") if left else "",
        name="leaderboard",
    )


def key() -> str:
    """Legend of the tones."""
    texts = {"model": "as the model should be asked", "control": "wrong or no image (control)", "floor": "no model (floor)"}
    return '<div class="key">' + "".join(f'<span><i class="{tone}"></i>{text}</span>' for tone, text in texts.items()) + "</div>"


def whisker_table(head: str, columns: Sequence[str], rows: Sequence[tuple[str, Row, Sequence[str], str]], *, caption: str = "") -> str:
    """A table with a whisker in each row. rows: (first cell, its metric row, further cells, tone); cells are HTML. caption: for screen readers."""
    metrics = [row for _, row, _, _ in rows]
    axis, scale = axis_of(metrics), scale_of(metrics)
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    top = f'<tr><th scope="col">{escape(head)}</th><th>{whisker_axis(axis, scale)}</th><th scope="col" class="num">score{unit_of(scale)}</th>{names}</tr>'
    body = "".join(
        f'<tr class="{"floor" if tone == "floor" else ""}"><td>{first}</td><td>{_whisker(row, axis, tone)}</td>'
        f'<td class="num">{number_text(row["value"], scale)} <span class="ci">{interval(row["ci_lo"], row["ci_hi"], scale)}</span></td>'
        f"{''.join(f'<td>{cell}</td>' for cell in others)}</tr>"
        for first, row, others, tone in rows
    )
    return f'<div class="scroll"><table aria-label="{escape(caption or head)}"><thead>{top}</thead><tbody>{body}</tbody></table></div>'


def _whisker(row: Row, axis: tuple[float, float], tone: str) -> str:
    return whisker(row["value"], row["ci_lo"], row["ci_hi"], axis, tone)


def _board(history: History, rows: Sequence[Row]) -> str:
    first = rows[0]
    cells = []
    for row in rows[:MAX_ROWS]:
        run = history.by_id[row["run_id"]]
        who = "" if row["kind"] == "floor" else escape(run.name)
        asked = escape(asked_as(row["condition"]))
        others = [asked if who else "", f"{row['n']:,}" if row["n"] is not None else "", run.day[:10], f"<code>{escape(row['run_id'])}</code>"]
        cells.append((who or f"<span class='soft'>{asked}</span>", row, others, tone_of(row["condition"], row["kind"])))
    what = f"{first['task']}: {first['metric']}" + (f" ({first['filter']})" if first["filter"] else "")
    left = len(rows) - len(cells)
    more = paragraph(f"{count_of(left, 'more row')} left out.", "small") if left else ""
    mark = f"<p class='small'>comparable inside <code>{escape(str(first['history_fingerprint']))}</code></p>"
    return f"<h3>{escape(what)}</h3>{whisker_table('model', ('asked', 'samples', 'evaluated', 'run'), cells, caption=what)}{more}{mark}"


def categories_section(history: History, a: Run | None, b: Run) -> str:
    """The scores of the newest run by kind of question, beside those of the run it is compared with where both were asked the same."""
    sql = (
        "SELECT * FROM metric WHERE run_id = ? AND kind = 'score' AND value IS NOT NULL "
        "ORDER BY task, condition, metric, filter NULLS FIRST, n DESC NULLS LAST, subgroup"
    )
    mine, theirs = history.rows(sql, (b.run_id,)), history.rows(sql, (a.run_id,)) if a else []
    before = {(r["task"], r["condition"], r["metric"], r["filter"], r["subgroup"], r["history_fingerprint"]): r for r in theirs}
    parts = []
    for task, of_task in groupby(mine, lambda row: row["task"]):
        rows = list(of_task)
        metric = main_metric([row["metric"] for row in rows])
        rows = [row for row in rows if row["metric"] == metric]
        condition = min((row["condition"] for row in rows), key=condition_order)
        kinds = [row for row in rows if row["condition"] == condition and row["subgroup"] != "all"]
        if len(kinds) < 2:
            continue
        cells = []
        for row in kinds[:MAX_KINDS]:
            count = f"{row['n']:,}" if row["n"] is not None else ""
            other = before.get((task, condition, metric, row["filter"], row["subgroup"], row["history_fingerprint"]))
            cells.append((escape(row["subgroup"]), row, ["B" if a else "", count], "model"))
            if other:
                cells.append(("", other, ["A", count], "control"))
        left = len(kinds) - min(len(kinds), MAX_KINDS)
        what = f"{task}: {metric}, asked: {asked_as(condition)}"
        more = paragraph(f"{count_of(left, 'smaller kind')} left out.", "small") if left else ""
        parts.append(f"<h3>{escape(what)}</h3>{whisker_table('kind of question', ('run', 'samples'), cells, caption=what)}{more}")
    if not parts:
        return ""
    text = "Scores by kind of question (answer type, or the benchmark's own category), the most frequent kind first. A and B as above."
    return section("Categories", paragraph(text, "soft"), *parts, name="categories")
