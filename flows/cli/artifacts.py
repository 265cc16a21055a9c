"""anyloom artifacts: list, why, verify, gc. Presents what infra.artifact, infra.rot and infra.garbage know."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text
from rich.tree import Tree

from flows.running.answer import Answer
from flows.running.cells import visible
from flows.running.display import Display, human_bytes, plain_text, table
from infra.artifact import ArtifactRecord, age, all_records, find, lineage, look
from infra.garbage import garbage, remove
from infra.lock import exclusive
from infra.rot import ARTIFACT, CHECKPOINT, Looked, look_at_all
from infra.step import AnyloomError


def main(action: str, name: str | None, root: Path, yes: bool) -> Answer:
    """Run one action. Raises AnyloomError for what the user can mend."""
    if action == "why":
        if name is None:
            raise AnyloomError("artifacts why needs a NAME, e.g. `anyloom artifacts why stage3`")
        return why(root, name)
    return {"list": show, "verify": check, "gc": collect}[action](root, name, yes)


def show(root: Path, name: str | None, yes: bool) -> Answer:
    """What exists, with size, age and inputs; and whose record is damaged."""
    found, rotten = look(root)
    records = [(path, record) for path, record in found if name is None or record.name == name]
    damaged = [(path, problem) for path, problem in rotten if name is None or path.parent.name == name]

    def tell() -> None:
        rows = [
            (f"{r.name}/{p.name}", human_bytes(r.bytes), age(r), f"{r.provenance.seconds:.1f} s", " ".join(sorted(set(r.inputs.values())))) for p, r in records
        ]
        Display().console.print(table("", ("artifact", "size", "age", "took", "inputs"), rows))
        print(*(f"DAMAGED  {problem}" for _, problem in damaged), f"{len(rows)} artifacts below {root}", sep="\n")

    whole = [
        {"artifact": f"{r.name}/{p.name}", "path": p, "bytes": r.bytes, "finished": r.provenance.finished, "seconds": r.provenance.seconds, "inputs": r.inputs}
        for p, r in records
    ]
    return Answer({"root": root, "artifacts": whole, "damaged": [{"path": path, "problem": problem} for path, problem in damaged]}, tell)


def why(root: Path, name: str) -> Answer:
    """The lineage tree of an artifact, down to source files and rows."""
    path, record = find(root, name)
    grown = lineage(root, path, record)
    return Answer(lambda: _node({"label": f"{record.name}/{path.name}", "record": record, **grown}, set()), lambda: _print_tree(path, record, grown))


def _node(node: Mapping[str, Any], seen: set[str]) -> dict[str, Any]:
    """A node of a lineage as plain values; of one that was told before only its label."""
    if node["label"] in seen and node["children"]:
        return {"label": node["label"], "input": node.get("input"), "told_above": True}
    seen.add(node["label"])
    result = node["record"].result if "record" in node else None
    return {"label": node["label"], "input": node.get("input"), "result": result, "children": [_node(child, seen) for child in node["children"]]}


def _print_tree(path: Path, record: ArtifactRecord, grown: dict[str, Any]) -> None:
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

    grow(tree, grown)
    Display().console.print(tree)


def check(root: Path, name: str | None, yes: bool) -> Answer:
    """Compare every byte of artifacts, store entries and checkpoints with what was written. Exit code 1 when something is damaged, each with the remedy."""
    from evals.harness.features import damaged_files

    whole, damaged = {ARTIFACT: 0}, list[Looked]()
    for one in look_at_all(root, name):
        if one.problem:
            damaged.append(one)
            continue
        whole[one.kind] = whole.get(one.kind, 0) + 1
        if one.kind == ARTIFACT:
            print(f"ok       {one.path.parent.name}/{one.path.name}")
    makers = recipes_of(root, {artifact for one in damaged for artifact in one.artifacts})
    rotten = [{"path": one.path, "problem": one.problem, "remedy": remedy(one, makers, root)} for one in damaged]
    for path in damaged_files(root / "stores") if name is None else []:
        why_not = "remove it, and its features are made again where they are needed"
        rotten.append({"path": path, "problem": f"{path} was changed or damaged", "remedy": f"it is not used: {why_not}"})
    lines = [visible(f"DAMAGED  {one['problem']}; {one['remedy']}") for one in rotten]
    lines.append(", ".join(f"{count} {kind}s" for kind, count in whole.items()) + f" ok, {len(rotten)} damaged, below {root}")
    return Answer({"root": root, "ok": whole, "damaged": rotten}, lambda: print(*lines, sep="\n"), int(bool(rotten)))


def recipes_of(root: Path, artifacts: set[Path]) -> dict[Path, str]:
    """Directory of an artifact -> the first recipe that has it as it is, of all that need no files of the user's; others are left out."""
    from flows.running.run import recipe_steps
    from infra.plan import plan
    from pipelines.dag.given import needs_files
    from pipelines.recipes import RECIPES

    found: dict[Path, str] = {}
    for recipe in (name for name, make in RECIPES.items() if not needs_files(make())):
        if artifacts <= found.keys():
            break
        for row in plan(recipe_steps(recipe, {}).values(), root):
            if row.path in artifacts:
                found.setdefault(row.path, recipe)
    return found


def remedy(one: Looked, makers: dict[Path, str], root: Path) -> str:
    """The command that makes again what is damaged. makers: as of `recipes_of`."""
    if one.kind == CHECKPOINT:
        return "run the same command again: it goes on from the checkpoint before"
    if not one.artifacts:
        return f"nothing needs it: `anyloom artifacts gc --root {root}` removes it"
    return made_again(one.artifacts, makers, root)


def made_again(artifacts: Sequence[Path], makers: Mapping[Path, str], root: Path) -> str:
    """The command that makes again what one of these artifacts is or pins. makers: as of `recipes_of`."""
    known = [artifact for artifact in artifacts if artifact in makers]
    step = (known or artifacts)[0].parent.name
    if known:
        return f"run `anyloom run {step} --recipe {makers[known[0]]} --root {root} --force {step}`"
    return f"run the command that made it again with --force {step}, or remove {artifacts[0]} when it is no longer needed"


def collect(root: Path, name: str | None, yes: bool) -> Answer:
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


def _collect(root: Path, name: str | None, yes: bool) -> Answer:
    keep = to_keep(root, name.split(",") if name else None)
    doomed, records = garbage(root, keep), dict(all_records(root))
    for path, size in doomed:
        print(f"{human_bytes(size):>10}  {path.relative_to(root)}" + (f"  ({age(records[path])} old)" if path in records else ""))
    return removal(root, dict(doomed), "directories", "every artifact and store entry is pinned", yes, lambda: remove(root, [path for path, _ in doomed], keep))


def removal(root: Path, doomed: Mapping[Path, int], what: str, otherwise: str, yes: bool, do: Callable[[], int]) -> Answer:
    """Remove what was listed after --yes, or a `y` at a terminal. doomed: path -> bytes; otherwise: why there is nothing; do: removes it, returns bytes."""
    total, removed = f"{human_bytes(sum(doomed.values()))} in {len(doomed)} {what}", 0
    if not doomed:
        print(f"nothing to remove: {otherwise}")
    elif not yes and not sys.stdin.isatty():
        print(f"{total}; add --yes to remove them")
    elif yes or input(f"remove {total}? [y/N] ").strip().lower() == "y":
        removed = do()
        print(f"removed {human_bytes(removed)} of {total}")
    rows = [{"path": path.relative_to(root), "bytes": size} for path, size in doomed.items()]
    return Answer({"root": root, "removable": rows, "removed_bytes": removed})
