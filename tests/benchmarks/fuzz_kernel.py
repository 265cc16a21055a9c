"""Damaged records, unknown keys, wrong digests, unstable identities, wrong overrides: each mutation class fixes its outcome by construction.

Outcome "valid" means accepted with the same meaning; any other outcome is a pattern the one-line error must contain. A crash is any exception
other than the documented one; a wrong reason is a documented exception with another message, or none.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import string
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mutations import Mutation, Wrong, fuzz

from infra.artifact import ARTIFACT_RECORD, artifact_dir, read_record, verify, write_record
from infra.entries import commit_entry, read_entry
from infra.fingerprint import canonical_json, fingerprint
from infra.materialize import made_record
from infra.step import AnyloomError
from infra.storage import new_staging, publish_dir, write_atomic
from pipelines.recipes import get_recipe
from pipelines.recipes.overrides import keys

VALID = "valid"


def text(rng: random.Random, size: int = 8) -> str:
    """Random text with quotes and non-ASCII letters in it."""
    return "".join(rng.choice(string.ascii_letters + 'é漢"\\ /') for _ in range(rng.randint(1, size)))


def tree(rng: random.Random, depth: int = 3) -> Any:
    """A random value that has a stable form."""
    kind = rng.randrange(7 if depth else 5)
    if kind < 5:
        return [None, rng.random() < 0.5, rng.randint(-9, 9), rng.uniform(-1, 1), text(rng)][kind]
    if kind == 5:
        return [tree(rng, depth - 1) for _ in range(rng.randint(0, 3))]
    return {text(rng): tree(rng, depth - 1) for _ in range(rng.randint(0, 3))}


def shuffled(value: Any, rng: random.Random) -> Any:
    """The same meaning with keys in another order."""
    if isinstance(value, dict):
        items = [(key, shuffled(item, rng)) for key, item in value.items()]
        rng.shuffle(items)
        return dict(items)
    return [shuffled(item, rng) for item in value] if isinstance(value, list) else value


def make_artifact(rng: random.Random, box: Path) -> Path:
    """A real published artifact with random files."""
    payload = {"name": "toy", "revision": 1, "config": {"v": tree(rng)}, "inputs": {}, "sources": {}}
    final = artifact_dir(box, "toy", fingerprint(payload))
    staging = new_staging(final)
    for i in range(rng.randint(1, 3)):
        (staging / f"f{i}.bin").write_bytes(rng.randbytes(rng.randint(1, 400)))
    write_atomic(staging / "info" / "time.txt", text(rng))
    write_record(staging, made_record("toy", payload, staging, {"rows": rng.randint(0, 9)}, {}, 1.0, 1))
    publish_dir(staging, final)
    return final


def check(path: Path) -> None:
    """What a careful reader does: read the record, compare the bytes."""
    record = read_record(path)
    if record is None:
        raise AnyloomError("no record")
    verify(path, record)


def record_case(change: Callable[[dict[str, Any], random.Random], None]) -> Callable[[random.Random, Path], None]:
    """Mutate the record as JSON, then read."""

    def act(rng: random.Random, box: Path) -> None:
        path = make_artifact(rng, box)
        record = json.loads((path / ARTIFACT_RECORD).read_text())
        change(record, rng)
        (path / ARTIFACT_RECORD).write_text(json.dumps(record))
        check(path)

    return act


def files_case(change: Callable[[Path, random.Random], None]) -> Callable[[random.Random, Path], None]:
    """Mutate the files, then read."""

    def act(rng: random.Random, box: Path) -> None:
        path = make_artifact(rng, box)
        change(path, rng)
        check(path)

    return act


def cut(path: Path, rng: random.Random) -> None:
    data = (path / ARTIFACT_RECORD).read_bytes()
    (path / ARTIFACT_RECORD).write_bytes(data[: rng.randrange(0, len(data) - 1)])


def flip(path: Path, rng: random.Random) -> None:
    file = path / "f0.bin"
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def reorder(path: Path, rng: random.Random) -> None:
    record = shuffled(json.loads((path / ARTIFACT_RECORD).read_text()), rng)
    (path / ARTIFACT_RECORD).write_text(json.dumps(record, indent=rng.randint(0, 4), ensure_ascii=rng.random() < 0.5))


def same_meaning(rng: random.Random, box: Path) -> None:
    value = tree(rng)
    assert fingerprint(value) == fingerprint(shuffled(json.loads(json.dumps(value)), rng))


def unstable(rng: random.Random, box: Path) -> None:
    bad = rng.choice([object(), lambda: 1, box, float("nan"), b"x", {1: 2}, complex(1, 2)])
    canonical_json({"a": [tree(rng), {"b": bad}]})


def entry_without_digest(rng: random.Random, box: Path) -> None:
    final = box / "stores" / "e"
    staging = new_staging(final)
    (staging / "f").write_bytes(rng.randbytes(9))
    commit_entry(final, staging, {"n": 1})
    write_atomic(final / "record.json", json.dumps(rng.choice([{"n": 1}, [], "x", {"digest": 5}])))
    read_entry(final)


def entry_rewritten(rng: random.Random, box: Path) -> None:
    final = box / "stores" / "e"
    for _ in range(2):
        staging = new_staging(final)
        (staging / "f").write_bytes(rng.randbytes(9))
        commit_entry(final, staging, {})


def good_override(rng: random.Random, box: Path) -> None:
    key = rng.choice(["stage1.lr", "stage3.lr", "stage2.clip", "stage3.seed", "stage1.steps"])
    value = rng.randint(1, 99)
    recipe = get_recipe("tiny", {key: value})
    stage, field = key.split(".")
    assert getattr(recipe.entries[stage], field) == value


def unknown_override(rng: random.Random, box: Path) -> None:
    known = list(keys(get_recipe("tiny")))
    key = rng.choice(known)
    get_recipe("tiny", {rng.choice([key + "x", key[:-1] or "x", "x." + key, key + ".y", text(rng)]): 1})


def mistyped_override(rng: random.Random, box: Path) -> None:
    get_recipe("tiny", {rng.choice(["stage1.lr", "stage3.steps", "image.grid", "stage3.caption_turn"]): rng.choice(["fast", None, [1], {"a": 1}])})


CLASSES: dict[str, tuple[Callable[[random.Random, Path], None], type[Exception] | None, str]] = {
    "record: untouched": (files_case(lambda p, r: None), None, VALID),
    "record: keys reordered, respaced": (files_case(reorder), None, VALID),
    "info: changed": (files_case(lambda p, r: (p / "info" / "time.txt").write_text(text(r)) and None), None, VALID),
    "record: cut short": (files_case(cut), AnyloomError, r"artifact\.json is damaged"),
    "record: unknown key": (record_case(lambda d, r: d.update({"zz_" + text(r): 1})), AnyloomError, r"zz_.*(not permitted|Extra)"),
    "record: missing key": (record_case(lambda d, r: d.pop(r.choice(sorted(d.keys() - {"checksum"})))), AnyloomError, r"Field required"),
    "record: wrong type": (record_case(lambda d, r: d.update({r.choice(["digest", "payload", "bytes", "provenance"]): [[]]})), AnyloomError, r"should be"),
    "record: payload changed": (record_case(lambda d, r: d["payload"].update(revision=r.randint(2, 99))), AnyloomError, r"fingerprint does not belong"),
    "record: result changed": (record_case(lambda d, r: d["result"].update(rows=r.randint(10, 99))), AnyloomError, r"changed or damaged"),
    "record: wrong digest": (record_case(lambda d, r: d.update(digest=fingerprint(text(r)))), AnyloomError, r"changed or damaged"),
    "files: one bit flipped": (files_case(flip), AnyloomError, r"changed or damaged"),
    "files: one added": (files_case(lambda p, r: (p / f"x{text(r, 3).encode().hex()}").write_bytes(b"") and None), AnyloomError, r"changed or damaged"),
    "files: one removed": (files_case(lambda p, r: (p / "f0.bin").unlink()), AnyloomError, r"changed or damaged"),
    "entry: record without digest": (entry_without_digest, AnyloomError, r"has no digest"),
    "entry: other bytes under the same name": (entry_rewritten, AnyloomError, r"already holds other bytes"),
    "identity: same meaning, other order": (same_meaning, None, VALID),
    "identity: no stable form": (unstable, TypeError, r"no stable form|finite numbers|keys must be text"),
    "override: right": (good_override, None, VALID),
    "override: unknown key": (unknown_override, AnyloomError, r"no such key; close ones: |[a-z_]+ has no \w+; it has "),
    "override: wrong type": (mistyped_override, AnyloomError, r"expected (float|int|bool)"),
}


def judged(act: Callable[[random.Random, Path], None], documented: tuple[type[Exception], ...], expected: str, rng: random.Random, box: Path) -> None:
    """Raises Wrong for a documented error with another message, or with one that is not one line, and for input that should not have been accepted."""
    try:
        act(rng, box)
    except documented as error:
        said = str(error)
        if "\n" in said or not re.search(expected, said):
            raise Wrong(said) from error
        return
    if expected != VALID:
        raise Wrong(VALID)


def run(options: argparse.Namespace) -> list[dict]:
    """One entry over all classes."""
    classes = {
        name: Mutation(partial(judged, act, () if documented is None else (documented,), expected), expected)
        for name, (act, documented, expected) in CLASSES.items()
    }
    return fuzz("kernel", classes, options)
