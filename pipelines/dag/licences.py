"""Which weights a recipe stands on, under which licences, and what all of them together permit.

Owns the look-up in the registries (mmcore's catalogues of language models, encoders and decoders) and the one line that sums it up; no model library is
loaded. Input: a Recipe; output: Parts. The licence of every dataset is in the recipe.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from evals.evaluation import TRAINED, VOICE
from mmcore.config import MODALITIES, StatesStage
from mmcore.decoders import catalogue as decoders
from mmcore.encoders import catalogue as encoders
from mmcore.lm.catalogue import known_lm
from pipelines.recipes.recipe import Recipe
from pipelines.weights.config import VOICE_NAME

RANDOM = "random, from a seed"
ExportedPart = tuple[str, str, str, str]
"""(part, name, licence, commercial use) of one part of an export: lm, image, audio or decoder_<modality>."""


@dataclass(frozen=True, slots=True)
class Part:
    """One set of weights that a recipe stands on."""

    name: str
    licence: str
    commercial: str
    """Starts with yes, no, after or unknown."""


def encoder_parts(recipe: Recipe) -> list[tuple[str, Part]]:
    """(what it encodes, part) of every encoder, the caption targets' text encoder last."""
    found = []
    for modality in MODALITIES[1:]:
        spec = getattr(recipe, modality)
        if spec is not None:
            entry = encoders.known(spec.kind, spec.arch)
            found.append((modality, Part(spec.arch, *_terms(entry))))
    if recipe.two_tower is not None or (recipe.weights.kind == "pretrained" and recipe.entries_of(StatesStage)):
        found.append(("captions", Part(recipe.weights.text, *_terms(next((e for e in encoders.CATALOGUE if e.name == recipe.weights.text), None)))))
    return found


def _terms(entry: encoders.KnownWeights | None) -> tuple[str, str]:
    return (entry.licence, entry.commercial) if entry else (encoders.UNKNOWN_LICENCE, "unknown")


def decoder_parts(recipe: Recipe) -> list[tuple[str, Part]]:
    """(modality, part) of every decoder: published weights, the one that is trained here, or a toy."""
    found = []
    for modality, name in recipe.decoders if recipe.two_tower is None else ():
        entry = decoders.known(VOICE_NAME if name == VOICE else name)
        if entry is not None:
            found.append((modality, Part(entry.name, entry.licence, entry.commercial)))
        else:
            found.append((modality, Part("trained here" if name == TRAINED else name, "that of its data", "yes")))
    return found


def permitted(parts: Iterable[Part]) -> str:
    """Commercial use of all parts together: the strictest part decides, conditions are named."""
    distinct = list(dict.fromkeys(parts))
    refusing = list(dict.fromkeys(part.name for part in distinct if part.commercial.startswith("no")))
    if refusing:
        return f"no: {', '.join(refusing)}"
    unknown = [part.name for part in distinct if part.commercial.startswith("unknown")]
    if unknown:
        return f"unknown: {', '.join(unknown)}"
    bound = [f"{part.name}: {part.commercial}" for part in distinct if part.commercial != "yes"]
    return "; ".join(bound) or "yes"


def exported_parts(recipe: Recipe) -> tuple[ExportedPart, ...]:
    """Every part of an export of the recipe; of random weights without a look-up, since nobody's licence holds for them."""
    entry = known_lm(recipe.weights.lm)
    lm = Part(entry.name, entry.licence, entry.commercial) if entry else Part(recipe.weights.lm, encoders.UNKNOWN_LICENCE, "unknown")
    media = [(what, part) for what, part in encoder_parts(recipe) if what in ("image", "audio")]
    found = [("lm", lm), *media, *((f"decoder_{modality}", part) for modality, part in decoder_parts(recipe))]
    if recipe.weights.kind == "random":
        found = [(what, Part(f"{part.name}, random weights", "Apache-2.0", "yes")) for what, part in found]
    return tuple((what, part.name, part.licence, part.commercial) for what, part in found)
