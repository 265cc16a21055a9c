"""Hostile result folders of lmms-eval to `history import`: a folder is taken whole, or refused in one line, and then the history is byte for byte as before.

The command runs in this process as a user types it. The classes of tests/helpers/hostile_results fix words that must stand in the line; others, or the harm
that is done, fix whether a folder is taken or refused.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

from demo_process import PROJECT
from mutations import Mutation, Wrong, fuzz

from evals.history.check import check
from flows.cli.main import main
from infra.storage import sha256_file

sys.path.append(str(PROJECT / "tests" / "helpers"))
from hostile_results import HOSTILE, LINES, NEEDED, RESULTS, SAMPLES, TAKES, TAKES_OF_SAMPLE, TASK, WHOLE, WRONG, fields, sound_folder

TAKEN, REFUSED, ITS_OWN = "taken", "refused", "as the harm says"
LONGEST = 5000
"""Characters of the line; a path in it may have 4096."""
NO_NAMES = ("a/b", "", "x" * 151, "x" * 300, "é" * 76, "a\0b", "\udcff\udc80")
"""What no task can be called."""
NAMES = ("a\nb", "\x1b[31mred", "\u202egnp", "$(id)", "-rf", "'\"", "猫🐸", "%s{0}", "\udcff\udc80", "a\x85b", "  ")
ENCODINGS = ("utf-16", "utf-16-le", "utf-32", "utf-7")
Harm = Callable[[Path, random.Random], object]


def said_by(words: list[str]) -> tuple[int, str]:
    """(exit code, what stands on stderr) of a command."""
    told = io.StringIO()
    with redirect_stderr(told), redirect_stdout(io.StringIO()):
        code = main(words)
    return code, told.getvalue()


def history_of(root: Path) -> dict[str, str]:
    """Every file of the history and its sha256."""
    return {str(path.relative_to(root)): sha256_file(path) for path in sorted(root.rglob("*")) if path.is_file() and path.suffix in (".parquet", ".duckdb")}


def imported(root: Path, folder: Path) -> tuple[int, str]:
    """What `anyloom history import` says to a folder."""
    return said_by(["history", "import", str(folder), "--harness-version", "0.7.3", "--root", str(root)])


def act(harm: Harm, expected: str, words: list[str], rng: random.Random, box: Path) -> None:
    """Import a harmed folder, often into a history that has a run, often with a sound one beside it. Raises Wrong for another outcome than the fixed one."""
    root, out = box / "root", box / "out"
    before = rng.random() < 0.3
    if before and imported(root, sound_folder(box / "earlier", "20240101", rng.randint(1, 5)))[0]:
        raise Wrong("the sound folder was refused")
    if rng.random() < 0.5:
        sound_folder(out / "elder", f"2025{rng.randint(1, 12):02d}01", rng.randint(1, 4))
    folder = sound_folder(out / "b")
    made = harm(folder, rng)
    right = made if made in (TAKEN, REFUSED) else expected
    found = history_of(root) if root.exists() else {}
    code, said = imported(root, out)
    now = history_of(root) if root.exists() else {}
    if code == 0:
        if right == REFUSED or len(now) <= len(found):
            raise Wrong(f"taken: {len(now) - len(found)} more files")
        problems = check(root / "stores", root / "history.duckdb").problems
        if problems:
            raise Wrong(f"taken, but: {problems[0]}")
        return
    if "traceback" in said.lower():
        raise RuntimeError(said)
    line = said.rstrip("\n")
    if right == TAKEN or code != 1 or not line.isprintable() or len(line) > LONGEST or not all(word in line for word in words):
        raise Wrong(f"exit {code}: {said}")
    if now != found:
        raise Wrong(f"refused, but the history changed: {sorted(set(now.items()) ^ set(found.items()))}")


def wrong_value(folder: Path, rng: random.Random) -> str:
    """Another value in any field of either file."""
    name, whole, takes = rng.choice(((RESULTS, WHOLE, TAKES), (SAMPLES, LINES, TAKES_OF_SAMPLE)))
    made = json.loads(json.dumps(whole))
    path, which = rng.choice(fields(whole)), rng.randrange(len(WRONG))
    *above, last = path
    inside = made
    for key in above:
        inside = inside[key]
    inside[last] = WRONG[which]
    (folder / name).write_text(json.dumps(made) if name == RESULTS else "".join(json.dumps(one) + "\n" for one in made))
    is_double = path == (1, "doc_id") and WRONG[which] == 0
    return TAKEN if which in takes[path if name == RESULTS else path[1:]] and not is_double else REFUSED


def missing_value(folder: Path, rng: random.Random) -> str:
    """Any field of the results is gone."""
    made = json.loads(json.dumps(WHOLE))
    path = rng.choice(fields(WHOLE))
    *above, last = path
    inside = made
    for key in above:
        inside = inside[key]
    inside.pop(last)
    (folder / RESULTS).write_text(json.dumps(made))
    return REFUSED if path in NEEDED else TAKEN


def bad_byte(name: str) -> Harm:
    """A file with a byte that no JSON has anywhere."""

    def harm(folder: Path, rng: random.Random) -> None:
        data = (folder / name).read_bytes().rstrip()
        at = rng.randrange(1, len(data))
        (folder / name).write_bytes(data[:at] + rng.choice((b"\0", b"\xff", b"\x1b", b"\xed\xa0\x80")) + data[at:])

    return harm


def lost_mark(name: str) -> Harm:
    """A file without one of the marks that JSON is built of."""

    def harm(folder: Path, rng: random.Random) -> None:
        data = (folder / name).read_bytes()
        at = rng.choice([place for place, byte in enumerate(data) if byte in b'{}[]":'])
        (folder / name).write_bytes(data[:at] + data[at + 1 :])

    return harm


def other_words(name: str) -> Harm:
    """A file with more spaces, or another word where any may stand."""
    words = (
        (b": ", b" :\t"),
        (b", ", b"  ,  "),
        (b'{"results"', b'{"more": [null], "results"'),
        (b'{"doc_id"', b'{"more": {}, "doc_id"'),
        (b"cat", b"\\u732b"),
        (b'"cpu"', b'"cuda:1"'),
        (b"0.5", b"5e-1"),
        (b"1.0", b"0.75"),
    )
    return rewritten(name, lambda data, rng: data.replace(*rng.choice([pair for pair in words if pair[0] in data])))


def rewritten(name: str, change: Callable[[bytes, random.Random], bytes]) -> Harm:
    """A file with other bytes."""
    return lambda folder, rng: (folder / name).write_bytes(change((folder / name).read_bytes(), rng))


def task_called(folder: Path, rng: random.Random) -> str:
    """A task of an odd name, in both files."""
    name = rng.choice((*NAMES, "..", "x" * 150, *NO_NAMES))
    text = json.dumps(WHOLE)
    (folder / RESULTS).write_text(text.replace(json.dumps(TASK), json.dumps(name)))
    if name and "/" not in name and "\0" not in name and len(name) < 100:
        (folder / SAMPLES).rename(folder / SAMPLES.replace(TASK, name))
    return REFUSED if name in NO_NAMES else TAKEN


def folder_called(folder: Path, rng: random.Random) -> None:
    folder.rename(folder.with_name(rng.choice(NAMES)))


def both(folder: Path, rng: random.Random) -> None:
    """A harm of the table in a folder of an odd name."""
    harm, _ = rng.choice([one for name, one in sorted(HOSTILE.items()) if not name.startswith("name:")])
    harm(folder)
    folder_called(folder, rng)


def deep(folder: Path, rng: random.Random) -> str:
    """Folders in folders, some of them deeper than a path may be long."""
    handle, depth = os.open(folder, os.O_RDONLY), rng.choice((rng.randint(1, 30), rng.randint(35, 60)))
    for _ in range(depth):
        os.mkdir("d" * 120, dir_fd=handle)
        inside = os.open("d" * 120, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inside
    os.close(handle)
    return TAKEN if depth <= 30 else REFUSED


def many(folder: Path, rng: random.Random) -> None:
    for number in range(rng.randint(3, 12)):
        sound_folder(folder / f"more {number}", f"202302{number + 1:02d}", number % 3 + 1)


def copied(folder: Path, rng: random.Random) -> None:
    """The same run in two folders."""
    shutil.copytree(folder, folder.with_name("copy"))


def nothing(folder: Path, rng: random.Random) -> None:
    """No results file anywhere."""
    shutil.rmtree(folder.parent)
    folder.mkdir(parents=True)
    (folder / rng.choice(("results.json", "20260101_results.json", ".20260101_000000_results.json", "readme.txt", SAMPLES))).write_text("{}")


def no_folder(folder: Path, rng: random.Random) -> None:
    """A file, a pipe, a loop or nothing where the folder should be."""
    shutil.rmtree(folder.parent)
    rng.choice((Path.touch, os.mkfifo, lambda path: path.symlink_to(path.name), lambda path: None))(folder.parent)


def twice(data: bytes, rng: random.Random) -> bytes:
    """A key that stands twice in an object; the last one counts."""
    return data.replace(b"{", b'{"results": [], "doc_id": 99, ', 1)


OTHERS: dict[str, tuple[Harm, str]] = {
    "sound": (lambda folder, rng: None, TAKEN),
    "sound, called oddly": (folder_called, TAKEN),
    "sound, many": (many, TAKEN),
    "sound, twice": (copied, TAKEN),
    "sound, in folders that are too deep": (deep, ITS_OWN),
    "without samples": (lambda folder, rng: (folder / SAMPLES).unlink(), TAKEN),
    "results: a byte-order mark": (rewritten(RESULTS, lambda data, rng: b"\xef\xbb\xbf" + data), TAKEN),
    "results: CR LF": (rewritten(RESULTS, lambda data, rng: json.dumps(json.loads(data), indent=1).replace("\n", "\r\n").encode()), TAKEN),
    "results: a key twice": (rewritten(RESULTS, twice), TAKEN),
    "results: NaN": (rewritten(RESULTS, lambda data, rng: data.replace(b"0.5", rng.choice((b"NaN", b"Infinity", b"1e999")))), TAKEN),
    "results: another encoding": (
        rewritten(RESULTS, lambda data, rng: data.decode().encode(rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-7"))) + b"\xff"),
        REFUSED,
    ),
    "results: cut short": (rewritten(RESULTS, lambda data, rng: data[: rng.randrange(len(data) - 1)]), REFUSED),
    "results: something after it": (rewritten(RESULTS, lambda data, rng: data + rng.choice((b"x", b"{}", b"\0", b"]"))), REFUSED),
    "results: a byte that no JSON has": (bad_byte(RESULTS), REFUSED),
    "results: without one of its marks": (lost_mark(RESULTS), REFUSED),
    "results: in other words": (other_words(RESULTS), TAKEN),
    "samples: a byte-order mark": (rewritten(SAMPLES, lambda data, rng: b"\xef\xbb\xbf" + data), TAKEN),
    "samples: blank lines": (rewritten(SAMPLES, lambda data, rng: data.replace(b"\n", b"\r\n \n\n")), TAKEN),
    "samples: a key twice": (rewritten(SAMPLES, lambda data, rng: data.replace(b"{", b'{"doc_id": 99, ')), TAKEN),
    "samples: another encoding": (rewritten(SAMPLES, lambda data, rng: data.decode().encode(rng.choice(("utf-16", "utf-16-le", "utf-32")))), REFUSED),
    "samples: cut short": (rewritten(SAMPLES, lambda data, rng: data[: rng.randrange(1, len(data) - 2)]), REFUSED),
    "samples: a byte that no JSON has": (bad_byte(SAMPLES), REFUSED),
    "samples: without one of its marks": (lost_mark(SAMPLES), REFUSED),
    "samples: in other words": (other_words(SAMPLES), TAKEN),
    "samples: empty": (rewritten(SAMPLES, lambda data, rng: rng.choice((b"", b"\n", b" \n\n"))), REFUSED),
    "any field: a wrong value": (wrong_value, ITS_OWN),
    "any field: gone": (missing_value, ITS_OWN),
    "a task of an odd name": (task_called, ITS_OWN),
    "a harm, called oddly": (both, REFUSED),
    "no results": (nothing, REFUSED),
    "no folder": (no_folder, REFUSED),
}


def of_table(harm: Callable[[Path], object]) -> Harm:
    """A harm of the table, which draws nothing."""
    return lambda folder, rng: harm(folder)


def run(options: argparse.Namespace) -> list[dict]:
    """One entry over all classes."""
    known = {name: Mutation(partial(act, of_table(harm), REFUSED, words), f"refused with {words}") for name, (harm, words) in HOSTILE.items()}
    others = {name: Mutation(partial(act, harm, expected, []), expected) for name, (harm, expected) in OTHERS.items()}
    return fuzz("import", known | others, options)
