"""Report sections on what moved: the comparison of the two runs, and the worst regressions of the history.

Input: History. Output: HTML of sections. The comparisons and change points are those that the nightly review put into the history.
"""

from __future__ import annotations

from html import escape

from evals.history.reader import History, Row, Run
from evals.pages.charts import nice_ticks
from evals.pages.history.charts import whisker, whisker_axis
from evals.pages.history.names import asked_as, condition_order
from evals.pages.history.numbers import interval, moved, number_text, p_text, scale_of
from evals.pages.page import count_of, paragraph, section, table

MAX_ROWS = 30
_MOVED = ("before", "after", "delta")
_VALUES = ("value_a", "value_b", "delta", "ci_lo", "ci_hi")
_COMPARED = """
SELECT * FROM comparison WHERE (run_a, run_b) IN ((?, ?), (?, ?))
QUALIFY row_number() OVER (PARTITION BY run_a, run_b, task, condition, metric, subgroup, history_fingerprint ORDER BY made DESC, comparison_id) = 1
ORDER BY task, condition, metric, subgroup <> 'all', n_paired DESC, subgroup"""
_WORST = "SELECT * FROM regressions ORDER BY time DESC NULLS LAST, task, condition, metric, subgroup, run_after, found_by"


def comparisons(history: History, a: Run | None, b: Run) -> list[Row]:
    """The newest comparison rows of the pair, b minus a, main conditions first; those stored the other way round are turned."""
    if a is None:
        return []
    rows = history.rows(_COMPARED, (a.run_id, b.run_id, b.run_id, a.run_id))
    return sorted((row if row["run_a"] == a.run_id else turned(row) for row in rows), key=lambda row: (row["task"], condition_order(row["condition"])))


def turned(row: Row) -> Row:
    """The same comparison from the other side."""
    low, high = (None if row[end] is None else -row[end] for end in ("ci_hi", "ci_lo"))
    sides = {"run_a": row["run_b"], "run_b": row["run_a"], "value_a": row["value_b"], "value_b": row["value_a"]}
    return row | sides | {"delta": -row["delta"], "ci_lo": low, "ci_hi": high, "flips_up": row["flips_down"], "flips_down": row["flips_up"]}


def comparison_section(history: History, a: Run | None, b: Run) -> str:
    """Who A and B are, and every stored comparison of the two with its interval and its p after correction."""
    cells = [
        [letter, f"{escape(run.name)}<br><code>{escape(run.run_id)}</code>", run.day, f"<code>{escape(run.model_id[:32])}</code>", escape(run.harness)]
        for letter, run in (("A", a), ("B", b))
        if run
    ]
    who = table(["", "run", "evaluated (UTC)", "model", "harness"], cells)
    rows = comparisons(history, a, b)
    if a is None:
        return section("The newest run", who, paragraph("No earlier run was asked the same, so it is compared with none.", "soft"), name="comparison")
    if not rows:
        text = f"No paired test of these two is in the history: `anyloom history compare {a.run_id} {b.run_id}` makes one. Their single answers stand below."
        return section("A against B", who, paragraph(text, "soft"), name="comparison")
    scales = [scale_of([row], _VALUES) for row in rows[:MAX_ROWS]]
    drawn = [row for row, scale in zip(rows[:MAX_ROWS], scales, strict=True) if scale == max(scales)]
    span = nice_ticks(0, max(abs(row[end]) for row in drawn for end in ("delta", "ci_lo", "ci_hi") if row[end] is not None), 5)[-1]
    axis = (-span, span)
    cells = [["", "", "", whisker_axis(axis, max(scales)), "", "", "", ""]]
    for row, scale in zip(rows[:MAX_ROWS], scales, strict=True):
        flips = f"{row['flips_up']:,} / {row['flips_down']:,}" if row["flips_up"] is not None and row["flips_down"] is not None else ""
        cells.append(
            [
                f"{escape(row['task'])}<br>{escape(asked_as(row['condition']))}",
                escape(row["subgroup"]) + (f" ({row['n_paired']:,})" if row["n_paired"] is not None else ""),
                f"{number_text(row['value_a'], scale)} → {number_text(row['value_b'], scale)}",
                whisker(row["delta"], row["ci_lo"], row["ci_hi"], axis) if scale == max(scales) else "",
                f'{moved(row["delta"], scale)} <span class="ci">{interval(row["ci_lo"], row["ci_hi"], scale, signed=True)}</span>',
                p_text(row["p_adjusted"] if row["p_adjusted"] is not None else row["p"]),
                flips,
                number_text(row["detectable"], scale),
            ]
        )
    left = len(rows) - len(cells) + 1
    return section(
        "A against B",
        who,
        paragraph(
            "B minus A on the same samples, paired, with its 95 % interval. p: after Holm's correction over tasks. Flips: better / worse in B. "
            "Detectable: the smallest difference that this many samples can show.",
            "soft",
        ),
        table(["task, asked", "samples", "A → B", "B minus A", "", "p", "flips", "detectable"], cells, numeric=(2, 4, 5, 6, 7)),
        paragraph(f"{count_of(left, 'more row')} left out.", "small") if left else "",
        name="comparison",
    )


def worst_regressions(history: History) -> list[Row]:
    """Rows of the view `regressions`, what is known to be worse first, the largest move first (points where it is a share)."""
    return sorted(history.rows(_WORST), key=lambda row: (row["higher_is_better"] is None, -abs(row["delta"]) * scale_of([row], _MOVED)))


def regressions_section(history: History) -> str:
    """What became worse by more than chance; how much was looked at stands beside it."""
    rows = worst_regressions(history)
    looked = history.rows("SELECT (SELECT count(*) FROM comparison) AS compared, (SELECT count(*) FROM change_point) AS changes")[0]
    base = f"Looked at: {count_of(looked['compared'], 'paired comparison')} and {count_of(looked['changes'], 'change point')} in the history."
    if not rows:
        none = "None." if looked["compared"] + looked["changes"] else "Nothing was compared yet, so nothing can have been found."
        return section("Worst regressions", paragraph(f"{none} {base}", "soft"), name="regressions")
    cells = []
    for row in rows[:MAX_ROWS]:
        scale = scale_of([row], _MOVED)
        change = f"{number_text(row['before'], scale)} → {number_text(row['after'], scale)}"
        span = "" if row["ci_lo"] is None else f' <span class="ci">{interval(row["ci_lo"], row["ci_hi"], scale, signed=True)}</span>'
        found = "change point" if row["found_by"] == "change_point" else "paired comparison"
        unknown = "" if row["higher_is_better"] is not None else "<br><span class='soft'>which way is better is not known</span>"
        cells.append(
            [
                f"{row['time']:%Y-%m-%d}" if row["time"] else "",
                f"{escape(row['recipe'] or '')}<br>{escape(row['task'])}",
                f"{escape(asked_as(row['condition']))}<br>{escape(row['metric'])}, {escape(row['subgroup'])}{unknown}",
                change,
                f'<span class="no">{moved(row["delta"], scale)}</span>{span}',
                p_text(row["p"]),
                found,
                f"<code>{escape(row['run_before'] or '')}</code><br><code>{escape(row['run_after'])}</code>",
            ]
        )
    left = len(rows) - len(cells)
    return section(
        "Worst regressions",
        paragraph(f"What became worse by more than chance: comparisons below 5 % after correction, and change points. {base}", "soft"),
        table(["when", "recipe, task", "asked, score", "before → after", "difference", "p", "found by", "runs"], cells, numeric=(3, 4, 5)),
        paragraph(f"{count_of(left, 'more row')} left out: anyloom sql 'select * from regressions'", "small") if left else "",
        name="regressions",
    )
