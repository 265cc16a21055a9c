"""The tables of `anyloom recipes` and `anyloom decoders`: what each recipe is made of, what its parts permit, what trains and what it needs.

Owns the words of the tables. Counts and memory come from mmcore.sizes by arithmetic, licences from the catalogues; no model library is loaded and nothing is
downloaded. Refuses to judge data: the licence of every dataset is in `anyloom recipes NAME`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from infra.step import AnyloomError
from mmcore import sizes
from mmcore.config import MODALITIES, output_spec
from mmcore.decoders import catalogue as decoders
from mmcore.encoders import catalogue as encoders
from mmcore.lm_catalogue import KnownLm, known_lm
from mmcore.two_tower_config import TwoTowerSpec
from pipelines.own_files import stages
from pipelines.recipe import Recipe
from pipelines.steps import model_spec
from pipelines.steps_decoders import VOICE
from pipelines.weights_config import VOICE_NAME

RECIPE_HEADER = ("recipe", "language model", "encoders", "decoders", "licences", "commercial use", "trains", "GB a GPU")
RECIPE_NOTES = (
    "GB a GPU: estimate for one GPU that holds the whole model, at the rows of a full pass (at most 16) and, in brackets, at one row: frozen LM, 16 bytes a",
    "trained parameter, activations without recomputation (mmcore/sizes.py); the largest stage counts. Nothing of 7B size has been run. A recipe that takes",
    "--weights downloads none. One recipe with every decision, its datasets and their licences: anyloom recipes NAME",
)
DECODER_HEADER = ("weights, where published", "family", "makes", "licence", "commercial", "predicts", "tiny twin")
DECODER_NOTES = (
    "A twin is random, of the same layout at toy size. The conditioning that a decoder takes is read from its directory (mmcore/decoders/contract.py).",
)
RANDOM = "random, from a seed"


@dataclass(frozen=True, slots=True)
class Part:
    """One set of weights that a recipe stands on."""

    name: str
    licence: str
    commercial: str
    """Starts with yes, no, after or unknown."""


def human_count(count: int) -> str:
    """319815680 -> '319.8M'."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.{2 if unit == 'B' else 1}f}{unit}"
    return str(count)


def recipe_row(recipe: Recipe) -> tuple[str, ...]:
    """The cells of one recipe. Raises AnyloomError when its language model is in no catalogue."""
    lm = _lm(recipe)
    media = encoder_parts(recipe)
    made = decoder_parts(recipe)
    parts = [*([] if recipe.two_tower else [Part(lm.name, lm.licence, lm.commercial)]), *(part for _, part in media), *(part for _, part in made)]
    random = recipe.weights.kind == "random"
    licences = [RANDOM] if random else [f"{part.name}: {part.licence}" for part in dict.fromkeys(parts)]
    return (
        recipe.name,
        "none" if recipe.two_tower else f"{lm.name}, {human_count(lm.parameters)}",
        _grouped(media),
        _grouped(made) if made else _conditioning(recipe),
        "\n".join(licences),
        "yes" if random else permitted(parts),
        "\n".join(training(recipe, lm)),
        memory(recipe, lm),
    )


def _lm(recipe: Recipe) -> KnownLm:
    found = known_lm(recipe.weights.lm)
    if found is None:
        raise AnyloomError(f"recipe {recipe.name}: the language model {recipe.weights.lm} is in no catalogue: add it to mmcore/lm_catalogue.py")
    return found


def encoder_parts(recipe: Recipe) -> list[tuple[str, Part]]:
    """(what it encodes, part) of every encoder, the caption targets' text encoder last."""
    found = []
    for modality in MODALITIES[1:]:
        spec = getattr(recipe, modality)
        if spec is not None:
            entry = encoders.known(spec.kind, spec.arch)
            found.append((modality, Part(spec.arch, *_terms(entry))))
    if recipe.two_tower is not None or (recipe.weights.kind == "pretrained" and "stage2" in recipe.stages):
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
            found.append((modality, Part("trained here" if name == "trained" else name, "that of its data", "yes")))
    return found


def _grouped(parts: Iterable[tuple[str, Part]]) -> str:
    names: dict[str, list[str]] = {}
    for what, part in parts:
        names.setdefault(part.name, []).append(what)
    return "\n".join(f"{', '.join(what)}: {name}" for name, what in names.items())


def _conditioning(recipe: Recipe) -> str:
    """What a model without decoders gives in their place."""
    if recipe.two_tower is not None:
        return "none"
    spec = model_spec(recipe)
    out = [(m, output_spec(spec, m)) for m in sizes.MEDIA if getattr(spec.tokens, m)]
    return "\n".join(["conditioning only:", *(f"{m}: {o.queries} x {o.out}" for m, o in out)]) if out else "none: writes text"


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


def training(recipe: Recipe, lm: KnownLm) -> list[str]:
    """Every stage in the recipe's order, and below it a line per part that trains with its parameters."""
    if recipe.two_tower is not None:
        return ["two_tower:", f"  towers {human_count(sizes.two_tower(_towers(recipe)))}"]
    spec = model_spec(recipe)
    lines = []
    for name in recipe.stages:
        lines.append(f"{name}:" if name in stages(recipe) else f"{name}, once it has decoders:")
        lines += [f"  {part} {human_count(count)}" for part, count in sizes.trained(spec, lm, getattr(recipe, name)).items()]
    return lines


def _towers(recipe: Recipe) -> TwoTowerSpec:
    assert recipe.two_tower is not None
    media = tuple((modality, getattr(recipe, modality)) for modality in MODALITIES[1:] if getattr(recipe, modality) is not None)
    return TwoTowerSpec(encoders=media, text=recipe.two_tower.text, shape=recipe.two_tower.shape)


def memory(recipe: Recipe, lm: KnownLm) -> str:
    """GB (10^9 bytes) of the largest stage, at the rows of a full pass and, in brackets, at one row."""
    if recipe.two_tower is not None:
        return "< 0.1"
    spec = model_spec(recipe)
    configs = [getattr(recipe, name) for name in recipe.stages]
    full, one = (max(sizes.stage_bytes(spec, lm, stage) for stage in chosen) / 1e9 for chosen in (configs, [replace(stage, batch=1) for stage in configs]))
    return "< 0.1" if full < 0.1 else f"{full:.1f} ({one:.1f})"


def decoder_rows() -> list[tuple[str, ...]]:
    """A row per published decoder."""
    return [(f"{e.name}\n  {e.published}", e.family, e.modality, e.licence, e.commercial, e.predicts, e.tiny) for e in decoders.CATALOGUE]
