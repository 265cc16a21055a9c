"""The proof harness: `prove.py bench|chaos|fuzz [ONLY[,ONLY...]] [--option value]`. Prints a table and writes build/<kind>.json.

A module beside this file named <kind>_<name>.py is one entry; it has `run(options) -> list[dict]` and a docstring saying what it shows; a kill test also has
KILLS, how many it makes unless told.
A failed measurement exits non-zero and writes nothing. Entries of other names already in the JSON file are kept.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests" / "helpers")]

FIELDS = {
    "bench": ("name", "ours", "peer", "limit", "unit", "ratio_peer", "ratio_limit", "runs", "spread", "seed", "note"),
    "chaos": ("name", "kills", "differences", "lost", "doubled", "seed", "note"),
    "fuzz": ("name", "inputs", "crashes", "wrong_reason", "per_class", "seed"),
}
FAILS = {"chaos": ("differences", "lost", "doubled", "unclean", "left_running"), "fuzz": ("crashes", "wrong_reason"), "bench": ()}


def main() -> int:
    """Run the entries of one kind. Exit 1 when one of them found a failure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=FIELDS)
    parser.add_argument("only", nargs="?", default="", help="entries by name, separated by commas (default: all)")
    parser.add_argument("--recipe", default="smol")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, help="chaos: kills; default: KILLS of the entry")
    parser.add_argument("--moments", default="5,40", help="chaos demo: seconds after its start between which a run is ended")
    parser.add_argument("--reference", type=Path, help="chaos demo: a root that already holds an undisturbed run of this commit on this machine")
    parser.add_argument("--seeds", type=int, default=3, help="bench seeds: how many")
    parser.add_argument("--recipes", default="smol,smol_plain,smol_frozen", help="bench seeds: which, separated by commas")
    parser.add_argument(
        "--root",
        type=Path,
        help="a root to build on (seeds, lora_modes, stage_orders), a run (demo_rerun, eval_generate; chaos eval), "
        "finished shards and weights (embed_*, stage1_epoch; chaos embed)",
    )
    parser.add_argument("--variants", default="", help="bench lora_modes, stage_orders: which, separated by semicolons (default: all)")
    parser.add_argument("--series", type=int, default=200, help="bench nights: simulated series per scene")
    parser.add_argument("--threads", type=int, default=1, help="bench embed_*, stage1_epoch, eval_generate: threads")
    parser.add_argument("--media", default="500,100,60", help="bench embed_build: pictures, clips and sounds that are encoded")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="bench embed_rebuild, stage1_epoch: change the recipe"
    )
    parser.add_argument("--questions", type=int, default=1000, help="bench eval_generate: questions that are answered")
    parser.add_argument("--peer-questions", type=int, default=200, help="bench eval_generate: questions that the peer and the breakdown answer")
    parser.add_argument("--chunk", type=int, default=256, help="bench eval_generate: questions per batch that is persisted")
    parser.add_argument("--rounds", type=int, default=5, help="bench eval_generate: interleaved rounds")
    parser.add_argument("--inputs", type=int, default=40, help="fuzz: inputs per mutation class")
    parser.add_argument("--out", type=Path, default=PROJECT / "build", help="where the JSON goes")
    options = parser.parse_args()
    from infra.step import AnyloomError

    results = []
    try:
        for name in chosen(options.kind, options.only):
            results += run(importlib.import_module(f"{options.kind}_{name}"), options)
    except AnyloomError as error:
        print(f"prove: {error}", file=sys.stderr)
        return 2
    fields = FIELDS[options.kind]
    for entry in results:
        missing = [field for field in fields if field not in entry]
        if missing:
            raise KeyError(f"{entry.get('name')} lacks {missing}")
        print("\n".join(f"{field:>12}  {value}" for field, value in entry.items()), end="\n\n")
    write(options.out / f"{options.kind}.json", results)
    return int(any(entry.get(field) for entry in results for field in FAILS[options.kind]))


def chosen(kind: str, only: str) -> list[str]:
    """The entries of a kind that are named, separated by commas; all when none is. Raises AnyloomError listing what there is."""
    from infra.step import AnyloomError

    known = sorted(path.stem.split("_", 1)[1] for path in HERE.glob(f"{kind}_*.py"))
    wanted = [name.strip() for name in only.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise AnyloomError(f"no {kind} entry called {unknown[0]}; there are: {', '.join(known)}")
    return wanted or known


def run(module: ModuleType, options: argparse.Namespace) -> list[dict]:
    """What one entry found. Kills that are not given are as many as it says itself."""
    kills = getattr(module, "KILLS", None) if options.kills is None else options.kills
    found: list[dict] = module.run(argparse.Namespace(**{**vars(options), "kills": kills}))
    return found


def write(path: Path, results: list[dict]) -> None:
    """Merge by name into the JSON list at `path`, atomically."""
    from infra.storage import write_atomic

    kept = {entry["name"]: entry for entry in (json.loads(path.read_text()) if path.exists() else [])}
    kept |= {entry["name"]: entry for entry in results}
    write_atomic(path, json.dumps([kept[name] for name in sorted(kept)], indent=1) + "\n")
    print(f"written: {path}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # also where PYTHONSAFEPATH keeps Python from it
    sys.exit(main())
