"""anyloom recipes, encoders and decoders: what each recipe is made of, what its parts permit, what trains and what it needs.

Owns the words of these commands. Counts and memory come from mmcore.model.sizes by arithmetic, licences from pipelines.dag.licences; no model library is
loaded and nothing is downloaded. Input: names and --set overrides. Output: Answers. Raises AnyloomError for an unknown recipe or key.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from flows.running.answer import Answer
from flows.running.display import Display, table
from infra.step import AnyloomError
from mmcore.config import MODALITIES, TwoTowerSpec, output_spec
from mmcore.decoders import catalogue as decoders
from mmcore.encoders import catalogue as encoders
from mmcore.lm.catalogue import KnownLm, known_lm
from mmcore.model import sizes
from pipelines.dag.given import stages
from pipelines.dag.licences import RANDOM, Part, decoder_parts, encoder_parts, permitted
from pipelines.recipes import RECIPES, get_recipe
from pipelines.recipes.files import function_of
from pipelines.recipes.overrides import described
from pipelines.recipes.recipe import Recipe, model_spec

RECIPE_HEADER = ("recipe", "language model", "encoders", "decoders", "licences", "commercial use", "trains", "GB a GPU")
RECIPE_NOTES = (
    "GB a GPU: estimate for one GPU that holds the whole model, at the rows of a full pass (at most 16) and, in brackets, at one row: frozen LM, 16 bytes a",
    "trained parameter, activations without recomputation, with a denoising loss also its denoisers, less activations (mmcore/model/sizes.py); the largest",
    "stage counts. Nothing of 7B size has been run. A recipe that takes --weights downloads none.",
)
WIDTH = 100
"""Columns of what is printed about recipes."""
DECODER_HEADER = ("weights, where published", "family", "makes", "licence", "commercial", "predicts", "tiny twin")
ENCODER_NOTES = (
    "A twin is random, of the same layout at toy size: --set weights.kind=random --set weights.image=TWIN. Files of your own: --weights image=PATH.",
)
DECODER_NOTES = (
    "A twin is random, of the same layout at toy size. The conditioning that a decoder takes is read from its directory (mmcore/decoders/contract.py).",
)


def recipes(name: str | None, overrides: Mapping[str, Any]) -> Answer:
    """Every recipe on a line; or one in full, whose document is every decision as --set knows it."""
    if name is not None:
        recipe = get_recipe(name, overrides)
        return Answer(described(recipe), lambda: print("\n".join(details(recipe, RECIPES.get(name) or function_of(name)))))
    made = [(name, about(make), recipe_row(make())) for name, make in RECIPES.items()]
    keys = [key.replace(" ", "_") for key in RECIPE_HEADER]
    rows = [{"name": name, "about": text, **dict(zip(keys[1:], row[1:], strict=True))} for name, text, row in made]
    lines = [*(f"{name:<18} {text}" for name, text, _ in made), "", "all of one: anyloom recipes NAME; with --json every decision"]
    return Answer(rows, lambda: print(*lines, sep="\n"))


def about(make: Callable[[], Recipe]) -> str:
    """What a recipe is, in one line: the first one of its docstring."""
    return (inspect.getdoc(make) or "").partition("\n")[0]


def details(recipe: Recipe, make: Callable[[], Recipe]) -> list[str]:
    """Everything about one recipe that is no single setting, for people: parts, licences, what trains, memory, datasets."""
    rows = [*zip(RECIPE_HEADER[1:], recipe_row(recipe)[1:], strict=True)]
    rows.append(("datasets", "\n".join(f"{one.name}: {one.licence}" for one in recipe.datasets)))
    lines = [recipe.name, *(line for part in (inspect.getdoc(make) or "").split("\n\n") for line in textwrap.wrap(" ".join(part.split()), WIDTH)), ""]
    for name, cell in rows:
        for number, line in enumerate(cell.splitlines() or [""]):
            lines += textwrap.wrap(line, WIDTH, initial_indent=f"{'' if number else name:<17}", subsequent_indent=" " * 19, break_on_hyphens=False)
    notes = textwrap.wrap(" ".join(RECIPE_NOTES), WIDTH)
    return [*lines, "", *notes, f"Every decision as JSON: anyloom recipes {recipe.name} --json"]


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
        raise AnyloomError(f"recipe {recipe.name}: the language model {recipe.weights.lm} is in no catalogue: add it to mmcore/lm/catalogue.py")
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


def training(recipe: Recipe, lm: KnownLm) -> list[str]:
    """Every stage in the recipe's order, and below it a line per part that trains with its parameters."""
    if recipe.two_tower is not None:
        return ["two_tower:", f"  towers {human_count(sizes.two_tower(_towers(recipe)))}"]
    spec = model_spec(recipe)
    lines = []
    for name, config in recipe.entries.items():
        lines.append(f"{name}:" if config in stages(recipe) else f"{name}, once it has decoders:")
        lines += [f"  {part} {human_count(count)}" for part, count in sizes.trained(spec, lm, config).items()]
    return lines


def _towers(recipe: Recipe) -> TwoTowerSpec:
    assert recipe.two_tower is not None
    media = tuple((modality, getattr(recipe, modality)) for modality in MODALITIES[1:] if getattr(recipe, modality) is not None)
    return TwoTowerSpec(encoders=media, text=recipe.two_tower.text, shape=recipe.two_tower.shape)


def memory(recipe: Recipe, lm: KnownLm) -> str:
    """GB (10^9 bytes) of the largest stage, at the rows of a full pass and, in brackets, at one row."""
    full, one = (_largest_stage(recipe, lm, rows) for rows in (None, 1))
    return "< 0.1" if full < 0.1 else f"{full:.1f} ({one:.1f})"


def smallest_gb(recipe: Recipe) -> float:
    """GB (10^9 bytes) of the largest stage at one row a pass: what a GPU must have. Raises AnyloomError when the language model is in no catalogue."""
    return _largest_stage(recipe, _lm(recipe), 1)


def _largest_stage(recipe: Recipe, lm: KnownLm, rows: int | None) -> float:
    """rows: of a pass; None: of a full one. 0 for two towers, which need next to nothing."""
    if recipe.two_tower is not None:
        return 0.0
    spec, held = model_spec(recipe), denoisers(recipe)
    chosen = recipe.stages if rows is None else [replace(stage, batch=rows) for stage in recipe.stages]
    return max(sizes.stage_bytes(spec, lm, stage, held) for stage in chosen) / 1e9


def denoisers(recipe: Recipe) -> int:
    """Parameters of the denoisers of the recipe's published decoders, which a denoising loss holds; toys and the small decoder count nothing."""
    return sum(entry.denoiser for _, name in recipe.decoders if (entry := decoders.known(name)) is not None)


def known_encoders() -> Answer:
    """The catalogue of encoder weights."""
    header = ("weights, where published, arch", "kinds", "licence", "commercial", "features", "tiny twin")
    rows = [(f"{e.name}\n  {e.published}\n  {e.arch}", "\n".join(e.kinds), e.licence, e.commercial, e.features, e.tiny) for e in encoders.CATALOGUE]
    return Answer([asdict(entry) for entry in encoders.CATALOGUE], lambda: _print_table(header, rows, ENCODER_NOTES))


def known_decoders() -> Answer:
    """The catalogue of published decoders."""
    rows = [(f"{e.name}\n  {e.published}", e.family, e.modality, e.licence, e.commercial, e.predicts, e.tiny) for e in decoders.CATALOGUE]
    return Answer([asdict(entry) for entry in decoders.CATALOGUE], lambda: _print_table(DECODER_HEADER, rows, DECODER_NOTES))


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> None:
    Display().console.print(table("", header, rows))
    print(*notes, sep="\n")
