"""anyloom embed: build, search, verify, stats, gc. Presents what the embedding store holds; the work is done by the layers below."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.cli.artifacts import made_again, recipes_of, removal
from flows.cli.search import add_search
from flows.running.answer import Answer
from flows.running.cells import visible
from flows.running.display import Display, human_bytes, table
from infra.artifact import all_records
from infra.entries import pins
from infra.garbage import garbage, remove
from infra.lock import exclusive
from infra.step import AnyloomError
from infra.storage import tree_bytes

BUILD = ("embed_*", "targets")
"""The steps behind `embed build`."""


def add_commands(commands: Any, where: argparse.ArgumentParser, which: argparse.ArgumentParser, how: argparse.ArgumentParser) -> None:
    """`embed` and its actions."""
    what = "the embedding store: build, search, verify, stats, gc"
    embed = commands.add_parser("embed", help=what, description="Frozen encoders' features, each medium once.")
    actions = embed.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = actions.add_parser("build", parents=[how], help="shards -> embedding store; only what is missing is encoded")
    build.set_defaults(targets=list(BUILD))
    add_search(actions, [which])
    check = actions.add_parser(
        "verify",
        parents=[where],
        help="encode a random sample again and compare",
        description="Encodes a seeded sample of the newest embeddings again and compares within a tolerance; also compares the sampled parts' bytes.",
    )
    check.add_argument("name", nargs="?", help="step, or step/fingerprint (default: the newest of every step)")
    check.add_argument("--sample", type=int, default=32, help="media of each artifact (default: 32)")
    check.add_argument("--seed", type=int, default=0)
    check.add_argument("--tolerance", type=float, help="norm-relative difference (default: float32 1e-3, float16 2e-3, bfloat16 1e-2, int8 3e-2)")
    actions.add_parser("stats", parents=[where], help="what the store holds: spaces, media, bytes, who uses them")
    tidy = actions.add_parser("gc", parents=[where], help="remove the parts that no artifact pins, after saying which")
    tidy.add_argument("--yes", action="store_true", help="remove without asking")
    tidy.add_argument("--unfinished", action="store_true", help="also the parts of builds that were interrupted and could continue")


def main(args: argparse.Namespace, root: Path) -> Answer:
    """Run verify, stats or gc."""
    if args.action == "verify":
        return verify(root, args)
    return stats(root) if args.action == "stats" else collect(root, args.yes, args.unfinished)


def verify(root: Path, args: argparse.Namespace) -> Answer:
    """Exit code 1 when features or bytes are not what they were."""
    from pipelines.embed.check import check

    if args.sample < 1:
        raise AnyloomError(f"--sample {args.sample}: at least 1")
    found = list(
        check(root, args.name, args.sample, args.seed, args.tolerance, lambda name: print(f"encoding {args.sample} media of {name} again", flush=True))
    )
    makers = recipes_of(root, {root / "artifacts" / c.name for c in found if c.damaged})
    lines = []
    for c in found:
        for part in c.damaged:
            lines.append(f"DAMAGED  {c.name}: part {part} has other bytes than were committed; {made_again([root / 'artifacts' / c.name], makers, root)}")
        if c.largest > c.tolerance:
            lines.append(visible(f"DIFFERS  {c.name}: {c.worst} by {c.largest:.2e} of its norm"))

    def show() -> None:
        cells = [(c.name, c.media, f"{c.largest:.1e}", f"{c.tolerance:.0e}", "ok" if c.passed else "DIFFERS") for c in found]
        Display().console.print(table("", ("artifact", "media", "largest difference", "tolerance", ""), cells))
        print(*lines, sep="\n", end="\n" if lines else "")

    rows = [
        {"artifact": c.name, "media": c.media, "largest": c.largest, "tolerance": c.tolerance, "worst": c.worst, "damaged": list(c.damaged), "ok": c.passed}
        for c in found
    ]
    return Answer(rows, show, int(not all(c.passed for c in found)))


def pinned_by(root: Path) -> dict[Path, list[str]]:
    """Part -> the artifacts that pin it."""
    found: dict[Path, list[str]] = {}
    for path, record in all_records(root):
        for pin in pins(path):
            found.setdefault(root / "stores" / pin.path, []).append(f"{record.name}/{path.name}")
    return found


def stats(root: Path) -> Answer:
    """One line per space."""
    from pipelines.embed.space import Space

    pinned, lines, damaged = pinned_by(root), [], list[str]()
    for space in Space.all(root / "stores"):
        spec, parts = space.description["spec"], [space.part(name) for name in sorted(space.records)]
        errors = [record.get("relative_error", 0.0) for record in space.records.values()]
        line = {
            "space": space.directory.name,
            "encoder": f"{spec['kind']} {spec['arch']}",
            "stored_as": spec["dtype"],
            "weights": space.description["weights"][:12],
            "parts": len(parts),
            "media": len(space.located),
            "tokens": sum(length for _, _, length in space.located.values()),
            "bytes": sum(tree_bytes(part) for part in parts),
            "largest_error": max(errors, default=0.0),
            "worst_channel_error": max((record.get("worst_channel_error", 0.0) for record in space.records.values()), default=0.0),
            "unpinned_parts": sum(part not in pinned for part in parts),
            "used_by": sorted({name for part in parts for name in pinned.get(part, [])}),
        }
        lines.append(line)
        damaged += space.damaged.values()
    for problem in damaged:
        print(f"DAMAGED  {problem}", file=sys.stderr)
    return Answer(lines, lambda: _show_stats(root, lines))


def _show_stats(root: Path, lines: Sequence[dict[str, Any]]) -> None:
    cells = [
        (
            line["space"],
            line["encoder"],
            line["stored_as"] + (f" (error {line['largest_error']:.1e})" if line["largest_error"] else ""),
            line["parts"],
            line["media"],
            line["tokens"],
            human_bytes(line["bytes"]),
            line["unpinned_parts"],
            " ".join(line["used_by"]),
        )
        for line in lines
    ]
    Display().console.print(table("", ("space", "encoder", "stored as", "parts", "media", "tokens", "size", "unpinned", "used by"), cells))
    print(f"{len(lines)} spaces, {sum(line['media'] for line in lines)} media, {human_bytes(sum(line['bytes'] for line in lines))} below {root / 'stores'}")


def collect(root: Path, yes: bool, unfinished: bool) -> Answer:
    """Remove parts that no artifact pins; parts of interrupted builds are kept unless asked for."""
    with exclusive(root / "locks" / "run.lock", lambda who: print(f"a run uses {root}; waiting for {who}", flush=True)):
        doomed = _unpinned(root, unfinished=not unfinished)
        for part, size in doomed.items():
            print(f"{human_bytes(size):>10}  {part.relative_to(root)}")
        kept = len(_unpinned(root, unfinished=False)) - len(doomed)
        if kept:
            print(f"kept: {kept} parts of interrupted builds, which continue from them (--unfinished removes them too)")
        otherwise = "every other part is pinned by an artifact"
        return removal(root, doomed, "parts", otherwise, yes, lambda: remove(root, doomed, _artifacts(root), unfinished=not unfinished))


def _unpinned(root: Path, unfinished: bool) -> dict[Path, int]:
    """Parts of the embedding store that neither an artifact nor, when `unfinished`, an interrupted build pins -> bytes."""
    from pipelines.embed.space import SPACES

    return {path: size for path, size in garbage(root, _artifacts(root), unfinished) if path.is_relative_to(root / "stores" / SPACES)}


def _artifacts(root: Path) -> list[Path]:
    return [path for path, _ in all_records(root)]
