"""Tiny twins of the encoders, made by the weights steps of a recipe: shared by the tests of encoders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_steps import run_step

from mmcore.encoder_config import CONFIGS, EncoderConfig, SampledVideo, encoder_config, shared_values
from mmcore.encoders import MODALITY_OF
from mmcore.encoders.catalogue import CATALOGUE, TWINS
from pipelines.dag.build import build
from pipelines.recipes import get_recipe

PARTS = {"image": "image", "video": "image", "audio": "audio", "text": "text"}
"""Modality -> the part of a recipe's weights that serves it."""


def pairs() -> Iterator[tuple[str, str]]:
    """(kind, twin) of every entry of the catalogue, each once."""
    yield from dict.fromkeys((kind, entry.tiny) for entry in CATALOGUE for kind in entry.kinds)


def spec_of(kind: str, twin: str, **changes) -> EncoderConfig:
    """The spec that opens `twin` as `kind`."""
    return encoder_config(kind, shared_values(TWINS[twin], kind) | ({"frames": 2} if issubclass(CONFIGS[kind], SampledVideo) else {}) | {"batch": 2} | changes)


def weights_of(root: Path, kind: str, twin: str) -> Path:
    """The artifact of the weights step that makes `twin`, below root; made once."""
    part = PARTS[MODALITY_OF[kind]]
    if not (root / f"{part}_{twin}").exists():
        step = build(get_recipe("tiny", {f"weights.{part}": twin}))[f"weights_{part}"]
        run_step(root, f"{part}_{twin}", step.run, step.config, {})
    return root / f"{part}_{twin}"
