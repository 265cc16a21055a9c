"""Search the embedding store with a sentence: an HTML sheet of the nearest media and a table on the terminal.

Owns the command's options, its errors and its output. Refuses to know how media are compared (pipelines.search) and drawn (evals.gallery).
Hooking it in takes two lines: `add_search(subparsers, [which])`, and to call `args.handler(args)` when a command has one.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.artifact import as_artifact
from infra.plan import DONE, plan
from infra.step import AnyloomError, Artifact

if TYPE_CHECKING:
    from evals.gallery import Shown

SHEET = "search.html"


def add_search(subparsers: Any, parents: Sequence[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add `search QUERY [--top N] [--out FILE]` to a subparsers action. parents: parsers with --root, --recipe and --set."""
    parser = subparsers.add_parser(
        "search", parents=list(parents), help="the media nearest to a sentence", description="Write an HTML sheet of the media nearest to a sentence."
    )
    parser.add_argument("query", help='what to look for, e.g. "a dog barking"')
    parser.add_argument("--top", type=int, default=9, help="how many media (default: 9)")
    parser.add_argument("--out", type=Path, default=Path(SHEET), help=f"the sheet (default: {SHEET})")
    parser.set_defaults(handler=cmd_search)
    return parser


def cmd_search(args: argparse.Namespace) -> int:
    """embed search"""
    from flows.cli import parse_overrides, parse_pairs, settings_of

    lists = parse_pairs(args.lists, "--list", "DATASET=FILE")
    search(settings_of(args).root, args.recipe, args.query, args.top, args.out, parse_overrides(args.overrides), lists)
    return 0


def search(
    root: Path, recipe: str, query: str, top: int, out: Path, overrides: Mapping[str, Any] | None = None, lists: Mapping[str, str] | None = None
) -> list[Shown]:
    """The `top` media below `root` nearest to `query`: writes the sheet to `out`, prints the table, returns the hits.

    overrides, lists: the same --set and --list as the run that made the towers. Raises AnyloomError for an empty query, top < 1, an unknown recipe, one
    without towers, and when a step it needs is not done (naming the command that does it).
    """
    from evals.gallery import sheet
    from flows.display import Display, table
    from infra.settings import offline_environment
    from infra.storage import write_atomic
    from mmcore.data.media import MediaError
    from pipelines.recipes import get_recipe
    from pipelines.search import nearest_media

    query = " ".join(query.split())
    if not query:
        raise AnyloomError('search: the query is empty: say what to look for, e.g. "a dog barking"')
    if top < 1:
        raise AnyloomError(f"--top {top}: at least 1")
    if out.is_dir():
        raise AnyloomError(f"--out {out}: this is a directory; name a file, e.g. {out / SHEET}")
    wanted = get_recipe(recipe, overrides)
    if wanted.two_tower is None:
        raise AnyloomError(f"search: recipe {recipe} has no text side to search with; use --recipe clip_two_tower, which shares smol's data and features")
    root = root.absolute()
    offline_environment()
    hits = nearest_media(query, top, wanted.two_tower.text, finished(root, recipe, overrides or {}, lists or {}), root / "stores")
    try:
        page = sheet(query, f"The {len(hits)} nearest media by cosine in the space of recipe {recipe}'s two towers, all modalities together.", hits)
    except MediaError as error:
        raise AnyloomError(f"search: a medium cannot be shown ({error}): run the shards steps again with --force") from error
    write_atomic(out.absolute(), page)
    rows = [(rank, f"{hit.score:.3f}", hit.modality, hit.key, plain(hit.caption)) for rank, hit in enumerate(hits, 1)]
    Display().console.print(table("", ("", "cosine", "modality", "key", "caption"), rows))
    print(f"{len(hits)} media; sheet: {out}")
    return hits


def plain(text: str) -> str:
    """A caption for the terminal: no control characters, nothing that the table would take for markup."""
    from rich.markup import escape

    return escape("".join(character if character.isprintable() else " " for character in text))


def finished(root: Path, recipe: str, overrides: Mapping[str, Any], lists: Mapping[str, str]) -> dict[str, Artifact]:
    """The recipe's artifacts that search reads, by step name. Raises AnyloomError naming the command that makes what is missing."""
    from flows.run import recipe_steps

    steps = recipe_steps(recipe, overrides, lists)
    rows = {row.step.name: row for row in plan([steps["two_tower"]], root)}
    needed = [name for name in rows if name in ("two_tower", "weights_text") or name.startswith(("embed_", "shards_"))]
    missing = [name for name in needed if rows[name].status != DONE]
    if missing:
        embedding = ", ".join(name for name in missing if name.startswith("embed_"))
        changed = "".join(f" {option} {key}={value}" for option, given in (("--set", overrides), ("--list", lists)) for key, value in given.items())
        what = "the towers are not trained" if missing == ["two_tower"] else f"nothing is embedded for this recipe ({embedding or missing[0]} not done)"
        raise AnyloomError(f"search: {what} below {root}; first: anyloom run two_tower --recipe {recipe} --root {root}{changed}")
    found = {}
    for name in needed:
        path, record = rows[name].path, rows[name].record
        assert path is not None and record is not None
        found[name] = as_artifact(path, record)
    return found
