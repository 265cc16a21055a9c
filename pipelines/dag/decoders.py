"""Decoders: what turns the model's conditioning into media, and the judges of what they make.

Input: a Recipe, the user's files, data and weights. Output: the steps weights_decoder_*, image_decoder, picture_judge, speech_judge.
Raises AnyloomError for a decoder that does not exist or does not fit the recipe.
"""

from __future__ import annotations

from evals.evaluation import TRAINED, VOICE
from infra.step import AnyloomError, Step
from mmcore.config import MODALITIES, output_spec
from mmcore.decoders.catalogue import CATALOGUE, known
from mmcore.decoders.contract import read_contract
from mmcore.decoders.projected import check_projector
from pipelines.dag.parts import Data, Decoders, Given, Weights
from pipelines.recipes.recipe import Recipe, model_spec
from pipelines.weights.config import DecoderConfig, VoiceConfig, WeightsConfig
from pipelines.weights.given_files import given_decoder


def decoder_names(recipe: Recipe) -> dict[str, str]:
    """modality -> name, of the decoders with weights of their own. Raises AnyloomError for a decoder that does not exist."""
    found = {}
    for modality, name in recipe.decoders:
        if modality not in MODALITIES[1:]:
            raise AnyloomError(f"recipe {recipe.name}: decoders names {modality}: there are decoders of {', '.join(MODALITIES[1:])}")
        if name == TRAINED and (modality != "image" or recipe.image_decoder is None):
            raise AnyloomError(
                f"recipe {recipe.name}: decoders: '{TRAINED}' exists for image only, in a recipe that sets image_decoder; not for {modality} here"
            )
        if name == VOICE and (modality != "audio" or recipe.weights.kind != "pretrained"):
            raise AnyloomError(
                f"recipe {recipe.name}: decoders: '{VOICE}' is the demo's speech decoder; use it for audio, in a recipe with weights.kind=pretrained"
            )
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


def plan_decoders(recipe: Recipe, given: Given, data: Data, weights: Weights) -> Decoders:
    """weights_decoder_*, image_decoder and the judges; nothing for a recipe with two towers."""
    if recipe.two_tower is not None:
        return Decoders(weights={}, image_decoder=None, judges={}, by_modality={})
    own = {modality: _weights(recipe, modality, name, given, data) for modality, name in decoder_names(recipe).items()}
    trained, judges = None, {}
    if recipe.image_decoder is not None:
        assert weights.text is not None  # decoder_names: own recipes have no decoder that is trained here
        inputs = {"weights": weights.text, **data.of("cc3m")}
        trained = Step(name="image_decoder", run="pipelines.training.image_decoder:run", config=recipe.image_decoder, inputs=inputs, background=True)
        asked = data.of("instruct")
        judges["picture_judge"] = Step(
            name="picture_judge", run="evals.generation.picture_judge:run", config=recipe.picture_judge, inputs=asked, background=True
        )
    if ("audio", VOICE) in recipe.decoders:
        judges["speech_judge"] = _speech_judge(recipe, data)
    made = {modality: trained for modality, name in recipe.decoders if name == TRAINED and trained is not None}
    return Decoders(weights=own, image_decoder=trained, judges=judges, by_modality=own | made)


def _weights(recipe: Recipe, modality: str, name: str, given: Given, data: Data) -> Step:
    """weights_decoder_<modality>; without its files a published one is planned, but does not run."""
    step, published, projector = f"weights_decoder_{modality}", known(name), output_spec(model_spec(recipe), modality)
    if name == VOICE:
        assert data.assets is not None  # decoder_names: a recipe of kind pretrained
        return Step(name=step, run="pipelines.weights.voice:run", config=VoiceConfig(tokens=projector.queries), inputs={"assets": data.assets})
    if published is None and recipe.weights.kind != "random":
        raise AnyloomError(f"recipe {recipe.name}: decoders: {name} is a random toy; with weights.kind={recipe.weights.kind} name a published decoder")
    files = given.weights.get(f"decoder_{modality}")
    sources = given_decoder(modality, files) if files else {}
    if files:
        check_projector(read_contract(files), projector.queries, projector.out)
    config = DecoderConfig(kind="given" if published else "random", name=name, modality=modality)
    needs = given.lacking.get(f"decoder_{modality}", "")
    return Step(name=step, run="pipelines.weights.decoders:run", config=config, sources=sources, needs=needs)


def _speech_judge(recipe: Recipe, data: Data) -> Step:
    assert data.assets is not None
    config = WeightsConfig(kind=recipe.weights.kind, arch="whisper-tiny.en")
    return Step(name="speech_judge", run="pipelines.weights.speech_judge:run", config=config, inputs={"assets": data.assets}, background=True)
