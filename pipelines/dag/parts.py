"""The parts of the DAG as frozen dataclasses of Steps, the user's files, and how the parts become one dict.

Owns the names that the parts' fields have; each part is filled by the module that is called like it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from infra.step import AnyloomError, Step


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """The user's files."""

    lists: Mapping[str, Path]
    """Dataset -> list file."""
    weights: Mapping[str, Path]
    """Name of --weights -> file or directory."""
    prepared: Mapping[str, Path]
    """Suite -> record of its prepared official data."""
    lacking: Mapping[str, str] = field(default_factory=dict)
    """Name of --weights or dataset -> the option, with what it is, of the files that a step cannot do without and that are not given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Source lists and shards."""

    assets: Step | None
    """The demo's packages; None for a recipe that takes nothing from them."""
    lists: Step | None
    """The lists that are made here; None when every list is the user's."""
    manifests: Mapping[str, Step]
    """Group -> manifest_<group>."""
    shards: Mapping[str, Step]
    """Group -> shards_<group>."""
    overlap: Step

    def of(self, *groups: str) -> dict[str, Step]:
        """shards_<group> -> step, of those groups that there are."""
        return {f"shards_{group}": self.shards[group] for group in groups if group in self.shards}


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Frozen weights; None for a part that the recipe does not use."""

    lm: Step | None
    image: Step | None
    """Also of the encoder of videos."""
    audio: Step | None
    text: Step | None
    """Encoder of captions."""
    query: Step | None
    """Encoder of search queries, where no other part holds it."""
    latents: Step | None
    """Autoencoder of images, in a recipe without a decoder of images."""

    @property
    def of_model(self) -> dict[str, Step]:
        """Input name -> step, of what the model is built on."""
        return {f"weights_{name}": step for name in ("lm", "image", "audio") if (step := getattr(self, name)) is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoders:
    """Decoders and the judges of what they make."""

    weights: Mapping[str, Step]
    """Modality -> weights_decoder_<modality>."""
    image_decoder: Step | None
    """The small one that is trained here."""
    judges: Mapping[str, Step]
    """picture_judge and speech_judge, by name."""
    by_modality: Mapping[str, Step]
    """Modality -> its decoder, wherever it comes from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """What frozen encoders say about media and captions."""

    media: Mapping[str, Step]
    """embed_<modality> by name: what training reads."""
    targets: Mapping[str, Step]
    """Caption targets of the decoders, by name."""
    latents: Mapping[str, Step]
    """embed_latents* by name."""
    video_audio: Step | None
    """Features of the audio of videos."""
    text: Step | None
    """embed_text: pooled captions of a recipe with two towers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """The stages and the exported model."""

    states: Mapping[str, Step]
    """Name of a stage on states -> the step with its states."""
    stages: Mapping[str, Step]
    """Name -> step, in training order."""
    two_tower: Step | None
    export: Step | None
    export_early: Step | None
    """The export without the decoder that is trained here: most evaluations need not wait for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Scores and what is made of them; None where there is nothing to score."""

    evaluations: Mapping[str, Step]
    """eval_* by name."""
    history: Step | None
    report: Step | None


def steps_of(*parts: Data | Weights | Decoders | Features | Training | Evaluation) -> dict[str, Step]:
    """Every step of the parts by its name. Raises AnyloomError when two steps have one name."""
    found: dict[str, Step] = {}
    for part in parts:
        for one in fields(part):
            value = getattr(part, one.name)
            for step in value.values() if isinstance(value, Mapping) else [value] if value is not None else []:
                if found.setdefault(step.name, step) is not step:
                    raise AnyloomError(f"two steps are called {step.name} ({found[step.name].run} and {step.run}): leave one of them out of the recipe")
    return found
