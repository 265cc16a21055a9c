"""The part of the DAG that depends on decoders: their weights, caption targets by their text encoders, latents by their autoencoders.

Owns the choice of steps for the recipe's `decoders`, `latents*`, stage 2 and stage 1's generation losses; pipelines.dag.build puts them into the DAG.
Importing this module loads no model library and runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from infra.step import ALL_GPUS, AnyloomError, Step
from mmcore.config import MODALITIES, EncoderSpec, ModelSpec, output_spec
from mmcore.decoders.catalogue import CATALOGUE, known
from mmcore.decoders.contract import read_contract
from mmcore.decoders.projected import check_projector
from pipelines.embed.config import LATENTS, TARGETS, EmbedConfig
from pipelines.recipes.recipe import Recipe, is_last
from pipelines.shards.config import GROUP_MODALITY
from pipelines.training.config import NEEDS_STAGE2, StatesConfig
from pipelines.weights.config import DecoderConfig, ImportConfig, VoiceConfig, WeightsConfig
from pipelines.weights.given_files import given_decoder, given_files

TRAINED = "trained"
"""Name of the decoder that the step image_decoder makes."""
VOICE = "voice"
"""Name of the speaking voice of the assets, a decoder of sounds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SignalInputs:
    """What stage 2 and the states before it read."""

    captions: dict[str, Step]
    """shards_<group> of the captions that ask for a medium."""
    targets: dict[str, Step]
    """Steps of TARGETS."""
    denoised: dict[str, Step]
    """decoder_<modality> and steps of LATENTS; empty without a denoising loss."""


def decoder_names(recipe: Recipe) -> dict[str, str]:
    """modality -> name, of the decoders with weights of their own. Raises AnyloomError for a decoder that does not exist."""
    found = {}
    for modality, name in recipe.decoders:
        if modality not in MODALITIES[1:]:
            raise AnyloomError(f"recipe {recipe.name}: decoders names {modality}: there are decoders of {', '.join(MODALITIES[1:])}")
        if name == TRAINED and (modality != "image" or recipe.image_decoder is None):
            raise AnyloomError(f"recipe {recipe.name}: decoders: {modality} is '{TRAINED}', which is made for image by a recipe with image_decoder only")
        if name == VOICE and (modality != "audio" or recipe.weights.kind != "pretrained"):
            raise AnyloomError(f"recipe {recipe.name}: decoders: {modality} is '{VOICE}', which is of the assets and makes audio: in a recipe of the demo only")
        if name == VOICE:
            found[modality] = name
        elif name != TRAINED:
            entry = known(name)
            if entry is None and name not in {entry.tiny for entry in CATALOGUE}:
                raise AnyloomError(f"recipe {recipe.name}: decoders: no decoder called '{name}' is known for {modality}; `anyloom decoders` lists them")
            if entry is not None and entry.modality != modality:
                raise AnyloomError(f"recipe {recipe.name}: decoders: {name} makes {entry.modality}, not {modality}")
            found[modality] = name
    return found


def untrained(recipe: Recipe) -> tuple[tuple[str, str], ...]:
    """The recipe's decoders but for the one that is made here."""
    return tuple((modality, name) for modality, name in recipe.decoders if name != TRAINED)


def trained_image_decoder(recipe: Recipe, steps: Mapping[str, Step], shards: Mapping[str, Step]) -> dict[str, Step]:
    """image_decoder, picture_judge, eval_pictures; nothing for a recipe without a picture decoder. Each keeps one thread busy, in the background."""
    if recipe.image_decoder is None:
        return {}
    pictures, asked = {"shards_cc3m": shards["cc3m"]}, {"shards_instruct": shards["instruct"]}
    weights = {"weights": steps["weights_text"]}
    decoder = Step(name="image_decoder", run="pipelines.training.image_decoder:run", config=recipe.image_decoder, inputs=weights | pictures, background=True)
    judge = Step(name="picture_judge", run="evals.generation.picture_judge:run", config=recipe.picture_judge, inputs=asked, background=True)
    made = {"image_decoder": decoder, "picture_judge": judge}
    evaluation = Step(name="eval_pictures", run="evals.generation.pictures:run", config=recipe.eval_pictures, inputs=made | pictures | asked, background=True)
    return made | {"eval_pictures": evaluation}


def takes_files(recipe: Recipe) -> tuple[str, ...]:
    """What --weights may give besides the parts of every recipe: published decoders, and the autoencoder of latents without one."""
    published = tuple(f"decoder_{modality}" for modality, name in decoder_names(recipe).items() if known(name))
    return ("latents", *published) if recipe.latents is not None and "image" not in dict(recipe.decoders) else published


def decoder_weights(recipe: Recipe, spec: ModelSpec, own_weights: Mapping[str, Path], assets: Step | None = None) -> dict[str, Step]:
    """modality -> weights_decoder_<modality>; without its files a published one is planned, but does not run. assets: where the demo's voice is.

    Raises AnyloomError for a toy in a recipe with real weights, and for given files that do not fit the output projector.
    """
    steps = {}
    for modality, name in decoder_names(recipe).items():
        step, published = f"weights_decoder_{modality}", known(name)
        if name == VOICE:
            assert assets is not None  # decoder_names: a recipe of kind pretrained
            voice = VoiceConfig(tokens=output_spec(spec, modality).queries)
            steps[modality] = Step(name=step, run="pipelines.weights.voice:run", config=voice, inputs={"assets": assets})
            continue
        if published is None and recipe.weights.kind != "random":
            raise AnyloomError(f"recipe {recipe.name}: decoders: {name} is a random toy; with weights.kind={recipe.weights.kind} name a published decoder")
        given = own_weights.get(f"decoder_{modality}")
        sources = given_decoder(modality, given) if given else {}
        if given:
            projector = output_spec(spec, modality)
            check_projector(read_contract(given), projector.queries, projector.out)
        config = DecoderConfig(kind="given" if published else "random", name=name, modality=modality)
        steps[modality] = Step(name=step, run="pipelines.weights.decoders:run", config=config, sources=sources)
    return steps


def caption_targets(recipe: Recipe, spec: ModelSpec, decoders: Mapping[str, Step], captions: Mapping[str, Step]) -> dict[str, Step]:
    """Caption targets by the text encoders of the decoders with weights of their own, by step name; none where there are no captions of the modality."""
    steps = {}
    for modality, name in decoder_names(recipe).items():
        if not getattr(recipe.tokens, modality) or not captions_of(captions, modality):
            continue
        projector = output_spec(spec, modality)
        target = EncoderSpec(kind="decoder_text", arch=name, width=projector.out, tokens=projector.queries, batch=32, part_rows=1024)
        inputs = {"weights": decoders[modality], **captions_of(captions, modality)}
        sources = spoken_sources(recipe) if name == VOICE else ()
        steps[TARGETS[modality]] = _embed(TARGETS[modality], target, inputs, "pipelines.embed.texts:run", sources)
    return steps


def spoken_sources(recipe: Recipe) -> tuple[str, ...]:
    """The datasets of sounds that stage 2 asks for: those whose captions a voice can say. Empty for a recipe without a voice."""
    groups = {dataset.name: dataset.group for dataset in recipe.datasets}
    named = tuple(name for name, _ in recipe.stage2.mixture if GROUP_MODALITY.get(groups.get(name, "")) == "audio")
    return named if dict(recipe.decoders).get("audio") == VOICE else ()


def state_sources(recipe: Recipe) -> tuple[str, ...]:
    """Datasets whose captions have states: all (empty), or with a voice, of the sounds only those it can say."""
    spoken = spoken_sources(recipe)
    return tuple(d.name for d in recipe.datasets if d.name in spoken or GROUP_MODALITY.get(d.group, "audio") != "audio") if spoken else ()


def states(recipe: Recipe, spec: ModelSpec, name: str, stage2: str, inputs: dict[str, Step]) -> Step:
    """The states that the step `stage2` trains on. The last stage 2 has captions asked for in all of the recipe's ways."""
    config = StatesConfig(
        model=spec,
        requests=recipe.requests if is_last(recipe.stages, stage2) else recipe.first_requests or recipe.requests,
        sources=state_sources(recipe),
        caption_turn=recipe.stage3.caption_turn,
        restate=recipe.restate,
    )
    # revision 3: answers in words are those of the instructions, where there are some, and computed once; requests by their length
    return Step(name=name, run="pipelines.training.states:run_states", config=config, revision=3, inputs=inputs, threads=0, gpus=1, spread=True, isolate=False)


def captions_of(captions: Mapping[str, Step], modality: str) -> dict[str, Step]:
    """The shards_<group> whose captions describe a modality, where there are some."""
    names = {f"shards_{group}" for group, found in GROUP_MODALITY.items() if found == modality}
    return {name: step for name, step in captions.items() if name in names}


def latents(recipe: Recipe, decoders: Mapping[str, Step], captions: Mapping[str, Step], own_weights: Mapping[str, Path]) -> dict[str, Step]:
    """Latents of captioned media by step name (none where no captions of the modality are given); by the decoder's own autoencoder, or for pictures
    without a decoder by that of weights_latents.

    Raises AnyloomError when a recipe with real weights is given none for them.
    """
    steps: dict[str, Step] = {}
    for modality, spec in (("image", recipe.latents), ("video", recipe.latents_video), ("audio", recipe.latents_audio)):
        if spec is None or not captions_of(captions, modality):
            continue
        if spec.kind != f"vae_{modality}":
            raise AnyloomError(f"recipe {recipe.name}: latents of {modality} are of the kind vae_{modality}, not {spec.kind}")
        weights = decoders.get(modality)
        if weights is None and modality != "image":
            raise AnyloomError(f"recipe {recipe.name}: latents_{modality} are made by a decoder: name one for {modality} in decoders")
        if weights is None:
            weights = steps["weights_latents"] = _autoencoder(recipe, spec, own_weights)
        inputs = {"weights": weights, **captions_of(captions, modality)}
        steps[LATENTS[modality]] = _embed(LATENTS[modality], spec, inputs, "pipelines.embed.media:run")
    return steps


def _autoencoder(recipe: Recipe, spec: EncoderSpec, own_weights: Mapping[str, Path]) -> Step:
    """weights_latents: an autoencoder without a decoder."""
    if "latents" in own_weights:
        sources = given_files("latents", (spec,), own_weights["latents"])
        return Step(name="weights_latents", run="pipelines.weights.own_parts:run", config=ImportConfig(arch=spec.arch, specs=(spec,)), sources=sources)
    if recipe.weights.kind == "random":
        return Step(name="weights_latents", run="pipelines.weights.parts:run_image", config=WeightsConfig(kind="random", arch=spec.arch))
    raise AnyloomError(f"{recipe.name}: latents of {spec.arch}: give the autoencoder's directory with --weights latents=DIR")


def _embed(name: str, spec: EncoderSpec, inputs: dict[str, Step], run: str, sources: tuple[str, ...] = ()) -> Step:
    return Step(name=name, run=run, config=EmbedConfig(spec=spec, sources=sources), inputs=inputs, threads=0, gpus=ALL_GPUS, spread=True, isolate=False)


def captioned(recipe: Recipe, stage: str) -> dict[str, str]:
    """Modality -> the last dataset of a stage's mixture whose captions describe it."""
    groups = {dataset.name: dataset.group for dataset in recipe.datasets}
    return {GROUP_MODALITY[groups[name]]: name for name, _ in getattr(recipe, stage).mixture if groups.get(name) in GROUP_MODALITY}


def _check_latents(recipe: Recipe, stage: str, modality: str, dataset: str, steps: Mapping[str, Step], decoders: Mapping[str, Step]) -> None:
    """Raises AnyloomError when a denoising loss has no decoder or latents for a dataset."""
    if getattr(recipe, stage).denoise_loss and (modality not in decoders or LATENTS[modality] not in steps):
        field = "latents" if modality == "image" else f"latents_{modality}"
        remedy = f"set decoders and {field} for {modality}, or leave the dataset out"
        raise AnyloomError(f"recipe {recipe.name}: {stage}.denoise_loss needs a decoder and latents for {dataset}: {remedy}")


def caption_generation_inputs(recipe: Recipe, steps: Mapping[str, Step], decoders: Mapping[str, Step]) -> dict[str, Step]:
    """Targets, decoders and latents of stage 1's generation losses: of the captions whose output projectors stage 2 trains. Nothing without such losses.

    Raises AnyloomError when there are none, stage 2 does not come before, or something is missing.
    """
    config = recipe.stage1
    for other in ("stage2", "stage3"):
        if getattr(recipe, other).generation_loss:
            raise AnyloomError(f"recipe {recipe.name}: {other}.generation_loss is not 0, but only stage1 has generation losses of that kind: set it to 0")
    if not config.generation_loss:
        return {}
    if "stage2" not in recipe.stages[: recipe.stages.index("stage1")]:
        raise AnyloomError(f"recipe {recipe.name}: {NEEDS_STAGE2}")
    if not config.align_loss and not config.denoise_loss:
        raise AnyloomError(f"recipe {recipe.name}: stage1.generation_loss weighs align_loss and denoise_loss, and both are 0: set one, or all three to 0")
    trained = captioned(recipe, "stage2")
    asked = {modality: dataset for modality, dataset in captioned(recipe, "stage1").items() if modality in trained}
    if not asked:
        raise AnyloomError(f"recipe {recipe.name}: stage1.generation_loss: stage1.mixture has no captions of what stage2 trains ({', '.join(trained)})")
    found = {}
    for modality, dataset in asked.items():
        _check_latents(recipe, "stage1", modality, dataset, steps, decoders)
        found[TARGETS[modality]] = steps[TARGETS[modality]]
        if config.denoise_loss:
            found |= {f"decoder_{modality}": decoders[modality], LATENTS[modality]: steps[LATENTS[modality]]}
    return found


def signal_inputs(recipe: Recipe, steps: Mapping[str, Step], decoders: Mapping[str, Step], captions: Mapping[str, Step]) -> SignalInputs:
    """Inputs of stage 2, by the modalities of its mixture. Raises AnyloomError for one that cannot be emitted, or has no targets or latents."""
    asked = captioned(recipe, "stage2")
    pictures = {"image"} if TARGETS["image"] in steps else set()  # known to the states wherever they have targets
    modalities = [modality for modality in MODALITIES[1:] if modality in asked.keys() | pictures]
    for modality, dataset in asked.items():
        if TARGETS[modality] not in steps:
            remedy = f"name a decoder for {modality} in decoders and set tokens.{modality}, or leave the dataset out"
            raise AnyloomError(f"recipe {recipe.name}: stage2.mixture has {dataset}, but nothing makes targets of {modality}: {remedy}")
        _check_latents(recipe, "stage2", modality, dataset, steps, decoders)
    found = SignalInputs(captions={}, targets={}, denoised={})
    for modality in modalities:
        found.captions.update(captions_of(captions, modality))
        found.targets[TARGETS[modality]] = steps[TARGETS[modality]]
        if recipe.stage2.denoise_loss and modality in asked:
            found.denoised.update({f"decoder_{modality}": decoders[modality], LATENTS[modality]: steps[LATENTS[modality]]})
    return found
