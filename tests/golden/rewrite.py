"""Rewrites the golden files: the resolved JSON of every recipe. Look at the diff before committing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))


def resolved() -> dict[str, str]:
    """Recipe name -> its resolved JSON."""
    from infra.fingerprint import to_plain
    from pipelines.recipes import RECIPES

    return {name: json.dumps(to_plain(make()), indent=1, sort_keys=True, ensure_ascii=False) + "\n" for name, make in RECIPES.items()}


if __name__ == "__main__":
    for recipe, text in resolved().items():
        path = HERE / "recipes" / f"{recipe}.json"
        path.parent.mkdir(exist_ok=True)
        print("changed  " if not path.exists() or path.read_text() != text else "unchanged", path.name)
        path.write_text(text)
