"""A demo run as its own process group: start it, watch which step works, kill all of it, read what it left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

PROJECT = Path(__file__).resolve().parents[2]


def start(root: Path, recipe: str, log: Path, *extra: str, command: tuple[str, ...] = ("run",)) -> subprocess.Popen[bytes]:
    """`anyloom run` (or another command) in a session of its own, output appended to `log`."""
    command = (str(Path(sys.executable).with_name("anyloom")), *command, "--recipe", recipe, "--root", str(root), *extra)
    with open(log, "ab") as out:
        return subprocess.Popen(command, cwd=PROJECT, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True, env=environment())


def environment() -> dict[str, str]:
    """Environment in which children import this tree's packages, wherever another copy is installed."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])}


def check_code() -> None:
    """Raises RuntimeError when children would run other code than this tree's."""
    command = [sys.executable, "-c", "import flows.cli.main, pipelines.embed.fill; print(flows.cli.main.__file__, pipelines.embed.fill.__file__)"]
    found = subprocess.run(command, cwd="/", env=environment(), capture_output=True, text=True, check=True).stdout.split()
    if not all(Path(path).is_relative_to(PROJECT) for path in found):
        raise RuntimeError(f"the kill test would run the code of {found[0]}, not of {PROJECT}")


def kill_all(child: subprocess.Popen[bytes]) -> int:
    """SIGKILL the run and every process it started (Ray, Prefect). Returns how many died."""
    try:
        family = psutil.Process(child.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    victims = [child.pid, *(process.pid for process in family)]
    for pid in victims:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    child.wait()
    psutil.wait_procs(family, timeout=20)
    return len(victims)


def read_root(given: Path, recipe: str, *targets: str) -> Path:
    """A root that --root names. Raises AnyloomError, with the command that makes it, when one of the targets (steps, or prefix*) was never made there."""
    from infra.step import AnyloomError

    for target in targets or ("lists",):
        if not any((given / "artifacts").glob(f"{target}/*/artifact.json")):
            raise AnyloomError(
                f"--root {given} holds no {target}; make it first: {' '.join(('anyloom run', *map(repr, targets), '--recipe', recipe))} --root {given}"
            )
    return given.absolute()


def working(root: Path) -> set[str]:
    """Steps at work right now: those whose lock a process holds (a killed process holds none; what it left on disk says nothing)."""
    with open("/proc/locks") as table:
        held = {int(line.split()[5].split(":")[2]) for line in table if "FLOCK" in line and "->" not in line}
    return {path.stem.rpartition("-")[0] for path in (root / "locks").glob("*-*.lock") if path.stat().st_ino in held}


def wait_end(child: subprocess.Popen[bytes], log: Path, timeout_s: float) -> None:
    """Wait for the run's end. Raises RuntimeError naming the log when it fails or takes longer, and leaves nothing of it running."""
    try:
        code = child.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        kill_all(child)
        raise RuntimeError(f"the run did not end in {timeout_s:.0f} s and was killed; log: {log}") from None
    if code != 0:
        raise RuntimeError(f"the run failed (exit {code}); log: {log}")


def wait_for(condition: Callable[[], bool], child: subprocess.Popen[bytes], log: Path, timeout_s: float, every_s: float = 0.02) -> bool:
    """True when `condition` (tried every_s seconds) holds, False when the run came to its end before.

    Raises RuntimeError naming the log when the run failed, or when neither happened in time; then nothing of it is left running.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        if child.poll() is not None:
            wait_end(child, log, 0)
            return False
        time.sleep(every_s)
    kill_all(child)
    raise RuntimeError(f"the run neither got there nor ended in {timeout_s:.0f} s and was killed; log: {log}")


def digests(root: Path, recipe: str, overrides: dict | None = None) -> dict[str, str]:
    """Step -> digest of every complete step of the recipe below `root`."""
    from flows.running.run import recipe_steps
    from infra.plan import plan

    return {row.step.name: row.record.digest for row in plan(recipe_steps(recipe, overrides or {}).values(), root) if row.record is not None}
