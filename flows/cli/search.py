"""Search the embedding store with a sentence: an HTML sheet of the nearest media and a table on the terminal.

Owns the command's options, its errors and its output. Hooking it in takes two lines: `add_search(subparsers, [which])`, and to call `args.handler(args)`
when a command has one.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.running.answer import Answer
from infra.artifact import as_artifact, verify_input
from infra.plan import DONE, plan
from infra.step import AnyloomError, Artifact, Step
from mmcore.config import MODALITIES

if TYPE_CHECKING:
    from evals.pages.gallery import Shown
    from pipelines.embed.search import SearchSpace
    from pipelines.recipes.recipe import Recipe

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


def cmd_search(args: argparse.Namespace) -> Answer:
    """embed search"""
    from flows.cli.options import given_lists, given_weights, parse_overrides, settings_of

    given = given_lists(args), given_weights(args)
    hits = search(settings_of(args).root, args.recipe, args.query, args.top, args.out, parse_overrides(args.overrides), *given)
    rows = [{"rank": rank, "cosine": hit.score, "modality": hit.modality, "key": hit.key, "caption": hit.caption} for rank, hit in enumerate(hits, 1)]
    return Answer({"query": args.query, "sheet": args.out, "hits": rows})


def search(
    root: Path,
    recipe: str,
    query: str,
    top: int,
    out: Path,
    overrides: Mapping[str, Any] | None = None,
    lists: Mapping[str, str] | None = None,
    weights: Mapping[str, str] | None = None,
) -> list[Shown]:
    """The `top` media below `root` nearest to `query`: writes the sheet to `out`, prints the table, returns the hits.

    overrides, lists, weights: the same --set, --list and --weights as the run that made the features. Raises AnyloomError for an empty query, top < 1, an
    unknown recipe, one without a text side, and when a step it needs is not done (naming the command that does it).
    """
    from evals.pages.gallery import sheet
    from flows.running.cells import visible
    from flows.running.display import Display, table
    from flows.running.run import made_recipe, recipe_steps
    from infra.settings import offline_environment
    from infra.storage import write_atomic
    from mmcore.media.decode import MediaError
    from pipelines.embed.search import nearest_media

    query = " ".join(query.split())
    if not query:
        raise AnyloomError('search: the query is empty: say what to look for, e.g. "a dog barking"')
    if top < 1:
        raise AnyloomError(f"--top {top}: at least 1")
    if out.is_dir():
        raise AnyloomError(f"--out {out}: this is a directory; name a file, e.g. {out / SHEET}")
    wanted = made_recipe(recipe, overrides, lists)
    if wanted.two_tower is None and wanted.query is None:
        raise AnyloomError(f"search: recipe {recipe} has no text side to search with; use --recipe clip_two_tower, which shares smol's data and features")
    root = root.absolute()
    found = finished(recipe, root, recipe_steps(recipe, overrides or {}, lists, weights), needed_steps(wanted))
    offline_environment()
    space = space_of(wanted, found)
    hits = nearest_media(query, top, space, found, root / "stores")
    try:
        page = sheet(query, f"The {len(hits)} nearest media by cosine in {space.name} (recipe {recipe}), all modalities together.", hits)
    except MediaError as error:
        raise AnyloomError(f"search: a medium among the nearest cannot be shown ({error}): take it out of its list, or ask for fewer with --top") from error
    write_atomic(out.absolute(), page)
    rows = [(rank, f"{hit.score:.3f}", hit.modality, visible(hit.key), visible(hit.caption)) for rank, hit in enumerate(hits, 1)]
    Display().console.print(table("", ("", "cosine", "modality", "key", "caption"), rows))
    print(f"{len(hits)} media; sheet: {out}")
    return hits


def text_weights(recipe: Recipe) -> str:
    """Name of the step with the weights that queries are encoded with."""
    return "weights_text" if recipe.two_tower else recipe.query_weights or "weights_query"


def needed_steps(recipe: Recipe) -> list[str]:
    """The steps that search stands on; what they are made from is needed too."""
    return ["two_tower"] if recipe.two_tower else [text_weights(recipe), *(f"embed_{modality}" for modality in MODALITIES[1:])]


def space_of(recipe: Recipe, artifacts: Mapping[str, Artifact]) -> SearchSpace:
    """The space that the recipe's sentences and media share; the recipe has two towers or a query encoder."""
    from pipelines.embed.search import SharedSpace, TowerSpace

    weights = artifacts[text_weights(recipe)].path
    if recipe.two_tower is not None:
        return TowerSpace(recipe.two_tower.text, weights, artifacts["two_tower"].path)
    assert recipe.query is not None
    return SharedSpace(recipe.query, weights, {modality: getattr(recipe, modality) for modality in MODALITIES[1:]})


def finished(recipe: str, root: Path, steps: Mapping[str, Step], wanted: Sequence[str]) -> dict[str, Artifact]:
    """The artifacts of `wanted` and all before them, by step name. Raises AnyloomError naming the command that makes what is missing, and for
    damaged ones that are read."""
    rows = {row.step.name: row for row in plan([steps[name] for name in wanted], root)}
    missing = [name for name, row in rows.items() if row.status != DONE and (name in wanted or name.startswith("embed_"))]
    if missing:
        embedding = ", ".join(name for name in missing if name.startswith("embed_"))
        what = f"nothing is embedded for this recipe ({embedding} not done)" if embedding else f"{', '.join(missing)} not done"
        command = f"anyloom run {' '.join(wanted)} --recipe {recipe} --root {root}"
        raise AnyloomError(f"search: {what} below {root}; first: {command} (with the same --set, --list and --weights, if any)")
    found = {name: as_artifact(row.path, row.record) for name, row in rows.items() if row.path is not None and row.record is not None}
    for name, artifact in found.items():
        if name in wanted or name.startswith(("embed_", "shards_", "weights_text")):
            verify_input(artifact)
    return found
