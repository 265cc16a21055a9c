"""Toy steps for the kernel's tests: real files, no heavy imports."""

import json
import os
import signal
import time
from dataclasses import dataclass

from infra.entries import commit_entry
from infra.garbage import note_entries
from infra.lock import exclusive
from infra.step import StepContext
from infra.storage import new_staging


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyConfig:
    """text: what the step writes; pad: ignored by the bytes when `normalise` is set downstream."""

    text: str = "a"
    log: str = ""


def write(ctx: StepContext) -> dict:
    """Concatenate the inputs and the config's text; log each execution outside the artifact."""
    parts = [(ctx.inputs[name].path / "out.txt").read_text() for name in sorted(ctx.inputs)]
    parts += [path.read_text() for _, path in sorted(ctx.sources.items())]
    (ctx.output / "out.txt").write_text("".join(parts) + ctx.config.text)
    (ctx.output / "info").mkdir()
    (ctx.output / "info" / "pid").write_text(f"{os.getpid()} {time.time()}")
    if ctx.config.log:
        with open(ctx.config.log, "a") as handle:
            handle.write(f"{ctx.name}\n")
    return {"length": sum(map(len, parts)) + len(ctx.config.text)}


def constant(ctx: StepContext) -> dict:
    """The same bytes whatever the inputs."""
    (ctx.output / "out.txt").write_text("constant")
    if ctx.config.log:
        with open(ctx.config.log, "a") as handle:
            handle.write(f"{ctx.name}\n")
    return {}


def slow(ctx: StepContext) -> dict:
    """Writes, waits, then finishes; killed in between it leaves a checkpoint in the work directory."""
    checkpoint = ctx.work / "checkpoint"
    done = int(checkpoint.read_text()) if checkpoint.exists() else 0
    for i in range(done, 6):
        time.sleep(0.1)
        checkpoint.with_suffix(".new").write_text(str(i + 1))
        checkpoint.with_suffix(".new").replace(checkpoint)  # a kill never leaves half of it
    (ctx.output / "out.txt").write_text(f"started at {done}" if ctx.config.text == "tell" else "done")
    with open(ctx.config.log, "a") as handle:
        handle.write(f"{os.getpid()} from {done}\n")
    return {}


def die(ctx: StepContext) -> dict:
    """Killed in the middle, the first time."""
    marker = ctx.work / "once"
    (ctx.output / "half.txt").write_text("half")
    if not marker.exists():
        marker.write_text("x")
        os.kill(os.getpid(), signal.SIGKILL)
    (ctx.output / "half.txt").unlink()
    (ctx.output / "out.txt").write_text("whole")
    return {}


def unstable(ctx: StepContext) -> dict:
    """Other bytes at every run."""
    (ctx.output / "out.txt").write_text(str(time.time_ns()))
    return {}


def fail(ctx: StepContext) -> dict:
    """Always fails."""
    raise OSError(28, "No space left on device")


def hold(path, ready, stop):
    """Hold a lock until told to stop."""
    with exclusive(path):
        ready.set()
        stop.wait(20)


def grow(ctx: StepContext) -> dict:
    """Commits two entries to the store and pins them; dies between them the first time."""
    entries = [ctx.stores / "grown" / f"{ctx.config.text}{i}" for i in range(2)]
    note_entries(ctx.work, ctx.stores, entries)
    pins = []
    for entry in entries:
        staging = new_staging(ctx.work / entry.name)
        (staging / "out.txt").write_text(entry.name)
        pins.append({"path": entry.relative_to(ctx.stores).as_posix(), "digest": commit_entry(entry, staging, {})})
        if not (ctx.work / "once").exists():
            (ctx.work / "once").write_text("x")
            raise KeyboardInterrupt
    (ctx.output / "generation.json").write_text(json.dumps({"entries": pins}))
    return {}
