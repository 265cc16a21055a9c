"""Step: one unit of work, described without running anything.

Owns the vocabulary that every other layer speaks: Step (what to do and from what), StepContext (where and with how
much machine), Artifact (what is already there). Input: nothing. Output: the classes. Raises: what an import raises, in Step.load.

A Step's identity is (name, revision, config, digests of its inputs and source files); see fingerprint.py. Where the
bytes go (root) and how many threads produce them (resources) are never identity.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

ConfigT = TypeVar("ConfigT", covariant=True)
"""The config of the step that a context is for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """How a step is run. Changes nothing about the bytes it writes."""

    threads: int = 1
    """CPU threads this step may keep busy."""
    workers: int = 1
    """Ray workers (training ranks, or actors of a pool) the step may start."""
    gpus: int = 0
    """GPUs of this machine the step may use."""
    use_ray: bool = True
    """False: everything in the step's own process, no Ray import."""


class Progress(Protocol):
    """Receives progress of one step. Must be cheap to call."""

    def __call__(self, done: float, total: float, note: str = "") -> None: ...


def no_progress(done: float, total: float, note: str = "") -> None:
    """The Progress that shows nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """A complete, immutable output of a step (its record exists)."""

    name: str
    path: Path
    """Local directory with the files (a cached copy when the root is an object store)."""
    fingerprint: str
    digest: str
    """Hash of the bytes produced; `info/` is left out."""
    result: Mapping[str, Any]
    """The JSON values the step returned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepContext(Generic[ConfigT]):
    """Everything a step's function may use. Made without brackets (`StepContext(...)`); helpers that read no config take a StepContext[object]."""

    name: str
    config: ConfigT
    inputs: Mapping[str, Artifact]
    sources: Mapping[str, Path]
    output: Path
    """Empty directory; what is written here becomes the artifact. Files under `output/info/` (timings, logs) are kept but
    not part of the digest. Everything else must depend on config and inputs alone: no times, paths or host names."""
    work: Path
    """Scratch of this fingerprint: survives a kill, is removed once the step is complete. Checkpoints live here."""
    stores: Path
    """Directory of the growing stores (shards, embeddings, history)."""
    resources: Resources = field(default_factory=Resources)
    progress: Progress = no_progress
    force: bool = False
    """The step was asked for although it is done: store entries that it would reuse are looked at first, and made again where their bytes are damaged."""


ALL_GPUS = -1
"""Step.gpus of a step that spreads over every GPU."""
ALL_BUT_ONE = -1
"""Step.threads: all but one, kept free for a long background step. Fixed even when nothing runs there, because the count affects rounding."""
RunFunction = Callable[[StepContext[Any]], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One unit of work. Constructing it runs and imports nothing."""

    name: str
    config: Any
    """Frozen dataclass (or None); every field is identity."""
    run: str
    """`package.module:function`, imported only when the step runs; the function takes a StepContext and returns JSON values."""
    inputs: Mapping[str, Step] = field(default_factory=dict)
    """Input name -> the step that makes it."""
    sources: Mapping[str, Path] = field(default_factory=dict)
    """Files from outside the root; they count by their bytes."""
    revision: int = 1
    """Bumped when the meaning of the code changes."""
    threads: int = 1
    """Threads the step can make good use of; 0 means all there are, ALL_BUT_ONE all but one (and at least one)."""
    isolate: bool = True
    """Its Ray task holds the CPUs and GPUs it uses; False for steps that start Ray work themselves, to which they leave them, or are trivial."""
    gpus: int = 0
    """GPUs the step can make good use of, where there are any; ALL_GPUS means all there are."""
    spread: bool = False
    """The step spreads independent work over as many single-threaded workers as it has threads."""
    background: bool = False
    """Work of one thread that nothing waits for soon: as an isolated Ray task it runs at the lowest priority, beside the thread budget, on what the
    other steps leave over. Without Ray, or when there are GPUs and it can use one, it takes its turn."""
    needs: str = ""
    """Files that the user has not given and that it cannot do without, as options; such a step is planned, but never runs."""
    pinned: str = ""
    """Fingerprint of a complete artifact of this name that stands for the step whatever else it says; such a step never runs."""

    def load(self) -> RunFunction:
        """Import the run function. Raises ImportError or AttributeError naming the entry."""
        module, _, function = self.run.partition(":")
        return getattr(importlib.import_module(module), function)


class AnyloomError(Exception):
    """A failure the user can mend: the message is one clear line that names the thing and the remedy."""


class StepDied(AnyloomError):
    """The process of a step ended under it: killed, out of memory, or lost with its machine. Another try may succeed."""

    def __init__(self, name: str, how: str):
        super().__init__(name, how)
        self.name, self.how = name, how

    def __str__(self) -> str:
        return f"step {self.name}: its process died ({self.how}); if memory ran out, give it more or fewer --threads. Run the same command to continue"


@contextmanager
def about(sample: str) -> Iterator[None]:
    """What is raised in the body, and nobody foresaw, tells which sample it was about."""
    try:
        yield
    except AnyloomError:
        raise
    except Exception as error:
        error.add_note(f"sample {sample}")
        raise
