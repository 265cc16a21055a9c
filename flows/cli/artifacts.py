"""anyloom artifacts: list, why, verify, gc. Presents what infra.artifact and infra.garbage know."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.text import Text
from rich.tree import Tree

from flows.running.cells import visible
from flows.running.display import Display, human_bytes, plain_text, table
from infra.artifact import age, all_records, find, lineage, read_record, verify
from infra.garbage import garbage, remove
from infra.lock import exclusive
from infra.step import AnyloomError


def main(action: str, name: str | None, root: Path, yes: bool) -> int:
    """Run one action. Returns the exit code; raises AnyloomError for what the user can mend."""
    if action == "why":
        if name is None:
            raise AnyloomError("artifacts why needs a NAME, e.g. `anyloom artifacts why stage3`")
        return why(root, name)
    return {"list": show, "verify": check, "gc": collect}[action](root, name, yes)


def show(root: Path, name: str | None, yes: bool) -> int:
    """What exists, with size, age and inputs."""
    rows = [
        (f"{r.name}/{p.name}", human_bytes(r.bytes), age(r), f"{r.provenance.seconds:.1f} s", " ".join(sorted(set(r.inputs.values()))))
        for p, r in all_records(root)
        if name is None or r.name == name
    ]
    Display().console.print(table("", ("artifact", "size", "age", "took", "inputs"), rows))
    print(f"{len(rows)} artifacts below {root}")
    return 0


def why(root: Path, name: str) -> int:
    """The lineage tree of an artifact, down to source files and rows."""
    path, record = find(root, name)
    tree = Tree(plain_text(f"{record.name}/{path.name}"))
    seen: set[str] = set()

    def grow(branch: Tree, node: dict) -> None:
        for child in node["children"]:
            label = child["label"] + (f"  ({child['input']})" if "input" in child and child["input"] != child["label"].split("/")[0] else "")
            known = child["label"] in seen and child["children"]
            seen.add(child["label"])
            below = branch.add(plain_text(label + ("  (see above)" if known else "")))
            if "record" in child and child["record"].result and not known:
                for key, value in sorted(child["record"].result.items()):
                    if isinstance(value, (int, float, str)) or (isinstance(value, dict) and all(isinstance(v, (int, float)) for v in value.values())):
                        below.add(Text(visible(f"{key}: {value}"), style="dim"))
            if not known:
                grow(below, child)

    grow(tree, lineage(root, path, record))
    Display().console.print(tree)
    return 0


def check(root: Path, name: str | None, yes: bool) -> int:
    """Compare the bytes of every artifact with its record."""
    problems = 0
    for path, record in all_records(root):
        if name is None or record.name == name:
            try:
                verify(path, record)
                print(f"ok       {record.name}/{path.name}")
            except AnyloomError as error:
                problems += 1
                print(visible(f"DAMAGED  {error}"))
    return 1 if problems else 0


def collect(root: Path, name: str | None, yes: bool) -> int:
    """Remove what nothing pins, after saying what. Kept: what `to_keep` names, and what infra.garbage pins beside it."""
    with exclusive(root / "locks" / "run.lock", lambda who: print(f"a run uses {root}; waiting for {who}", flush=True)):
        return _collect(root, name, yes)


def to_keep(root: Path, recipes: list[str] | None) -> set[Path]:
    """Artifacts to keep: the finished steps of the recipes (None: of all that need no files of the user's, and the newest of every step, which may come
    from --set), the newest artifact of a step of theirs that is still to be made anew, and what nights have judged."""
    from evals.history.reader import nightly_runs
    from flows.running.run import recipe_steps
    from infra.plan import plan
    from pipelines.dag.given import needs_files
    from pipelines.recipes import RECIPES

    records = all_records(root)
    newest = {record.name: path for path, record in records}
    kept = set(newest.values()) if recipes is None else set()
    for recipe in recipes or [recipe for recipe, make in RECIPES.items() if not needs_files(make())]:
        for row in plan(recipe_steps(recipe, {}).values(), root):
            path = row.path if row.record is not None else newest.get(row.step.name)
            kept |= {path} if path is not None else set()
    nights = nightly_runs(root / "stores")
    judgements = {path for path, record in records if record.name == "history" and record.result.get("run_id") in nights}
    return kept | judgements | {root / "artifacts" / export for export in nights.values() if export}


def _collect(root: Path, name: str | None, yes: bool) -> int:
    doomed = garbage(root, to_keep(root, name.split(",") if name else None))
    for path, size in doomed:
        record = read_record(path) if (path / "artifact.json").exists() else None
        print(f"{human_bytes(size):>10}  {path.relative_to(root)}" + (f"  ({age(record)} old)" if record else ""))
    total = human_bytes(sum(size for _, size in doomed))
    if not doomed:
        print("nothing to remove: every artifact and store entry is pinned")
        return 0
    if not yes:
        if not sys.stdin.isatty():
            print(f"{total} in {len(doomed)} directories; add --yes to remove them")
            return 0
        if input(f"remove these {len(doomed)} directories ({total})? [y/N] ").strip().lower() != "y":
            return 0
    for path, _ in doomed:
        remove(path)
    print(f"removed {total}")
    return 0
