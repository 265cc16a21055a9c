"""Training: the stages in the recipe's order and the exported model, or two towers.

Input: a Recipe, data, weights, decoders and features. Output: the steps states*, stage*, export, export_early, two_tower.
Raises AnyloomError for a stage that cannot be trained as the recipe says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from evals.evaluation import TRAINED
from infra.step import ALL_BUT_ONE, ALL_GPUS, AnyloomError, Step
from mmcore.config import MODALITIES, RowsStage, StageConfig, StatesStage, TwoTowerSpec, check_stage
from mmcore.training.stages import stage_spec
from pipelines.dag.features import CAPTIONS, captions_of
from pipelines.dag.licences import Part, exported_parts, permitted
from pipelines.dag.parts import Data, Decoders, Features, Training, Weights
from pipelines.embed.config import LATENTS, TARGETS
from pipelines.recipes.recipe import Recipe, Retrieval, encoders, model_spec, spoken_datasets, states_of
from pipelines.shards.config import GROUP_MODALITY
from pipelines.training.config import NEEDS_OUTPUT_PROJECTORS, RECIPE_FILE, ExportConfig, StatesConfig, TrainConfig


def plan_training(recipe: Recipe, data: Data, weights: Weights, decoders: Decoders, features: Features) -> Training:
    """Every stage reads those before it; the export is the model after all of them."""
    if recipe.two_tower is not None:
        tower = _two_tower(recipe, recipe.two_tower, data, features)
        return Training(states={}, stages={}, two_tower=tower, export=None, export_early=None)
    assert weights.lm is not None
    states: dict[str, Step] = {}
    stages: dict[str, Step] = {}
    for name, config in recipe.entries.items():
        _check(recipe, name, config)
        inputs = {"weights_lm": weights.lm, **stages}
        if isinstance(config, StatesStage):
            asked = _asked_for(recipe, name, config, decoders, features)
            captions = {shard: step for modality in asked for shard, step in captions_of(data, modality).items()}
            states[name] = _states(recipe, name, config, inputs | captions, data, features)
            inputs |= {"states": states[name]} | {TARGETS[modality]: features.targets[TARGETS[modality]] for modality in asked} | captions
            inputs |= _denoised(config, [modality for modality in asked if modality in captioned(recipe, config)], decoders, features)
        else:
            inputs |= {**features.media, **data.of(*CAPTIONS)} | (data.of("instruct") if _asks(recipe, config) else {})
            inputs |= _generated(recipe, name, config, decoders, features) if isinstance(config, RowsStage) else {}
        stages[name] = _stage(recipe, name, config, inputs)
    whole = _export("export", recipe, weights, stages, decoders.by_modality)
    early = None
    if decoders.image_decoder is not None:
        early = _export("export_early", replace(recipe, decoders=untrained(recipe)), weights, stages, decoders.weights)
    return Training(states=states, stages=stages, two_tower=None, export=whole, export_early=early)


def captioned(recipe: Recipe, config: StageConfig) -> dict[str, str]:
    """Modality -> the last dataset of a stage's mixture whose captions describe it."""
    groups = {dataset.name: dataset.format for dataset in recipe.datasets}
    return {GROUP_MODALITY[groups[name]]: name for name, _ in config.mixture if groups.get(name) in GROUP_MODALITY}


def untrained(recipe: Recipe) -> tuple[tuple[str, str], ...]:
    """The recipe's decoders but for the one that is trained here."""
    return tuple((modality, name) for modality, name in recipe.decoders if name != TRAINED)


def _check(recipe: Recipe, name: str, config: StageConfig) -> None:
    """Raises AnyloomError for settings that no stage, or not this one, can be trained with."""
    try:
        check_stage(config)
    except ValueError as error:
        raise AnyloomError(f"recipe {recipe.name}: {error}") from error
    if isinstance(config, RowsStage) and config.generation_loss and stage_spec(config.stage).lora:
        raise AnyloomError(f"recipe {recipe.name}: {name}.generation_loss is not 0, but only a stage without LoRA has generation losses: set it to 0")


def _stage(recipe: Recipe, name: str, config: StageConfig, inputs: Mapping[str, Step]) -> Step:
    last = name == list(recipe.entries)[-1]
    model = model_spec(recipe)
    drops = stage_spec(config.stage).lora and model.lora.dropout > 0
    return Step(
        name=name,
        run="pipelines.training.train:run",
        config=TrainConfig(model=model, stage=config),
        # 2: losses by modality; 3: media in their places, names in texts are words, no question twice in a row of questions; 4: rows of equal text drop others
        revision=4 if drops else 3,
        inputs=inputs,
        threads=ALL_BUT_ONE if recipe.image_decoder is not None and not last else 0,  # the decoder is trained beside all but the last
        gpus=ALL_GPUS,
        isolate=False,
    )


def _asks(recipe: Recipe, config: StageConfig) -> bool:
    """Whether a stage on rows reads the instructions: for its mixture, or because LoRA is tuned on them."""
    instructions = {d.name for d in recipe.datasets if d.format == "instruct"}
    return stage_spec(config.stage).lora or any(dataset in instructions for dataset, _ in config.mixture)


def _asked_for(recipe: Recipe, name: str, config: StatesStage, decoders: Decoders, features: Features) -> list[str]:
    """The modalities that a stage on states reads captions of: those of its mixture, and images wherever they have targets.

    Raises AnyloomError for one that cannot be emitted, or has no targets or latents.
    """
    asked = captioned(recipe, config)
    for modality, dataset in asked.items():
        if TARGETS[modality] not in features.targets:
            remedy = f"name a decoder for {modality} in decoders and set tokens.{modality}, or leave the dataset out"
            raise AnyloomError(f"recipe {recipe.name}: {name}.mixture has {dataset}, but nothing makes targets of {modality}: {remedy}")
        _check_latents(recipe, name, config, modality, dataset, decoders, features)
    known = {"image"} if TARGETS["image"] in features.targets else set()
    return [modality for modality in MODALITIES[1:] if modality in asked.keys() | known]


def _states(recipe: Recipe, name: str, config: StatesStage, inputs: dict[str, Step], data: Data, features: Features) -> Step:
    """The states that a stage trains on: of its captions, asked for in as many ways as it says."""
    read = inputs | ({**data.of("instruct"), **features.media} if config.requests > 1 and "instruct" in data.shards else {})
    made = StatesConfig(
        model=model_spec(recipe),
        requests=config.requests,
        sources=_state_sources(recipe),
        caption_turn=recipe.caption_turn,
        restate=recipe.restate,
    )
    # revision 3: answers in words are those of the instructions, where there are some, and computed once; requests by their length. 4: media in their places
    return Step(
        name=states_of(name),
        run="pipelines.training.states:run_states",
        config=made,
        revision=4,
        inputs=read,
        threads=0,
        gpus=1,
        spread=True,
        isolate=False,
    )


def _state_sources(recipe: Recipe) -> tuple[str, ...]:
    """Datasets whose captions have states: all (empty), or with a voice, of the audio clips only those it can say."""
    spoken = spoken_datasets(recipe)
    return tuple(d.name for d in recipe.datasets if d.name in spoken or GROUP_MODALITY.get(d.format, "audio") != "audio") if spoken else ()


def _denoised(config: RowsStage | StatesStage, modalities: list[str], decoders: Decoders, features: Features) -> dict[str, Step]:
    """decoder_<modality> and latents of a denoising loss; nothing without one."""
    if not config.denoise_loss:
        return {}
    opened = {f"decoder_{modality}": decoders.by_modality[modality] for modality in modalities}
    return opened | {LATENTS[modality]: features.latents[LATENTS[modality]] for modality in modalities}


def _check_latents(recipe: Recipe, name: str, config: RowsStage | StatesStage, modality: str, dataset: str, decoders: Decoders, features: Features) -> None:
    """Raises AnyloomError when a denoising loss has no decoder or latents for a dataset."""
    if config.denoise_loss and (modality not in decoders.by_modality or LATENTS[modality] not in features.latents):
        field = "latents" if modality == "image" else f"latents_{modality}"
        remedy = f"set decoders and {field} for {modality}, or leave the dataset out"
        raise AnyloomError(f"recipe {recipe.name}: {name}.denoise_loss needs a decoder and latents for {dataset}: {remedy}")


def _generated(recipe: Recipe, name: str, config: RowsStage, decoders: Decoders, features: Features) -> dict[str, Step]:
    """Targets, decoders and latents of generation losses: of the captions whose output projectors an earlier stage trains. Nothing without such losses.

    Raises AnyloomError when there are none, no such stage comes before, or something is missing.
    """
    if not config.generation_loss:
        return {}
    order = list(recipe.entries)
    before = {other: stage for other, stage in recipe.entries_of(StatesStage).items() if order.index(other) < order.index(name)}
    if not before:
        raise AnyloomError(f"recipe {recipe.name}: {name}: {NEEDS_OUTPUT_PROJECTORS}")
    if not config.align_loss and not config.denoise_loss:
        raise AnyloomError(f"recipe {recipe.name}: {name}.generation_loss weighs align_loss and denoise_loss, and both are 0: set one, or all three to 0")
    trained = {modality for stage in before.values() for modality in captioned(recipe, stage)}
    asked = {modality: dataset for modality, dataset in captioned(recipe, config).items() if modality in trained}
    if not asked:
        raise AnyloomError(
            f"recipe {recipe.name}: {name}.generation_loss: {name}.mixture has no captions of what {', '.join(before)} trains ({', '.join(sorted(trained))})"
        )
    for modality, dataset in asked.items():
        _check_latents(recipe, name, config, modality, dataset, decoders, features)
    return {TARGETS[modality]: features.targets[TARGETS[modality]] for modality in asked} | _denoised(config, list(asked), decoders, features)


def _export(name: str, recipe: Recipe, weights: Weights, stages: Mapping[str, Step], decoders: Mapping[str, Step]) -> Step:
    """The recipe's model as one directory. stages: in training order; decoders: modality -> step."""
    parts = exported_parts(recipe)
    use = permitted(Part(*terms) for _, *terms in parts)
    config = ExportConfig(
        model=model_spec(recipe),
        stages=tuple(stages),
        licences=parts,
        commercial_use=use,
        caption_turn=recipe.caption_turn,
        sampling=_sampling(recipe),
    )
    inputs = {**weights.of_model, **{f"decoder_{m}": step for m, step in decoders.items()}, **stages}
    sources = {RECIPE_FILE: Path(recipe.file)} if recipe.file else {}
    return Step(name=name, run="pipelines.training.export:run", config=config, inputs=inputs, sources=sources)


def _sampling(recipe: Recipe) -> tuple[tuple[str, int, float], ...]:
    """The small decoder is used as it is judged."""
    judged = recipe.eval_pictures
    return tuple((modality, judged.steps, judged.guidance) for modality, name in recipe.decoders if name == TRAINED)


def _two_tower(recipe: Recipe, towers: Retrieval, data: Data, features: Features) -> Step:
    assert features.text is not None
    spec = TwoTowerSpec(encoders=encoders(recipe), text=towers.text, shape=towers.shape)
    return Step(
        name="two_tower",
        run="pipelines.training.train:run",
        config=TrainConfig(model=spec, stage=towers.stage),
        inputs={**features.media, "embed_text": features.text, **data.of(*CAPTIONS)},
        threads=0,
        gpus=ALL_GPUS,
        isolate=False,
    )
