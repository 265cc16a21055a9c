"""Features: what frozen encoders say about the media and captions, computed once and stored.

Input: a Recipe, data, weights and decoders. Output: the steps embed_*, targets* (captions by the decoders' text encoders), embed_latents* (media by the
decoders' autoencoders), embed_text. Raises AnyloomError for an encoder that does not exist as the recipe says, and for latents without a decoder.
"""

from __future__ import annotations

from collections.abc import Mapping

from evals.evaluation import VOICE
from infra.step import ALL_GPUS, AnyloomError, Step
from mmcore.config import output_spec
from mmcore.encoder_config import DecoderText, EncoderConfig, check_encoder
from pipelines.dag.decoders import decoder_names
from pipelines.dag.parts import Data, Decoders, Features, Given, Weights
from pipelines.embed.config import LATENTS, TARGETS, EmbedConfig
from pipelines.recipes.recipe import Recipe, asked_about, caption_targets, encoders, model_spec, spoken_datasets
from pipelines.shards.config import GROUP_MODALITY

CAPTIONS = tuple(GROUP_MODALITY)
"""Groups whose lists are captions of media."""
GROUP_OF = {modality: group for group, modality in GROUP_MODALITY.items()}


def plan_features(recipe: Recipe, given: Given, data: Data, weights: Weights, decoders: Decoders) -> Features:
    """embed_*, targets*, embed_latents*; with two towers also embed_text."""
    media = {step.name: step for modality, _ in encoders(recipe) if (step := _media(recipe, modality, data, weights)) is not None}
    tracks = None
    if recipe.video_audio:
        assert weights.audio is not None
        tracks = _encoded(recipe, "audio", {"weights": weights.audio, **data.of("webvid")}, "embed_video_audio", "pipelines.embed.tracks:run")
    targets: dict[str, Step] = {}
    if weights.text is not None and "cc3m" in data.shards:
        inputs = {"weights": weights.text, **data.of("cc3m")}
        targets["targets"] = Step(name="targets", run="pipelines.embed.targets:run_targets", config=caption_targets(recipe), inputs=inputs)
    if recipe.two_tower is not None:
        assert weights.text is not None
        inputs = {"weights": weights.text, **data.of(*CAPTIONS)}
        text = Step(
            name="embed_text",
            run="pipelines.embed.texts:run",
            config=EmbedConfig(spec=recipe.two_tower.text),
            inputs=inputs,
            threads=0,
            spread=True,
            isolate=False,
        )
        return Features(media=media, targets=targets, latents={}, video_audio=tracks, text=text)
    return Features(
        media=media, targets=targets | _targets(recipe, decoders, data), latents=_latents(recipe, weights, decoders, data), video_audio=tracks, text=None
    )


def captions_of(data: Data, modality: str) -> dict[str, Step]:
    """The shards_<group> whose captions describe a modality, where there are some."""
    return data.of(GROUP_OF[modality])


def _media(recipe: Recipe, modality: str, data: Data, weights: Weights) -> Step | None:
    """embed_<modality>: of its captions, and of the instructions where they show such media. None where there are no such media."""
    asked = ("instruct",) if modality == "image" or data.lists is None or asked_about(recipe, modality) else ()
    seen = data.of(GROUP_OF[modality], *asked)
    opened = weights.audio if modality == "audio" else weights.image
    return _encoded(recipe, modality, {"weights": opened, **seen}) if seen and opened is not None else None


def _encoded(recipe: Recipe, modality: str, inputs: Mapping[str, Step], name: str = "", run: str = "pipelines.embed.media:run") -> Step:
    """embed_<modality>, or another name, with the encoder of the modality."""
    spec: EncoderConfig = getattr(recipe, modality)
    try:
        check_encoder(spec)
    except ValueError as error:
        raise AnyloomError(f"{recipe.name}, encoder of {modality}: {error}") from error
    return _embed(name or f"embed_{modality}", spec, inputs, run)


def _embed(name: str, spec: EncoderConfig, inputs: Mapping[str, Step], run: str, sources: tuple[str, ...] = ()) -> Step:
    return Step(name=name, run=run, config=EmbedConfig(spec=spec, sources=sources), inputs=inputs, threads=0, gpus=ALL_GPUS, spread=True, isolate=False)


def _targets(recipe: Recipe, decoders: Decoders, data: Data) -> dict[str, Step]:
    """Caption targets by the text encoders of the decoders with weights of their own, by step name; none where there are no captions of the modality."""
    steps = {}
    for modality, name in decoder_names(recipe).items():
        if not getattr(recipe.tokens, modality) or not captions_of(data, modality):
            continue
        projector = output_spec(model_spec(recipe), modality)
        spec = DecoderText(arch=name, width=projector.out, tokens=projector.queries, batch=32, part_rows=1024)
        inputs = {"weights": decoders.weights[modality], **captions_of(data, modality)}
        sources = spoken_datasets(recipe) if name == VOICE else ()
        steps[TARGETS[modality]] = _embed(TARGETS[modality], spec, inputs, "pipelines.embed.texts:run", sources)
    return steps


def _latents(recipe: Recipe, weights: Weights, decoders: Decoders, data: Data) -> dict[str, Step]:
    """Latents of captioned media by step name (none where no captions of the modality are given); by the decoder's own autoencoder, or for images without a
    decoder by that of weights_latents."""
    steps: dict[str, Step] = {}
    for modality, spec in (("image", recipe.latents), ("video", recipe.latents_video), ("audio", recipe.latents_audio)):
        if spec is None or not captions_of(data, modality):
            continue
        if spec.kind != f"vae_{modality}":
            raise AnyloomError(f"recipe {recipe.name}: latents of {modality} are of the kind vae_{modality}, not {spec.kind}")
        opened = decoders.by_modality.get(modality) or (weights.latents if modality == "image" else None)
        if opened is None:
            raise AnyloomError(f"recipe {recipe.name}: latents_{modality} are made by a decoder: name one for {modality} in decoders")
        steps[LATENTS[modality]] = _embed(LATENTS[modality], spec, {"weights": opened, **captions_of(data, modality)}, "pipelines.embed.media:run")
    return steps
