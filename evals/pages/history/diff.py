"""The report's section on two checkpoints, question by question: picture, question, both answers and the right one.

Owns the draw and the filter. Input: Facts, two runs, the root of artifacts (pictures). Output: HTML, and the page's only script: it hides what the filter
does not ask for; without it everything is shown, flips first. The questions are a seeded draw; the page says how many are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from evals.history.facts import Facts, Row, Run, asked_as, condition_order
from evals.pages.history.media import Room, pictures_of, small
from evals.pages.page import count_of, paragraph, section, table

RIGHT = 0.5
"""From this score on an answer counts as right here (VQA's scores are shares of the annotators)."""
KINDS = {"only-a": "Only A is right", "only-b": "Only B is right", "both-wrong": "Both are wrong", "both-right": "Both are right"}
MOST, MOST_OF_KIND = 120, 12
"""Questions on the page in all, and of one kind in one task."""
MAX_TEXT = 300
"""Characters shown of a question or an answer."""
STYLE = """
.pair dl{margin:6px 0 4px;display:grid;grid-template-columns:auto 1fr;gap:1px 8px}.pair dt{color:var(--soft)}.pair dd{margin:0;overflow-wrap:anywhere}
.nopicture{height:150px;margin:0;padding:12px;display:flex;align-items:center;border-bottom:1px solid var(--rule);font-size:13px}.pair b{overflow-wrap:anywhere}
"""
SCRIPT = """
(() => {
  const bar = document.querySelector(".filters"), told = document.getElementById("told");
  if (!bar) return;
  const buttons = [...bar.querySelectorAll("button")], kinds = [...document.querySelectorAll("[data-kind]")];
  const show = () => {
    const wanted = location.hash.slice(1);
    if (wanted && !buttons.some((b) => b.dataset.show === wanted)) return;
    const chosen = wanted || "all";
    for (const b of buttons) b.setAttribute("aria-pressed", String(b.dataset.show === chosen));
    for (const k of kinds) k.hidden = chosen !== "all" && k.dataset.kind !== chosen;
    const shown = kinds.filter((k) => !k.hidden).reduce((n, k) => n + k.querySelectorAll(".pair").length, 0);
    told.textContent = shown + (shown === 1 ? " question is shown" : " questions are shown");
  };
  bar.hidden = false;
  bar.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) { location.hash = button.dataset.show; show(); }
  });
  addEventListener("hashchange", show);
  show();
})();
"""
_PAIRS = """
WITH pairs AS (
    SELECT *, CASE WHEN score_a >= ? THEN CASE WHEN score_b >= ? THEN 'both-right' ELSE 'only-a' END
        ELSE CASE WHEN score_b >= ? THEN 'only-b' ELSE 'both-wrong' END END AS kind
    FROM sample_diff WHERE run_a = ? AND run_b = ? AND task = ? AND condition = ? AND score_a IS NOT NULL AND score_b IS NOT NULL
)
SELECT *, count(*) OVER (PARTITION BY kind) AS of_kind FROM pairs
QUALIFY row_number() OVER (PARTITION BY kind ORDER BY md5(concat(doc_key, ' ', ?::VARCHAR)), doc_key) <= ?
ORDER BY kind, doc_key"""
_ASKED = """
SELECT task, condition, count(*) AS n, count(score_a + score_b) AS scored FROM sample_diff WHERE run_a = ? AND run_b = ?
GROUP BY task, condition ORDER BY task, condition"""


def diff_section(facts: Facts, a: Run | None, b: Run, root: Path, seed: int) -> str:
    """The section; it says so when there is no pair of runs, or nothing that both answered."""
    title = "Two checkpoints, question by question"
    if a is None:
        return section(title, paragraph("No other run was asked the same in the same way, so there is nothing to put side by side.", "soft"), name="diff")
    by_task = groupby(facts.rows(_ASKED, (a.run_id, b.run_id)), lambda row: row["task"])
    asked = [min(rows, key=lambda row: condition_order(row["condition"])) for _, rows in by_task]
    asked = [row for row in asked if row["scored"]]
    if not asked:
        told = "No question was asked of both in the same way (inside one history_fingerprint), or their single answers are not in the history."
        return section(title, paragraph(told, "soft"), name="diff")
    each = max(1, min(MOST_OF_KIND, MOST // (len(KINDS) * len(asked))))
    parts, counts, room = [], dict.fromkeys(KINDS, 0), Room()
    for row in asked:
        values = (RIGHT, RIGHT, RIGHT, a.run_id, b.run_id, row["task"], row["condition"], seed, each)
        drawn = facts.rows(_PAIRS, values)
        for one in drawn:
            counts[one["kind"]] += 1
        parts.append(_task(row, drawn, pictures_of(root, b, row["task"], [one["picture"] for one in drawn]), room))
    return section(
        title,
        paragraph(
            f"The same questions, asked of A and of B in the same way. Shown: for each task and outcome at most {each}, drawn at random with seed {seed}, not "
            f"chosen by hand; flips stand first. An answer counts as right from a score of {RIGHT} on.",
            "soft",
        ),
        _buttons(counts),
        *parts,
        name="diff",
    )


def _buttons(counts: dict[str, int]) -> str:
    """The filter; hidden until the script makes it work."""
    names = {"all": f"All {sum(counts.values())}"} | {kind: f"{label}: {counts[kind]}" for kind, label in KINDS.items()}
    buttons = "".join(f'<button type="button" data-show="{kind}" aria-pressed="false">{escape(label)}</button>' for kind, label in names.items())
    return f'<div class="filters" role="group" aria-label="Which questions are shown" hidden>{buttons}</div><p class="small" role="status" id="told"></p>'


def _task(asked: Row, drawn: Sequence[Row], pictures: dict[str, bytes], room: Room) -> str:
    counts = {row["kind"]: row["of_kind"] for row in drawn}
    cells = [f"{counts.get(kind, 0):,}" for kind in KINDS]
    unscored = asked["n"] - asked["scored"]
    left = paragraph(f"{count_of(unscored, 'question')} without a score of its own left out.", "small") if unscored else ""
    blocks = []
    for kind, label in KINDS.items():
        rows = [row for row in drawn if row["kind"] == kind]
        if rows:
            cards = "".join(_card(row, pictures.get(row["picture"] or ""), room) for row in rows)
            rest = counts[kind] - len(rows)
            told = f"{label}: {len(rows)} of {counts[kind]:,}" + (f", {rest:,} left out" if rest else "")
            blocks.append(f'<div data-kind="{kind}"><h4>{told}</h4><div class="cards">{cards}</div></div>')
    condition = asked_as(asked["condition"])
    head = f"<h3>{escape(asked['task'])}, asked: {escape(condition)}</h3>"
    return head + table(list(KINDS.values()), [cells]) + left + "".join(blocks)


def _card(row: Row, picture: bytes | None, room: Room) -> str:
    shown = room.take(small(picture, f"image {row['picture']}")) if row["picture"] else ""
    answers = "".join(f"<dt>{which}</dt><dd>{_answer(row[f'prediction_{which.lower()}'], row[f'score_{which.lower()}'])}</dd>" for which in ("A", "B"))
    question = cut(row["question"]) or "<i>the question is not in the history</i>"
    target = cut(row["target"]) or "<i>not in the history</i>"
    return (
        f'<article class="card pair">{shown}<div><b>{question}</b><dl>{answers}<dt>right</dt><dd>{target}</dd></dl>'
        f'<code class="soft">{cut(row["doc_key"])}</code></div></article>'
    )


def _answer(text: str | None, score: float) -> str:
    css, mark = ("ok", "✓ right") if score >= RIGHT else ("no", "✗ wrong")
    partly = f" ({score:.2f})" if score not in (0, 1) else ""
    return f'{cut(text) or "<i>nothing</i>"} <span class="{css}">{mark}{partly}</span>'


def cut(text: str | None) -> str:
    """Escaped text of bounded length; a model may answer anything."""
    text = " ".join((text or "").split())
    return escape(text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}… ({len(text):,} characters)")
