"""What the suite and trap tests share: generators that need no weights, lists of held-out stamps, and step contexts."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from listed import sharded

from infra.step import Artifact, StepContext
from mmcore.types import Answer, Question

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 180, 60),
    "blue": (40, 60, 220),
    "yellow": (240, 210, 40),
    "black": (10, 10, 10),
    "white": (250, 250, 250),
}


class Says:
    """A generator that says what `reply` says of (question, mean colour of the picture). Counts answers and encoded pictures; can die after some batches."""

    def __init__(self, reply: Callable[[str, tuple[int, ...] | None], str], batches: int = 10**6):
        self.reply, self.left, self.asked, self.encoded = reply, batches, 0, 0

    def encode(self, modality: str, data: bytes) -> np.ndarray:
        """One token: the picture's mean colour."""
        self.encoded += 1
        with Image.open(io.BytesIO(data)) as picture:
            return np.asarray(picture.convert("RGB"), np.float32).mean((0, 1))[None]

    def answer(self, items: list[Question], *, max_new_tokens: int = 16, caption_turn: bool | None = None) -> list[Answer]:
        """In order; raises KeyboardInterrupt when its batches are used up."""
        if self.left == 0:
            raise KeyboardInterrupt
        self.left, self.asked = self.left - 1, self.asked + len(items)
        said = []
        for item in items:
            seen = None if item.features_NE is None else tuple(round(float(c)) for c in item.features_NE[0])
            said.append(Answer(text=self.reply(item.text, seen), caption=None, token_ids=(1,), num_input_tokens=9))
        return said


def nearest(seen: tuple[int, ...] | None) -> str:
    """Name of the colour that is nearest."""
    assert seen is not None
    return min(COLOURS, key=lambda name: sum((a - b) ** 2 for a, b in zip(COLOURS[name], seen, strict=True)))


def make_shards(root: Path, transparent: bool = False) -> Path:
    """Shards of held-out stamps, whose store is root/stores: one flat picture per colour, captioned with it. transparent: with hidden colours where nothing is
    seen."""
    return sharded(root, write_lists(root / "lists", transparent), {"stamps_heldout": "heldout"}, group="cc3m")


def write_lists(root: Path, transparent: bool = False) -> Path:
    """The list; returns its root."""
    lines = []
    for number, (name, colour) in enumerate(COLOURS.items()):
        uri = f"media/stamps/flat/{name}-{number}.png"
        (root / uri).parent.mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGBA", (16, 16), (*colour, 255)) if transparent else Image.new("RGB", (16, 16), colour)
        if transparent:
            picture.paste((0, 255, 0, 0), (0, 0, 16, 2))
        picture.save(root / uri)
        lines.append(f"A {name} square.\t{uri}\n")
    (root / "cc3m").mkdir(exist_ok=True)
    (root / "cc3m" / "stamps_heldout.tsv").write_text("".join(lines))
    return root


def context(root: Path, config: Any, attempt: str = "a", inputs: dict[str, Path] | None = None, sources: dict[str, Path] | None = None) -> StepContext:
    """A StepContext of eval_<task> below root: output per attempt, one work directory and one store."""
    export = root / "export"
    export.mkdir(exist_ok=True, parents=True)
    (export / "anyloom.json").write_text(json.dumps({"caption_turn": False}))
    output, work = root / f"output-{attempt}", root / "work"
    output.mkdir()
    work.mkdir(exist_ok=True)
    named = {"export": export, **(inputs or {})}
    artifacts = {name: Artifact(name=name, path=path, fingerprint="f" * 64, digest="d" * 64, result={}) for name, path in named.items()}
    name = f"eval_{config.lmms_task}"
    return StepContext(name=name, config=config, inputs=artifacts, sources=sources or {}, output=output, work=work, stores=root / "stores")


def use(monkeypatch: Any, generator: Says) -> Says:
    """Every AnyloomLmms that is made from now on has this generator."""
    from evals.harness import adapter as lmms_adapter

    real = getattr(lmms_adapter.AnyloomLmms, "real", lmms_adapter.AnyloomLmms)

    def build(path: str = "", threads: int | None = None, features: Any = "", **options: Any) -> Any:
        return real(generator=options.pop("generator", generator), **options)

    build.real = real  # type: ignore[attr-defined]
    monkeypatch.setattr(lmms_adapter, "AnyloomLmms", build)
    return generator
