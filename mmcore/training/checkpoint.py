"""Checkpoint: everything a killed training run needs to go on with the same bytes.

One atomic directory per checkpoint: `tensors.safetensors` (trained tensors), `optimizer.safetensors`, `rng.safetensors`, `state.json`
(step, data cursor, loss log), and `record.json` with the digest of every file. Nothing is pickled. Input: a Checkpoint and a directory of them; output: the
newest one whose bytes are what was written. Raises AnyloomError for a full disk. A damaged checkpoint is no error: the one before is taken.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from infra.entries import commit_entry, damage, intact
from infra.storage import disk_errors, new_staging, read_json, set_aside

KEEP = 2
"""Newest checkpoints kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """State after `step` optimizer steps."""

    step: int
    tensors: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, torch.Tensor]
    cursor: Mapping[str, Any]
    """Where the data stream stands; compared on resume."""
    log: list[list[float | None]]
    """Rows of the loss log so far."""


def _folders(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("step-*") if path.is_dir())


def save_checkpoint(directory: Path, checkpoint: Checkpoint) -> Path:
    """Publish `directory/step-<n>` in one rename and drop all but the newest KEEP."""
    final = directory / f"step-{checkpoint.step:09d}"
    directory.mkdir(parents=True, exist_ok=True)
    staging = new_staging(final)
    with disk_errors(final):
        for file, tensors in (("tensors", checkpoint.tensors), ("optimizer", checkpoint.optimizer)):
            save_file({name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}, staging / f"{file}.safetensors")
        save_file({"torch": torch.get_rng_state()}, staging / "rng.safetensors")
        state = {"step": checkpoint.step, "cursor": dict(checkpoint.cursor), "log": checkpoint.log}
        (staging / "state.json").write_text(json.dumps(state, sort_keys=True))
    commit_entry(final, staging, {"step": checkpoint.step})
    for old in _folders(directory)[:-KEEP]:
        shutil.rmtree(old)
    return final


def remove_unusable(directory: Path) -> str:
    """Remove what a killed save left behind, and checkpoints whose bytes are not what was written, newest first until one is whole.

    One process only. Returns a line that says which were damaged and what is gone on from, "" when none was.
    """
    for leftover in [*directory.glob(".staging-*"), *directory.glob(".removed-*")]:
        shutil.rmtree(leftover)
    problems = []
    for folder in reversed(_folders(directory)):
        problem = damage(folder)
        if not problem:
            break
        problems.append(problem)
        set_aside(folder)
    if not problems:
        return ""
    left = _folders(directory)
    line = f"{'; '.join(problems)}: goes on from {left[-1].name if left else 'the beginning'}"
    logging.getLogger(__name__).warning(line)
    return line


def load_latest(directory: Path) -> Checkpoint | None:
    """The newest checkpoint, its RNG state restored; None when there is none. Raises AnyloomError when it is damaged: see remove_unusable."""
    folders = _folders(directory)
    if not folders:
        return None
    newest = folders[-1]
    for name in ("state.json", "rng.safetensors", "tensors.safetensors", "optimizer.safetensors"):
        intact(newest, name)
    state = read_json(newest / "state.json")
    torch.set_rng_state(load_file(newest / "rng.safetensors")["torch"])
    return Checkpoint(
        step=int(state["step"]),
        tensors=load_file(newest / "tensors.safetensors"),
        optimizer=load_file(newest / "optimizer.safetensors"),
        cursor=state["cursor"],
        log=state["log"],
    )
