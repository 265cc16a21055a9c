"""Features: carried out of pipelines/dag/build.py."""

from __future__ import annotations

from infra.step import ALL_GPUS, AnyloomError, Step
from mmcore.config import EncoderSpec, check_encoder, output_spec
from pipelines.embed.config import EmbedConfig, TargetsConfig
from pipelines.recipes.recipe import Recipe, model_spec


def _add_embed(recipe: Recipe, steps: dict[str, Step], modality: str, inputs: dict[str, Step], name: str = "", run: str = "pipelines.embed.media:run") -> Step:
    """embed_<modality>, or another name, with the encoder of the modality."""
    spec: EncoderSpec = getattr(recipe, modality)
    name = name or f"embed_{modality}"
    try:
        check_encoder(spec)
    except ValueError as error:
        raise AnyloomError(f"{recipe.name}, encoder of {modality}: {error}") from error
    steps[name] = Step(name=name, run=run, config=EmbedConfig(spec=spec), inputs=inputs, threads=0, gpus=ALL_GPUS, spread=True, isolate=False)
    return steps[name]


def _targets(recipe: Recipe) -> TargetsConfig:
    image = output_spec(model_spec(recipe), "image")
    return TargetsConfig(width=image.out, tokens=image.queries)
