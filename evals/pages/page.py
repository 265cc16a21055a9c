"""Page: the look of the report, as one HTML document that needs nothing else.

Owns the style (light and dark, also on a phone), escaping and the few HTML forms the sections use. Input: text and numbers. Output: HTML text.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from hashlib import sha256
from html import escape
from typing import Any

import pyarrow.parquet as pq

from infra.step import Artifact
from mmcore.media.formats import extension_of

STYLE = """
:root{color-scheme:light dark;--bg:#f7f7f5;--card:#fff;--ink:#1c1e21;--soft:#5d636b;--faint:#686e76;--rule:#e2e3e0;--grid:#e9eae7;
--model:#1f63c9;--control:#a85c12;--floor:#7d848c;--good:#1d7a46;--bad:#b3261e;--warn-bg:#fff6e0;--warn:#8a5a00}
@media (prefers-color-scheme:dark){:root{--bg:#131517;--card:#1b1e21;--ink:#e7e9ea;--soft:#a5acb4;--faint:#8d949c;--rule:#2d3135;--grid:#282c30;
--model:#7aa9f7;--control:#e2a25c;--floor:#969da5;--good:#6fcf97;--bad:#f28b82;--warn-bg:#2b2412;--warn:#f0c26a}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:980px;margin:0 auto;padding:36px 22px 60px}
h1{font-size:27px;line-height:1.2;margin:0 0 4px;letter-spacing:-.01em}h2{font-size:18px;margin:0 0 10px}h3{font-size:14px;margin:0 0 6px}
p{margin:0 0 10px;max-width:76ch}.soft{color:var(--soft)}small,.small{font-size:13px;color:var(--soft)}
code{font:12.5px/1.4 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
section{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:22px 24px;margin:18px 0}
section.note{background:var(--warn-bg);border-color:transparent}section.note h2{color:var(--warn)}
.headline{display:flex;gap:34px;align-items:center;flex-wrap:wrap}.headline>div:first-child{flex:0 0 auto}.headline>div:last-child{flex:1 1 430px}
.big{font-size:60px;line-height:1;font-weight:650;letter-spacing:-.03em;font-variant-numeric:tabular-nums}.big span{font-size:26px;font-weight:500}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14px}
.scroll{overflow-x:auto}td:first-child{white-space:nowrap}th{font-weight:600;text-align:left;color:var(--soft);font-size:13px}
th,td{padding:6px 12px 6px 0;border-bottom:1px solid var(--rule);vertical-align:top}
tr:last-child td{border-bottom:0}td.num,th.num{text-align:right}td.num{white-space:nowrap}th{vertical-align:bottom}td.floor,tr.floor td{color:var(--soft)}
.ci{color:var(--faint);font-size:12.5px}
.grid3{display:grid;grid-template-columns:repeat(auto-fit,minmax(270px,1fr));gap:16px 18px}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(205px,1fr));gap:14px}
.card{border:1px solid var(--rule);border-radius:8px;overflow:hidden;font-size:13.5px;line-height:1.4}
.card img{display:block;width:100%;height:150px;object-fit:contain;image-rendering:pixelated;background:#fff;border-bottom:1px solid var(--rule)}
.card div{padding:9px 12px 11px}.card b{display:block;margin-bottom:5px;font-weight:600}.ok{color:var(--good)}.no{color:var(--bad)}
.chart{width:100%;height:auto;display:block;font:12px system-ui,sans-serif}.grid{stroke:var(--grid)}.axis{stroke:var(--faint)}
.tick{fill:var(--faint);font-size:11px}.rowlabel{fill:var(--ink);font-size:12.5px}
.value{fill:var(--ink);font-size:12.5px;font-weight:600;font-variant-numeric:tabular-nums}
.model .whisker,.model .dot{stroke:var(--model);fill:var(--model)}.control .whisker,.control .dot{stroke:var(--control);fill:var(--control)}
.floor .whisker,.floor .dot{stroke:var(--floor);fill:var(--floor)}.whisker{stroke-width:3;stroke-linecap:round;opacity:.45}
.raw{fill:none;stroke:var(--model);opacity:.25;stroke-width:1.2}.line{fill:none;stroke:var(--model);stroke-width:2}
.bar{width:120px;height:8px}.bar .model{fill:var(--model)}.bar .floor{fill:var(--floor)}
.key{display:flex;gap:18px;flex-wrap:wrap;font-size:13px;color:var(--soft);margin:10px 0 6px}
.key i{display:inline-block;width:10px;height:10px;border-radius:5px;margin-right:6px}
.key .model{background:var(--model)}.key .control{background:var(--control)}.key .floor{background:var(--floor)}
a{color:var(--model)}:focus-visible{outline:2px solid var(--model);outline-offset:2px}
.skip{position:absolute;left:-999px}.skip:focus{left:12px;top:8px;background:var(--card);padding:6px 12px;border-radius:6px}
nav ul{display:flex;flex-wrap:wrap;gap:4px 18px;list-style:none;padding:0;margin:0 0 6px}h4{font-size:13px;margin:14px 0 8px;color:var(--soft)}
button{font:inherit;font-size:13.5px;color:var(--ink);background:var(--bg);border:1px solid var(--faint);border-radius:999px;padding:5px 14px;cursor:pointer}
button[aria-pressed=true]{background:var(--model);border-color:var(--model);color:var(--card)}
.filters{display:flex;flex-wrap:wrap;gap:8px;margin:12px 0}.filters[hidden]{display:none}[role=status]:empty{display:none}
summary{cursor:pointer;color:var(--soft);font-size:13.5px;padding:4px 0}details table{margin-top:6px}
@media (max-width:640px){main{padding:20px 12px 40px}section{padding:16px 14px}h1{font-size:23px}.big{font-size:46px}}
@media print{body{background:#fff}section{break-inside:avoid}}
"""

MIME = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif", ".webp": "image/webp"}


def document(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """A whole page; its policy forbids loading anything from anywhere, and running anything but `script`, which must be our own text."""
    ours = f"script-src 'sha256-{base64.b64encode(sha256(script.encode()).digest()).decode()}'; " if script else ""
    policy = f"default-src 'none'; {ours}img-src data:; media-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{escape(title)}</title><style>{STYLE}{style}</style></head>\n'
        f"<body><main>\n{body}\n</main>{f'<script>{script}</script>' if script else ''}</body></html>\n"
    )


def section(title: str, *parts: str, css: str = "", name: str = "") -> str:
    """A card with a heading; parts are HTML. name: what links inside the page call it."""
    mark = f' id="{name}"' if name else ""
    return f'<section class="{css}"{mark}><h2>{escape(title)}</h2>\n' + "\n".join(part for part in parts if part) + "</section>"


def paragraph(text: str, css: str = "") -> str:
    """Escaped text as a paragraph."""
    return f'<p class="{css}">{escape(text)}</p>'


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Sequence[int] = (), row_css: Sequence[str] = ()) -> str:
    """An HTML table; cells are HTML. numeric: indexes of right-aligned columns; row_css: one class per row."""
    mark = ['class="num"' if i in numeric else "" for i in range(len(columns))]
    head = "".join(f'<th scope="col" {mark[i]}>{escape(name)}</th>' for i, name in enumerate(columns))
    body = "".join(
        f'<tr class="{row_css[j] if row_css else ""}">' + "".join(f"<td {mark[i]}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>"
        for j, row in enumerate(rows)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def percent(value: float, lo: float | None, hi: float | None) -> str:
    """A share with its interval, in per cent."""
    return f"{100 * value:.1f} {bracketed(lo, hi, 100, '.1f')}"


def signed(value: float, lo: float | None, hi: float | None, scale: float = 1.0, digits: int = 2) -> str:
    """A difference with its interval."""
    return f"{scale * value:+.{digits}f} {bracketed(lo, hi, scale, f'+.{digits}f')}"


def bracketed(lo: float | None, hi: float | None, scale: float = 1.0, form: str = ".3f") -> str:
    """An interval as HTML; it says so where there is none."""
    return f'<span class="ci">{"no interval" if lo is None or hi is None else f"[{scale * lo:{form}}, {scale * hi:{form}}]"}</span>'


def count_of(number: int, what: str) -> str:
    """A number with its noun, in the plural where it must be."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def image_of(data: bytes | None, alt: str) -> str:
    """An image element with a file's bytes inside; nothing for what is absent or no common image format."""
    suffix = f".{extension_of(data)}" if data else ""
    if suffix not in MIME:
        return ""
    return f'<img alt="{escape(alt)}" src="data:{MIME[suffix]};base64,{base64.b64encode(data or b"").decode()}">'


def unread_note(artifact: Artifact) -> str:
    """How many answers of an evaluation are not there, by condition; nothing where all are."""
    unread = {str(name): int(count) for name, count in dict(artifact.result.get("unread") or {}).items() if count}
    if not unread:
        return ""
    counts = ", ".join(f"{escape(name)} {count:,}" for name, count in unread.items())
    return f"<p class='small'>Unread, and scored 0: {counts}. The question was longer than the model's context, or the limit came before an answer began.</p>"


def unreadable_note(artifact: Artifact) -> str:
    """How many made media no reader takes, by condition; nothing where that is none."""
    counts = ", ".join(f"{escape(str(name))} {int(count):,}" for name, count in dict(artifact.result.get("unreadable") or {}).items())
    return f"<p class='small'>Made but not readable, and counted as wrong: {counts}.</p>" if counts else ""


def left_out_note(artifact: Artifact) -> str:
    """What an evaluation could not ask or score; nothing where that is nothing."""
    return "".join(paragraph(f"Left out: {line}", "small") for line in artifact.result.get("left_out") or ())


Rows = list[dict[str, Any]]


def metrics_of(artifact: Artifact) -> Rows:
    """Rows of an evaluation's metrics.parquet."""
    rows: Rows = pq.read_table(artifact.path / "metrics.parquet").to_pylist()
    return rows


def source_note(artifact: Artifact) -> str:
    """Where the numbers of a section come from."""
    name = f"{artifact.name}/{artifact.fingerprint[:12]}"
    return f"<p class='small'>From <code>{escape(name)}</code>, bytes <code>{escape(artifact.digest[:12])}</code>.</p>"
